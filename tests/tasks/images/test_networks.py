"""The small networks: published sizes, taps that say what they promise, and graphs that other tools can trace."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from stillroom.errors import InputError
from stillroom.tasks.images.networks import NETWORKS, VGG, ConvNet, ResNet, Taps, WideResNet

# one of each family, the cheapest, and where the depth changes the paths a deeper one
FAMILIES = ("resnet8", "resnet14", "resnet8x4", "wrn_16_1", "vgg8", "vgg11", "shufflenetv2", "mobilenetv2_tiny", "mobilenetv1", "convnet4")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tapped(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Taps]:
    """Logits, the output of every tapped module, and the tap table."""
    taps: Taps = network.taps()  # type: ignore[operator]
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(path, output)

    handles = [
        network.get_submodule(path).register_forward_hook(keep(path)) for path in (*taps.feats, *taps.preact_feats, taps.pooled_feat)
    ]
    logits = network(images)
    for handle in handles:
        handle.remove()
    return logits, seen, taps


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet18", 11_220_132),
        ("resnet34", 21_328_292),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("vgg8", 3_965_028),
        ("vgg13", 9_462_180),
        ("shufflenetv2", 1_355_528),
    ],
)
def test_parameter_counts_at_100_classes_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](num_classes=100)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_mobilenetv1_has_the_published_size_at_1000_classes() -> None:
    with torch.device("meta"):
        network = NETWORKS["mobilenetv1"](num_classes=1000)
    assert sum(p.numel() for p in network.parameters()) == 4_231_976  # 4.2 million in the paper's table 8


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_with_logits_and_has_its_taps(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        logits, seen, taps = tapped(NETWORKS[name](num_classes=7).eval(), torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert len(taps.feats) == len(taps.preact_feats) >= (2 if name.startswith("mlp") else 4)
    assert set(seen) == {*taps.feats, *taps.preact_feats, taps.pooled_feat}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_feature_is_the_activation_of_its_preactivation(name: str) -> None:
    network = NETWORKS[name](num_classes=7)  # in training mode: batch norm keeps the tensors far from zero in deep networks
    activation = nn.functional.relu6 if name == "mobilenetv2_tiny" else torch.relu
    _, seen, taps = tapped(network, torch.randn(2, 3, 64, 64))
    for feat, preact in zip(taps.feats, taps.preact_feats, strict=True):
        assert (seen[preact] < 0).any(), f"{preact} has been through an activation"
        torch.testing.assert_close(seen[feat], activation(seen[preact]), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_are_the_linear_layer_of_the_pooled_features(name: str) -> None:
    network = NETWORKS[name](num_classes=7).eval()
    logits, seen, taps = tapped(network, torch.randn(2, 3, 32, 32))
    assert seen[taps.pooled_feat].ndim == 2
    torch.testing.assert_close(network.fc(seen[taps.pooled_feat]), logits)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "shapes", "pooled"),
    [
        ("resnet8x4", [(32, 32), (64, 32), (128, 16), (256, 8)], 256),
        ("wrn_16_2", [(16, 32), (32, 32), (64, 16), (128, 8)], 128),
        ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
        ("shufflenetv2", [(24, 32), (116, 16), (232, 8), (464, 4)], 1024),
        ("convnet4", [(4, 32), (4, 16), (8, 16), (8, 8)], 8),
    ],
)
def test_widths_and_resolutions_at_32_pixels(name: str, shapes: list[tuple[int, int]], pooled: int) -> None:
    _, seen, taps = tapped(NETWORKS[name](num_classes=7).eval(), torch.randn(1, 3, 32, 32))
    assert [tuple(seen[feat].shape[1:3]) for feat in taps.feats] == shapes
    assert seen[taps.pooled_feat].shape == (1, pooled)


def test_widths_and_resolutions_of_the_mobilenets() -> None:
    _, seen, taps = tapped(NETWORKS["mobilenetv2_tiny"](num_classes=7).eval(), torch.randn(1, 3, 64, 64))
    assert [tuple(seen[feat].shape[1:3]) for feat in taps.feats] == [(32, 66), (96, 66), (144, 33), (192, 17), (1280, 9)]
    _, seen, taps = tapped(NETWORKS["mobilenetv1"](num_classes=7).eval(), torch.randn(1, 3, 224, 224))
    assert [tuple(seen[feat].shape[1:3]) for feat in taps.feats] == [(32, 112), (64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)]


def test_vgg_pools_once_more_for_large_images() -> None:
    network = VGG(8, num_classes=7, image_size=64).eval()
    _, seen, taps = tapped(network, torch.randn(1, 3, 64, 64))
    assert [seen[feat].shape[2] for feat in taps.feats] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_convnet_reads_digits_and_small_photographs(size: int) -> None:
    assert ConvNet(4, num_classes=10, in_channels=1)(torch.randn(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_channels_and_odd_sizes(name: str) -> None:
    assert NETWORKS[name](num_classes=3, in_channels=1).eval()(torch.randn(2, 1, 35, 41)).shape == (2, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_trained(name: str) -> None:
    network = NETWORKS[name](num_classes=7)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_fx_traces_it(name: str) -> None:
    network = NETWORKS[name](num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_export_with_a_free_batch_size(name: str) -> None:
    network = NETWORKS[name](num_classes=7).eval()
    exported = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported.module()(images), network(images))


def test_shuffle_is_concatenation_and_a_channel_shuffle_of_two_groups() -> None:
    network = NETWORKS["shufflenetv2"](num_classes=7)
    first, second = torch.randn(2, 2, 6, 3, 3)
    shuffled = network.get_submodule("layer1.1.shuffle")(first, second)
    torch.testing.assert_close(shuffled, nn.ChannelShuffle(2)(torch.cat((first, second), 1)))


def test_shuffle_blocks_pass_half_of_the_channels_with_value_and_gradient() -> None:
    block = NETWORKS["shufflenetv2"](num_classes=7).get_submodule("layer1.1")
    x = torch.rand(2, 116, 4, 4).requires_grad_()
    out = block(x)
    torch.testing.assert_close(out[:, 0::2], x[:, :58])
    out[:, 0::2].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.cat((torch.ones(2, 58, 4, 4), torch.zeros(2, 58, 4, 4)), 1))


def test_initialisation() -> None:
    vgg, resnet = NETWORKS["vgg8"](num_classes=100), NETWORKS["resnet8x4"](num_classes=100)
    for weight in (vgg.get_parameter("block4.0.conv.weight"), resnet.get_parameter("layer3.0.unit2.conv.weight")):
        assert weight.std().item() == pytest.approx((2 / (9 * len(weight))) ** 0.5, rel=0.02)
    assert vgg.get_parameter("fc.weight").std().item() == pytest.approx(0.01, rel=0.02)
    for path in ("fc.bias", "block4.0.conv.bias", "block4.0.bn.bias"):
        assert (vgg.get_parameter(path) == 0).all()
    assert (resnet.get_parameter("layer3.0.unit2.bn.weight") == 1).all()


@pytest.mark.parametrize(("family", "depth"), [(ResNet, 10), (ResNet, 2), (VGG, 12)])
def test_impossible_depths(family: type[ResNet] | type[VGG], depth: int) -> None:
    with pytest.raises(InputError, match=f"depth: got {depth}"):
        family(depth, num_classes=10)


def test_impossible_depth_of_a_wide_resnet() -> None:
    with pytest.raises(InputError, match="6n \\+ 4"):
        WideResNet(20, 2, num_classes=10)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_can_be_pickled(name: str) -> None:
    network = NETWORKS[name](num_classes=7)
    copy = pickle.load(io.BytesIO(pickle.dumps(network)))
    assert list(copy.state_dict()) == list(network.state_dict())
