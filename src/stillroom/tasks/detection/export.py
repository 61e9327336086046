"""A run's detector as a file for other programs: scores and boxes at every position, before non-maximum suppression."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.engine.export import Exported, check_format, export
from stillroom.errors import InputError
from stillroom.tasks.classification.export import description, made_up_pictures, place_of
from stillroom.tasks.detection.backbones import pad_batch
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.loaded import load
from stillroom.tasks.detection.preparation import as_pixels

_CHECKED, _LEAST, _CELLS = 5, 64, 3
_RULES = ("score_threshold", "nms_threshold", "most")


def export_detector(
    run: str | Path, *, format: str = "onnx", out: str | Path | None = None, tolerance: float = 1e-4, trust_pickle: bool = False
) -> Exported:
    """Write a detection run's student to one file and check that the file answers as the student does.

    The file reads ``images`` float32 [batch, 3, H, W], H and W any multiples of the description's `divisor`, and answers with ``scores``
    [batch, N, C] in [0, 1] and ``boxes`` [batch, N, 4], absolute (x1, y1, x2, y2) in pixels of the input, of the N positions of all levels.
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
        InputError: not a finished run, a detector without answers at every position, or an argument that cannot be used.
        ExportFailed: the student cannot be written in this format, or the file answers differently; nothing is left behind.
    """
    check_format(format)
    folder = Path(run)
    student = load(folder, trust_pickle=trust_pickle)
    card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    if not isinstance(student.network, DenseDetector):
        raise InputError(
            "run", f"{run}, a {type(student.network).__name__}", "a detector with an answer at every position: GFL, ATSS, RetinaNet, FCOS"
        )
    # Several cells of the coarsest level in each direction: torch.export takes a single one for a constant.
    pictures = made_up_pictures(_CHECKED, max(_LEAST, _CELLS * max(student.network.strides)))
    images_BCHW, _ = pad_batch([student.preparation.normalise(as_pixels(picture)) for picture in pictures], student.preparation.divisor)
    return export(
        student.network,
        images_BCHW,
        place_of(folder, out, format),
        format=format,
        metadata={**description(card), "detections": json.dumps({name: getattr(student.network, name) for name in _RULES})},
        tolerance=tolerance,
        names=("images", "scores", "boxes"),
        ask=answers,
        units=(1.0, float(max(images_BCHW.shape[-2:]))),
        cell=student.preparation.divisor,
    )


def answers(detector: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, H, W] -> scores [B, N, C] and boxes [B, N, 4] of all levels, fine to coarse."""
    assert isinstance(detector, DenseDetector)
    # What is padding is for the caller to know; .shape rather than len(), which torch.export takes for a constant.
    sizes = torch.zeros(images.shape[0], 2, dtype=torch.long, device=images.device)
    outputs = detector.raw(images, sizes)
    return torch.cat(detector.scores(outputs), 1), torch.cat([level.float() for level in outputs.boxes], 1)
