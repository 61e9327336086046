"""Backbones of every library under an ML-Decoder, the head itself, and students from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stillroom.engine import Teacher
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.modules.ml_decoder import check_embeddings
from stillroom.tasks.multilabel import EMBEDDINGS, HeadOptions, MLDecoder, MultiLabelNetwork, build_multilabel

HEAD = HeadOptions(embed_dim=16, attention_heads=2, feedforward=24)


def build(spec: str, classes: int = 5, size: int = 32, head: HeadOptions = HEAD) -> MultiLabelNetwork:
    network = build_multilabel(spec, num_classes=classes, image_size=size, head=head).network
    assert isinstance(network, MultiLabelNetwork)
    return network


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        ("stillroom/strided24", 24),
        ("stillroom/resnet8", 64),
        ("torchvision/resnet18", 512),
        ("torchvision/resnet18#layer2", 128),
        ("torchvision/mobilenet_v2", 1280),
        ("timm/test_resnet", 96),
        ("timm/test_vit", 64),
        ("timm/test_convnext", 64),
    ],
)
def test_any_backbone_gets_a_head_and_label_wise_embeddings(spec: str, channels: int) -> None:
    network = build(spec)
    assert network.head.decoder.embed.in_features == channels
    teacher = Teacher(network, precision="fp32")
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        logits = network.eval()(images)
    answered, features = teacher.tap(EMBEDDINGS)(images)
    assert features[EMBEDDINGS].shape == (3, 5, 16)
    torch.testing.assert_close(answered, logits, rtol=1e-3, atol=1e-3)
    trained = network.train()(images).sum()
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(trained, parameters, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)  # nothing is left of the classifier: DDP would wait for it


def test_the_papers_networks_have_the_papers_heads() -> None:
    network = build("torchvision/resnet101", 80, 32, HeadOptions())
    assert network.head.decoder.embed.in_features == 2048
    assert network.head.classifier.weight.shape == (80, 768, 1)
    assert network.head.decoder.linear1.out_features == 2048


def test_a_network_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def plain(num_classes):\n"
        "    body = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU())\n"
        "    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, num_classes))\n"
    )
    assert build(f"{tmp_path}/nets.py:plain#0").head.decoder.embed.in_features == 7
    with pytest.raises(InputError, match=r"behind # the module path of the last feature map"):
        build(f"{tmp_path}/nets.py:plain")
    with pytest.raises(InputError, match="a layer that gives a feature map"):
        build(f"{tmp_path}/nets.py:plain#2")


def test_the_head_ignores_the_order_of_positions_and_starts_as_published() -> None:
    torch.manual_seed(0)
    head = MLDecoder(6, 4, HEAD).eval()
    maps = torch.randn(2, 6, 3, 3)
    shuffled = maps.flatten(2)[:, :, torch.randperm(9)].view_as(maps)
    torch.testing.assert_close(head(maps), head(shuffled))
    assert head.classifier.bias.eq(0).all()
    assert not any("queries" in name for name, _ in head.named_parameters())
    assert "decoder.queries" in head.state_dict()
    head.train()
    assert not torch.equal(head(maps), head(maps))  # dropout


def test_fewer_queries_answer_for_several_labels_each() -> None:
    head = MLDecoder(6, 7, HeadOptions(16, 2, 24, groups=3)).eval()
    maps = torch.randn(2, 6, 3, 3)
    embeddings = head.decoder(maps)
    assert embeddings.shape == (2, 3, 16)
    assert head.classifier.weight.shape == (3, 16, 3)
    torch.testing.assert_close(head(maps)[:, 4], embeddings[:, 1] @ head.classifier.weight[1, :, 1] + head.classifier.bias[4])
    network = build("stillroom/strided24", 7, head=HeadOptions(16, 2, 24, groups=3))
    with pytest.raises(InputError, match="a head with 3 queries, expected one for each of the 7 labels"):
        check_embeddings(network, "student")
    with pytest.raises(InputError, match="groups"):
        MLDecoder(6, 2, HeadOptions(16, 2, 24, groups=3))


def test_weights_from_a_file_and_from_a_run(tmp_path: Path) -> None:
    network = build("stillroom/strided24")
    save_weights(network, tmp_path / "student.safetensors")
    again = build(f"stillroom/strided24@{tmp_path / 'student.safetensors'}")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    card = {"task": "multilabel", "model": "stillroom/strided24", "classes": list("abcde"), "image_size": 32, "head": HEAD.to_json()}
    (tmp_path / "student.json").write_text(json.dumps(card))
    built = build_multilabel(str(tmp_path), num_classes=5, image_size=64)
    assert built.classes == tuple("abcde")
    assert torch.equal(built.network.head.decoder.queries, network.head.decoder.queries)
    with pytest.raises(InputError, match="a student of 5 labels, expected a network of 6 labels"):
        build_multilabel(str(tmp_path), num_classes=6, image_size=32)
    (tmp_path / "student.json").write_text(json.dumps({**card, "task": "classification"}))
    with pytest.raises(InputError, match="a student of classification, expected a multi-label student"):
        build_multilabel(str(tmp_path), num_classes=5, image_size=32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stillroom/nothing", "model: got stillroom/nothing"),
        ("torchvision/resnet18#layer9", "behind # a layer of torchvision/resnet18, such as layer"),
        ("torchvision/resnet18#fc", "a layer that gives a feature map"),
        ("stillroom/strided24@", "after @ a file or folder of weights"),
        ("stillroom/strided24@nowhere.safetensors", "nowhere.safetensors"),
        ("torchvision/vit_b_32", "behind # the module path of the last feature map"),
    ],
)
def test_one_line_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(spec)
    assert "\n" not in str(caught.value)
