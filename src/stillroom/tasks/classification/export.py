"""A run's student as a file for other programs, with its class names and how images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import to_pil_image

from stillroom._version import __version__
from stillroom.engine.export import SUFFIXES, Exported, check_format, export
from stillroom.errors import InputError
from stillroom.tasks.classification.loaded import Loaded
from stillroom.tasks.classification.shared_classifier import PREFIX, Shared
from stillroom.tasks.students import load

# The run's own student.safetensors is what `load` and a continued run read; it is left alone.
_NAMES = {format: f"student{'_described' if format == 'safetensors' else ''}{suffix}" for format, suffix in SUFFIXES.items()}
_CHECKED = 5


def export_student(
    run: str | Path, *, format: str = "onnx", out: str | Path | None = None, tolerance: float = 1e-4, trust_pickle: bool = False
) -> Exported:
    """Write a run's student to one file and check that the file answers as the student does.

    The file reads ``images`` float32 [batch, 3, S, S] and answers with ``logits`` [batch, C]. Its metadata are strings: ``task``;
    ``classes``, a JSON list in the order of the logits; ``transform``, a JSON object that says how images are prepared (`resize` of the
    shorter side, `interpolation`, central `crop`, `mean` and `std` for pixels in [0, 1]; of a multi-label student `resize` is of both sides
    and there is no crop); ``model``, the student's specification;
    ``stillroom``, the version.

    Args:
        run: the folder that `stillroom run` wrote.
        format: ``onnx``, ``torch`` (a program of `torch.export`) or ``safetensors`` (weights alone).
        out: the file, or a folder for it; by default the run's.
        tolerance: the largest allowed absolute difference between the logits of the file and of the student.
        trust_pickle: see `load`.

    Raises:
        InputError: not a finished run, or an argument that cannot be used.
        ExportFailed: the student cannot be written in this format, or the file answers differently; nothing is left behind.
    """
    check_format(format)
    folder = Path(run)
    student = load(folder, trust_pickle=trust_pickle)
    if not isinstance(student, Loaded):
        raise InputError("run", f"{run}, whose student is a {type(student).__name__}", "a run of classification")
    card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    path = place_of(folder, out, format)
    resize = card["transform"]["resize"]  # of the shorter side, or [height, width]
    pictures = made_up_pictures(_CHECKED, resize if isinstance(resize, int) else min(resize))
    images_BCHW = torch.stack([student.transform(picture) for picture in pictures])
    names = ("images", "logits")
    return export(student.network, images_BCHW, path, format=format, metadata=description(card), tolerance=tolerance, names=names)


def description(card: Mapping[str, Any]) -> dict[str, str]:
    """What a file says about the student of a `student.json`."""
    return {
        "task": card.get("task", "classification"),
        "classes": json.dumps(list(card["classes"])),
        "transform": json.dumps(card["transform"]),
        "model": _without_folders(str(card["model"])),
        "stillroom": __version__,
    }


def place_of(run: Path, out: str | Path | None, format: str) -> Path:
    """The file to write: `out`, or the usual name in the folder `out` or the run's."""
    path = run if out is None else Path(out)
    return path / _NAMES[format] if path.is_dir() else path


def _without_folders(spec: str) -> str:
    """A Python file is named without the folders that it lies in on this machine."""
    if spec.startswith(PREFIX):
        shared = Shared.parse(spec, "model")
        classifier = None if shared.classifier is None else (_without_folders(shared.classifier[0]), shared.classifier[1])
        return str(replace(shared, backbone=_without_folders(shared.backbone), classifier=classifier))
    file, colon, function = spec.rpartition(":")
    return f"{Path(file).name}{colon}{function}" if file.endswith(".py") else spec


def made_up_pictures(count: int, side: int) -> list[Image.Image]:
    """Always the same pictures with the statistics of photographs: as much contrast in each octave of scale. The run's data may be gone."""
    height, width = side, round(side * 4 / 3)
    generator = torch.Generator().manual_seed(0)
    pictures_BCHW = torch.zeros(count, 3, height, width)
    cells = 1
    while cells <= side:
        octave: Tensor = torch.rand(count, 3, cells, cells, generator=generator)
        pictures_BCHW += interpolate(octave, (height, width), mode="bilinear", align_corners=False)
        cells *= 2
    low, high = pictures_BCHW.amin((1, 2, 3), keepdim=True), pictures_BCHW.amax((1, 2, 3), keepdim=True)
    return [to_pil_image(picture) for picture in ((pictures_BCHW - low) / (high - low) * 255).to(torch.uint8)]
