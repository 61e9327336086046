"""What a run's detector finds in image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.tasks.detection.loaded import Found, LoadedDetector
from stillroom.tasks.images.stores import UnreadableImage


@dataclass(frozen=True)
class Detected:
    """What was found in one image.

    Attributes:
        file: the image.
        objects: best first.
    """

    file: Path
    objects: tuple[Found, ...]


def detect_files(
    detector: LoadedDetector, files: Sequence[Path], *, threshold: float, unreadable: Callable[[UnreadableImage], None]
) -> Iterator[Detected]:
    """What a detector finds in image files, in their order, one at a time; it is moved to the accelerator, if there is one.

    Args:
        detector: a run's student.
        files: images.
        threshold: least score of an object.
        unreadable: told of each file that cannot be decoded; that file is left out.
    """
    detector.network.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
                found = detector.detect(file, threshold=threshold)
        except UnreadableImage as error:
            unreadable(error)
            continue
        yield Detected(file, tuple(found))
