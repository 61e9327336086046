"""Detectors by name, by folder and from a user's own file, of every kind; and who may be trained by what."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import stillroom.tasks.detection as detection
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.bckd import BCKD
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.detr import DeformableDetrDetector, DetrDetector, RTDetrDetector
from stillroom.tasks.detection.detr_models import deformable_detr
from stillroom.tasks.detection.gfl import GFL
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.small import SMALL
from stillroom.tasks.detection.supervised import DetectionDistiller
from stillroom.tasks.detection.two_stage import TwoStageDetector
from stillroom.tasks.detection.wrapped import ATSSDetector

KINDS = {
    "atss": ATSSDetector,
    "gfl": GFL,
    "faster-rcnn": TwoStageDetector,
    "rt-detr": RTDetrDetector,
    "deformable-detr": DeformableDetrDetector,
}
OWN = """
import transformers
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Backbone(nn.Sequential):
    out_channels = 8


def two_stage(num_classes):
    return FasterRCNN(Backbone(nn.Conv2d(3, 8, 8, 8)), num_classes + 1, rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)))


def detr(num_classes):
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", out_features=["stage1"])
    config = transformers.DetrConfig(
        backbone_config=resnet, num_labels=num_classes, d_model=16, num_queries=5, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )
    return transformers.DetrForObjectDetection(config)


def other(num_classes):
    return nn.Linear(2, num_classes)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(OWN)
    return tmp_path / "nets.py"


def batch(boxes: bool = True) -> DetectionBatch:
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    box, label = torch.tensor([[4.0, 6, 22, 30], [20, 20, 40, 44]]), torch.tensor([1, 0])
    found = [(box, label, torch.tensor([0, 1])) if boxes else (box[:0], label[:0], label[:0])] * 2
    split: list[list[Tensor]] = [list(part) for part in zip(*found, strict=True)]
    return DetectionBatch(images, torch.tensor([[48, 48], [40, 44]]), *split, torch.arange(2))


@pytest.mark.parametrize("name", list(SMALL))
def test_small_detectors_of_every_kind_are_trained_on_boxes(name: str) -> None:
    made = build_detector(f"stillroom/{name}", num_classes=6)
    assert isinstance(made.network, KINDS[name.rpartition("_")[0]])
    assert made.weights is None
    count = sum(parameter.numel() for parameter in made.network.parameters())
    assert 40_000 < count < 300_000
    distiller = DetectionDistiller(made.network)
    for data in (batch(), batch(boxes=False)):
        losses = distiller.losses(data)
        assert losses.total.isfinite()
        assert not losses.distill
        losses.total.backward()
    assert all(parameter.grad is not None for parameter in made.network.parameters())
    distiller.eval()
    assert len(distiller.predict(batch())) == 2
    with torch.no_grad():
        raw = made.network.raw(batch().images, batch().sizes).features
        alone = made.network.feature_maps(batch().images, batch().sizes)
    assert all(torch.equal(level, expected) for level, expected in zip(alone, raw, strict=True))


def test_crowds_are_no_targets() -> None:
    distiller = DetectionDistiller(build_detector("stillroom/deformable-detr_64", num_classes=2).network)
    data = batch()
    outputs = distiller.student.raw(data.images, data.sizes, data.objects())
    targets = distiller.targets(outputs, *distiller.prepare_targets(data, outputs))
    assert [label.tolist() for label in targets.labels] == [[1], [1]]


def test_large_detectors_are_built_without_a_download() -> None:
    made = build_detector("transformers/rt-detr_r18", num_classes=2)
    assert made.weights is None
    assert made.network.strides == (8, 16, 32)
    assert made.network.num_classes == 2
    assert all(parameter.requires_grad for parameter in made.network.parameters())
    assert build_detector("torchvision/fasterrcnn_resnet50_fpn", num_classes=2).network.strides == (4, 8, 16, 32, 64)


def test_the_backbone_of_a_detr_is_trained() -> None:
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    made = deformable_detr(resnet, 2, d_model=32, num_queries=5, num_feature_levels=1, encoder_layers=1, decoder_layers=2)
    assert made.strides == (8,)
    assert all(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(("function", "kind"), [("two_stage", TwoStageDetector), ("detr", DetrDetector)])
def test_a_users_own_model_gets_its_adapter(own: Path, function: str, kind: type[Any]) -> None:
    made = build_detector(f"{own}:{function}", num_classes=4).network
    assert isinstance(made, kind)
    assert made.num_classes == 4
    assert made.strides == ((8,) if function == "two_stage" else (4,))
    assert DetectionDistiller(made).losses(batch()).total.isfinite()


def test_a_users_own_model_of_another_kind_is_refused(own: Path) -> None:
    with pytest.raises(InputError, match="which gives Linear, expected a Detector, torchvision's FasterRCNN"):
        build_detector(f"{own}:other", num_classes=4)


def test_a_folder_of_transformers_comes_with_its_weights(own: Path, tmp_path: Path) -> None:
    made = build_detector(f"{own}:detr", num_classes=4).network.eval()
    made.model.save_pretrained(tmp_path / "saved")
    read = build_detector(f"transformers/{tmp_path / 'saved'}", num_classes=4)
    assert read.weights == str(tmp_path / "saved")
    images = batch().images
    for told, expected in zip(read.network.eval()(images)["logits"], made(images)["logits"], strict=True):
        torch.testing.assert_close(told, expected)
    with pytest.raises(InputError, match="with 4 classes, expected a model of 7"):
        build_detector(f"transformers/{tmp_path / 'saved'}", num_classes=7)
    (tmp_path / "saved" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"without model\.safetensors"):
        build_detector(f"transformers/{tmp_path / 'saved'}", num_classes=4)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(InputError, match="BertModel, expected a folder with DetrForObjectDetection or"):
        build_detector(f"transformers/{tmp_path}", num_classes=4)


@pytest.mark.parametrize("function", ["two_stage", "detr"])
def test_weights_may_be_the_models_own_or_ours(own: Path, tmp_path: Path, function: str) -> None:
    first = build_detector(f"{own}:{function}", num_classes=4).network
    torch.save(first.model.state_dict(), tmp_path / "theirs.pth")
    save_weights(first, tmp_path / "ours.safetensors")
    for file in ("theirs.pth", "ours.safetensors"):
        read = build_detector(f"{own}:{function}@{tmp_path / file}", num_classes=4).network
        for name, value in first.state_dict().items():
            assert torch.equal(value, read.state_dict()[name])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("stillroom/faster-rcnn", "faster-rcnn_"),
        ("torchvision/fasterrcnn_resnet", "fasterrcnn_resnet50_fpn"),
        ("transformers/rtdetr_r18", "rt-detr_r18"),
        ("transformers/rt-detr_r19", "rt-detr_r18"),
        ("fasterrcnn", "transformers/NAME or FOLDER"),
    ],
)
def test_unknown_names_list_the_near_ones(spec: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        build_detector(spec, num_classes=4, argument="student")


@pytest.mark.parametrize("spec", ["transformers/detr_r18", "stillroom/rt-detr_48", "stillroom/deformable-detr_64"])
def test_without_transformers_its_detectors_name_what_to_install(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers.*pip install 'stillroom\[detection\]'"):
        build_detector(spec, num_classes=4)
    build_detector("stillroom/faster-rcnn_24", num_classes=4)


def test_no_module_imports_transformers_before_it_is_asked_for() -> None:
    for file in Path(detection.__path__[0]).glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "transformers" for name in names), file.name


@pytest.mark.parametrize("other", ["stillroom/faster-rcnn_24", "stillroom/rt-detr_48"])
def test_methods_that_compare_positions_refuse_other_kinds(other: str) -> None:
    dense, sparse = build_detector("stillroom/gfl_24", num_classes=4).network, build_detector(other, num_classes=4).network
    with pytest.raises(InputError, match=r"teacher: got .*, expected a dense detector"):
        BCKD(dense, sparse)
    with pytest.raises(InputError, match=r"student: got .*, expected a dense detector"):
        BCKD(sparse, dense)
