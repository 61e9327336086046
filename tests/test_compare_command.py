"""`stillroom compare` as people meet it: equal terms, what is reused, what fails, what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from stillroom.cli import main
from stillroom.commands.compare import arms_of, run
from stillroom.engine.lab import Lab
from stillroom.errors import InputError, StillroomError

SMALL = ("--epochs", "2", "--data", "digits", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu")


def compare(out: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command; answers what it wrote to `metrics.json`."""
    words = [*arguments, *SMALL, "--out", str(out)]
    run(words, f"stillroom compare {shlex.join(words)}")
    loaded: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return loaded


def record(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "stage.json").read_text())
    return loaded


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are trained from here on."""
    names: list[str] = []
    train = Lab._train

    def watched(lab: Lab, *arguments: Any) -> Any:
        names.append(f"{arguments[-1]}/{lab.seed}")
        return train(lab, *arguments)

    monkeypatch.setattr(Lab, "_train", watched)
    return names


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "run"
    compare(out, "kd", "dkd", "--seeds", "2")
    return out


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A finished comparison of kd and dkd with two seeds, to do with as one likes."""
    return Path(shutil.copytree(finished_once, tmp_path / "finished"))


def test_table_page_and_metrics_hold_every_arm_and_the_paired_differences(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = compare(finished, "kd", "dkd", "--seeds", "2")
    assert list(metrics["summary"]) == ["teacher", "alone", "kd", "dkd"]
    assert (metrics["baseline"], metrics["reference"], metrics["failed"]) == ("alone", "kd", {})
    top1 = {arm: [stage["metrics"]["top1"] for stage in stages] for arm, stages in metrics["stages"].items()}
    assert metrics["differences"]["dkd"]["per_seed"] == {str(s): top1["dkd"][s] - top1["kd"][s] for s in range(2)}
    assert metrics["gains"]["kd"]["per_seed"] == {str(s): top1["kd"][s] - top1["alone"][s] for s in range(2)}
    assert all("agreement" in stage["metrics"] for stage in metrics["stages"]["dkd"])
    html = (finished / "report.html").read_text()
    for text in ("above alone, points", "above kd, points", "Equal terms", "same initial weights", "2 epochs for each", "Class by class"):
        assert text in html
    assert html.count('<th scope="row">') >= 4 * 2 + 3
    table = capsys.readouterr().out
    for text in ("above alone,", "above kd,", "│ dkd", "95 % intervals"):
        assert text in table


def test_terms_are_equal(finished: Path) -> None:
    for seed in range(2):
        kd, dkd, alone = (record(finished / f"seed{seed}/{name}")["fingerprint"] for name in ("kd", "dkd", "alone"))
        assert kd["teacher"] == dkd["teacher"]
        for name in ("initial weights", "data", "epochs", "lr", "optimizer", "seed", "batch_size"):
            assert kd[name] == dkd[name] == alone[name]
    first, second = (record(finished / f"seed{seed}/kd")["fingerprint"] for seed in range(2))
    assert first["initial weights"] != second["initial weights"]
    assert first["teacher"] == second["teacher"]


def test_numbers_are_those_of_the_method_s_own_run(finished: Path, tmp_path: Path) -> None:
    assert main(["run", "kd", *SMALL, "--out", str(tmp_path / "run")]) == 0
    alone = json.loads((tmp_path / "run/metrics.json").read_text())["stages"]
    compared = json.loads((finished / "metrics.json").read_text())["stages"]
    for mine, theirs in (("teacher", "teacher"), ("alone", "alone"), ("kd", "distilled")):
        assert compared[mine][0]["metrics"] == alone[theirs][0]["metrics"]


def test_again_runs_nothing(finished: Path, trained: list[str]) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    for jobs in ("1", "2"):
        assert compare(finished, "kd", "dkd", "--seeds", "2", "--jobs", jobs)["stages"] == before["stages"]
    assert trained == []


def test_methods_seeds_and_options_are_added_to_what_is_there(finished: Path, trained: list[str]) -> None:
    more = compare(finished, "kd", "soft=kd", "dot:dkd", "--seeds", "2", "--options.soft", "{temperature: 2}")
    assert trained == [f"{stage}/{seed}" for seed in range(2) for stage in ("kd,temperature=2", "dot+dkd")]
    assert list(more["summary"]) == ["teacher", "alone", "kd", "soft", "dot:dkd"]
    assert record(finished / "seed1/kd,temperature=2")["fingerprint"]["temperature"] == 2
    trained.clear()
    three = compare(finished, "dkd", "kd", "--seeds", "3")
    assert trained == ["alone/2", "dkd/2", "kd/2"]
    assert three["reference"] == "dkd"
    assert three["summary"]["kd"]["seeds"] == [0, 1, 2]
    trained.clear()
    again = compare(finished, "kd", "--options", "{kd: {temperature: 2.0}}")  # under another name, but trained before
    assert trained == []
    assert again["stages"]["kd"][0]["metrics"] == more["stages"]["soft"][0]["metrics"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_fails_is_a_row_with_its_reason(finished: Path, jobs: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "metrics.json").read_text())["stages"]
    for name in ("seed0/dkd", "seed0/alone"):
        shutil.rmtree(finished / name)  # trained anew, with two jobs in another process: the same numbers must come out
    options = "{crd: {student_layer: nope}, boom: {kd_weight: 1.0e+38}}"
    metrics = compare(finished, "kd", "crd", "boom=kd", "supervised", "dkd", "--seeds", "2", "--options", options, "--jobs", jobs)
    assert list(metrics["failed"]) == ["crd", "boom", "supervised"]
    assert "nope" in metrics["failed"]["crd"]
    assert "not finite" in metrics["failed"]["boom"]
    assert "the arm `alone`" in metrics["failed"]["supervised"]
    assert list(metrics["stages"]) == ["teacher", "alone", "kd", "dkd"]
    for arm, stages in metrics["stages"].items():
        assert [stage["metrics"] for stage in stages] == [stage["metrics"] for stage in before[arm]]
    html = (finished / "report.html").read_text()
    assert html.count('<span class="down">failed</span>') == 3
    assert "not finite" in html
    said = capfd.readouterr()
    assert "│ boom" in said.out
    assert "boom failed" in said.out
    assert "Traceback" not in said.err
    if jobs == "2":
        assert "alone, seed 0: top1" in said.out
        assert "epoch 1/2" in (finished / "logs/dkd-seed0.txt").read_text()


def test_with_no_method_left_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match="temperature") as caught:
        compare(tmp_path / "early", "kd", "--options.kd", "{temperature: 0}")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "early").exists()
    with pytest.raises(StillroomError, match=r"no method succeeded: kd: .*not finite") as caught:
        compare(tmp_path / "late", "kd", "--options.kd", "{kd_weight: 1.0e+38}")
    assert caught.value.exit_code == 1
    assert "failed" in (tmp_path / "late/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "METHODS: got nothing, expected some of kd, dkd"),
        ("kdd", "METHODS: got kdd, expected one of the methods that `stillroom list` shows, such as kd, "),
        ("kd bckd", r"METHODS: got kd \(classification\) and bckd \(detection\), expected methods of one task"),
        ("kd kd", "METHODS: got kd twice"),
        ("kd other=kd", "METHODS: got kd and other, which are the same"),
        ("dot dot:kd", "METHODS: got dot and dot:kd, which are the same"),
        ("kd alone=dkd", "neither alone nor teacher"),
        ("kd ../../x=dkd", "a name of letters"),
        ("kd:dkd", "METHODS: got kd:dkd, expected kd alone"),
        ("dot:dkdd", "METHODS: got dkdd"),
        ("kd --options.kd '{temprature: 2}'", "--options.kd: got temprature, expected .*temperature"),
        ("kd --options.kd '{temperature: hot}'", "--options.kd.temperature: got hot, expected a number"),
        ("kd --options.kd 3", "--options.kd: got 3, expected a mapping"),
        ("kd --options.dkd '{beta: 3}'", "--options: got dkd, expected .*: kd"),
        ("kd --jobs 0", "--jobs: got 0"),
        ("kd --jobs 2 --devices 2", "--jobs: got 2, expected 1"),
        ("kd --student stillroom/nonet", "--student: got stillroom/nonet"),
        ("kd --teacher nowhere/nonet", "--teacher: got nowhere/nonet"),
        ("kd --preset papr", "--preset: got papr"),
        ("kd --epoch 3", "options: got --epoch, .*--epochs"),
    ],
)
def test_wrong_input_is_said_before_anything_runs(tmp_path: Path, words: str, says: str) -> None:
    with pytest.raises(StillroomError, match=says) as caught:
        run([*shlex.split(words), *SMALL[2:], "--out", str(tmp_path / "run")], "")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_other_data_or_plan_in_the_same_folder_are_refused(finished: Path) -> None:
    with pytest.raises(InputError, match=r"--out: .*--epochs was 2, now 3"):
        run(["kd", *SMALL, "--epochs", "3", "--out", str(finished)], "")


def test_its_config_works_as_a_config(finished: Path, trained: list[str]) -> None:
    run(["--config", str(finished / "config.yaml")], "")
    assert trained == []


def test_presets_reach_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    crd, dot, dkd = arms_of(["crd", "dot:dkd", "dkd"], {"dot:dkd": {"host_options": {"beta": 2}}}, "paper:imagenet")
    assert crd.options["negatives"] == 16384
    assert dkd.options["temperature"] == 1.0
    assert dot.options["delta"] == 0.09
    assert dot.options["host_options"] == {"alpha": 1.0, "beta": 2, "temperature": 1.0, "warmup": 1}  # dkd's, not those of dot's own host
    plain, own = arms_of(["dot", "kd"], {"kd": {"temperature": 4}})
    assert plain.options["delta"] == 0.05  # as in `stillroom run dot`
    assert (plain.stage, own.stage) == ("dot", "kd")  # a default that is typed out changes nothing


def test_arms_of_the_small_job_have_its_options() -> None:
    (named,), (small,) = arms_of(["orc"], {}), arms_of(["orc"], {}, None)
    assert (named.options["group"], small.options["group"]) == ("stillroom/convnet12,stillroom/convnet9", "stillroom/convnet16")
    (typed,) = arms_of(["orc"], {"orc": {"group": ["stillroom/convnet9"]}}, None)
    assert typed.options["group"] == ["stillroom/convnet9"]


def test_with_a_cached_teacher_too_the_record_is_there_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the logs of processes that were stopped would be somebody else's to the same command, and in its way."""

    class Stopped(Exception):
        pass

    def stopped(*given: Any) -> None:
        raise Stopped

    cache, out = tmp_path / "cache", tmp_path / "run"
    assert main(["cache", *SMALL, "--views", "2", "--out", str(cache)]) == 0
    monkeypatch.setattr("stillroom.commands.compare.run_at_once", stopped)
    with pytest.raises(Stopped):
        compare(out, "kd", "--teacher", f"cache:{cache}", "--jobs", "2")
    assert (out / "files.jsonl").exists()
