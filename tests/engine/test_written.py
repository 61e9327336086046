"""Nothing that Stillroom did not write is ever removed or replaced, by whatever command; what is in the way is named."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.cli import main
from stillroom.engine.run.stage import StageFolder
from stillroom.engine.run.written import RECORD, Record, beginning, complete, growing, write_atomic
from stillroom.errors import InputError
from tests.fixtures import make_before_redesign as before

SMALL = ["--data", "digits", "--epochs", "1", "--subset", "40", "--val-subset", "20", "--batch-size", "20", "--accelerator", "cpu"]
RUN = ["run", "kd", *SMALL]
COMPARE = ["compare", "kd", *SMALL]
CACHE = ["cache", *SMALL, "--views", "1"]
OTHER = ["--lr", "0.01"]  # so that without --overwrite it is another run


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: files' contents, links' targets; without locks."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path.relative_to(folder).as_posix()] = os.readlink(path)
        elif path.is_file() and path.suffix != ".lock" and path.name != ".lock":
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    assert main([*RUN, "--out", str(out / "run")]) == 0
    assert main([*CACHE, "--out", str(out / "cache")]) == 0
    return out


@pytest.fixture
def out(once: Path, tmp_path: Path) -> Path:
    """A finished run's folder, to do with as one likes. It is a copy: what was written is known by content, not by time or place."""
    return Path(shutil.copytree(once / "run", tmp_path / "run"))


def refused(command: list[str], out: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names what is in the way, and nothing touched."""
    found = contents(out.parent)
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert named in line
    assert contents(out.parent) == found


def test_the_record_lists_everything_that_is_there(out: Path) -> None:
    record = Record.of(out)
    assert record is not None
    listed = {path.relative_to(out).as_posix() for path in record.present()} | {RECORD}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == listed
    assert (out / "seed0/distilled/events").is_dir()
    record.refuse_in_the_way()


def test_a_run_is_overwritten_whole_and_notes_beside_its_files_stay(out: Path) -> None:
    notes = {
        "thesis.tex": "years of work",
        "seed0/distilled/notes.txt": "good one",
        "logs/mine.txt": "mine",
        "seed0/distilled/events/x": "y",
    }
    for name, text in notes.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    (out / "seed0/alone/.last.ckpt.part").write_bytes(b"half")  # as a kill leaves it
    old = (out / "seed0/distilled/stage.json").read_bytes()
    assert main(["run", "supervised", *SMALL, *OTHER, "--overwrite", "--out", str(out)]) == 0
    assert {name: (out / name).read_text() for name in notes} == notes
    assert sorted(path.name for path in (out / "seed0/distilled").rglob("*")) == ["events", "notes.txt", "x"]
    assert not (out / "teacher").exists()
    assert "distilled" not in (out / RECORD).read_text()
    assert main(["run", "kd", *SMALL, "--overwrite", "--out", str(out)]) == 0
    assert (out / "seed0/distilled/stage.json").read_bytes() != old


@pytest.mark.parametrize(
    "name", ["config.yaml", "report.html", "student.safetensors", "seed0/alone/details.npz", "seed0/alone/student.json"]
)
def test_a_file_that_somebody_changed_or_replaced_is_named(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (out / name).write_bytes((out / name).read_bytes() + b"# mine")
    refused([*RUN, *OTHER, "--overwrite"], out, f"{out / name}, which is not as Stillroom wrote it", capsys)


def test_links_are_neither_followed_nor_removed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = out.parent / "elsewhere"
    for name in ("seed0", "teacher/stage.json", "seed0/alone/events"):
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir()
        here = Path(shutil.copytree(out, out.parent / "here"))
        shutil.move(here / name, elsewhere / "moved")
        (here / name).symlink_to(elsewhere / "moved")
        refused([*RUN, *OTHER, "--overwrite"], here, f"{here / name}, a link", capsys)
        shutil.rmtree(here)


def test_a_temporary_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".report.html.part").symlink_to(tmp_path / "precious")
    write_atomic(tmp_path / "report.html", "page")
    assert ((tmp_path / "precious").read_text(), (tmp_path / "report.html").read_text()) == ("mine", "page")


def test_another_run_below_stays(out: Path) -> None:
    other = Path(shutil.copytree(shutil.copytree(out, out.parent / "other"), out / "seed0/other"))
    found = contents(other)
    assert main(["run", "supervised", *SMALL, "--overwrite", "--out", str(out)]) == 0
    assert contents(other) == found


def test_a_folder_above_runs_is_no_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*RUN, "--overwrite"], out.parent, "expected a folder that Stillroom wrote", capsys)


def test_a_record_cannot_name_files_elsewhere(out: Path) -> None:
    (out.parent / "precious").write_text("mine")
    record = Record.of(out)
    assert record is not None
    lines = [json.dumps({"name": name, "mark": "0+" + "0" * 24}) for name in ("../precious", str(out.parent / "precious"))]
    (out / RECORD).write_text((out / RECORD).read_text() + "\n".join(lines) + '\n{"name": "cut sho')
    again = Record.of(out)
    assert again is not None
    assert again.marks == record.marks
    assert main(["run", "supervised", *SMALL, "--overwrite", "--out", str(out)]) == 0
    assert (out.parent / "precious").read_text() == "mine"


PROJECT = {
    "config.yaml": "lr: 0.1\nout: here\n",
    "report.html": "<p>mine</p>",
    "student/config.json": "{}",
    "files.jsonl": "[]\n",
    "student.safetensors": "weights of mine",
}


@pytest.mark.parametrize("name", PROJECT)
@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("command", [RUN, COMPARE, CACHE], ids=lambda command: command[0])
def test_a_project_s_own_files_are_in_the_way(
    tmp_path: Path, command: list[str], more: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "project"
    for file, text in {name: PROJECT[name], "logs/today.txt": "mine", "student/__init__.py": "", "seed0/alone/x.py": ""}.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text(text)
    refused([*command, *more], out, "a folder that Stillroom wrote" if more else f"{out / name}, which Stillroom did not write", capsys)


STAGES = [{"stage": "opening", "acts": 3}, {"fingerprint": {"data": "x"}, "finished": True}, ["fingerprint"]]


@pytest.mark.parametrize("stage", STAGES, ids=["a play", "a print", "a list"])
@pytest.mark.parametrize("where", ["", "seed0/alone/", "act1/"])
def test_a_folder_that_happens_to_hold_a_stage_json(tmp_path: Path, stage: Any, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "project"
    (out / where).mkdir(parents=True)
    (out / where / "stage.json").write_text(json.dumps(stage))
    (out / where / "thesis.tex").write_text("years of work")
    refused([*RUN, "--overwrite"], out, "expected a folder that Stillroom wrote", capsys)
    refused([*CACHE, "--overwrite"], out, "expected a folder that Stillroom wrote", capsys)


def test_weights_of_one_s_own_where_a_stage_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run/teacher").mkdir(parents=True)
    (tmp_path / "run/teacher/student.safetensors").write_text("mine")
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 2
    assert "teacher/student.safetensors, which Stillroom did not write" in capsys.readouterr().err
    assert (tmp_path / "run/teacher/student.safetensors").read_text() == "mine"


# Comparisons, caches, exports -------------------------------------------------------------------------------------------------------------


def test_a_comparison_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare"
    assert main([*COMPARE, "--out", str(out)]) == 0
    (out / "logs").mkdir()
    (out / "logs/mine.txt").write_text("mine")
    log = out / "logs/kd-seed0.txt"
    growing([log])  # as trainings side by side do
    log.write_text("epoch 1")
    growing([log])
    complete(log)
    log.write_text("a diary")
    refused([*COMPARE, *OTHER, "--overwrite"], out, "logs/kd-seed0.txt, which is not as Stillroom wrote it", capsys)
    with pytest.raises(InputError, match=r"kd-seed0.txt, which Stillroom did not write"):
        growing([log])
    log.write_text("epoch 1")
    assert main([*COMPARE, *OTHER, "--overwrite", "--out", str(out)]) == 0
    assert [path.name for path in (out / "logs").iterdir()] == ["mine.txt"]


def test_a_cache_is_overwritten(once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(once / "cache", tmp_path / "cache"))
    rows = np.load(out / "rows/logits.npy")
    np.save(out / "rows/logits.npy", rows[:3])
    refused([*CACHE, *OTHER, "--overwrite"], out, "rows/logits.npy, which is not as Stillroom wrote it", capsys)
    np.save(out / "rows/logits.npy", rows)
    (out / "rows/mine.npy").write_text("mine")
    assert main([*CACHE, "--top", "3", "--overwrite", "--out", str(out)]) == 0
    assert not (out / "rows/logits.npy").exists()
    assert (out / "rows/mine.npy").read_text() == "mine"


def test_a_cache_s_record_cannot_name_arrays_elsewhere(once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(once / "cache", tmp_path / "cache"))
    (out / RECORD).unlink()
    described = json.loads((out / "cache.json").read_text())
    described["arrays"]["../../precious"] = described["arrays"]["logits"]
    (out / "cache.json").write_text(json.dumps(described))
    shutil.copy(out / "rows/logits.npy", tmp_path / "precious.npy")
    refused([*CACHE, "--overwrite"], out, "an array called '../../precious'", capsys)


def test_an_export_replaces_exports_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format, name in (("torch", "net.pt2"), ("safetensors", "net.safetensors")):
        file = out.parent / name
        words = ["export", str(out), "--format", format, "--out", str(file)]
        assert main(words) == 0
        assert main(words) == 0
        shutil.copy(out / "student.safetensors", file)
        found = file.read_bytes()
        assert main(words) == 2
        assert f"{file}, which `stillroom export` did not write" in capsys.readouterr().err
        assert file.read_bytes() == found
    assert main(["export", str(out), "--format", "torch"]) == 0
    assert main(["run", "supervised", *SMALL, "--overwrite", "--out", str(out)]) == 0
    assert not (out / "student.pt2").exists()  # an export in the run's own folder is the run's


# What versions without a record wrote -----------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(before.HERE / "files.zip") as file:
        file.extractall(tmp_path)
    return tmp_path / "runs"


def test_a_run_of_before_is_recognised_by_its_content(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = old / "kd"
    assert not (out / RECORD).exists()
    everything = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    record = Record.of(out)
    assert record is not None
    assert {path.relative_to(out).as_posix() for path in record.present()} == everything
    shutil.copytree(shutil.copytree(out, old / "copy"), out / "seed7")  # another run, called as a seed's folder
    (out / "thesis.tex").write_text("years of work")
    (out / "report.html").write_text("<p>mine</p>")
    refused(["run", "supervised", *SMALL, "--overwrite"], out, "report.html, which Stillroom did not write", capsys)
    (out / "report.html").unlink()
    found = contents(out / "seed7")
    assert main(["run", "supervised", *SMALL, "--overwrite", "--out", str(out)]) == 0
    assert contents(out / "seed7") == found
    assert (out / "thesis.tex").read_text() == "years of work"
    assert {path.name for path in out.iterdir()} >= {RECORD, "thesis.tex", "seed7", "seed0"}
    assert not (out / "teacher").exists()


def test_a_cache_of_before_is_recognised_by_its_content(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = old / "cache"
    (out / "rows/mine.npy").write_text("mine")
    rows = next(path for path in (out / "rows").glob("*.npy") if path.name != "mine.npy")
    whole = rows.read_bytes()
    rows.write_text("a diary")
    refused([*CACHE, "--overwrite"], out, f"{rows}, which Stillroom did not write", capsys)
    rows.write_bytes(whole)
    assert main([*CACHE, "--overwrite", "--out", str(out)]) == 0
    assert (out / "rows/mine.npy").read_text() == "mine"


# Hostile folders: somebody else's run, to go on in ----------------------------------------------------------------------------------------


LINKS = (
    "seed0",
    "seed0/alone",
    "seed0/alone/events",
    "seed0/alone/checkpoint",
    "seed0/alone/.lock",
    "footprints",
)


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link_in_a_run(once: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on: its teacher is finished, what comes next lies behind the link."""
    out = Path(shutil.copytree(once / "run", tmp_path / "run"))
    shutil.rmtree(out / "seed0")
    shutil.rmtree(out / "footprints")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious.npy").write_text("mine")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).symlink_to(tmp_path / ("elsewhere/precious.npy" if name.endswith(".lock") else "elsewhere"))
    capsys.readouterr()
    code = main([*RUN, "--out", str(out)])
    line = capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in (tmp_path / "elsewhere").iterdir()] == [("precious.npy", "mine")]
    assert code == 2
    assert line.count("\n") == 1
    assert name in line


@pytest.mark.parametrize("name", ["rows", "rows/logits.npy", "cache.json", ".cache.json.part", ".lock"])
def test_nothing_is_written_through_a_link_in_a_cache(once: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache that goes on after half of its rows."""
    out = Path(shutil.copytree(once / "cache", tmp_path / "cache"))
    described = json.loads((out / "cache.json").read_text())
    (out / "cache.json").write_text(json.dumps({**described, "done": 20}))
    if (out / name).exists():
        shutil.move(out / name, tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_text("")
    found = contents(tmp_path / "elsewhere") if name == "rows" else (tmp_path / "elsewhere").read_bytes()
    (out / name).symlink_to(tmp_path / "elsewhere")
    code = main([*CACHE, "--out", str(out)])
    assert found == (contents(tmp_path / "elsewhere") if name == "rows" else (tmp_path / "elsewhere").read_bytes())
    assert code == (0 if name in ("cache.json", ".cache.json.part") else 2)  # a file that is written whole takes the link's place
    assert capsys.readouterr().err.count("\n") == bool(code)


@pytest.mark.parametrize("entry", [None, beginning(b"")], ids=["nothing", "a beginning of no bytes"])
def test_a_record_cannot_claim_what_it_does_not_know(out: Path, entry: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "thesis.tex").write_text("years of work")
    with (out / RECORD).open("a") as file:
        file.write(json.dumps({"name": "thesis.tex", "mark": entry}) + "\n")
    refused([*RUN, *OTHER, "--overwrite"], out, "thesis.tex, which", capsys)


def test_arrays_of_one_s_own_beside_a_checkpoint_stay(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "run/seed0/alone")
    (stage.path / "checkpoint").mkdir(parents=True)
    Record(tmp_path / "run").begin()
    stage.write({"fingerprint": {}, "finished": False})
    write_atomic(stage.path / "checkpoint/00000-ids.npy", b"ours")
    (stage.path / "checkpoint/mine.npy").write_text("mine")
    stage.drop_checkpoint()
    assert [path.name for path in (stage.path / "checkpoint").iterdir()] == ["mine.npy"]


def test_a_folder_where_a_temporary_file_would_be_is_named(tmp_path: Path) -> None:
    (tmp_path / ".report.html.part").mkdir()
    with pytest.raises(InputError, match=r"report\.html\.part, a folder"):
        write_atomic(tmp_path / "report.html", "page")
