"""`stillroom report RUN...`: several runs on one page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.cli import main
from stillroom.engine.report.files import write_report
from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.measure import Footprint

LABELS = np.arange(40) % 2


def finished(folder: Path, scores: dict[str, float], *, ids: int = 0, **settings: Any) -> Path:
    """A run's folder as the Lab leaves it: three seeds of each arm, of which so many samples are right."""
    arms: dict[str, list[StageResult]] = {}
    for arm, score in scores.items():
        for seed in (0,) if arm == "teacher" else (0, 1, 2):
            right = round((score + seed) / 100 * len(LABELS))
            predicted = np.where(np.arange(len(LABELS)) < right, LABELS, 1 - LABELS)
            stage = folder / f"seed{seed}" / arm
            stage.mkdir(parents=True)
            np.savez(stage / "details.npz", ids=np.arange(len(LABELS)) + ids, labels=LABELS, predicted=predicted)
            cost = Footprint(1000 * (1 + len(arms)), 10_000 * (1 + len(arms)), 0.1, 4000)
            top1 = 100 * right / len(LABELS)
            result = StageResult(arm, seed, {"top1": top1}, {"top1": top1, "epoch": 1}, [], cost, 1.0, 3, arm, folder=f"seed{seed}/{arm}")
            arms.setdefault(arm, []).append(result)
    given = {"data": "digits", "epochs": 3, "out": str(folder), **settings}
    write_report(Report(folder.name, folder.name, arms, baseline="alone", command=f"stillroom run {folder.name}", settings=given), folder)
    return folder


def test_runs_stand_on_one_page_with_gains_and_what_is_shared_stands_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("kd"), {"teacher": 90, "alone": 50, "distilled": 70})
    finished(Path("dkd"), {"teacher": 90, "alone": 50, "distilled": 75}, epochs=6)
    assert main(["report", "kd", "soft=dkd", "--out", "page"]) == 0
    assert "report: page/report.html" in capsys.readouterr().out
    found = json.loads(Path("page/metrics.json").read_text())
    assert list(found["stages"]) == ["teacher", "alone", "kd: distilled", "soft: distilled"]
    assert (found["teacher"], found["baseline"]) == ("teacher", "alone")
    assert found["gains"]["soft: distilled"]["mean"] == pytest.approx(25)
    assert found["gains"]["soft: distilled"]["images"] == len(LABELS)
    assert "--epochs: 3 in kd, 6 in soft." in found["notes"]
    page = Path("page/report.html").read_text()
    assert "What it costs" in page
    assert "top-1 (%) against multiply-adds (M)" in page


def test_runs_of_before_that_do_not_say_where_their_stages_are_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("new"), {"alone": 50, "distilled": 70})
    old = finished(Path("old"), {"alone": 50, "distilled": 75}, epochs=6) / "metrics.json"
    found = json.loads(old.read_text())
    for stages in found["stages"].values():
        for stage in stages:
            del stage["folder"]
    old.write_text(json.dumps(found))
    assert main(["report", "new", "old", "--out", "page"]) == 0
    assert json.loads(Path("page/metrics.json").read_text())["stages"]["old: distilled"][0]["metrics"]["top1"] == 75


def test_students_alone_of_two_lengths_are_two_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("short"), {"alone": 50, "distilled": 70})
    finished(Path("long"), {"alone": 60, "distilled": 75})
    assert main(["report", "short", "long"]) == 0
    found = json.loads(Path("runs/report/metrics.json").read_text())
    assert list(found["stages"]) == ["alone", "short: distilled", "long: alone", "long: distilled"]


@pytest.mark.parametrize(
    ("runs", "more", "message"),
    [
        (["kd", "elsewhere"], [], "elsewhere with data cifar10:x, where kd has digits"),
        (["kd", "others"], [], "others, measured on other samples than kd"),
        (["kd", "none"], [], "none, expected the folder of a finished run"),
        (["kd", "broken"], [], "which cannot be read"),
        (["kd", "kd"], [], "expected a name of its own, such as kd2=kd: kd is called kd too"),
        (["kd"], ["--out", "kd"], "kd, which holds a page already"),
    ],
)
def test_what_cannot_be_joined_is_refused_and_nothing_is_written(
    runs: list[str], more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Path("kd"), {"alone": 50, "distilled": 70})
    finished(Path("elsewhere"), {"alone": 50, "distilled": 70}, data="cifar10:x")
    finished(Path("others"), {"alone": 50, "distilled": 70}, ids=7)
    Path("broken").mkdir()
    Path("broken/metrics.json").write_text("{")
    before = sorted(Path().rglob("*"))
    assert main(["report", *runs, *(more or ["--out", "page"])]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_file_in_the_way_of_the_page_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "run", {"alone": 90.0})
    (tmp_path / "notes.txt").write_text("here first")
    assert main(["report", str(run), "--out", str(tmp_path / "notes.txt/page")]) == 2
    assert "notes.txt/page: got Not a directory, expected a path that can be written to" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / ("x" * 300))]) == 2
    assert "File name too long" in capsys.readouterr().err
