"""A finished detection run's student, ready to use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stillroom.engine.run.stage import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.detection.backbones import pad_batch
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.models import TASK, build_detector
from stillroom.tasks.detection.preparation import Preparation, rescaled
from stillroom.tasks.images.stores import read_image

THRESHOLD = 0.3  # of a score, for people to look at


@dataclass(frozen=True)
class Found:
    """One object in an image.

    Attributes:
        label: name of its class.
        score: in [0, 1].
        box: (x1, y1, x2, y2) in pixels of the image.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector.

    Args:
        network: in eval mode.
        preparation: how an image becomes its input.
        classes: their names, in the order of the logits.
    """

    network: Detector[Any, Any]
    preparation: Preparation
    classes: tuple[str, ...]

    @torch.no_grad()
    def detect(self, image: Image.Image | str | Path, *, threshold: float = THRESHOLD) -> list[Found]:
        """The objects of an image or image file whose score is above a threshold, best first.

        The image is turned upright as its EXIF orientation says; boxes are in the pixels of the upright image.

        Raises:
            UnreadableImage: the image cannot be decoded.
        """
        upright = read_image(image)
        inputs = self.preparation(upright)
        weight = next(self.network.parameters(), inputs)
        batch, sizes = pad_batch([inputs.to(weight.device, weight.dtype)], self.preparation.divisor)
        found = self.network.detect(batch, sizes.to(weight.device))[0]
        boxes = rescaled(found.boxes, inputs.shape[-2:], (upright.height, upright.width))
        rows = zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        return [Found(self.classes[label], score, (x1, y1, x2, y2)) for label, score, (x1, y1, x2, y2) in rows if score > threshold]


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedDetector:
    """The student that a detection run shipped.

    Args:
        run: the folder that `stillroom run` wrote.
        trust_pickle: read weights that are pickles.

    Raises:
        InputError: the folder holds no finished detection run, or a damaged one.
    """
    card = Path(run) / "student.json"
    if not card.is_file():
        raise InputError("run", str(run), "the folder of a finished run, which holds student.json and student.safetensors")
    try:
        described = json.loads(card.read_text(encoding="utf-8"))
        classes, preparation = tuple(map(str, described["classes"])), Preparation.from_json(described["transform"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("run", str(card), "JSON with the student's classes and transform") from error
    built = build_detector(str(run), num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    built.network.eval()
    return LoadedDetector(built.network, preparation, classes)


def ship(folder: Path, model: str, described: dict[str, Any]) -> None:
    """Writes `student.json`: the model, its classes, and how images are prepared."""
    card = {"task": TASK, "model": model.partition("@")[0], "num_classes": len(described["classes"]), **described}
    write_atomic(folder / "student.json", json.dumps(card, indent=1))
