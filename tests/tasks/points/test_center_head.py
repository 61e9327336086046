"""The centre head: targets of odd boxes, losses, and back to boxes."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.tasks.points.center_head import (
    CenterHead,
    Suppression,
    center_losses,
    center_targets,
    codes_of,
    decode,
    heatmap_logits,
)
from stillroom.tasks.points.grid import BevGrid, ClassList
from stillroom.tasks.points.regions import boxes_to_mask, crop_bev, crop_regions, pair_proposals

GRID = BevGrid((-8.0, 8.0), (-4.0, 4.0), 0.5)
CLASSES = ClassList(("car", "bus", "person"), (("car",), ("bus", "person")))
CAR = [1.3, -1.2, 0.5, 4.0, 1.6, 1.5, 2.0, 1.0, -2.0]


def test_boxes_come_back_from_their_own_targets() -> None:
    boxes = torch.tensor([CAR, [-5.0, 2.2, 0.4, 0.6, 0.6, 1.8, -1.0, 0.0, 0.5]])
    targets = center_targets([boxes], [torch.tensor([0, 2])], CLASSES, GRID)
    found = []
    for group, heat in enumerate(targets.heatmap.split(CLASSES.sizes, 1)):
        codes = torch.zeros(1, 10, GRID.ny * GRID.nx)
        slot = targets.mask[group, 0]
        codes[0][:, targets.index[group, 0, slot]] = targets.codes[group, 0, slot].T
        found += decode(heat, codes.view(1, 10, GRID.ny, GRID.nx), GRID, threshold=0.99)
    torch.testing.assert_close(torch.cat([sample.boxes for sample in found]), boxes)
    assert [sample.labels.tolist() for sample in found] == [[0], [1]]


def test_odd_boxes_leave_their_slot_empty() -> None:
    odd = [CAR, [100.0, 0, 0, 4, 2, 2, 0, 0, 0], [0, 0, 0, 0, 2, 2, 0, 0, 0], [0, 0, 0, math.nan, 2, 2, 0, 0, 0], CAR]
    labels = [torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)]
    targets = center_targets([torch.tensor(odd), torch.zeros(0, 9)], labels, CLASSES, GRID, max_objects=8)
    assert targets.mask[0, 0].tolist() == [True, False, False, False, True, False, False, False]
    assert not targets.mask[:, 1].any()
    assert not targets.heatmap[1].any()
    huge = center_targets([torch.tensor([[0.0, 0, 0, 1000, 1000, 2, 0]])], [torch.tensor([1])], CLASSES, GRID)
    assert huge.heatmap.isfinite().all()
    crowded = center_targets([torch.tensor([CAR] * 9)], [torch.zeros(9, dtype=torch.int64)], CLASSES, GRID, max_objects=4)
    assert crowded.mask.sum() == 4


def test_an_unknown_velocity_trains_the_rest_of_the_box() -> None:
    boxes = torch.tensor([CAR])
    boxes[0, 7:] = torch.nan
    torch.manual_seed(0)
    head = CenterHead(8, CLASSES, GRID, velocity=True, width=8)
    targets = center_targets([boxes], [torch.tensor([0])], CLASSES, GRID)
    losses = center_losses(head(torch.rand(1, 8, GRID.ny, GRID.nx)), targets)
    assert all(loss.isfinite() for loss in losses.values())
    losses["box"].backward()
    assert head.tasks[0]["dim"][-1].weight.grad.abs().sum() > 0
    assert not head.tasks[0]["vel"][-1].weight.grad.any()


def test_no_boxes_at_all_still_train_the_heatmap() -> None:
    head = CenterHead(8, CLASSES, GRID, width=8)
    targets = center_targets([torch.zeros(0, 9)], [torch.zeros(0, dtype=torch.int64)], CLASSES, GRID)
    losses = center_losses(head(torch.rand(1, 8, GRID.ny, GRID.nx)), targets)
    assert losses["box"].item() == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_detections_of_all_groups_are_thinned_out() -> None:
    torch.manual_seed(0)
    head = CenterHead(8, CLASSES, GRID, width=8, threshold=0.05, suppression=Suppression("circle", 4.0, max_kept=6)).eval()
    predictions = head(torch.rand(2, 8, GRID.ny, GRID.nx))
    assert heatmap_logits(predictions).shape == (2, 3, GRID.ny, GRID.nx)
    assert codes_of(predictions[0]).shape[1] == 8
    for found in head.detect(predictions):
        assert len(found.boxes) <= 12
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        cars = found.boxes[found.labels == 0, :2]
        assert (torch.cdist(cars, cars).square() + 100 * torch.eye(len(cars)) > 4).all()
    none = CenterHead(8, CLASSES, GRID, width=8, threshold=0.999).eval()
    assert [len(found.boxes) for found in none.detect(none(torch.zeros(2, 8, GRID.ny, GRID.nx)))] == [0, 0]
    rotated = CenterHead(8, CLASSES, GRID, width=8, threshold=0.05, suppression=Suppression(scale=(1.0, 1.0, 4.0)))
    assert len(rotated.detect(predictions)) == 2


def test_regions_are_the_same_metres_in_both_maps() -> None:
    fine, coarse = GRID, GRID.coarser(2)
    ramps = [grid.positions().permute(2, 0, 1)[None] for grid in (fine, coarse)]  # a map that holds its own positions
    rectangles, sample = torch.tensor([[-3.0, -2.0, 1.0, 2.0], [-20.0, -20.0, -15.0, -15.0]]), torch.zeros(2, dtype=torch.int64)
    crops = [crop_regions(ramp, rectangles, sample, grid) for ramp, grid in zip(ramps, (fine, coarse), strict=True)]
    torch.testing.assert_close(crops[0][0], crops[1][0], atol=1e-4, rtol=0)
    assert crops[0][0, :, 3, 3].tolist() == pytest.approx([-1, 0], abs=1e-5)
    assert not crops[0][1].any()  # wholly outside
    box = torch.tensor([[-1.0, 0.0, 0.0, 4.0, 2.0, 1.0, math.pi / 2]])
    turned = crop_bev(ramps[0], box, torch.zeros(1, dtype=torch.int64), fine, size=5)[0]
    assert turned[:, 2, 2].tolist() == pytest.approx([-1, 0], abs=1e-5)
    assert turned[:, 2, 4].tolist() == pytest.approx([-1, 1.6], abs=1e-5)  # along the box's x, which points to the left
    mask, owner = boxes_to_mask(box, fine)
    inside = fine.positions()[mask]
    assert mask.sum() == 4 * 8
    assert inside.mean(0).tolist() == pytest.approx([-1, 0], abs=1e-5)
    assert set(owner.unique().tolist()) == {-1, 0}
    pairs = pair_proposals([torch.ones(2, 4), torch.ones(0, 4)], [torch.ones(0, 4), torch.ones(1, 4)])
    assert pairs.sample.tolist() == [0, 0, 1]
    assert pairs.from_teacher.tolist() == [True, True, False]
