"""Positions under reduced precision: what a network's heads say may be rounded, where they say it may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from stillroom.engine import Teacher
from stillroom.tasks.detection.detector import Detector
from tests.tasks.detection import test_queries, test_two_stage, test_wrapped
from tests.tasks.detection.test_queries import BOXES, IMAGES, LABELS, SIZES

WIDE = torch.rand(1, 3, 64, 1344, generator=torch.Generator().manual_seed(1))
SHORT_OF_A_PIXEL = 0.01


def told(layer: nn.Module, answer: float) -> None:
    """Lets a layer say one number that bfloat16 knows, whatever it reads."""
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, answer)


def both(made: nn.Module) -> tuple[Any, Any]:
    """Its answers about a wide image as a teacher in float32 and in bfloat16."""
    inputs = WIDE, torch.tensor([[64, 1344]])
    return tuple(Teacher(made, precision=precision)(inputs) for precision in ("fp32", "bf16"))


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_boxes_of_the_same_deltas_are_the_same(kind: str) -> None:
    made = test_wrapped.detector(kind).eval()
    told(made.model.head.regression_head.bbox_reg, 0.25)
    full, reduced = both(made)
    for own, rough in zip(full["boxes"], reduced["boxes"], strict=True):
        assert own.max() > 1300
        torch.testing.assert_close(rough, own, rtol=0, atol=SHORT_OF_A_PIXEL)


def test_both_stages_of_faster_rcnn_read_the_same_deltas_as_the_same_boxes() -> None:
    made = test_two_stage.detector().eval()
    told(made.model.rpn.head.bbox_pred, 0.25)
    told(made.model.roi_heads.box_predictor.bbox_pred, 0.5)
    size = torch.tensor([[64, 1344]])
    with torch.no_grad():
        full = made.raw(WIDE, size)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = made.raw(WIDE, size)
            rough = made.regions(reduced, full.proposals).boxes
        own = made.regions(full, full.proposals).boxes
    assert own.max() > 1300
    torch.testing.assert_close(rough, own, rtol=0, atol=SHORT_OF_A_PIXEL)
    anchors = torch.cat(full.anchors)
    assert torch.equal(torch.cat(reduced.anchors), anchors)
    every = clip_boxes_to_image(made.model.rpn.box_coder.decode(torch.full_like(anchors, 0.25), [anchors])[:, 0], (64, 1344))
    assert (reduced.proposals[0][:, None] - every).abs().amax(-1).amin(1).max() < SHORT_OF_A_PIXEL


def test_rt_detr_starts_from_the_same_places() -> None:
    made = test_queries.detector("rt-detr", queries=400).eval()
    heads: list[Any] = [made.model.model.enc_bbox_head, *made.model.model.decoder.bbox_embed]
    for head in heads:
        told(head.layers[-1], 0)
    for answer in both(made):
        boxes_Q4 = answer["boxes"][-1][0]
        boxes_Q4 = boxes_Q4[boxes_Q4[:, 2] - boxes_Q4[:, 0] < 1000]  # places at the rim are given the whole image
        centres_Q, sides_Q = (boxes_Q4[:, 0] + boxes_Q4[:, 2]) / 2, boxes_Q4[:, 2] - boxes_Q4[:, 0]
        strides_Q = torch.where(sides_Q < 0.075 * 1344, 4, 8)
        assert centres_Q.max() > 1200
        cells_Q = centres_Q / strides_Q - 0.5
        torch.testing.assert_close(cells_Q * strides_Q, cells_Q.round() * strides_Q, rtol=0, atol=SHORT_OF_A_PIXEL)


@pytest.mark.parametrize("refined", [False, True])
def test_deformable_detr_looks_at_the_same_places(refined: bool) -> None:
    made = test_queries.detector("refined" if refined else "deformable", queries=200).eval()
    queries, places = made.model.model.query_position_embeddings, made.model.model.reference_points
    for layer, spread in ((queries, 1), (places, 0.3)):
        layer.weight.data = nn.init.normal_(layer.weight, std=spread).bfloat16().float()
    for head in made.model.bbox_embed:
        told(head.layers[-1], 0)
    full, reduced = both(made)
    for own, rough in zip(full["boxes"], reduced["boxes"], strict=True):
        assert own.max() > 1200
        torch.testing.assert_close(rough, own, rtol=0, atol=1.1)  # the logit of a coordinate is rounded by the network itself


def families() -> dict[str, Detector[Any, Any]]:
    made: dict[str, Detector[Any, Any]] = {family: test_queries.detector(family) for family in test_queries.FAMILIES}
    return made | {
        "faster-rcnn": test_two_stage.detector(),
        "retinanet": test_wrapped.detector("retinanet"),
        "fcos": test_wrapped.detector("fcos"),
    }


@pytest.mark.parametrize("kind", [*test_queries.FAMILIES, "faster-rcnn", "retinanet", "fcos"])
def test_a_step_in_mixed_precision_loses_what_one_in_full_precision_does(kind: str) -> None:
    made = families()[kind].train()

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(5)
        outputs = made.raw(IMAGES, SIZES, (BOXES, LABELS))
        found = made.task_losses(outputs, made.targets(outputs, BOXES, LABELS))
        torch.stack(list(found.values())).sum().backward()
        return found

    full = losses()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses()
    assert mixed.keys() == full.keys()
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, full[name], rtol=0.05, atol=0.02, msg=lambda text, name=name: f"{name}: {text}")
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.grad is not None)
