"""A run's detector as a file for other programs: its scores and boxes, before anything is chosen among them.

A dense detector's file and a Faster R-CNN's read images of many sizes. One of the DETR family reads images of a single size: its graph
knows its maps' sizes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.engine.card import Card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.detection.backbones import pad_batch, padded_size
from stillroom.tasks.detection.detector import DenseDetector, Detector
from stillroom.tasks.detection.preparation import Preparation, as_pixels
from stillroom.tasks.detection.queries import QueryDetector
from stillroom.tasks.detection.two_stage import TwoStageDetector
from stillroom.tasks.images.export_parts import description, made_up_pictures

_LEAST, _CELLS = 64, 3
_RULES = ("score_threshold", "nms_threshold", "most")


def export_spec(detector: Detector[Any, Any], preparation: Preparation, card: Card) -> ExportSpec:
    """What an export of a detector writes and checks.

    The file reads ``images`` float32 [batch, 3, H, W] and answers with ``scores`` [batch, N, C] in [0, 1] and ``boxes`` [batch, N, 4],
    absolute (x1, y1, x2, y2) in pixels of the input: of the N positions of all levels, H and W being any multiples of the description's
    `divisor`; of a place for each class of each proposal of a Faster R-CNN, of which N is the number of its proposals times C; or of the N
    queries of a DETR, H and W both being the description's `divisor`, a side that no prepared image exceeds.
    Its metadata are those of `export_parts.description`, with the `Preparation` as ``transform``; and ``detections``, a JSON object that
    says what is one of these answers: `score_threshold`, `nms_threshold` (IoU, within a class) and `most` of an image. A box's side is
    compared in parts of the image's longer side.

    Raises:
        InputError: a detector of another kind, or a query detector whose run does not say how large images are.
    """
    given: dict[str, Any]
    if isinstance(detector, DenseDetector):
        # Several cells of the coarsest level in each direction: torch.export takes a single one for a constant.
        side = max(_LEAST, _CELLS * max(detector.strides))
        rules, given = {name: getattr(detector, name) for name in _RULES}, {"ask": dense_answers, "cell": preparation.divisor}
        pictures = made_up_pictures(side)
    elif isinstance(detector, TwoStageDetector):
        heads = detector.model.roi_heads
        rules = {"score_threshold": heads.score_thresh, "nms_threshold": heads.nms_thresh, "most": heads.detections_per_img}
        side = max(_LEAST, _CELLS * max(detector.strides))
        align = partial(in_order, classes=detector.num_classes)
        given = {"ask": region_answers, "cell": preparation.divisor, "align": align}
        pictures = made_up_pictures(side)
    elif isinstance(detector, QueryDetector):
        preparation = of_one_size(preparation, card)
        side = preparation.divisor
        rules = {"score_threshold": 0.0, "nms_threshold": 1.0, "most": detector.most}
        note = f"reads images of {side} x {side} pixels: smaller ones are padded with zeros at the right and the bottom"
        given = {"ask": query_answers, "align": in_order, "note": note}
        first, second, *others = made_up_pictures(side)
        pictures = [first.resize((side, side)), second.resize((side // 2, side)), *(other.resize((side, side)) for other in others)]
    else:
        raise InputError(
            card.argument,
            f"{card.folder}, a {type(detector).__name__}",
            "a detector that can be exported: GFL, ATSS, RetinaNet, FCOS, Faster R-CNN or a DETR",
        )
    images_BCHW, _ = pad_batch([preparation.normalise(as_pixels(picture)) for picture in pictures], preparation.divisor)
    metadata = {**description(card), "transform": json.dumps(preparation.to_json()), "detections": json.dumps(rules)}
    units = (1.0, float(max(images_BCHW.shape[-2:])))
    return ExportSpec(detector, images_BCHW, ("images", "scores", "boxes"), metadata, units=units, **given)


def dense_answers(detector: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> scores [B, N, C] and boxes [B, N, 4] of all levels, fine to coarse."""
    assert isinstance(detector, DenseDetector)
    # What is padding is for the caller to know; .shape rather than len(), which torch.export takes for a constant.
    sizes = torch.zeros(images.shape[0], 2, dtype=torch.long, device=images.device)
    outputs = detector.raw(images, sizes)
    return torch.cat(detector.scores(outputs), 1), torch.cat([level.float() for level in outputs.boxes], 1)


def query_answers(detector: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> scores [B, Q, C] and boxes [B, Q, 4] of the last decoder layer; zeros up to the right and lower rim are padding."""
    assert isinstance(detector, QueryDetector)
    with _any_batch():
        outputs = detector.raw(images, unpadded(images))
    return detector.scores(outputs.logits[-1]), outputs.boxes[-1]


def region_answers(detector: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> scores [B, P * C, C] and boxes [B, P * C, 4] of P proposals; zeros up to the right and lower rim are padding."""
    assert isinstance(detector, TwoStageDetector)
    return detector.every_answer(images, unpadded(images))


def unpadded(images: Tensor) -> Tensor:
    """Height and width of each image up to the last pixel that is not zero, int64 [B, 2]; at least 1."""
    shown_BHW = (images != 0).any(1)
    ends = []
    for across in (2, 1):
        shown_BL = shown_BHW.any(across)
        places_L = torch.arange(1, shown_BL.shape[1] + 1, device=images.device)
        ends.append((shown_BL * places_L).amax(1).clamp_min(1))
    return torch.stack(ends, 1)


def of_one_size(preparation: Preparation, card: Card) -> Preparation:
    """The student's preparation, by which every image comes to be padded to one and the same square.

    Raises:
        InputError: the run does not say how large its images are.
    """
    largest = preparation.max_size or max(card.content.get("canvas", [0]))
    if not largest:
        raise InputError(card.argument, f"{card.folder}, whose student.json does not say how large images are", "a run of this version")
    side = padded_size(largest, preparation.divisor)
    return replace(preparation, max_size=min(preparation.max_size or side, side), divisor=side)


def in_order(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], classes: int = 1) -> tuple[Tensor, ...]:
    """The answers of queries or proposals, each image's brought into the order of those that are wanted.

    RT-DETR's queries and the proposals are the places of the highest scores, highest first: where two are nearly equal, rounding decides
    which is first.

    Args:
        found, wanted: scores [B, N, C] and boxes [B, N, 4].
        classes: places that belong to one proposal.
    """
    from scipy.optimize import linear_sum_assignment

    if [part.shape for part in found] != [part.shape for part in wanted]:
        return found
    scale = max(float(wanted[1].abs().max()), 1.0)  # boxes count as much as scores
    wanted_BQK, found_BQK = (
        torch.cat((scores, boxes / scale), -1).double().unflatten(1, (-1, classes)).flatten(2) for scores, boxes in (wanted, found)
    )
    costs = torch.cdist(wanted_BQK, found_BQK, p=1).nan_to_num(1e9).numpy()
    order_BQ1 = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in costs]))[..., None]
    grouped = [part.unflatten(1, (-1, classes)).flatten(2) for part in found]
    ordered = [part.gather(1, order_BQ1.expand_as(part)) for part in grouped]
    return tuple(part.reshape(own.shape) for part, own in zip(ordered, found, strict=True))


@contextmanager
def _any_batch() -> Iterator[None]:
    """Lets torch.export see that RT-DETR works for batches of any size: transformers asks for `len`, which is a constant to it."""
    module: Any = sys.modules.get("transformers.models.rt_detr.modeling_rt_detr")
    if module is None:
        yield
        return
    module.len = lambda part: part.shape[0] if isinstance(part, Tensor) else len(part)
    try:
        yield
    finally:
        del module.len
