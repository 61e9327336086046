"""A method of one's own, from a file, on the command line: a recipe, a room, a distiller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillroom.cli import main

SMALL = ["--data", "digits", "--epochs", "1", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu"]
FILE = '''
"""A method in a file."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, Losses, Networks, Report, Room, Training
from stillroom.tasks.classification import CONVNETS, DIGITS, ImageData


class Mine(Distiller):
    """Student trained on labels and on the squared distance of logits.

    Args:
        student: network.
        teacher: the same signature.
        closeness: weight of the distance.
    """

    def __init__(self, student, teacher, *, closeness: float = 0.5) -> None:
        super().__init__(student, teacher)
        self.closeness = closeness

    def losses(self, batch):
        logits = self.student(batch.inputs)
        distance = (logits - self.teacher(batch)).square().mean()
        return Losses({"ce": cross_entropy(logits, batch.labels)}, {"distance": self.closeness * distance})


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, networks: Networks = CONVNETS, closeness: float = 0.25) -> Report:
    """The student by `Mine`.

    Args:
        lab: where and how to run.
        data: the images.
        plan: how to train.
        networks: which.
        closeness: weight of the distance.
    """
    make = {"distilled": lambda student, teacher: Mine(student, teacher, closeness=closeness)}
    return Experiment(lab, data, plan, networks).run("mine", make)


def build(student, teacher, data, *, closeness: float = 1.0):
    """The distiller."""
    return Mine(student, teacher, closeness=closeness)


ROOM = Room(recipe, tasks=("classification",), build=build)
NUMBER = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path


def weight(stage: Path) -> float:
    found: float = json.loads((stage / "stage.json").read_text())["fingerprint"]["closeness"]
    return found


@pytest.mark.parametrize(("name", "default"), [("recipe", 0.25), ("ROOM", 0.25), ("Mine", 0.5)])
def test_run_takes_a_file_s_own(here: Path, name: str, default: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"own.py:{name}", *SMALL]) == 0
    assert weight(here / f"runs/{name}/seed0/distilled") == default
    assert main(["run", f"own.py:{name}", *SMALL, "--closeness", "2", "--out", "other"]) == 0
    assert weight(here / "other/seed0/distilled") == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", f"own.py:{name}", "--help"])
    told = capsys.readouterr().out
    assert "--closeness" in told
    assert "weight of the distance" in told


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_compare_takes_a_distiller_and_a_room(here: Path, jobs: str) -> None:
    words = ["compare", "kd", "own.py:Mine", "near=own.py:Mine", "own.py:ROOM", *SMALL, "--options.near", "{closeness: 3}", "--jobs", jobs]
    assert main([*words, "--out", "cmp"]) == 0
    stages = json.loads((here / "cmp/metrics.json").read_text())["stages"]
    assert list(stages) == ["teacher", "alone", "kd", "Mine", "near", "ROOM"]
    folders = {arm: here / "cmp" / found[0]["folder"] for arm, found in stages.items()}
    assert {arm: weight(folders[arm]) for arm in ("Mine", "near", "ROOM")} == {"Mine": 0.5, "near": 3, "ROOM": 0.25}
    assert folders["near"].name == "Mine,closeness=3"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "missing.py:recipe"], "method: got missing.py, expected an existing Python file"),
        (["run", "own.py:recipes"], "method: got own.py:recipes, expected a function of own.py, such as recipe"),
        (["run", "own.py:NUMBER"], "method: got own.py:NUMBER, a int, expected a Room, a recipe or a Distiller"),
        (["run", "own.py:build"], "method: got own.py:build, expected a recipe(lab, data: ImageData"),
        (["compare", "kd", "own.py:recipe", *SMALL], "own.py:recipe is a recipe alone"),
        (["compare", "kd", "own.py:Mine", "--options.Mine", "{closenes: 3}", *SMALL], "--options.Mine: got closenes, expected"),
    ],
)
def test_what_is_no_method_is_said(here: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*words, "--out", "out"])
    told = capsys.readouterr()
    assert says in told.err + told.out
    assert "Traceback" not in told.err
    assert code == (0 if "is a recipe alone" in says else 2)
