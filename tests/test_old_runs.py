"""What an older version wrote still serves: students, caches and label banks answer as they did then, data have the same fingerprints.

`fixtures/make_before_redesign.py` made the files and says what is asked. Where an old run cannot go on, it must say why in one line and be
left as it was.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.cli import main
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from tests.fixtures import make_before_redesign as before

ANSWERS: dict[str, np.ndarray] = dict(np.load(before.HERE / "answers.npz"))
DATA: dict[str, Any] = json.loads((before.HERE / "data.json").read_text())["data"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the working directory, in which everything lies as the old version left it."""
    with zipfile.ZipFile(before.HERE / "files.zip") as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(said: dict[str, np.ndarray], what: str) -> None:
    """Equal to what the old version said: words and whole numbers exactly, others to 1e-5, a box's sides to a thousandth of a pixel."""
    then = {name.removeprefix(f"{what}/"): values for name, values in ANSWERS.items() if name.startswith(f"{what}/")}
    assert then
    assert said.keys() == then.keys()
    for name, values in then.items():
        assert said[name].shape == values.shape, name
        if values.dtype.kind == "f":
            np.testing.assert_allclose(said[name], values, rtol=1e-5, atol=1e-3 if name == "boxes" else 1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(said[name], values, err_msg=name)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks and banks' memory of their files' times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "checked.json"}


def record(stage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage / "stage.json").read_text())
    return found


def goes_on(words: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    """Starts a command again: it goes on, or is refused in one line that says what differs and what to do, and leaves all as it was."""
    folder = Path(words[words.index("--out") + 1])
    found = contents(folder)
    capsys.readouterr()
    code = main(words)
    errors = capsys.readouterr().err
    if code == 0:
        return True
    assert code == 2, errors
    assert errors.count("\n") == 1
    for part in (str(folder), " was ", ", now ", "expected another folder, or --overwrite"):
        assert part in errors
    assert contents(folder) == found
    return False


# Students ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("run", before.STUDENTS)
def test_a_student_answers_as_it_did(run: str) -> None:
    check(before.student_says(run), f"student {run}")


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("run", before.CLASSIFIERS)
def test_a_run_s_folder_is_a_classifier(run: str) -> None:
    check(before.classifier_says(run), f"classifier {run}")


@pytest.mark.parametrize("name", ["bckd from a run", "l2d from a run"])
def test_a_run_s_folder_teaches(old: Path, name: str) -> None:
    assert main([*before.WITH_OLD_TEACHERS[name].split(), "--out", "new"]) == 0
    was, now = (json.loads((run / "metrics.json").read_text()) for run in (old / "runs" / name.split()[0], old / "new"))
    arm, primary = list(was["summary"])[-1], was["primary"]  # whose student was shipped, and teaches now
    assert now["stages"]["teacher"][0]["metrics"][primary] == pytest.approx(was["stages"][arm][0]["metrics"][primary], abs=1e-3)


# Caches and label banks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("name", before.CACHES)
def test_a_cache_is_of_the_data_that_it_was_of(name: str) -> None:
    check(before.cache_says(name), f"cache {name}")


@pytest.mark.usefixtures("old")
def test_a_cache_of_other_data_is_still_refused() -> None:
    with pytest.raises(InputError, match="subset was 64, now 60"):
        CachedTeacher("runs/cache", before.digits(subset=60).cache_key)


@pytest.mark.parametrize("name", ["kd from a cache", "fitnets from a cache", "bckd from a cache"])
def test_methods_learn_from_a_cache(old: Path, name: str) -> None:
    words = before.WITH_OLD_TEACHERS[name].split()
    cache = old / words[words.index("--teacher") + 1].removeprefix("cache:")
    found = contents(cache)
    assert main([*words, "--out", "new"]) == 0
    assert contents(cache) == found
    teacher = json.loads((cache / "teacher.json").read_text())
    metrics = json.loads((old / "new/metrics.json").read_text())
    assert metrics["stages"]["teacher"][0]["metrics"] == teacher["metrics"]


@pytest.mark.parametrize("done", [128, 48])
def test_a_cache_that_was_begun_goes_on(old: Path, done: int, capsys: pytest.CaptureFixture[str]) -> None:
    cache = old / "runs/cache"
    rows = {path: np.load(path) for path in (cache / "rows").glob("*.npy")}
    described = json.loads((cache / "cache.json").read_text())
    assert described["done"] == 128
    (cache / "cache.json").write_text(json.dumps({**described, "done": done}))
    for path, array in rows.items():
        np.save(path, np.concatenate([array.reshape(128, -1)[:done], 0 * array.reshape(128, -1)[done:]]).reshape(array.shape))
    if goes_on(before.COMMANDS["cache"], capsys):
        assert json.loads((cache / "cache.json").read_text()) == described
        for path, array in rows.items():
            np.testing.assert_allclose(np.load(path).astype(np.float32), array.astype(np.float32), atol=2e-3, err_msg=path.name)  # of fp16


def test_a_label_bank_holds_what_it_held(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(before.bank_says(), "bank")
    found = contents(old / "runs/labels/rows")
    goes_on(before.COMMANDS["labels"], capsys)
    assert contents(old / "runs/labels/rows") == found


def test_ferkd_learns_from_a_bank_and_what_was_adapted(old: Path) -> None:
    found = contents(old / "runs/labels")
    assert main([*before.WITH_OLD_TEACHERS["ferkd from a bank"].split(), "--out", "new"]) == 0
    assert contents(old / "runs/labels") == found
    for stage in ("alone", "fkd", "ferkd"):
        was, now = (record(run / "seed0" / stage)["fingerprint"] for run in (old / "runs/ferkd", old / "new"))
        assert (now["data"], now["seed"]) == (was["data"], was["seed"])


# Data -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("old")
def test_data_are_told_apart_as_before() -> None:
    assert before.DATA_SETS.keys() == DATA.keys()
    for name, make in before.DATA_SETS.items():
        was, now = DATA[name], before.described(make())
        # What was not kept before, such as a key for a cache of multi-label answers, may be there now.
        assert {part: now[part] for part in was if part != "batch"} == {part: told for part, told in was.items() if part != "batch"}, name
        assert [shape for shape, _ in now["batch"]] == [shape for shape, _ in was["batch"]], name
        assert [total for _, total in now["batch"]] == pytest.approx([total for _, total in was["batch"]], rel=1e-3, abs=1e-2), name


def test_stages_of_web_images_have_the_data_that_they_had(old: Path) -> None:
    words = before.COMMANDS["kd3"]
    assert main([*words[:-1], "new"]) == 0
    for stage in ("teacher", "seed0/kd", "seed0/kd3"):
        assert record(old / "new" / stage)["fingerprint"]["data"] == record(old / "runs/kd3" / stage)["fingerprint"]["data"]


# Runs that are started again --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "kd_cached", "compare"])
def test_a_finished_run_is_read_or_refused(old: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {path: content for path, content in contents(old / "runs" / name).items() if path.endswith(".safetensors")}
    was = json.loads((old / "runs" / name / "metrics.json").read_text())
    goes_on(before.COMMANDS[name], capsys)
    now = json.loads((old / "runs" / name / "metrics.json").read_text())
    assert now["summary"] == was["summary"]
    assert {path: content for path, content in contents(old / "runs" / name).items() if path.endswith(".safetensors")} == weights


def test_a_killed_run_goes_on_or_is_refused(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = old / before.KILLED_IN
    assert not record(stage)["finished"]
    assert (stage / "last.ckpt").is_file()
    if goes_on(before.COMMANDS["killed"], capsys):
        assert record(stage)["result"]["resumed"] == 1
        assert record(stage)["result"]["epochs"] == 30
