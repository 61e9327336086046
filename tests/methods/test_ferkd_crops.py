"""Crops as the usual random resized crop draws them, and as Pillow cuts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.errors import InputError
from stillroom.methods.ferkd.crops import CropRule, cut, cut_together, pixel_boxes

SEEDS = np.arange(400) * 7919


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.02, 1), st.floats(0.02, 1))
def test_boxes_lie_within_the_image_and_are_whole_pixels_of_it(height: int, width: int, one: float, other: float) -> None:
    rule = CropRule(area=(min(one, other), max(one, other)))
    sizes = np.broadcast_to([height, width], (len(SEEDS), 2))
    boxes, flips = rule.draw(sizes, SEEDS)
    top, left, tall, wide = pixel_boxes(boxes, sizes).T
    assert boxes.dtype == np.float32
    assert (np.minimum(top, left) >= 0).all()
    assert (np.minimum(tall, wide) >= 1).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    again = boxes.astype(np.float64) * [height, width, height, width]
    assert np.abs(again - np.stack([top, left, tall, wide], 1)).max() < 1e-3
    assert 0.35 < flips.mean() < 0.65


def test_areas_and_shapes_are_those_that_were_asked_for() -> None:
    sizes = np.broadcast_to([200, 300], (len(SEEDS), 2))
    boxes, _ = CropRule(area=(0.2, 0.6)).draw(sizes, SEEDS)
    area, aspect = boxes[:, 2] * boxes[:, 3], (boxes[:, 3] * 300) / (boxes[:, 2] * 200)
    assert 0.195 < area.min() < 0.22
    assert 0.58 < area.max() < 0.605
    assert area.mean() == pytest.approx(0.4, abs=0.02)
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.36
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.03)


def test_where_no_attempt_fits_the_largest_centred_crop_is_taken() -> None:
    rule = CropRule(area=(1.0, 1.0))
    boxes, _ = rule.draw(np.array([[100, 900], [900, 100], [100, 110]]), np.arange(3))
    assert pixel_boxes(boxes, np.array([[100, 900], [900, 100], [100, 110]])).tolist() == [
        [0, 383, 100, 133],
        [383, 0, 133, 100],
        [0, 0, 100, 110],
    ]


def test_crops_are_functions_of_their_seeds_alone() -> None:
    sizes = np.array([[40, 50]] * 6)
    boxes, flips = CropRule().draw(sizes, SEEDS[:6])
    some, some_flips = CropRule().draw(sizes[:2], SEEDS[[4, 1]])
    assert np.array_equal(some, boxes[[4, 1]])
    assert np.array_equal(some_flips, flips[[4, 1]])


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(2, 40), st.sampled_from(["bilinear", "bicubic"]))
def test_cutting_together_is_cutting_one_by_one(height: int, width: int, size: int, interpolation: str) -> None:
    images = torch.randint(256, (5, 3, height, width), generator=torch.Generator().manual_seed(height), dtype=torch.uint8)
    boxes, flips = CropRule().draw(np.broadcast_to([height, width], (5, 2)), SEEDS[:5])
    together = cut_together(images, boxes, flips, size, interpolation)  # type: ignore[arg-type]
    alone = torch.cat([cut(images[i], boxes[[i]], flips[[i]], size, interpolation) for i in range(5)])  # type: ignore[arg-type]
    assert together.dtype == alone.dtype == torch.uint8
    difference = (together.int() - alone.int()).abs()
    assert difference.float().mean() < 0.5
    if interpolation == "bilinear":  # bicubic filters overshoot at the edges of noise, and Pillow cuts that off between its two passes
        assert difference.max() <= 1


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    image = torch.randint(256, (3, 12, 12), dtype=torch.uint8)
    whole, flips = np.array([[0, 0, 1, 1]] * 2, np.float32), np.array([False, True])
    for crops in (
        cut(to_pil_image(image), whole, flips, 12, "bicubic"),
        cut_together(image[None].expand(2, -1, -1, -1), whole, flips, 12, "bicubic"),
    ):
        assert torch.equal(crops[0], image)
        assert torch.equal(crops[1], image.flip(-1))


def test_boxes_apply_to_the_image_in_another_size() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 0.5], [0.999, 0.999, 0.001, 0.001]], np.float32)
    assert pixel_boxes(boxes, np.array([[100, 100]] * 2)).tolist() == [[25, 50, 50, 50], [99, 99, 1, 1]]
    assert pixel_boxes(boxes, np.array([[8, 8]] * 2)).tolist() == [[2, 4, 4, 4], [7, 7, 1, 1]]


@pytest.mark.parametrize("options", [{"area": (0, 1)}, {"area": (0.5, 0.2)}, {"area": (0.5, 1.2)}, {"aspect": (0, 1)}, {"flip": 1.5}])
def test_rules_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))}: got"):
        CropRule(**options)  # type: ignore[arg-type]
