"""A finished detection run's student, ready to use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.tasks.detection.backbones import pad_batch
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.export import export_spec
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.preparation import Preparation, rescaled
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, described, opened
from stillroom.tasks.images.stores import read_image

THRESHOLD = 0.3  # of a score, for people to look at


@dataclass(frozen=True)
class Found:
    """One object in an image.

    Attributes:
        label: name of its class.
        score: in [0, 1].
        box: (x1, y1, x2, y2) in pixels of the upright image.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detected:
    """What was found in one image.

    Attributes:
        file: the image.
        objects: best first.
    """

    file: Path
    objects: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        """The objects."""
        return {"objects": [{"class": one.label, "score": one.score, "box": list(one.box)} for one in self.objects]}

    def rows(self) -> list[list[str]]:
        """One for each object."""
        rows = [[one.label, f"{one.score:.2f}", ", ".join(f"{side:.1f}" for side in one.box)] for one in self.objects]
        return rows or [["nothing", "", ""]]


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector.

    Args:
        network: in eval mode.
        preparation: how an image becomes its input.
        classes: their names, in the order of the logits.
        card: what the run says about it.
    """

    network: Detector[Any, Any]
    preparation: Preparation
    classes: tuple[str, ...]
    card: Card

    kind: ClassVar[str] = "a detector"
    options: ClassVar[dict[str, Any]] = {"threshold": THRESHOLD}

    @torch.no_grad()
    def detect(self, image: Image.Image | str | Path, *, threshold: float = THRESHOLD) -> list[Found]:
        """The objects of an image or image file whose score is above a threshold, best first.

        The image is turned upright as its EXIF orientation says; boxes are in the pixels of the upright image.

        Raises:
            UnreadableImage: the image cannot be decoded.
        """
        upright = read_image(image)
        inputs = as_read_by(self.network, self.preparation(upright))
        batch, sizes = pad_batch([inputs], self.preparation.divisor)
        found = self.network.detect(batch, sizes.to(inputs.device))[0]
        boxes = rescaled(found.boxes, inputs.shape[-2:], (upright.height, upright.width))
        rows = zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
        return [Found(self.classes[label], score, (x1, y1, x2, y2)) for label, score, (x1, y1, x2, y2) in rows if score > threshold]

    def columns(self, threshold: float = THRESHOLD) -> list[str]:
        """Of `Detected.rows`."""
        return ["class", "score", "box (x1, y1, x2, y2)"]

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, threshold: float = THRESHOLD) -> Iterator[Detected]:
        """The objects of each file; see `Student`. The network is moved to the accelerator, if there is one."""
        accelerated(self.network)
        for file, found in opened(files, lambda file: self.detect(file, threshold=threshold), unreadable):
            yield Detected(file, tuple(found))

    def export_spec(self) -> ExportSpec:
        """See `detection.export`."""
        return export_spec(self.network, self.preparation, self.card)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedDetector:
    """The student that a detection run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    classes, preparation = described(card, Preparation.from_json)
    built = build_detector(card.spec, num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    return LoadedDetector(built.network.eval(), preparation, classes, card)
