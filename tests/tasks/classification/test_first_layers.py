"""A student that is the first layers of a network: what it computes, where it is cut, and which weights it begins with."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Training
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.kd import KD
from stillroom.methods.supervised import recipe as supervised
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.loaded import load
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.images.classifiers import build_backbone, build_classifier
from stillroom.tasks.images.first_layers import FirstLayers, FirstSpec, cuts
from tests.tasks.classification.miniatures import classes_of_pictures

IMAGES = torch.rand(3, 3, 64, 64)
SHORT = Training(epochs=1, lr=0.01, warmup_epochs=0)

# Pads by the shape of what comes, and changes its mind by the mode: the one must be one operation, the other must be kept.
OWN_PY = """
import torch.nn.functional as F
from torch import nn

class Same(nn.Conv2d):
    def forward(self, x):
        rest = x.shape[-1] % 2
        return super().forward(F.pad(x, (0, 1, 0, 1)) if rest else x)

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.blocks = nn.ModuleList([Same(3, 8, 3, 2, 1), Same(8, 16, 3, 2, 1), Same(16, 32, 3, 2, 1)])
        self.fc = nn.Linear(32, classes)

    def forward(self, images):
        for block in self.blocks:
            images = F.dropout(F.relu(block(images)), 0.5, self.training)
        return self.fc(images.mean((2, 3)))

def build(num_classes):
    return Net(num_classes)

class Fickle(Net):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)

def fickle(num_classes):
    return Fickle(num_classes)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN_PY)
    return f"{tmp_path / 'own.py'}:build"


@pytest.fixture
def photos(tmp_path: Path) -> ImageData:
    return ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'p', count=10, size=(32, 32))}", batch_size=4, workers=0)


def behind(network: nn.Module, path: str) -> Tensor:
    """What a module of the whole network answers."""
    found: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        network.eval()(IMAGES)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ("network", "until", "pooled"),
    [
        (timm.create_model("resnet10t", num_classes=7), "layer2", (2, 3)),
        (timm.create_model("tf_efficientnet_lite0", num_classes=7), "blocks.2", (2, 3)),
        (timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64, depth=6), "blocks.3", (1,)),
        (timm.create_model("swin_tiny_patch4_window7_224", num_classes=7, img_size=64, window_size=4), "layers.1", (1, 2)),
        (get_model("swin_t", num_classes=7), "features.1", (1, 2)),
        (get_model("googlenet", num_classes=7, aux_logits=False, init_weights=False), "inception3a", (2, 3)),
    ],
    ids=["resnet", "efficientnet", "vit", "swin of timm", "swin of torchvision", "googlenet"],
)
def test_it_answers_with_a_head_on_what_the_whole_network_has_there(network: nn.Module, until: str, pooled: tuple[int, ...]) -> None:
    before = copy.deepcopy(network.state_dict())
    first = FirstLayers(network, until, 5, IMAGES[:1], "student").eval()
    with torch.no_grad():
        assert torch.allclose(first(IMAGES), first.head(behind(network, until).mean(pooled)), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    kept = {name.removeprefix("layers.") for name, _ in first.named_parameters() if not name.startswith("head.")}
    assert kept < {*before}, "only layers of the network, and not all of them"


def test_it_trains_as_the_network_does(own: str) -> None:
    first = build_classifier(f"first:{own},until=blocks.1", num_classes=2, image_size=33).network
    images = torch.rand(64, 3, 33, 33)
    assert not torch.equal(first.train()(images), first(images)), "dropout outside of a module"
    assert torch.equal(first.eval()(images), first(images))
    for module in first.modules():  # as Lightning does after each validation
        module.training = True
    assert not torch.equal(first(images), first(images))
    assert not torch.equal(copy.deepcopy(first)(images), first(images))
    first.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "densenet121", "regnety_002", "mobilevit_xxs", "inception_v3"])
def test_the_middle_is_a_block_at_about_half_of_the_work(name: str) -> None:
    network = timm.create_model(name, num_classes=5)
    example = torch.zeros(1, 3, 224, 224)
    spec, first = FirstSpec.parse("first:x", "student").cut(network, 5, example, "student")
    share = dict(cuts(network, example, "student"))[spec.until]
    assert 0.2 < share < 0.8, share
    assert sum(p.numel() for p in first.layers.parameters()) < sum(p.numel() for p in network.parameters())


def test_places_inside_a_block_are_none() -> None:
    found = [path for path, _ in cuts(timm.create_model("resnet10t", num_classes=5), IMAGES[:1], "student")]
    assert {"layer1", "layer2", "layer3", "layer4"} <= {*found}
    assert not any("conv2" in path or "downsample" in path for path in found)


def test_a_network_s_parts_are_candidates_from_the_cheapest_to_the_dearest(photos: ImageData) -> None:
    whole = build_classifier("timm/resnet10t", num_classes=2, image_size=32)
    specs = photos.task.parts_of(whole, photos)  # type: ignore[attr-defined]
    assert len(specs) == 3
    sizes = [sum(p.numel() for p in build_classifier(spec, num_classes=2, image_size=32).network.parameters()) for spec in specs]
    assert sizes == sorted(sizes)
    assert sizes[-1] < sum(p.numel() for p in whole.network.parameters())


def test_weights_are_those_of_the_whole_network(own: str, tmp_path: Path) -> None:
    whole = build_classifier(own, num_classes=1000).network
    save_weights(whole, tmp_path / "all.safetensors")
    built = build_classifier(f"first:{own}@{tmp_path / 'all.safetensors'}", num_classes=2, image_size=32, classes=("cat", "dog"))
    assert (built.start, built.new) == ("it is the network up to blocks.1", ("head.weight", "head.bias"))
    assert built.spec == f"first:{own},until=blocks.1"
    state = built.network.state_dict()
    assert {name for name in state if name.startswith("layers.")} == {f"layers.blocks.{n}.{w}" for n in (0, 1) for w in ("weight", "bias")}
    assert all(torch.equal(value, whole.state_dict()[name[7:]]) for name, value in state.items() if name.startswith("layers."))
    backbone = build_backbone(f"first:{own}@{tmp_path / 'all.safetensors'}", image_size=32)
    with torch.no_grad():
        assert torch.equal(backbone.network.eval()(IMAGES), built.network.eval().pooled(built.network.features(IMAGES)))


def test_first_layers_of_first_layers() -> None:
    torch.manual_seed(0)
    outer = build_classifier("first:timm/resnet10t,until=layer2", num_classes=2, image_size=32).network
    inner = build_classifier("first:first:timm/resnet10t,until=layer2,until=layers.layer1", num_classes=2, image_size=32).network
    assert isinstance(outer, FirstLayers)
    assert sum(p.numel() for p in inner.parameters()) < sum(p.numel() for p in outer.parameters())
    assert inner.eval()(IMAGES).shape == (3, 2)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("first:", "first:NETWORK or first:NETWORK,until=LAYER, such as first:teacher"),
        ("first:timm/resnet10t,until=layer9", "a layer of ResNet with features behind it, such as .*layer1, layer2"),
        ("first:timm/resnet10t,until=layer1@nothing.pth", "nothing.pth"),
        ("first:timm/resnet10x", "a model of timm"),
        ("first:OWN:fickle", "a network whose operations torch.fx can follow"),
        ("first:teacher", "teacher"),
    ],
)
def test_what_cannot_be_cut_is_said_in_a_line(own: str, spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_classifier(spec.replace("OWN:", own.replace("build", "")), num_classes=2, image_size=32)


def test_the_student_begins_with_the_teacher_that_teaches_it(photos: ImageData, own: str, tmp_path: Path) -> None:
    networks = ClassifierNetworks(own, "first:teacher", teacher_epochs=2)
    lab = Lab(LabOptions(out=tmp_path / "run"))
    experiment = Experiment(lab, photos, SHORT, networks)
    begun: dict[str, dict[str, Tensor]] = {}

    def make(student: nn.Module, teacher: nn.Module | None = None) -> KD:
        begun["kd"] = copy.deepcopy(student.state_dict())
        return KD(student, teacher)

    (rehearsed,) = experiment.rehearse(make)
    assert isinstance(rehearsed.student, FirstLayers)
    distilled = experiment.distilled("distilled", make)
    teacher = load_file(tmp_path / "run" / "teacher" / "student.safetensors")
    mine = {name: value for name, value in begun["kd"].items() if name.startswith("layers.")}
    assert mine
    assert all(torch.equal(value, teacher[name.removeprefix("layers.")]) for name, value in mine.items())
    assert distilled.result.model == f"first:{own},until=blocks.1"


def test_a_run_ships_it_and_a_cache_teaches_it(tmp_path: Path) -> None:
    pictures = classes_of_pictures(tmp_path / "p", count=10, size=(32, 32))
    data = ["--data", f"imagefolder:{pictures}", "--batch-size", "4", "--workers", "0", "--accelerator", "cpu", "--lr", "0.01"]
    main(["cache", *data, "--teacher", "timm/resnet10t", "--teacher-epochs", "1", "--out", str(tmp_path / "cache")])
    run = tmp_path / "run"
    words = ["--teacher", f"cache:{tmp_path / 'cache'}", "--student", "first:teacher,until=layer1", "--epochs", "1"]
    main(["run", "kd", *data, *words, "--out", str(run)])
    assert json.loads((run / "student.json").read_text())["model"] == "first:timm/resnet10t,until=layer1"
    assert "starts from the weights of" in (run / "report.html").read_text()
    student = load(run, trust_pickle=False)
    assert student.probabilities(next(pictures.rglob("*.png"))).shape == (1, 2)
    again = build_classifier(str(run), num_classes=2, image_size=32).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in load_file(run / "student.safetensors").items())


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_the_preset_for_photos_takes_a_step(method: str, photos: ImageData, tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=1000)
    save_weights(network, tmp_path / "imagenet.safetensors")
    words = ["--preset", "photos", "--data", photos.data, "--workers", "0", "--accelerator", "cpu", "--epochs", "1", "--teacher-epochs=1"]
    main(["run", method, *words, "--teacher", f"timm/resnet10t@{tmp_path / 'imagenet.safetensors'}", "--out", str(tmp_path / "run")])
    stages = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]
    assert stages["distilled"][0]["model"].startswith("first:timm/resnet10t,until=")
    assert "its head answers for 1000 classes" in stages["teacher"][0]["origin"]


def test_such_a_run_goes_on_for_more_epochs_without_being_trusted(tmp_path: Path) -> None:
    pictures = classes_of_pictures(tmp_path / "p", count=10, size=(32, 32))
    data = ["--data", f"imagefolder:{pictures}", "--batch-size", "4", "--workers", "0", "--accelerator", "cpu", "--lr", "0.01"]
    words = ["--teacher", "timm/resnet10t", "--teacher-epochs", "1", "--student", "first:teacher,until=layer1", "--epochs", "1"]
    words.append("--accept-teacher")
    assert main(["run", "kd", *data, *words, "--out", str(tmp_path / "run")]) == 0
    assert main(["run", "kd", "--continue-from", str(tmp_path / "run"), "--epochs", "2", "--out", str(tmp_path / "more")]) == 0
    stages = json.loads((tmp_path / "more" / "metrics.json").read_text())["stages"]
    assert stages["distilled"][0]["epochs"] == 2


def test_the_teacher_s_weights_are_the_only_ones_of_its_first_layers(photos: ImageData, tmp_path: Path) -> None:
    networks = ClassifierNetworks("timm/resnet10t", f"first:teacher@{tmp_path}")
    with pytest.raises(InputError, match="first:teacher alone: its weights are the teacher's"):
        Experiment(Lab(LabOptions(out=tmp_path / "run")), photos, SHORT, networks).rehearse(KD)


def test_weights_behind_a_composed_student_are_no_part_of_its_specification(photos: ImageData, tmp_path: Path) -> None:
    spec = "novel:stillroom/resnet8,known=1,hidden=8,projection=8,layers=1,temperature=0.1"
    network = build_classifier(spec, num_classes=2, image_size=32).network
    save_weights(network, tmp_path / "novel.safetensors")
    experiment = Experiment(Lab(LabOptions(out=tmp_path / "run")), photos, SHORT, ClassifierNetworks("timm/resnet10t", spec))
    state = experiment.network(f"{spec}@{tmp_path / 'novel.safetensors'}", "student").network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_without_a_teacher_there_is_none_to_begin_with(photos: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="since there is no teacher"):
        supervised(Lab(LabOptions(out=tmp_path / "run")), photos, SHORT, ClassifierNetworks("", "first:teacher"))
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").rglob("*.safetensors")]
