"""Wrapped detectors lose what torchvision's own forward pass loses, and find what it finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from stillroom.errors import InputError
from stillroom.tasks.detection.atss import atss
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.wrapped import ATSSDetector, FCOSDetector, RetinaNetDetector, one_square

STRIDES = (4, 8)


class Backbone(nn.Module):
    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.pyramid = FeaturePyramidNetwork([8, 12], self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images).relu()
        found: dict[str, Tensor] = self.pyramid({"0": first, "1": self.second(first).relu()})
        return found


def detector(kind: str) -> RetinaNetDetector | FCOSDetector:
    torch.manual_seed(0)
    same = {"min_size": 64, "max_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if kind == "fcos":
        anchors = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 2)
        return FCOSDetector(FCOS(Backbone(), 5, anchor_generator=anchors, **same))
    anchors = AnchorGenerator(((8, 12), (16, 24)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNetDetector(RetinaNet(Backbone(), 5, anchor_generator=anchors, **same))


IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
SIZES = torch.tensor([[64, 64], [64, 64], [64, 64]])
BOXES = [torch.tensor([[4.0, 6, 22, 30], [3, 3, 60, 50], [30, 30, 42, 41]]), torch.tensor([[10.0, 20, 26, 44]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([0, 4, 2]), torch.tensor([1]), torch.zeros(0, dtype=torch.long)]


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_loss_is_the_models_own(kind: str) -> None:
    made = detector(kind).train()
    objects = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(BOXES, LABELS, strict=True)]
    expected = made.model(list(IMAGES), objects)
    outputs = made.raw(IMAGES, SIZES)
    losses = made.task_losses(outputs, made.targets(outputs, BOXES, LABELS))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_decoded_boxes_are_the_models_own(kind: str) -> None:
    made = detector(kind).eval()
    nn.init.normal_(made.model.head.classification_head.cls_logits.weight, std=0.5)
    nn.init.zeros_(made.model.head.classification_head.cls_logits.bias)
    nn.init.normal_(made.model.head.regression_head.bbox_reg.weight, std=0.2)
    made.model.score_thresh, made.model.nms_thresh, made.model.detections_per_img = 0.05, 0.6, 100
    with torch.no_grad():
        expected, found = made.model(list(IMAGES)), made.detect(IMAGES, SIZES)
    for theirs, ours in zip(expected, found, strict=True):
        assert len(ours.scores) == len(theirs["scores"]) > 10
        torch.testing.assert_close(ours.scores, theirs["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-5, atol=1e-4)
        assert torch.equal(ours.labels, theirs["labels"])


def test_rows_stand_for_the_same_place_in_every_record() -> None:
    outputs = detector("retinanet").raw(IMAGES, SIZES)
    assert outputs.level_sizes == (16 * 16 * 6, 8 * 8 * 6)
    assert [tuple(level.shape) for level in outputs.logits] == [(3, 1536, 5), (3, 384, 5)]
    assert all(bool(level.all()) for level in outputs.valid)


def test_atss_is_retinanet_on_atss_s_positives() -> None:
    torch.manual_seed(0)
    made = ATSSDetector(RetinaNet(Backbone(), 5, anchor_generator=one_square(STRIDES, scale=4)))
    outputs = made.raw(IMAGES, SIZES)
    targets = made.targets(outputs, BOXES, LABELS)
    expected = atss(torch.cat(outputs.anchors), outputs.level_sizes, BOXES[0], 9).matched
    assert torch.equal(targets.matched[0], expected)
    assert (expected >= 0).any()
    objects = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(BOXES, LABELS, strict=True)]
    own = made.model.head.compute_loss(objects, dict(outputs.head), [torch.cat(outputs.anchors)] * 3, list(targets.matched))
    assert made.task_losses(outputs, targets) == own
    assert [level.shape[1] for level in outputs.logits] == [16 * 16, 8 * 8]


def test_atss_wants_one_anchor_for_each_cell() -> None:
    with pytest.raises(InputError, match=r"model: got .*6, 6.* anchors for each cell"):
        ATSSDetector(detector("retinanet").model)


@pytest.mark.parametrize(("spec", "strides"), [("stillroom/atss_24", (4, 8)), ("atss/resnet18", (8, 16, 32, 64, 128))])
def test_atss_by_name(spec: str, strides: tuple[int, ...]) -> None:
    built = build_detector(spec, num_classes=3).network
    assert isinstance(built, ATSSDetector)
    assert built.strides == strides


@pytest.mark.parametrize(("name", "kind"), [("retinanet", RetinaNetDetector), ("fcos", FCOSDetector)])
def test_torchvisions_heads_over_any_backbone_of_timm(name: str, kind: type) -> None:
    built = build_detector(f"{name}/resnet18", num_classes=3).network
    assert type(built) is kind
    assert built.strides == (8, 16, 32, 64, 128)
    theirs = build_detector(f"torchvision/{name}_resnet50_fpn", num_classes=3).network.model
    assert built.model.anchor_generator.sizes == theirs.anchor_generator.sizes
    assert [p.shape for p in built.model.head.parameters()] == [p.shape for p in theirs.head.parameters()]
