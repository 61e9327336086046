"""Weights whose head answers for other classes are a start: the head is new, the teacher is fine-tuned first, and both are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.kd import recipe
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.classification.supervised import Supervised
from stillroom.tasks.images.classifiers import build_classifier
from tests.tasks.classification.miniatures import classes_of_pictures

NETS_PY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, images):
        return self.fc(self.body(images).relu().mean((2, 3)))

def build(num_classes):
    return Net(num_classes)
"""


def of_1000_classes(source: str, folder: Path) -> tuple[str, nn.Module]:
    """The spec of a source with a file of weights for 1000 classes, and the network that they are from."""
    if source == "nets.py:build":
        (folder / "nets.py").write_text(NETS_PY)
        source = f"{folder / 'nets.py'}:build"
    network = build_classifier(source, num_classes=1000).network
    torch.save({"state_dict": network.state_dict()}, folder / "imagenet.pth")
    return f"{source}@{folder / 'imagenet.pth'}", network


@pytest.fixture
def photos(tmp_path: Path) -> ImageData:
    return ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'p', count=10, size=(32, 32))}", batch_size=4, workers=0)


@pytest.mark.parametrize("source", ["timm/resnet10t", "torchvision/squeezenet1_1", "stillroom/resnet8", "nets.py:build"])
def test_a_file_of_other_classes_brings_all_but_its_head(tmp_path: Path, source: str) -> None:
    spec, published = of_1000_classes(source, tmp_path)
    torch.manual_seed(1)
    built = build_classifier(spec, num_classes=2, image_size=32, classes=("cat", "dog"))
    assert built.start == "its head answers for 1000 classes, not for the 2 of the data"
    theirs, ours = published.state_dict(), built.network.state_dict()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {*built.new}
    assert len(built.new) == 2
    torch.manual_seed(1)
    fresh = build_classifier(spec.partition("@")[0], num_classes=2, image_size=32).network.state_dict()
    assert all(torch.equal(ours[name], fresh[name]) for name in built.new)


def test_without_the_datas_classes_other_heads_are_refused(tmp_path: Path) -> None:
    spec, _ = of_1000_classes("stillroom/resnet8", tmp_path)
    with pytest.raises(InputError, match=r"1000 classes, the network's 2"):
        build_classifier(spec, num_classes=2)


def test_a_body_that_does_not_fit_is_no_start(tmp_path: Path) -> None:
    network = build_classifier("stillroom/resnet14", num_classes=1000).network
    save_weights(network, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit"):
        build_classifier(f"stillroom/resnet8@{tmp_path / 'other.safetensors'}", num_classes=2, classes=("cat", "dog"))


@pytest.mark.parametrize("source", ["timm/resnet10t", "stillroom/resnet8", "nets.py:build"])
def test_weights_without_a_head_are_a_start(tmp_path: Path, source: str) -> None:
    spec, published = of_1000_classes(source, tmp_path)
    weights = {f"backbone.{key}": value for key, value in published.state_dict().items() if not key.startswith("fc.")}
    torch.save({"model": weights}, tmp_path / "imagenet.pth")
    built = build_classifier(spec, num_classes=2, image_size=32, classes=("cat", "dog"))
    assert (built.start, built.new) == ("they have no head", ("fc.weight", "fc.bias"))
    theirs, ours = published.state_dict(), built.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in built.new)
    torch.save({"model": {**weights, "backbone.fc.0.weight": torch.ones(2, 3)}}, tmp_path / "imagenet.pth")  # MoCo's own head
    assert build_classifier(spec, num_classes=2, image_size=32, classes=("cat", "dog")).start == "they have no head"
    with pytest.raises(InputError, match=r"2 missing \(fc"):
        build_classifier(spec, num_classes=2)


def test_a_body_with_a_hole_is_no_start(tmp_path: Path) -> None:
    spec, published = of_1000_classes("stillroom/resnet8", tmp_path)
    first, *others = (key for key in published.state_dict() if not key.startswith("fc."))
    torch.save({key: published.state_dict()[key] for key in others}, tmp_path / "imagenet.pth")
    with pytest.raises(InputError, match=f"3 missing .*{first}"):
        build_classifier(spec, num_classes=2, classes=("cat", "dog"))


def test_a_run_of_as_many_other_classes_is_a_start(tmp_path: Path) -> None:
    network = build_classifier("stillroom/resnet8", num_classes=2).network
    save_weights(network, tmp_path / "student.safetensors")
    (tmp_path / "student.json").write_text(
        json.dumps({"model": "stillroom/resnet8", "num_classes": 2, "classes": ["oak", "elm"], "image_size": 32})
    )
    built = build_classifier(str(tmp_path), num_classes=2, image_size=32, classes=("cat", "dog"))
    assert built.start == "its head answers for oak, elm, ..., not for the data's classes"
    assert not torch.equal(built.network.state_dict()[built.new[0]], network.state_dict()[built.new[0]])
    same = build_classifier(str(tmp_path), num_classes=2, image_size=32, classes=("oak", "elm"))
    assert (same.start, same.classes) == ("", ("oak", "elm"))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_published_weights_are_a_start_for_other_classes_alone(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "resnet18"
    if library == "timm":
        monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **options: None)
        assert timm.get_pretrained_cfg(name).num_classes == 1000
    else:
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: get_model(name).state_dict())
    others = build_classifier(f"{library}/{name}@pretrained", num_classes=5, image_size=32)
    assert others.start == "they answer for 1000 classes, not for the 5 of the data"
    assert others.new == ("fc.weight", "fc.bias")
    assert build_classifier(f"{library}/{name}@pretrained", num_classes=1000, image_size=32).start == ""


def test_what_the_weights_bring_learns_at_a_tenth(tmp_path: Path) -> None:
    spec, _ = of_1000_classes("stillroom/resnet8", tmp_path)
    built = build_classifier(spec, num_classes=2, classes=("cat", "dog"))
    distiller = Supervised(built.network)
    distiller.plan = Training(lr=0.5)
    assert len(distiller.configure_optimizers().param_groups) == 1
    distiller.new_head = built.new
    new, old = distiller.configure_optimizers().param_groups
    assert (new["lr"], old["lr"]) == (0.5, 0.05)
    named: dict[str, Tensor] = dict(built.network.named_parameters())
    assert {*map(id, new["params"])} == {id(named[name]) for name in built.new}
    assert len(old["params"]) == len(named) - 2


def test_the_head_alone_may_learn(tmp_path: Path, photos: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    spec, published = of_1000_classes("timm/resnet10t", tmp_path)
    networks = ClassifierNetworks(teacher=spec, student="stillroom/convnet4", teacher_head_only=True, teacher_epochs=2, teacher_lr=0.1)
    experiment = Experiment(Lab(LabOptions(out=str(tmp_path / "run"))), photos, Training(epochs=1), networks)
    taught = experiment.teacher()
    assert "the new head at a learning rate of 0.1, all else as it is" in taught.result.origin
    theirs, ours = published.state_dict(), load_file(tmp_path / "run" / "teacher" / "student.safetensors")
    changed = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert changed == ["fc.bias", "fc.weight"]  # not the batch norms' statistics
    fresh = experiment.network(spec, "student").network.state_dict()
    assert not torch.equal(ours["fc.weight"], fresh["fc.weight"])


def test_a_head_that_is_not_new_does_not_learn_alone(tmp_path: Path, photos: ImageData) -> None:
    networks = ClassifierNetworks(teacher="stillroom/convnet4", student="stillroom/convnet4", teacher_head_only=True)
    with pytest.raises(InputError, match="teacher_head_only: got true for stillroom/convnet4, a teacher without weights"):
        Experiment(Lab(LabOptions(out=str(tmp_path / "run"))), photos, Training(epochs=1), networks).rehearse()


def test_a_teacher_with_another_head_is_fine_tuned_before_it_teaches(
    tmp_path: Path, photos: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, published = of_1000_classes("nets.py:build", tmp_path)
    lab = Lab(LabOptions(out=tmp_path / "run"))
    networks = Networks(spec, "stillroom/convnet4", teacher_epochs=2, teacher_lr=0.02)
    report = recipe(lab, photos, Training(epochs=1, lr=0.01), networks)
    [teacher] = report.arms["teacher"]
    assert teacher.epochs == 2
    said = (
        "without their head, since its head answers for 1000 classes, not for the 2 of the data; 2 epochs, the new head at a learning rate "
    )
    assert f"{said}of 0.02, all else at 0.002" in teacher.origin
    assert teacher.origin in " ".join(capsys.readouterr().out.split())
    [alone] = report.arms["alone"]
    assert alone.origin == ""
    # Who comes back with the teacher's own weights has a trained network: it is scored and teaches at once.
    tuned = f"{spec.partition('@')[0]}@{tmp_path / 'run' / 'teacher'}"
    again = Experiment(Lab(LabOptions(out=tmp_path / "again")), photos, Training(epochs=1), Networks(tuned, "stillroom/convnet4")).teacher()
    assert (again.result.epochs, again.result.metrics["top1"]) == (0, teacher.metrics["top1"])
    assert again.result.origin.endswith("scored and used as they are")
    assert published is not again.network


def test_a_student_may_start_from_another_head(tmp_path: Path, photos: ImageData) -> None:
    spec, _ = of_1000_classes("stillroom/resnet8", tmp_path)
    experiment = Experiment(Lab(LabOptions(out=tmp_path / "run")), photos, Training(epochs=1, lr=0.01), Networks("", spec))
    alone = experiment.alone()
    assert "the new head at a learning rate of 0.01, all else at 0.001" in alone.result.origin


def test_fine_tuning_takes_ten_epochs_at_most_by_default() -> None:
    networks = Networks("a", "b")
    assert networks.teacher_plan(Training(epochs=150), start=True).epochs == 10
    assert networks.teacher_plan(Training(epochs=4), start=True).epochs == 4
    assert networks.teacher_plan(Training(epochs=150)).epochs == 150
    assert networks.teacher_plan(Training(epochs=150), start=True).schedule == "cosine"
