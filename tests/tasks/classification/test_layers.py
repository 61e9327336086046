"""Features of networks that say nothing about where they are: found by a trial pass, and read there."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from stillroom.engine import Teacher, tap
from stillroom.errors import InputError
from stillroom.methods.crd import build as crd
from stillroom.methods.fitnets import build as fitnets
from stillroom.tasks.classification import ImageData, middle_layer, pooled_layer
from stillroom.tasks.images.networks import NETWORKS


class Functional(nn.Module):
    """Somebody's network: its pooling, and the ReLU before it, are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width * 2, 3, 2, 1), nn.BatchNorm2d(width * 2), nn.ReLU()) for width in (4, 8)
        )
        self.out = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return self.out(torch.relu(maps - 0.1).mean((2, 3)))


IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("network", "pooled", "middle"),
    [
        (Functional(), "out:input", "stages.0"),
        (NETWORKS["resnet8"](num_classes=10), "pool", ""),
        (timm.create_model("resnet10t", num_classes=10), "global_pool", "layer2"),
        (timm.create_model("mobilenetv3_small_050", num_classes=10), "global_pool", "blocks.1"),
        (torchvision.models.mobilenet_v2(num_classes=10), "classifier.1:input", "features.6"),
        (torchvision.models.resnet18(num_classes=10), "avgpool", "layer2"),
    ],
    ids=["functional", "stillroom", "timm", "timm-mobile", "torchvision", "torchvision-resnet"],
)
def test_where_they_are(network: nn.Module, pooled: str, middle: str) -> None:
    images = torch.zeros(2, 3, 32, 32) if pooled == "out:input" or hasattr(network, "taps") else torch.zeros(2, 3, 64, 64)
    assert pooled_layer(network, images, "student_layer") == pooled
    found = middle_layer(network, images, "student_layer")
    if not hasattr(network, "taps"):
        assert found == middle
    assert tap(network.eval(), found)(images)[1][found].ndim == 4


def test_a_transformer_has_pooled_features_and_no_middle_map() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    assert pooled_layer(network, IMAGES, "teacher_layer") == "head:input"
    assert middle_layer(network, IMAGES, "teacher_layer") == "patch_embed.proj"  # its one map
    with pytest.raises(InputError, match=r"teacher_layer: .*feature map"):
        middle_layer(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), IMAGES, "teacher_layer")


def test_what_a_module_is_given_is_read_and_carries_gradients() -> None:
    network = Functional().train()
    logits, features = tap(network, "out:input", "out")(IMAGES + torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(network.out(features["out:input"]), logits)
    torch.testing.assert_close(features["out"], logits)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), features["out:input"])
    torch.testing.assert_close(gradient, network.out.weight[0].expand(2, 16))
    assert not network.out._forward_pre_hooks


def test_an_input_changed_in_place_is_read_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 1))
    given, asked = torch.tensor([[-1.0, 2.0]]), tap(network, "1:input")
    for _ in range(3):
        torch.testing.assert_close(asked(given)[1]["1:input"], network[0](given))


def test_a_prepared_teacher_reads_inputs_too() -> None:
    network = Functional().eval()
    images = torch.randn(2, 3, 32, 32)
    _, features = Teacher(network, precision="fp32").tap("out:input")(images)
    torch.testing.assert_close(features["out:input"], tap(network, "out:input")(images)[1]["out:input"])


def test_an_unknown_module_is_named_without_its_suffix() -> None:
    with pytest.raises(InputError, match=r"student_layer: got 'of', expected a module path.*stem"):
        tap(Functional(), "of:input", argument="student_layer")


@pytest.mark.parametrize("build", [crd, fitnets], ids=["crd", "fitnets"])
def test_networks_that_are_nobodys_teach_and_learn(digits: ImageData, build) -> None:  # type: ignore[no-untyped-def]
    options = {"negatives": 8} if build is crd else {}
    distiller = build(Functional(), Teacher(Functional()), digits, **options)
    batch = next(iter(digits.train_loader(seed=0)))
    total = distiller.losses(batch).total
    total.backward()
    assert torch.isfinite(total)
