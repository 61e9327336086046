"""Who answers for which object: ATSS, FCOS's rule, and targets of padded batches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from stillroom.errors import InputError
from stillroom.tasks.detection.atss import atss, valuable_region
from stillroom.tasks.detection.dense import dense_targets
from stillroom.tasks.detection.gfl import assign_atss, gfl_losses, gfl_outputs, square_anchors
from stillroom.tasks.detection.wrapped import fcos_match

STRIDES, SIZE = (4, 8), 48
LEVELS = [square_anchors(SIZE // s, SIZE // s, s, 4 * s) for s in STRIDES]
ANCHORS, COUNTS = torch.cat(LEVELS), [len(level) for level in LEVELS]


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners, sizes = torch.rand(count, 2, generator=generator) * 30, torch.rand(count, 2, generator=generator) * 16 + 2
    return torch.cat((corners, corners + sizes), 1)


def atss_by_loops(boxes: torch.Tensor, topk: int) -> list[int]:
    """The rule, written down object by object."""
    iou, owners = box_iou(ANCHORS, boxes), [-1] * len(ANCHORS)
    best = [-1.0] * len(ANCHORS)
    for g, box in enumerate(boxes):
        candidates, start = [], 0
        for count in COUNTS:
            centres = (ANCHORS[start : start + count, :2] + ANCHORS[start : start + count, 2:]) / 2
            near = (centres - (box[:2] + box[2:]) / 2).norm(dim=1).argsort(stable=True)[: min(topk, count)]
            candidates += (near + start).tolist()
            start += count
        found = iou[candidates, g]
        threshold = found.mean() + found.std()
        for a in candidates:
            x, y = ((ANCHORS[a, :2] + ANCHORS[a, 2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou[a, g] >= threshold and inside and float(iou[a, g]) > best[a]:
                best[a], owners[a] = float(iou[a, g]), g
    return owners


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_atss_is_the_rule_object_by_object(count: int, seed: int) -> None:
    boxes = some_boxes(count, seed)
    assert atss(ANCHORS, COUNTS, boxes, 9).matched.tolist() == atss_by_loops(boxes, 9)


def test_without_objects_everything_is_background() -> None:
    nothing = torch.zeros(0, 4)
    found = atss(ANCHORS, COUNTS, nothing)
    assert (found.matched == -1).all()
    assert (found.overlaps == 0).all()
    assert (valuable_region(ANCHORS, nothing, found) == 0).all()
    assert (fcos_match(ANCHORS, COUNTS, nothing) == -1).all()


def test_the_valuable_region_is_near_objects_and_not_far() -> None:
    boxes = some_boxes(3, 1)
    found = atss(ANCHORS, COUNTS, boxes)
    region = valuable_region(ANCHORS, boxes, found)
    assert 0 < int((region > 0).sum()) < len(ANCHORS) / 2
    assert (found.iou.amax(1)[region > 0] > 0).all()


def test_arguments_of_atss() -> None:
    with pytest.raises(InputError, match="level_sizes"):
        atss(ANCHORS, COUNTS[:1], some_boxes(1, 0))
    with pytest.raises(InputError, match="topk"):
        atss(ANCHORS, COUNTS, some_boxes(1, 0), 0)


def outputs(sizes: list[tuple[int, int]], classes: int = 3) -> object:
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(len(sizes), classes, SIZE // s, SIZE // s, generator=generator) for s in STRIDES]
    bins = [torch.randn(len(sizes), 36, SIZE // s, SIZE // s, generator=generator, requires_grad=True) for s in STRIDES]
    return gfl_outputs(maps, bins, STRIDES, torch.tensor(sizes), anchor_scale=4)


def test_positions_on_the_padding_take_no_part() -> None:
    made = outputs([(48, 48), (24, 32)])
    boxes, labels = [some_boxes(2, 3), some_boxes(1, 5) * 0.4], [torch.tensor([0, 2]), torch.tensor([1])]
    targets = dense_targets(made, boxes, labels, assign_atss(9), 3)
    first = targets.weights[0].view(2, 12, 12)
    assert first[0].all()
    assert first[1, :6, :8].all()
    assert not first[1, 6:].any()
    assert not first[1, :, 8:].any()
    assert int((targets.labels[0][1] < 3).sum() + (targets.labels[1][1] < 3).sum()) > 0


def test_every_image_counts_at_least_one_positive() -> None:
    made = outputs([(48, 48)] * 3)
    nothing = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.long)] * 3
    targets = dense_targets(made, *nothing, assign_atss(9), 3)
    assert float(targets.positives) == 3
    losses = gfl_losses(made, targets)
    assert all(float(term) == 0 for name in ("giou", "dfl") for term in losses[name])
    assert float(torch.stack(losses["qfl"]).sum()) > 0
    torch.stack([*losses["qfl"], *losses["giou"], *losses["dfl"]]).sum().backward()  # a level without positives stays in the graph


def test_fcos_gives_a_point_to_the_smallest_object_around_it() -> None:
    anchors = square_anchors(12, 12, 4, 4)
    boxes = torch.tensor([[0.0, 0, 40, 40], [16, 16, 26, 26]])
    matched = fcos_match(anchors, [len(anchors)], boxes).view(12, 12)
    assert int(matched[5, 5]) == 1  # the point (20, 20), near both centres
    assert int(matched[0, 0]) == -1
    assert math.isclose(float((matched == 1).sum()), 4, abs_tol=5)
