"""The command line as people meet it: what a run writes, what is refused and how."""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stillroom import catalog
from stillroom.cli import main
from stillroom.engine.weights import read_weights
from stillroom.errors import Broken, explained

SMALL = ("--data", "digits", "--epochs", "1", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu")


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its path, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change a folder make their own."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", "kd", *SMALL, "--out", str(out)]) == 0
    return out


def test_list_shows_what_can_be_used_first_by_task_and_then_what_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["list"]) == 0
    assert "planned" not in capsys.readouterr().out
    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, catalog.Method("later", "A paper that is not built", "any")))
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    heads = {line.split()[0]: number for number, line in enumerate(lines) if not line.startswith(" ")}
    rows = {line.split()[0]: number for number, line in enumerate(lines) if re.match(r"  \S", line)}
    assert rows.keys() == {method.name for method in catalog.METHODS}
    for method in catalog.METHODS:
        head = max((number, name) for name, number in heads.items() if number < rows[method.name])[1]
        assert head == (method.task if method.room else "planned")
        assert method.paper.split()[0] in lines[rows[method.name]]
    assert list(heads)[-1] == "planned"


def test_the_package_is_the_command_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code in ((["list"], 0), (["predict"], 2)):
        monkeypatch.setattr(sys, "argv", ["stillroom", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("stillroom", run_name="__main__")
        assert left.value.code == code
    out, err = capsys.readouterr()
    assert "Distilling the Knowledge in a Neural Network" in out
    assert "required: RUN" in err


def test_help_shows_every_option_with_dashes_and_its_meaning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(["run", "dot", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for option in ("--host-options", "--delta", "--batch-size", "--weight-decay", "--teacher-precision", "--print-config"):
        assert option in text
    assert "the momentum gap" in text
    assert "--batch_size" not in text


def test_a_run_writes_report_metrics_config_and_the_student(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"report.html", "metrics.json", "config.yaml", "student.safetensors", "student.json", "teacher", "seed0"}
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["schema"].startswith("stillroom.report/")
    assert list(metrics["stages"]) == ["teacher", "alone", "distilled"]
    assert metrics["settings"]["subset"] == 60
    assert metrics["command"].startswith("stillroom run kd ")
    assert "<html" in (finished / "report.html").read_text()
    card = json.loads((finished / "student.json").read_text())
    assert card["model"] == "stillroom/convnet4"
    weights = read_weights(finished / "student.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in read_weights(finished / "seed0/distilled").items())
    assert {Path(name).name for name in files(finished) if Path(name).name.startswith(".")} == {".lock"}, "a temporary file is left"


def test_the_same_command_again_runs_nothing(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(finished)
    monkeypatch.setattr("stillroom.engine.lab.Lab._train", lambda *_: pytest.fail("a finished stage was run again"))
    assert main(["run", "kd", *SMALL, "--out", str(finished)]) == 0
    assert capsys.readouterr().out.count("done before") == 3
    after = files(finished)
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    assert changed <= {"report.html", "metrics.json", "files.jsonl"}  # the page is written anew, and the record says so
    old, new = (json.loads(state["metrics.json"]) for state in (before, after))
    assert old["stages"] == new["stages"]
    assert old["summary"] == new["summary"]


@pytest.mark.parametrize("how", ["dashes", "underscores", "equals", "config", "mixed"])
def test_options_may_be_written_in_several_ways(finished: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"data": "digits", "epochs": 1, "subset": 60, "val_subset": 40, "batch_size": 20, "accelerator": "cpu", "out": str(finished)}
    written = tmp_path / "job.yaml"
    written.write_text(yaml.safe_dump(values))
    pairs = list(values.items())
    arguments = {
        "dashes": [word for name, value in pairs for word in (f"--{name.replace('_', '-')}", str(value))],
        "underscores": [word for name, value in pairs for word in (f"--{name}", str(value))],
        "equals": [f"--{name.replace('_', '-')}={value}" for name, value in pairs],
        "config": ["--config", str(written)],
        "mixed": ["--config", str(written), "--kd-weight", "0.9"],
    }[how]
    assert main(["run", "kd", *arguments]) == 0  # other arguments would be refused: the folder knows its own
    assert capsys.readouterr().out.count("done before") == 3


def test_an_option_beside_a_config_file_overrides_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("temperature: 2\nkd_weight: 0.3\n")
    assert printed("kd", capsys, "--config", str(config), "--temperature", "7") | {"temperature": 7.0, "kd_weight": 0.3} == printed(
        "kd", capsys, "--temperature", "7", "--kd-weight", "0.3"
    )


def printed(method: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What ``--print-config`` writes."""
    with pytest.raises(SystemExit) as ended:
        main(["run", method, *arguments, "--print-config"])
    assert not ended.value.code
    loaded: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return loaded


def test_the_small_job_is_for_those_who_name_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, named = printed("kd", capsys), printed("kd", capsys, "--data", "digits")
    assert (small["data"], small["seeds"], small["epochs"], small["lr"]) == ("shapes,train=20,teacher=200", 3, 30, 0.4)
    assert (named["data"], named["seeds"], named["epochs"], named["lr"]) == ("digits", 1, 100, 0.05)
    assert printed("kd", capsys, "--epochs", "3") == {**small, "epochs": 3}
    config = tmp_path / "own.yaml"
    config.write_text("data: digits\n")
    assert printed("kd", capsys, "--config", str(config)) == named
    assert printed("dot", capsys)["data"] == small["data"]


def test_help_and_report_of_the_small_job_say_what_to_expect(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect = catalog.load("kd").expect
    assert expect
    with pytest.raises(SystemExit):
        main(["run", "kd", "--help"])
    assert expect in " ".join(capsys.readouterr().out.split())
    quick = ("--seeds", "1", "--val-subset", "60", "--teacher", "stillroom/convnet3", "--teacher-epochs", "1")
    assert main(["run", "kd", *SMALL[2:], *quick, "--out", str(tmp_path / "run")]) == 0
    assert expect in json.loads((tmp_path / "run/metrics.json").read_text())["notes"]
    assert expect not in json.loads((finished / "metrics.json").read_text())["notes"]  # on other data it says nothing


@pytest.mark.parametrize("method", [method.name for method in catalog.METHODS if method.room])
def test_printed_config_works_as_a_config(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    presets = list(catalog.load(method).chosen(None).presets)
    for arguments in (["--batch-size", "20"], ["--preset", presets[0]], ["--preset", presets[-1], "--epochs", "2"]):
        config = tmp_path / "printed.yaml"
        config.write_text(yaml.safe_dump(printed(method, capsys, *arguments)))
        assert printed(method, capsys, "--config", str(config)) == yaml.safe_load(config.read_text())


def test_the_run_s_own_config_works_as_a_config(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "kd", "--config", str(finished / "config.yaml")]) == 0
    assert capsys.readouterr().out.count("done before") == 3


def test_preset_in_a_config_file_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("preset: paper\nlr: 0.01\n")
    taken = printed("dot", capsys, "--config", str(config))
    assert (taken["epochs"], taken["lr"], taken["delta"], taken["teacher"]) == (240, 0.01, 0.075, "stillroom/resnet32x4")
    assert printed("dot", capsys, "--config", str(config), "--preset", "default")["epochs"] != 240


def test_more_seeds_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    assert main(["run", "kd", *SMALL, "--out", str(tmp_path)]) == 0
    before = files(tmp_path)
    assert main(["run", "kd", *SMALL, "--out", str(tmp_path), "--seeds", "2"]) == 0
    after = files(tmp_path)
    rewritten = {"report.html", "metrics.json", "config.yaml", "files.jsonl"}
    assert {name for name in before if after.get(name) != before[name]} <= rewritten
    assert {Path(name).parts[0] for name in after.keys() - before.keys()} == {"seed1"}
    assert json.loads(after["metrics.json"])["summary"]["distilled"]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        ("kd", ["--temperature", "3"], "--temperature was 4.0, now 3.0"),
        ("kd", ["--batch-size", "30"], "--batch-size was 20, now 30"),
        ("kd", ["--subset", "50"], "--subset was 60, now 50"),
        ("kd", ["--student", "stillroom/convnet24"], "--student was 'stillroom/convnet4', now 'stillroom/convnet24'"),
        ("dkd", [], "--alpha was None, now 1.0"),
        ("supervised", [], "--temperature was 4.0, now None"),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(
    finished: Path, method: str, change: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished)
    assert main(["run", method, *SMALL, "--out", str(finished), *change]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("stillroom: --out: got ")
    assert named in line
    assert "--overwrite" in line
    assert files(finished) == before


@pytest.mark.parametrize("flag", [["--overwrite"], ["--overwrite", "true"], ["--overwrite=true"]], ids=" ".join)
def test_overwrite_replaces_a_run_and_remembers_the_new_arguments(finished: Path, tmp_path: Path, flag: list[str]) -> None:
    out = tmp_path / "run"
    (out / "seed0/distilled").mkdir(parents=True)
    (out / "config.yaml").write_text((finished / "config.yaml").read_text())
    (out / "seed0/distilled/stage.json").write_text((finished / "seed0/distilled/stage.json").read_text())
    assert main(["run", "supervised", *flag, *SMALL, "--out", str(out)]) == 0
    assert not (out / "seed0/distilled").exists()
    assert main(["run", "supervised", *SMALL, "--out", str(out)]) == 0


def test_overwrite_with_a_mistake_loses_nothing(finished: Path) -> None:
    before = files(finished)
    for mistake in (["--student", "stillroom/nonet"], ["--temperature", "0"], ["--data", "nowhere:at-all"], ["--teacher", "x@y"]):
        assert main(["run", "kd", *SMALL, "--out", str(finished), "--overwrite", *mistake]) == 2
    assert files(finished) == before


class Unpickled:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (self.path, 0o755)


# Each: method, what is wrong, what the line must say besides, in order.
BAD: list[tuple[str, list[str], list[str]]] = [
    ("nonsense", [], ["method: got nonsense", "stillroom list"]),
    ("dkdd", [], ["method: got dkdd", "dkd"]),
    ("kd", ["--temperatur", "3"], ["--temperatur", "--help", "--temperature"]),
    ("kd", ["--host-options", "{}"], ["--host-options", "--help"]),
    ("kd", ["stray"], ["stray", "--help"]),
    ("kd", ["--temperature"], ["--temperature", "expected"]),
    ("kd", ["--temperature", "0"], ["--temperature: got 0", "above 0"]),
    ("kd", ["--temperature", "hot"], ["--temperature: got hot", "a number"]),
    ("kd", ["--temperature", ".nan"], ["--temperature: got nan", "above 0"]),
    ("kd", ["--kd-weight", "-1"], ["--kd-weight: got -1", "at least 0"]),
    ("kd", ["--preset", "papr"], ["--preset: got papr", "paper"]),
    ("kd", ["--student", "stillroom/convnet5"], ["--student: got stillroom/convnet5", "convnet4"]),
    ("kd", ["--student", "timm/resnet19"], ["--student: got timm/resnet19", "resnet18"]),
    ("kd", ["--teacher", "convnet24"], ["--teacher: got convnet24", "stillroom/convnet24"]),
    ("kd", ["--data", "cifar:somewhere"], ["--data: got cifar:somewhere", "cifar10"]),
    ("kd", ["--data", "imagefolder:missing"], ["--data: got missing", "exists"]),
    ("kd", ["--batch-size", "0"], ["--batch-size: got 0", "at least 1"]),
    ("kd", ["--batch-size", "many"], ["--batch-size: got many", "a whole number"]),
    ("kd", ["--epochs", "0"], ["--epochs: got 0", "at least 1"]),
    ("kd", ["--epochs", "1.5"], ["--epochs: got 1.5", "a whole number"]),
    ("kd", ["--subset", "100000"], ["--subset: got 100000", "900"]),
    ("kd", ["--milestones", "soon"], ["--milestones: got soon", "a list of numbers"]),
    ("kd", ["--optimizer", "lion"], ["--optimizer: got lion", "one of sgd, adam, adamw"]),
    ("kd", ["--nesterov", "maybe"], ["--nesterov: got maybe", "true or false"]),
    ("dot", ["--delta", "0.2"], ["--delta: got 0.2", "momentum is 0.9"]),
    ("kd", ["--epochs", "2", "--warmup-epochs", "2"], ["--warmup-epochs: got 2", "fewer than the run's epochs (2)"]),
    ("dot", ["--host", "supervised"], ["--host: got supervised", "such as kd, dkd or crd"]),
    ("dot", ["--host-options", '{"temprature": 2}'], ["--host-options: got temprature", "temperature"]),
    ("dot", ["--host-options", '{"temperature": 0}'], ["temperature: got 0", "above 0"]),
    ("dot", ["--host-options", "3"], ["--host-options: got 3", "a mapping"]),
    ("dot", ["--optimizer", "adamw"], ["--optimizer: got adamw", "sgd"]),
    ("dot", ["--nesterov"], ["--optimizer: got nesterov", "sgd"]),
    ("dot", ["--host", "kd3"], ["--host: got KD3, which has no task term", "a distiller with both"]),
    ("kd", ["--student", "frozen.py:frozen"], ["--student: got Sequential", "a network that learns"]),
    ("supervised", ["--data", "coco:photos,boxes.json"], ["--data: got coco", "--task detection or segmentation, which read these"]),
    ("supervised", ["--data", "nowhere:x"], ["--data: got nowhere:x", "digits"]),
    ("supervised", ["--student", "frozen.py:frozen"], ["--student: got Sequential", "a network that learns"]),
    ("kd", ["--seeds", "0"], ["--seeds: got 0", "at least 1"]),
    ("kd", ["--teacher", "stillroom/convnet24@missing.safetensors"], ["--teacher: got 'missing.safetensors'", "does not exist"]),
    ("kd", ["--teacher", "stillroom/convnet24@code.pt"], ["--teacher: got 'code.pt'", "--trust-code"]),
    ("kd", ["--teacher", "stillroom/convnet24@code.pkl"], ["--teacher: got 'code.pkl'", "--trust-code"]),
    ("kd", ["--student", "other_run"], ["--student: got", "other_run", "student.safetensors"]),
    ("kd", ["--student", "empty_run"], ["--student: got empty_run", "student.json"]),
    ("crd", ["--student-layer", "laer1"], ["--student-layer: got", "laer1", "layer1"]),
    ("fitnets", ["--teacher-layer", "laer2"], ["--teacher-layer: got", "laer2", "layer2"]),
    ("kd", ["--accelerator", "abacus"], ["--accelerator: got abacus", "cpu"]),
    ("kd", ["--strategy", "hope"], ["--strategy: got hope", "ddp"]),
    ("kd", ["--strategy", "ddp_spawn"], ["--strategy: got ddp_spawn", "one of auto, ddp"]),
    ("kd", ["--strategy", "fsdp"], ["--strategy: got fsdp", "GPUs"]),
    ("kd", ["--precision", "8"], ["--precision: got 8", "32-true"]),
    ("kd", ["--precision", "64-true"], ["--precision: got 64-true", "32-true"]),
    ("kd", ["--nesterov", "--momentum", "0"], ["--momentum: got 0", "nesterov"]),
    ("kd", ["--mean", "[0, 0]"], ["--mean: got [0, 0]", "a list of 3 numbers or null"]),
    ("kd", ["--mean", "[0, x, 0]"], ["--mean: got [0, 'x', 0]", "a list of 3 numbers or null"]),
    ("kd", ["--teacher-mean", "[0, 0, 0]"], ["--teacher-mean: got [0.0, 0.0, 0.0]", "without weights"]),
    ("kd", ["--data", "digits,imbalance=exp:1000"], ["--data: got imbalance=exp:1000", "at most"]),
    ("kd", ["--checkpoint-steps", "0"], ["--checkpoint-steps: got 0", "at least 1"]),
    ("kd", ["--checkpoint-seconds", "-1"], ["--checkpoint-seconds: got -1", "at least 0"]),
    ("kd", ["--teacher-epochs", "0"], ["--teacher-epochs: got 0", "at least 1"]),
    ("kd", ["--config", "missing.yaml"], ["--config", "missing.yaml"]),
    ("kd", ["--config", "unknown.yaml"], ["temprature", "--temperature"]),
    ("kd", ["--config", "broken.yaml"], ["--config", "a YAML file"]),
    ("kd", ["--config", ""], ["--config", "nothing in it"]),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the bad inputs speak of; the current one."""
    monkeypatch.chdir(tmp_path)
    poisoned = {"weight": Unpickled(str(tmp_path / "ran_foreign_code"))}
    torch.save(poisoned, "code.pt")
    Path("code.pkl").write_bytes(pickle.dumps(poisoned))
    Path("other_run").mkdir()
    card = {"model": "stillroom/convnet4", "num_classes": 3, "classes": ["a", "b", "c"], "image_size": 8}
    Path("other_run/student.json").write_text(json.dumps(card))
    Path("empty_run").mkdir()
    frozen = "nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes)).requires_grad_(False)"
    Path("frozen.py").write_text(f"from torch import nn\n\n\ndef frozen(num_classes):\n    return {frozen}\n")
    Path("unknown.yaml").write_text("temprature: 3\n")
    Path("broken.yaml").write_text("a: [\n")
    return tmp_path


@pytest.mark.parametrize(("method", "arguments", "says"), BAD, ids=[" ".join([method, *arguments]) for method, arguments, _ in BAD])
def test_wrong_input_is_one_line_and_leaves_nothing(
    workplace: Path,
    method: str,
    arguments: list[str],
    says: list[str],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    before = sorted(workplace.rglob("*"))
    assert main(["run", method, *SMALL, "--out", "out/run", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("stillroom: ")
    assert output.err.count("\n") == 1
    assert not [warning.message for warning in recwarn if issubclass(warning.category, UserWarning)]  # would be printed too
    position = 0
    for words in says:
        position = output.err.index(words, position)
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_absent_accelerator_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(workplace.rglob("*"))
    assert main(["run", "kd", "--accelerator", "gpu", "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith("stillroom: --accelerator: got gpu, expected ")
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("out", ["unknown.yaml", "unknown.yaml/below/it"])
def test_out_that_cannot_be_a_folder_is_refused(workplace: Path, out: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = files(workplace)
    assert main(["run", "kd", *SMALL, "--out", out, *more]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"stillroom: --out: got {out}, expected a folder")
    assert files(workplace) == before


def test_a_folder_that_is_no_run_is_not_overwritten(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("years of work")
    before = files(workplace)
    assert main(["run", "kd", *SMALL, "--out", "thesis", "--overwrite"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--out: got thesis, expected a folder that Stillroom wrote" in line
    assert files(workplace) == before


@pytest.mark.parametrize(("arguments", "says"), [([], "COMMAND"), (["runn"], "runn"), (["run"], "METHOD"), (["list", "more"], "more")])
def test_wrong_command_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("stillroom: ")
    assert says in output.err


def test_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillroom.cli", "run", "kd", "--temperature", "0", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["stillroom: --temperature: got 0.0, expected a finite number above 0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["kd", "supervised"])
def test_a_method_needs_no_argument(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr("stillroom.engine.run_seeds", lambda *given, **more: ran.append(given))
    assert main(["run", method]) == 0
    assert ran


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (lambda: torch.empty(2**60), "bytes were asked for at once"),
        (lambda: np.empty(2**55), "iB were asked for at once"),
        (
            lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")),
            "20.00 GiB",
        ),
        (lambda: _raise(MemoryError()), "not enough memory:"),
    ],
    ids=["torch", "numpy", "cuda", "python"],
)
def test_want_of_memory_is_a_line(error: Callable[[], object], asked: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        error()
    told = explained(raised.value)
    assert isinstance(told, Broken)
    assert "--batch-size" in str(told)
    assert asked in str(told)


def _raise(error: Exception) -> None:
    raise error
