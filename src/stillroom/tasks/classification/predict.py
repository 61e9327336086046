"""The classes of image files: which files are meant, and what a student says about them, batch by batch."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stillroom.tasks.classification.loaded import Loaded
from stillroom.tasks.images.folders import EXTENSIONS
from stillroom.tasks.images.stores import UnreadableImage, read_image


@dataclass(frozen=True)
class Prediction:
    """What a student says about one image.

    Attributes:
        file: the image.
        ranking: classes and their probabilities, the most probable first.
    """

    file: Path
    ranking: tuple[tuple[str, float], ...]


def find_images(places: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that places name, each once, and the places that name none.

    Args:
        places: files, which are taken whatever they are called and whether or not they exist; folders, of which every image below
            counts that is not hidden; and patterns such as ``photos/**/*.jpg``.
    """
    files: dict[Path, None] = {}
    empty: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        if path.exists() or not glob.has_magic(place):
            found = _below(path)
        else:
            found = [file for match in sorted(glob.glob(str(path), recursive=True)) for file in _below(Path(match))]
        files |= dict.fromkeys(found)
        if not found:
            empty.append(place)
    return list(files), empty


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.suffix[1:].lower() in EXTENSIONS and file.is_file())
    return sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))


@torch.no_grad()
def predict_files(
    student: Loaded, files: Sequence[Path], *, top: int, unreadable: Callable[[UnreadableImage], None], batch_size: int = 32
) -> Iterator[Prediction]:
    """What a student says about image files, in their order; it is moved to the accelerator, if there is one.

    Args:
        student: a run's student.
        files: images; at most `batch_size` are in memory at a time.
        top: classes in a ranking, at most all there are.
        unreadable: told of each file that cannot be decoded; that file is left out.
        batch_size: images that go through the network together.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network = student.network.to(device)
    for start in range(0, len(files), batch_size):
        read = [(file, image) for file in files[start : start + batch_size] if (image := _read(student, file, unreadable)) is not None]
        if not read:
            continue
        probabilities_BC = student.activation(network(torch.stack([image for _, image in read]).to(device)).float())
        best_BK, classes_BK = probabilities_BC.topk(min(top, len(student.classes)))
        for (file, _), best, classes in zip(read, best_BK.tolist(), classes_BK.tolist(), strict=True):
            yield Prediction(file, tuple((student.classes[index], value) for index, value in zip(classes, best, strict=True)))


def _read(student: Loaded, file: Path, unreadable: Callable[[UnreadableImage], None]) -> Tensor | None:
    """The network's input, or None when the file is no image."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
            return student.transform(read_image(file))
    except UnreadableImage as error:
        unreadable(error)
        return None
