"""A teacher that an engine computes: the same answers, its features, what it is made of kept, and one that strays refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Teacher, Training
from stillroom.engine.inference.fidelity import CLASSES, ByEngine
from stillroom.engine.inference.kept import kept_files
from stillroom.engine.inference.teacher import EngineTeacher
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError
from stillroom.methods.fitnets import build as build_fitnets
from stillroom.tasks.classification import ImageData, build_classifier
from stillroom.tasks.classification.networks import ClassifierNetworks

has_openvino = importlib.util.find_spec("openvino") is not None
ENGINES = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.skipif(not has_openvino, reason="OpenVINO is not installed"))]


@pytest.fixture(autouse=True, scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where files are kept, for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("kept")))
        yield kept_files()


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("digits", batch_size=64, augment="none")


@pytest.fixture(scope="module")
def network(data: ImageData) -> nn.Module:
    """A small network that has learnt the digits a little, so that its answers say something."""
    torch.manual_seed(0)
    made: nn.Module = build_classifier("stillroom/convnet4", num_classes=10, image_size=8).network
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(4):
        for batch in data.train_loader(seed=0):
            optimiser.zero_grad()
            nn.functional.cross_entropy(made(batch.images), batch.labels).backward()
            optimiser.step()
    return made.eval()


@pytest.fixture(scope="module")
def images(data: ImageData) -> Tensor:
    return data.eval_loader().first(50).images


def made(network: nn.Module | list[nn.Module], data: Any, precision: Any = "fp32", engine: str = "onnxruntime", **options: Any) -> Any:
    return EngineTeacher(network, engine=engine, precision=precision, data=data, **options)


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(images)
    return answer


@pytest.mark.parametrize("engine", ENGINES)
def test_the_answers_are_the_networks_in_every_precision(network: nn.Module, data: ImageData, images: Tensor, engine: str) -> None:
    wanted = logits(network, images)
    scale = wanted.abs().max()
    exact, small = made(network, data, engine=engine), made(network, data, "int8", engine)
    assert ((exact(images) - wanted).abs().max() / scale) < 1e-5
    off = (small(images) - wanted).abs().max() / scale
    assert 1e-4 < off < 0.2  # quantised indeed
    assert (small(images).argmax(1) == wanted.argmax(1)).double().mean() > 0.9
    assert small(images[:1]).shape == (1, 10)
    assert not small(images).requires_grad
    student = build_classifier("stillroom/convnet4", num_classes=10, image_size=8).network
    (student(images) * small(images)).sum().backward()  # answers can be saved for a backward pass
    assert len({one.fingerprint() for one in (exact, small, Teacher(network))}) == 3
    assert small.precision_on(torch.device("cpu")) == f"int8 by {engine}"


def test_files_are_kept_for_the_next_run_and_made_anew_where_they_are_damaged(
    network: nn.Module, data: ImageData, images: Tensor, kept: Path
) -> None:
    lines: list[str] = []
    first = made(network, data, "int8", say=lines.append)
    told = first(images)
    files = sorted(kept.glob("*.onnx"))
    again = made(copy.deepcopy(network), data, "int8", say=lines.append)
    assert again.ready()[0].startswith("The teacher is computed in int8 by onnxruntime (made before): agreement ")
    assert torch.equal(again(images), told)
    assert sorted(kept.glob("*.onnx")) == files
    next(file for file in files if file.name.endswith(".int8.onnx")).write_bytes(b"half of it")
    anew = made(network, data, "int8", say=lines.append)
    assert torch.equal(anew(images), told)
    assert "(made in " in lines[-1]
    other = copy.deepcopy(network)
    next(other.parameters()).data.mul_(1.1)
    made(other, data)(images)
    assert len(list(kept.glob("*.onnx"))) == len(files) + 1
    assert not list(kept.glob(".*.onnx.*/"))  # no folder of something half made
    assert torch.equal(pickle.loads(pickle.dumps(first))(images), told)


def test_an_ensemble_and_other_statistics(network: nn.Module, data: ImageData, images: Tensor) -> None:
    other = copy.deepcopy(network)
    next(other.parameters()).data.mul_(1.1)
    shift = Renormalise((0.5,) * 3, (0.5,) * 3, (0.4,) * 3, (0.6,) * 3)
    options: dict[str, Any] = {"weights": (1, 3), "combine": "probabilities", "renormalise": shift}
    wanted = Teacher([network, other], precision="fp32", **options)(images)
    torch.testing.assert_close(made([network, other], data, **options)(images), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_features_are_outputs_of_the_graph(network: nn.Module, data: ImageData, images: Tensor, precision: str) -> None:
    convolution = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][1]
    linear = next(name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    paths = convolution, f"{linear}:input"
    wanted, features = Teacher(network, precision="fp32").tap(*paths)(images)
    told, found = made(network, data, precision).tap(*paths)(images)
    assert found.keys() == features.keys()
    for got, expected in ((told, wanted), *((found[path], features[path]) for path in paths)):
        assert ((got - expected).abs().max() / expected.abs().max()) < (1e-4 if precision == "fp32" else 0.25)


def test_a_method_on_features_learns_from_it(network: nn.Module, data: ImageData) -> None:
    torch.manual_seed(0)
    student = build_classifier("stillroom/convnet4", num_classes=10, image_size=8).network
    batch = next(iter(data.train_loader(seed=0)))
    totals = []
    for teacher in (Teacher(network, precision="fp32"), made(network, data, "int8")):
        torch.manual_seed(0)
        distiller = build_fitnets(copy.deepcopy(student), teacher, data)
        total = distiller.losses(batch).total
        total.backward()
        totals.append(total.item())
    assert totals[0] == pytest.approx(totals[1], rel=0.1)
    assert totals[0] != totals[1]


class Wilful(nn.Module):
    """Its answer hangs on what is in the images, which no exported graph can follow; and it reads several sizes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        told: Tensor = self.linear(images.mean((2, 3)))
        return told if float(images.mean()) > -100 else -told


def test_what_cannot_be_exported_is_asked_by_torch_with_its_reason(data: ImageData, images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(f"from {__name__} import Wilful\n")
    spec = f"{tmp_path / 'nets.py'}:Wilful"
    network = Wilful()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    lab = Lab(LabOptions(out=tmp_path / "run", accelerator="cpu", teacher_precision="int8"))
    networks = ClassifierNetworks(f"{spec}@{tmp_path / 'w.pt'}", accept_teacher=True)
    teacher = Experiment(lab, data, Training(epochs=1), networks).teacher()
    (note,) = [note for note in teacher.notes if "PyTorch" in note]
    assert note.startswith("The teacher is asked by PyTorch, not by onnxruntime: Wilful cannot be exported for batches of any size")
    assert "\n" not in note
    torch.testing.assert_close(lab.teach(teacher)(images), Teacher(network)(images))


def test_images_of_another_size_are_torchs(data: ImageData) -> None:
    lines: list[str] = []
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = made(network, data, say=lines.append)
    for _ in range(2):
        images = torch.randn(4, 3, 16, 16)
        torch.testing.assert_close(teacher(images), Teacher(network)(images), atol=1e-2, rtol=1e-2)
    assert [line for line in lines if "[3, 16, 16]" in line] == [lines[-1]]  # once


def strict(**limits: float) -> ByEngine:
    return replace(CLASSES, bounds={name: replace(bound, limit=limits.get(name, bound.limit)) for name, bound in CLASSES.bounds.items()})


def test_one_that_strays_is_refused_with_its_numbers_or_accepted(network: nn.Module, data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"agreement \d+\.\d % \(at least 95\), KL at T = 2 \S+ \(at most 1e-09\), expected .*--accept-teacher"
    ):
        made(network, data, "int8", by=strict(kl=1e-9), temperature=2.0).ready()
    (note,) = made(network, data, "int8", by=strict(kl=1e-9), accept=True).ready()
    assert note.endswith("It was accepted all the same.")


def test_a_whole_run_says_how_near_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "digits", "--subset", "300", "--val-subset", "100", "--teacher", "stillroom/convnet4", "--teacher-epochs", "3"]
    words += ["--accelerator", "cpu", "--teacher-precision", "int8", "--accept-teacher", "true", "--lr", "0.1"]
    run = ["run", "kd", *words, "--student", "stillroom/convnet4", "--epochs", "1", "--temperature", "2", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "KL at T = 2" in out
    (note,) = [note for note in json.loads((tmp_path / "run/metrics.json").read_text())["notes"] if "int8 by onnxruntime" in note]
    assert "that its ranges were not measured on" in note
    assert main(run) == 0  # finished: its teacher is known by the same fingerprint
    assert "done before" in capsys.readouterr().out
    cache = ["cache", *words, "--teacher", str(tmp_path / "run/teacher"), "--views", "2", "--out", str(tmp_path / "cache")]
    assert main(cache) == 0
    record = json.loads((tmp_path / "cache/cache.json").read_text())
    assert record["key"]["teacher_precision"] == "int8 by onnxruntime"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_precision": "int8", "teacher_engine": "torch"}, "teacher_engine: got torch, with --teacher-precision int8"),
        ({"teacher_precision": "bf16", "teacher_engine": "onnxruntime"}, "got bf16 by onnxruntime, expected one of auto, fp32, int8"),
        ({"teacher_precision": "int8", "teacher_compile": True}, "teacher_compile"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        LabOptions(out=tmp_path, **options)
    assert message in str(caught.value)


def test_a_method_or_a_task_without_engines_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("zeroseg", "giftnet", "boss", "rdd")
    for method in methods:
        assert main(["run", method, "--teacher-precision", "int8", "--out", str(tmp_path / "run"), "--accelerator", "cpu"]) == 2
    assert capsys.readouterr().err.count("--teacher-engine: got onnxruntime, expected torch: this method asks") == len(methods)
    searched = ["--task", "segmentation", "--data", "objects:train=4,val=2", "--teacher-precision", "int8", "--out", str(tmp_path / "run")]
    assert main(["run", "searched", *searched]) == 2
    assert "torch: no engine is asked in this task" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_detectors_lists_come_from_the_engine(tmp_path: Path) -> None:
    from stillroom.methods.bckd import build as build_bckd
    from stillroom.tasks.detection import DetectionData, build_detector
    from stillroom.tasks.detection.by_engine import BY_ENGINE

    scenes = DetectionData("scenes:train=16,val=4,teacher=16", batch_size=8)
    network = build_detector("stillroom/gfl_24", num_classes=scenes.num_classes).network.eval()
    student = build_detector("stillroom/gfl_24", num_classes=scenes.num_classes).network
    batch = next(iter(scenes.train_loader(seed=0)))
    wanted = Teacher(network, precision="fp32")(batch)
    teacher = made(network, scenes, "int8", by=BY_ENGINE, accept=True)
    told = teacher(batch)
    shapes = [{name: [level.shape for level in levels] for name, levels in answer.items()} for answer in (told, wanted)]
    assert shapes[0] == shapes[1]
    for name, most in (("logits", 0.3), ("boxes", 3.0)):  # pixels
        off = max(float((got - own).abs().max()) for got, own in zip(told[name], wanted[name], strict=True))
        assert 0 < off < most, name
    assert torch.isfinite(build_bckd(student, teacher, scenes).losses(batch).total)
    larger = torch.randn(2, 3, 96, 64)
    for got, own in zip(teacher(larger)["boxes"], Teacher(network, precision="fp32")(larger)["boxes"], strict=True):
        assert got.shape == own.shape  # images of other sizes, by the same graph
    (note,) = teacher.ready()
    assert "IoU of boxes" in note
