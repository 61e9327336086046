"""A run's folder runs no code that its reader does not trust: whatever it names, by whatever way it is read, for every task."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import stillroom
from stillroom.cli import main
from stillroom.engine.specification import LIBRARIES
from stillroom.errors import InputError
from stillroom.methods.crkd.novel import NovelSpec
from stillroom.methods.kd3.shared_classifier import Shared
from stillroom.tasks.classification import ImageData
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.multilabel import HeadOptions, MultiLabelData

MARKED = "it ran"
EVIL = f"""
from pathlib import Path
Path(__file__).resolve().with_name("{MARKED}").write_text("")

def net(*_, **__):
    raise SystemExit("the function too")
"""
CLASSIFICATION, MULTILABEL, DETECTION = "classification", "multilabel", "detection"
DATA = {
    CLASSIFICATION: lambda: ImageData("digits"),
    MULTILABEL: lambda: MultiLabelData("mosaics,train=8,val=4,grid=3,tile=4"),
    DETECTION: lambda: DetectionData("scenes:size=32,train=4,val=4,teacher=4"),
}
JOBS = {
    CLASSIFICATION: ("kd", "--data", "digits"),
    MULTILABEL: ("l2d", "--data", "mosaics,train=8,val=4,grid=3,tile=4"),
    DETECTION: ("bckd", "--data", "scenes:size=32,train=4,val=4,teacher=4", "--warmup-epochs", "0"),
}
LIBRARY = {CLASSIFICATION: "stillroom/convnet4", MULTILABEL: "stillroom/strided24", DETECTION: "stillroom/gfl_24"}
TASKS = tuple(DATA)


@cache
def described(task: str) -> dict[str, Any]:
    head = {"head": HeadOptions(64, 4, 128).to_json()} if task == MULTILABEL else {}
    told = DATA[task]().describe()
    return {"task": task, "num_classes": len(told["classes"]), **head, **told}


def card(folder: Path, task: str, model: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "student.json").write_text(json.dumps({**described(task), "model": model}))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands: a file that must not run is here, in the run's folder, and in folders that are called as libraries are."""
    for folder in (".", "run", *(library.rstrip("/") for library in LIBRARIES)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "evil.py").write_text(EVIL)
    ImageData("digits").val_image(0).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def ran(place: Path) -> list[Path]:
    return list(place.rglob(MARKED))


def link(place: Path) -> str:
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "evil.py").write_text(EVIL)
    (place / "run" / "link.py").symlink_to(place / "elsewhere" / "evil.py")
    return f"{place}/run/link.py:net"


def novel(backbone: str) -> str:
    return str(NovelSpec(backbone, 4, 8, 8))


def shared(backbone: str, classifier: str | None = None) -> str:
    return str(Shared(backbone, "layer3", 64, (8, 8), 2, None if classifier is None else (classifier, "fc")))


# What a card may name, none of which is run.
NAMES: dict[str, Callable[[Path], str]] = {
    "a file in the folder": lambda place: f"{place}/run/evil.py:net",
    "a file beside the folder": lambda place: f"{place}/evil.py:net",
    "a file by way of the folder": lambda place: f"{place}/run/../evil.py:net",
    "a file relative to where the reader is": lambda place: "evil.py:net",
    "a file in the folder, relative": lambda place: "run/evil.py:net",
    "a link": link,
    "a module": lambda place: "evil:net",
    "a function of Python's own": lambda place: "sys:exit",
    "a file and weights": lambda place: f"{place}/evil.py:net@{place}/run",
    "a file and a layer": lambda place: f"{place}/evil.py:net#0",
    "a file and a backbone": lambda place: f"{place}/evil.py:net,backbone=pretrained",
    "a known backbone": lambda place: novel(f"{place}/evil.py:net"),
    "a shared backbone": lambda place: shared(f"{place}/evil.py:net"),
    "a shared classifier": lambda place: shared("stillroom/resnet8", f"{place}/evil.py:net"),
    "first layers": lambda place: f"first:{place}/evil.py:net,until=layer1",
    "first layers of a folder's network": lambda place: f"first:{place}/run",
    "a backbone of a backbone": lambda place: novel(shared("evil:net", "stillroom/resnet8")),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_no_name_makes_a_folder_run_code(name: str, task: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = card(place / "run", task, NAMES[name](place))
    error = refused(["predict", str(run), "photo.png"], capsys)
    assert str(run / "student.json") in error
    assert "--trust-code" in error
    assert not ran(place)


ROUTES: dict[str, tuple[tuple[str, ...], Callable[[str], list[str]]]] = {
    "predict": (TASKS, lambda task: ["predict", "RUN", "photo.png"]),
    "export": (TASKS, lambda task: ["export", "RUN", "--format", "safetensors"]),
    "run --teacher": (TASKS, lambda task: ["run", *JOBS[task], "--teacher", "RUN", "--epochs", "1", "--out", "out"]),
    "run --student": (TASKS, lambda task: ["run", *JOBS[task], "--student", "RUN", "--epochs", "1", "--out", "out"]),
    "cache": (TASKS, lambda task: ["cache", *JOBS[task][1:3], "--teacher", "RUN", "--out", "out"]),
    "cache-labels": ((CLASSIFICATION,), lambda task: ["cache-labels", "--data", "digits", "--teacher", "RUN", "--out", "out"]),
    "compare": (
        TASKS,
        lambda task: ["compare", JOBS[task][0], *JOBS[task][1:], "--teacher", "RUN", "--epochs", "1", "--out", "out"],
    ),
    "a group's member": ((CLASSIFICATION,), lambda task: ["run", "orc", "--data", "digits", "--group", "[RUN]", "--out", "out"]),
}


@pytest.mark.parametrize(("route", "task"), [(route, task) for route, (tasks, _) in ROUTES.items() for task in tasks])
@pytest.mark.parametrize("name", ["a file beside the folder", "a file in the folder, relative"])
def test_no_command_runs_a_folder_s_code(name: str, route: str, task: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = card(place / "run", task, NAMES[name](place))
    (place / "linked").symlink_to(run)
    for folder in (run, place / "linked", Path("run")):
        words = [word.replace("RUN", str(folder)) for word in ROUTES[route][1](task)]
        error = refused(words, capsys)
        assert f"{folder}/student.json" in error or str(run / "student.json") in error
        assert "--trust-code" in error
    assert not ran(place)
    assert not (place / "out" / "student.json").exists()


@pytest.mark.parametrize("task", TASKS)
def test_python_is_asked_for_trust_too(task: str, place: Path) -> None:
    run = card(place / "run", task, "evil.py:net")
    with pytest.raises(InputError, match=r"student\.json, which names evil\.py:net.*trust_code=True"):
        stillroom.load(run)
    assert not ran(place)
    for trust in ({"trust_code": True}, {"trust_pickle": True}):
        with pytest.raises(SystemExit, match="the function too"):
            stillroom.load(run, **trust)
    assert ran(place), "trusted code is run: what is refused above would be code"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_file_that_is_called_as_a_library_s_network_is_none(
    library: str, task: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (f"{library}evil.py:net", f"{library}../evil.py:net", f"{library}evil:net"):
        refused(["predict", str(card(place / "run", task, model)), "photo.png", "--trust-code"], capsys)
    assert not ran(place)


class Runs:
    """What a pickle makes as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_no_way_in(task: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = card(place / "run", task, LIBRARY[task])
    torch.save({"a": Runs(place / MARKED)}, run / "student.safetensors")
    assert "--trust-code" in refused(["predict", str(run), "photo.png"], capsys)
    (run / "student.safetensors").write_bytes(pickle.dumps(Runs(place / MARKED)))
    refused(["predict", str(run), "photo.png"], capsys)
    assert not ran(place)


def test_records_of_a_run_and_of_a_cache_are_no_way_in(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run and a cache whose every record names code: they go on, and what they ship is refused as any other."""
    small = ["--data", "digits", "--subset", "10", "--val-subset", "10", "--accelerator", "cpu"]
    assert main(["cache", *small, "--teacher-epochs", "1", "--views", "1", "--out", "cached"]) == 0
    job = ["run", "kd", *small, "--teacher", "cache:cached", "--epochs", "1", "--out", "out"]
    assert main(job) == 0
    for file in [*place.glob("cached/**/*.json"), *place.glob("out/**/*.json")]:
        text = file.read_text()
        file.write_text(text.replace("stillroom/convnet24", "evil.py:net").replace("stillroom/convnet4", "evil.py:net"))
    assert '"model": "evil.py:net"' in (place / "out" / "student.json").read_text()
    assert main(job) == 0
    assert "evil.py:net" in refused(["predict", "out", "photo.png"], capsys)
    shutil.rmtree(next(place.glob("out/**/distilled")))
    assert main(job) == 0
    assert not ran(place)


@pytest.mark.parametrize("task", stillroom.engine.task.TASKS)
@pytest.mark.parametrize("model", ["evil.py:net", "evil:net", "os:abort", "stillroom.cli:main"])
def test_every_task_asks_the_same_function(task: str, model: str, place: Path) -> None:
    said = {"task": task, "model": model, "num_classes": 2, "classes": ["a", "b"], "transform": {}}
    (place / "run" / "student.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"student\.json, which names .*trust_code=True"):
        stillroom.load(place / "run")
    assert not ran(place)


@pytest.mark.parametrize("builder", ["evil.py:net", "evil:net", "stillroom.cli:main", "stillroom.engine.run.written:remove"])
def test_a_detector_of_anomalies_names_a_builder_that_is_known(builder: str, place: Path) -> None:
    transform = {"image_size": 32, "fit": "stretch", "antialias": True, "mean": [0.5] * 3, "std": [0.5] * 3}
    told = {"transform": transform, "teacher": {"statistics": None, "layers": []}, "maps": {}}
    said = {"task": "anomaly", "model": "stillroom/convnet4", "num_classes": 1, "classes": ["a"], "quantile": 0.9, **told}
    (place / "run" / "student.json").write_text(json.dumps({**said, "student": {}, "builder": builder}))
    with pytest.raises(InputError) as error:
        stillroom.load(place / "run")
    assert builder in str(error.value)
    assert not ran(place)


NAMED = {
    "teacher": "evil.py:net",
    "student": "evil:net@weights.pt",
    "data": "evil.py:net,val=0.2",
    "group": ["stillroom/resnet8", "evil.py:net"],
    "options": {"kd": {"loss": "os:abort"}},
    "host": novel("evil:net"),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_options_of_a_run_that_is_continued_are_no_way_in(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "run"
    (run / "metrics.json").write_text('{"method": "kd"}')
    (run / "config.yaml").write_text(
        json.dumps({"data": "digits", "epochs": 1, "trust_pickle": True, "trust_code": True, name: NAMED[name]})
    )
    error = refused(["run", "kd", "--continue-from", "run", "--out", "out"], capsys)
    assert f"run/config.yaml, in which {name}" in error
    assert "--trust-code" in error
    assert not ran(place)
    if name in ("teacher", "data"):
        with pytest.raises(SystemExit, match="the function too"):  # trusted, it is run
            main(["run", "kd", "--continue-from", "run", "--out", "out", "--trust-code"])
        assert ran(place)


def test_options_that_are_typed_anew_need_no_trust(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run" / "metrics.json").write_text('{"method": "kd"}')
    (place / "run" / "config.yaml").write_text("data: evil.py:net\nteacher: imagefolder:photos\nepochs: 1\n")
    error = refused(["run", "kd", "--continue-from", "run", "--data", "nothing", "--out", "out"], capsys)
    assert "nothing" in error
    assert not ran(place)


def test_the_old_name_of_trust_is_understood(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "old.yaml").write_text("data: nothing\ntrust_pickle: true\n")
    for words in (
        ["--config", "old.yaml"],
        ["--config=old.yaml"],
        ["--data", "nothing", "--trust-pickle"],
        ["--data=nothing", "--trust-pickle=true"],
    ):
        assert "nothing" in refused(["run", "kd", *words, "--out", "out"], capsys)


def test_a_folder_of_transformers_is_asked_for_no_code(place: Path) -> None:
    folder = place / "run"
    auto = {"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil", "AutoModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(InputError, match="transformers/"):
        stillroom.tasks.classification.build_classifier(f"transformers/{folder}", num_classes=2, image_size=32)
    assert not ran(place)


def test_a_quantized_export_reads_no_data_by_code(place: Path) -> None:
    from stillroom.engine.task import task_named
    from stillroom.tasks.quantized import _data_of

    (place / "run" / "config.yaml").write_text("data: evil.py:net\nsubset: 10\n")
    with pytest.raises(InputError, match=r"config\.yaml, in which data is evil\.py:net"):
        _data_of(place / "run", task_named(CLASSIFICATION), None, trust_code=False)
    assert not ran(place)
    assert _data_of(place / "run", task_named(CLASSIFICATION), "digits", trust_code=False).train_size == 10
