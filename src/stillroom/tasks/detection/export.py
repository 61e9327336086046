"""A run's detector as a file for other programs: its scores and boxes, before anything is chosen among them.

A dense detector's file reads images of many sizes. One of the DETR family reads images of a single size: its graph knows its maps' sizes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from stillroom.engine.export import Exported, check_format, export
from stillroom.errors import InputError
from stillroom.tasks.classification.export import description, made_up_pictures, place_of
from stillroom.tasks.detection.backbones import pad_batch, padded_size
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.loaded import LoadedDetector, load
from stillroom.tasks.detection.preparation import Preparation, as_pixels
from stillroom.tasks.detection.queries import QueryDetector

_CHECKED, _LEAST, _CELLS = 5, 64, 3
_RULES = ("score_threshold", "nms_threshold", "most")


def export_detector(
    run: str | Path, *, format: str = "onnx", out: str | Path | None = None, tolerance: float = 1e-4, trust_pickle: bool = False
) -> Exported:
    """Write a detection run's student to one file and check that the file answers as the student does.

    The file reads ``images`` float32 [batch, 3, H, W] and answers with ``scores`` [batch, N, C] in [0, 1] and ``boxes`` [batch, N, 4],
    absolute (x1, y1, x2, y2) in pixels of the input: of the N positions of all levels, H and W being any multiples of the description's
    `divisor`; or of the N queries of a DETR, H and W both being the description's `divisor`, a side that no prepared image exceeds.
    Its metadata are those of `classification.export.export_student`, with the `Preparation` as ``transform``; and ``detections``, a JSON
    object that says what is one of these answers: `score_threshold`, `nms_threshold` (IoU, within a class) and `most` of an image.

    Args:
        run: the folder that `stillroom run` wrote.
        format: ``onnx``, ``torch`` (a program of `torch.export`) or ``safetensors`` (weights alone).
        out: the file, or a folder for it; by default the run's.
        tolerance: the largest allowed absolute difference between the file's and the student's answers, of a score, and of a box's side in
            parts of the image's longer side.
        trust_pickle: see `load`.

    Raises:
        InputError: not a finished run, a detector of another kind, or an argument that cannot be used.
        ExportFailed: the student cannot be written in this format, or the file answers differently; nothing is left behind.
    """
    check_format(format)
    folder = Path(run)
    student = load(folder, trust_pickle=trust_pickle)
    card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    detector, preparation, place = student.network, student.preparation, place_of(folder, out, format)
    given: dict[str, Any]
    if isinstance(detector, DenseDetector):
        # Several cells of the coarsest level in each direction: torch.export takes a single one for a constant.
        side = max(_LEAST, _CELLS * max(detector.strides))
        rules, given = {name: getattr(detector, name) for name in _RULES}, {"ask": dense_answers, "cell": preparation.divisor}
    elif isinstance(detector, QueryDetector):
        preparation = of_one_size(student, card, run)
        side = preparation.divisor
        rules = {"score_threshold": 0.0, "nms_threshold": 1.0, "most": detector.most}
        note = f"reads images of {side} x {side} pixels: smaller ones are padded with zeros at the right and the bottom"
        given = {"ask": query_answers, "align": in_order, "note": note}
    else:
        raise InputError(
            "run", f"{run}, a {type(detector).__name__}", "a detector that can be exported: GFL, ATSS, RetinaNet, FCOS or a DETR"
        )
    pictures = made_up_pictures(_CHECKED, side)
    if not isinstance(detector, DenseDetector):
        sizes = [(side, side), (side // 2, side), *[(side, side)] * len(pictures[2:])]  # padding is looked at too
        pictures = [picture.resize(size) for picture, size in zip(pictures, sizes, strict=True)]
    images_BCHW, _ = pad_batch([preparation.normalise(as_pixels(picture)) for picture in pictures], preparation.divisor)
    with _any_batch():
        return export(
            detector,
            images_BCHW,
            place,
            format=format,
            metadata={**description({**card, "transform": preparation.to_json()}), "detections": json.dumps(rules)},
            tolerance=tolerance,
            names=("images", "scores", "boxes"),
            units=(1.0, float(max(images_BCHW.shape[-2:]))),
            **given,
        )


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
    outputs = detector.raw(images, unpadded(images))
    return detector.scores(outputs.logits[-1]), outputs.boxes[-1]


def unpadded(images: Tensor) -> Tensor:
    """Height and width of each image up to the last pixel that is not zero, int64 [B, 2]; at least 1."""
    shown_BHW = (images != 0).any(1)
    ends = []
    for across in (2, 1):
        shown_BL = shown_BHW.any(across)
        places_L = torch.arange(1, shown_BL.shape[1] + 1, device=images.device)
        ends.append((shown_BL * places_L).amax(1).clamp_min(1))
    return torch.stack(ends, 1)


def of_one_size(student: LoadedDetector, card: dict[str, Any], run: str | Path) -> Preparation:
    """The student's preparation, by which every image comes to be padded to one and the same square.

    Raises:
        InputError: the run does not say how large its images are.
    """
    largest = student.preparation.max_size or max(card.get("canvas", [0]))
    if not largest:
        raise InputError("run", f"{run}, whose student.json does not say how large images are", "a run of this version")
    side = padded_size(largest, student.preparation.divisor)
    return replace(student.preparation, max_size=min(student.preparation.max_size or side, side), divisor=side)


def in_order(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The queries' answers, each image's brought into the order of those that are wanted.

    RT-DETR's queries are the places of the highest scores, highest first: where two are nearly equal, rounding decides which is first.
    """
    if [part.shape for part in found] != [part.shape for part in wanted]:
        return found
    scale = max(float(wanted[1].abs().max()), 1.0)  # boxes count as much as scores
    wanted_BQK, found_BQK = (torch.cat((scores, boxes / scale), -1).double() for scores, boxes in (wanted, found))
    costs = torch.cdist(wanted_BQK, found_BQK, p=1).nan_to_num(1e9).numpy()
    order_BQ1 = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in costs]))[..., None]
    return tuple(part.gather(1, order_BQ1.expand_as(part)) for part in found)


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
