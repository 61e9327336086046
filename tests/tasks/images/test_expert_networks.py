"""Networks of several experts: their shapes, their start, a plain network's weights in them, and a shipped one's way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import fx, nn

from stillroom.errors import InputError
from stillroom.tasks.classification import build_classifier
from stillroom.tasks.images.networks import NETWORKS, ExpertBottleneckResNet, ExpertNetwork, ExpertResNet
from stillroom.tasks.images.networks.experts import CosineClassifier, ExpertBasicBlock, PaddedShortcut
from tests.tasks.images.test_networks import tapped

SMALL = ("convnet_experts", "resnet32_experts")
NAMES = [name for name in NETWORKS if "experts" in name]
TINY = {"widths": (64, 64, 64, 64)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def expert_network(name: str) -> ExpertNetwork:
    network = NETWORKS[name](num_classes=7).eval()
    assert isinstance(network, ExpertNetwork)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_the_answer_is_the_mean_of_the_experts_logits(name: str) -> None:
    network, images = expert_network(name), torch.randn(4, 3, 32, 32)
    assert network.experts(images).shape == (4, 3, 7)
    assert network.features(images).shape == (4, 3, 48)
    torch.testing.assert_close(network(images), network.experts(images).mean(1))


def test_experts_differ_from_the_start_and_share_the_trunk_alone() -> None:
    network = expert_network("convnet_experts")
    network.experts(torch.randn(4, 3, 16, 16))[:, 0].square().sum().backward()
    reached = {path for path, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert {path.partition(".")[0] for path in reached} == {"trunk", "branches", "heads"}
    assert all(path.startswith(("trunk.", "branches.0.", "heads.0.")) for path in reached)
    assert not torch.equal(network.heads[0].weight, network.heads[1].weight)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_trained(name: str) -> None:
    network = expert_network(name)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", [*SMALL, "resnet50_experts"])
def test_a_feature_is_the_activation_of_its_preactivation(name: str) -> None:
    network = NETWORKS[name](num_classes=7) if name in SMALL else ExpertBottleneckResNet((1, 1, 1, 1), num_classes=7, **TINY)
    _, seen, taps = tapped(network, torch.randn(2, 3, 64, 64))
    for feat, preact in zip(taps.feats, taps.preact_feats, strict=True):
        assert (seen[preact] < 0).any(), f"{preact} has been through an activation"
        torch.testing.assert_close(seen[feat], torch.relu(seen[preact]), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_of_the_maps(name: str) -> None:
    with torch.device("meta"):
        size = 224 if "50" in name or "152" in name else 32
        _, seen, taps = tapped(NETWORKS[name](num_classes=7).eval(), torch.randn(1, 3, size, size))
    sides = [seen[feat].shape[-1] for feat in taps.feats]
    assert sides == {224: [112, 56, 28, 14, 7], 32: [32, 32, 16, 8] if name == "resnet32_experts" else [32, 16, 8, 8]}[size]


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet32_experts", 48), ("resnet50_experts", 1536), ("resnext50_experts", 1536), ("resnet152_experts_full", 2048)],
)
def test_widths_of_the_features(name: str, width: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](num_classes=7)
    assert [tuple(head.weight.shape) for head in network.heads] == [(width, 7)] * 3


def test_one_full_expert_has_the_parameters_of_the_plain_network() -> None:
    for blocks, options, plain in (
        ((3, 4, 6, 3), {}, torchvision.models.resnet50),
        ((3, 4, 6, 3), {"groups": 32, "group_width": 4}, torchvision.models.resnext50_32x4d),
        ((3, 8, 36, 3), {}, torchvision.models.resnet152),
    ):
        with torch.device("meta"):
            network = ExpertBottleneckResNet(blocks, num_classes=1000, experts=1, widths=(64, 128, 256, 512), **options)
            biases = 1000
            assert sum(p.numel() for p in network.parameters()) + biases == sum(p.numel() for p in plain().parameters())


@pytest.mark.parametrize("name", SMALL)
def test_other_channels_and_odd_sizes(name: str) -> None:
    assert NETWORKS[name](num_classes=3, in_channels=1).eval()(torch.randn(2, 1, 35, 41)).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_other_tools_trace_it(name: str) -> None:
    network, images = expert_network(name), torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(fx.symbolic_trace(network)(images), network(images))
    exported = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(images), network(images))


def test_cosine_logits_know_directions_only_and_are_bounded_by_the_scale() -> None:
    head, features = CosineClassifier(6, 4, scale=30.0), torch.randn(5, 6)
    torch.testing.assert_close(head(features), head(100 * features))
    torch.testing.assert_close(head(head.weight.T.clone()).diagonal(), torch.full((4,), 30.0))
    assert head(torch.cat([features, -features])).abs().max() <= 30.0 + 1e-4
    assert head(torch.zeros(1, 6)).tolist() == [[0.0] * 4]
    torch.testing.assert_close(head.weight.norm(dim=0), torch.ones(4))


def test_cosine_is_formed_in_float32_under_reduced_precision() -> None:
    head, features = CosineClassifier(6, 4), torch.full((2, 6), 300.0).half()  # the squares of these overflow in half precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.float(), head(features.float()), rtol=0.02, atol=0.3)


def test_the_shortcut_without_parameters() -> None:
    x = torch.randn(2, 4, 5, 5)
    out = PaddedShortcut(2)(x)
    assert out.shape == (2, 6, 3, 3)
    torch.testing.assert_close(out[:, 1:5], x[:, :, ::2, ::2])
    assert not out[:, [0, 5]].any()


@pytest.mark.parametrize(("in_channels", "channels", "stride"), [(4, 6, 1), (4, 7, 2), (6, 4, 2)])
def test_a_shape_that_the_shortcut_cannot_follow_is_refused(in_channels: int, channels: int, stride: int) -> None:
    with pytest.raises(InputError, match="channels"):
        ExpertBasicBlock(in_channels, channels, stride)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.body."])
def test_a_plain_resnets_weights_go_into_the_trunk_and_every_expert(tmp_path: Path, prefix: str) -> None:
    plain = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5).eval()
    torch.save({prefix + key: value for key, value in plain.state_dict().items()}, tmp_path / "plain.pth")
    network = ExpertBottleneckResNet((1, 1, 1, 1), num_classes=7, widths=(64, 128, 256, 512)).eval()
    heads = [head.weight.clone() for head in network.heads]
    network.load_backbone(tmp_path / "plain.pth")
    images = torch.randn(2, 3, 64, 64)
    plain.fc = nn.Identity()
    expected = plain(images)
    for e in range(3):
        torch.testing.assert_close(network.features(images)[:, e], expected)
        assert torch.equal(network.heads[e].weight, heads[e])


def test_weights_of_another_network_leave_it_as_it_was(tmp_path: Path) -> None:
    torch.save(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]).state_dict(), tmp_path / "plain.pth")
    network = ExpertBottleneckResNet((1, 1, 1, 1), num_classes=7)  # its experts are narrower
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"pretrained: got '.*plain.pth', in which \d+ entries are missing or of another shape \(layer3"):
        network.load_backbone(tmp_path / "plain.pth", argument="pretrained")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_no_expert_and_a_wrong_depth_are_refused() -> None:
    with pytest.raises(InputError, match="branches"):
        ExpertNetwork(nn.Identity(), [], 4, 2)
    with pytest.raises(InputError, match="depth"):
        ExpertResNet(33, num_classes=4)


def test_a_name_builds_it() -> None:
    built = build_classifier("stillroom/convnet_experts", num_classes=4, image_size=16)
    assert built.spec == "stillroom/convnet_experts"
    assert built.network(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
