"""Overlaps of pairs, and boxes written down and read again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou

from stillroom.errors import InputError
from stillroom.losses.detection import distribution_focal_loss, quality_focal_loss
from stillroom.tasks.detection.boxes import boxes_from_distances, distances_to_boxes, expected_distances, paired_iou


def boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 20
    sizes = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1)) * 15 + 0.5
    return torch.cat((corners, corners + sizes), 1)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_pairs_have_torchvisions_overlaps(count: int, seed: int) -> None:
    a, b = boxes(count, seed), boxes(count, seed + 7)
    for kind, every in (("iou", box_iou), ("giou", generalized_box_iou), ("diou", distance_box_iou), ("ciou", complete_box_iou)):
        torch.testing.assert_close(paired_iou(a, b, kind), every(a, b).diagonal(), rtol=1e-4, atol=1e-5)


def test_degenerate_boxes_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([[3.0, 3, 3, 3], [5, 5, 9, 9]], requires_grad=True)
    for kind in ("iou", "giou", "diou", "ciou"):
        found = paired_iou(point, torch.tensor([[3.0, 3, 3, 3], [5, 5, 5, 9]]), kind)
        (gradient,) = torch.autograd.grad(found.sum(), point)
        assert torch.isfinite(found).all()
        assert torch.isfinite(gradient).all()


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(InputError, match="b_N4"):
        paired_iou(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(InputError, match="kind"):
        paired_iou(torch.zeros(3, 4), torch.zeros(3, 4), "area")  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(0, 1000))
def test_distances_and_boxes_are_each_others_inverse(count: int, seed: int) -> None:
    points = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 20
    whole = boxes(count, seed + 3)
    torch.testing.assert_close(boxes_from_distances(points, distances_to_boxes(points, whole)), whole, rtol=1e-5, atol=1e-4)


def test_distances_are_clamped_where_that_is_asked_for() -> None:
    found = distances_to_boxes(torch.tensor([[0.0, 0]]), torch.tensor([[1.0, -3, 9, 5]]), most=7.9)
    torch.testing.assert_close(found, torch.tensor([[0.0, 3, 7.9, 5]]))


def test_a_sure_distribution_gives_its_bin() -> None:
    bins = torch.full((2, 4, 9), -50.0)
    bins[0, torch.arange(4), torch.tensor([0, 3, 5, 8])] = 50
    bins[1] = 0
    torch.testing.assert_close(expected_distances(bins.flatten(1)), torch.tensor([[0.0, 3, 5, 8], [4, 4, 4, 4]]))


def test_dfl_is_least_at_its_target_and_linear_between_bins() -> None:
    bins = torch.zeros(3, 5)
    torch.testing.assert_close(distribution_focal_loss(bins, torch.tensor([0.0, 1.5, 3.9])), torch.full((3,), torch.tensor(5.0).log()))
    sharp = torch.tensor([[0.0, 30, 0, 0, 0]])
    assert float(distribution_focal_loss(sharp, torch.tensor([1.0]))) < 1e-6


def test_qfl_is_zero_where_the_score_is_the_quality() -> None:
    quality = torch.tensor([0.7, 0.2])
    logits = torch.full((2, 3), -60.0)
    logits[[0, 1], [1, 2]] = torch.logit(quality)
    logits.requires_grad_()
    loss = quality_focal_loss(logits, torch.tensor([1, 2]), quality)
    torch.testing.assert_close(loss, torch.zeros(2), rtol=0, atol=1e-6)
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3), rtol=0, atol=1e-6)
