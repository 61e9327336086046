"""Backbones of timm and torchvision: maps at the strides that were asked for, weights from a file, and what is frozen then."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from stillroom.errors import InputError
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.images.timm_backbone import TimmBackbone

SWIN = "swin_tiny_patch4_window7_224"


def classifier(name: str, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """A classifier's weights and the file that holds them."""
    torch.manual_seed(1)
    weights = timm.create_model(name, num_classes=7).state_dict()
    torch.save(weights, folder / "classifier.pth")
    return weights, folder / "classifier.pth"


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenetv2_100", (32, 96, 320)),
        ("mobilenetv3_small_100", (24, 48, 576)),
        ("resnet18", (128, 256, 512)),
        (SWIN, (192, 384, 768)),
    ],
)
def test_maps_have_their_strides_whatever_the_images_size(name: str, channels: tuple[int, ...]) -> None:
    backbone = TimmBackbone(name).eval()
    assert backbone.channels == channels
    for height, width in ((64, 96), (48, 80)):
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, height, width))
        expected = [(1, c, -(-height // stride), -(-width // stride)) for c, stride in zip(channels, (8, 16, 32), strict=True)]
        assert [tuple(level.shape) for level in maps] == expected


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101"])
def test_deep_networks_are_backbones_too(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    assert backbone.channels == ((128, 256, 512) if name == "resnet34" else (512, 1024, 2048))
    assert backbone.first == "layer1"


@pytest.mark.parametrize(
    ("name", "still", "learning"),
    [
        ("resnet18", ("conv1", "bn1", "layer1"), ("layer2", "layer3", "layer4")),
        ("mobilenetv3_small_100", ("conv_stem", "bn1", "blocks.0"), ("blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5")),
        (SWIN, ("patch_embed", "layers_0"), ("layers_1", "layers_2", "layers_3")),
    ],
)
def test_a_classifiers_weights_freeze_the_first_stages_and_the_statistics(
    tmp_path: Path, name: str, still: tuple[str, ...], learning: tuple[str, ...]
) -> None:
    weights, file = classifier(name, tmp_path)
    built = build_detector(f"gfl/{name},backbone={file}", num_classes=3)
    assert (built.spec, built.weights) == (f"gfl/{name}", None)
    backbone = built.network.train().backbone
    assert isinstance(backbone, TimmBackbone)
    own = backbone.network.state_dict()
    plain = {key.replace("_", "."): value for key, value in weights.items()}
    assert all(torch.equal(value, plain[key.replace("_", ".")]) for key, value in own.items())
    for key, parameter in backbone.network.named_parameters():
        assert parameter.requires_grad == key.startswith(learning), key
        assert key.startswith((*still, *learning)), key
    before = {key: value.clone() for key, value in own.items() if "running" in key}
    sum(level.mean() for level in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, backbone.network.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is not None for key, p in backbone.network.named_parameters() if "bn" in key and key.startswith(learning[0]))


def test_without_weights_everything_learns() -> None:
    backbone = build_detector("gfl/resnet18", num_classes=3).network.train().backbone
    assert isinstance(backbone, TimmBackbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    before = backbone.network.state_dict()["bn1.running_mean"].clone()
    backbone(torch.rand(2, 3, 64, 64))
    assert not torch.equal(backbone.network.state_dict()["bn1.running_mean"], before)


NETS = """
import torchvision
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7


def pyramid():
    more = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256), "norm_layer": nn.BatchNorm2d}
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5, **more)


def retinanet(classes):
    return RetinaNet(pyramid(), classes)


def fcos(classes):
    return FCOS(pyramid(), classes)
"""


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_torchvisions_detectors_take_a_classifiers_weights(tmp_path: Path, kind: str) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(1)
    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save(weights, tmp_path / "classifier.pth")
    spec = f"{tmp_path}/nets.py:{kind}"
    body = build_detector(f"{spec},backbone={tmp_path}/classifier.pth", num_classes=3).network.model.backbone.body
    assert all(torch.equal(value, weights[key]) for key, value in body.state_dict().items())
    assert isinstance(body.bn1, FrozenBatchNorm2d)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert {key.partition(".")[0] for key, p in body.named_parameters() if p.requires_grad} == {"layer2", "layer3", "layer4"}
    plain = build_detector(spec, num_classes=3).network
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gfl/resnet9000", "student: got resnet9000, expected a backbone of timm, such as resnet"),
        (
            "gfl/vit_tiny_patch16_224",
            "student: got vit_tiny_patch16_224, expected a network of timm that answers with maps, to images of any size",
        ),
        ("gfl/resnet18,backbone=nowhere.pth", "student: got 'nowhere.pth', which does not exist"),
        ("gfl/resnet18,backbone=FILE", "which lacks"),
        (
            "stillroom/gfl_24,backbone=FILE",
            "student: got weights for the backbone of GFL, expected gfl/BACKBONE, atss/BACKBONE or torchvision/NAME",
        ),
    ],
)
def test_what_cannot_be_a_backbone_is_said_in_one_line(tmp_path: Path, spec: str, says: str) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(InputError) as caught:
        build_detector(spec.replace("FILE", str(tmp_path / "other.pth")), num_classes=3, argument="student")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_strides_that_a_network_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match=r"^backbone: got resnet18, whose maps have the strides \[2, 4, 8, 16, 32\], expected"):
        TimmBackbone("resnet18", (8, 64))


def test_a_classifier_of_another_width_is_refused(tmp_path: Path) -> None:
    _, file = classifier("resnet18", tmp_path)
    with pytest.raises(InputError, match=r"which lacks .* a classifier of this backbone"):
        build_detector(f"gfl/resnet34,backbone={file}", num_classes=3)
    weights = torch.load(file) | {"conv1.weight": torch.zeros(32, 3, 7, 7)}
    torch.save(weights, file)
    with pytest.raises(InputError, match=r"conv1\.weight \[32, 3, 7, 7\] instead of \[64, 3, 7, 7\]"):
        build_detector(f"gfl/resnet18,backbone={file}", num_classes=3)
