"""What a network's own configuration says of the images that it reads and of its classes.

Looked for, the nearest first: beside the weights (a run's `student.json`, also two folders above a stage's file; timm's `config.json`;
transformers' `preprocessor_config.json` and `config.json`), then in the library that the network's name is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import InputError
from stillroom.tasks.images.arguments import Statistics

_NUMBERED = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's resampling filters
_ABOVE = 3  # folders in which a run's card may lie: the file's, the stage's, the run's


@dataclass(frozen=True)
class Configuration:
    """What one source says; None where it says nothing.

    Attributes:
        source: what says it, as it is told to users.
        mean, std: of each channel, for pixels in [0, 1].
        size: height and width in pixels.
        interpolation: with which images are resized.
        crop: share of the resized image that is cut out in evaluation.
        classes: their names, in the order of the answers.
    """

    source: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    interpolation: str | None = None
    crop: float | None = None
    classes: tuple[str, ...] | None = None

    @property
    def statistics(self) -> Statistics | None:
        """Mean and standard deviation, where both are told."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)


def beside(weights: str | Path) -> list[Configuration]:
    """What lies beside a file or folder of weights says, the nearest first. What cannot be understood says nothing."""
    place = Path(weights).expanduser()
    folder = place if place.is_dir() else place.parent
    found = [_of_timm(folder), _of_transformers(folder)]
    above = [folder.resolve(), *folder.resolve().parents][: 1 if place.is_dir() else _ABOVE]
    found = [next(filter(None, map(_of_run, above)), None), *found]
    return [one for one in found if one is not None]


def of_library(source: str, *, pretrained: bool) -> Configuration | None:
    """What timm and torchvision say of their networks: timm of every one, torchvision of published weights."""
    library, _, name = source.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        return None if config is None else _timm(f"timm's configuration of {name}", config.to_dict())
    if library == "torchvision" and pretrained:
        from torchvision import models

        weights = models.get_model_weights(name).DEFAULT
        made = weights.transforms()
        side, whole = made.crop_size[0], made.resize_size[0]
        return Configuration(
            f"torchvision's {weights}",
            tuple(made.mean),
            tuple(made.std),
            (side, side),
            made.interpolation.value,
            side / whole,
            tuple(weights.meta["categories"]),
        )
    return None


def class_names(file: Path, argument: str) -> tuple[str, ...]:
    """Names of classes from a file: one a line, a JSON list, or a JSON object from row (``{"0": "cat"}``) to name.

    Raises:
        InputError: it cannot be read, or holds no names, or one twice.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(argument, f"{file}, which cannot be read", "a text file with the name of a class in each line") from error
    names: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = listed(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(argument, f"{file}, which is JSON", "a list of names, or an object from row to name") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(argument, f"{file} with {twice[0]} twice", "each class once")
    if len(names) < 2:
        raise InputError(argument, f"{file} with {len(names)} names", "the names of at least two classes")
    return tuple(names)


def rows_of(wanted: Sequence[str], own: Sequence[str]) -> tuple[int, ...] | None:
    """For each wanted class its place among a network's own; None where one is not there.

    Names are compared as they are; where that does not do, without regard to case and to what stands between words.
    """
    for alike in (str, _loosely):
        places: dict[str, list[int]] = {}
        for place, name in enumerate(own):
            places.setdefault(alike(name), []).append(place)
        found = [places.get(alike(name), []) for name in wanted]
        rows = tuple(few[0] for few in found if len(few) == 1)
        if len(rows) == len(wanted) and len(set(rows)) == len(rows):
            return rows
    return None


def _loosely(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def listed(content: Any) -> list[str]:
    """Names in the order of their rows, from a list or a mapping of rows; none of anything else."""
    if isinstance(content, Mapping):
        return [str(content[key]) for key in sorted(content, key=int)] if set(map(int, content)) == set(range(len(content))) else []
    return [str(name) for name in content] if isinstance(content, list) else []


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _of_run(folder: Path) -> Configuration | None:
    content = _read(folder / "student.json")
    transform = content.get("transform")
    if not isinstance(transform, Mapping):
        return None
    return Configuration(
        f"{folder / 'student.json'}", three(transform.get("mean")), three(transform.get("std")), pair(transform.get("image_size"))
    )


def _of_timm(folder: Path) -> Configuration | None:
    content = _read(folder / "config.json")
    config = content.get("pretrained_cfg")
    if not isinstance(config, Mapping):
        return None
    names = content.get("label_names")
    return _timm(f"{folder / 'config.json'}", {**config, "label_names": names if isinstance(names, list) else None})


def _timm(source: str, config: Mapping[str, Any]) -> Configuration:
    size, crop, names = config.get("input_size"), config.get("crop_pct"), config.get("label_names")
    return Configuration(
        source,
        three(config.get("mean")),
        three(config.get("std")),
        pair(size[1:]) if isinstance(size, list | tuple) and len(size) == 3 else None,
        str(config["interpolation"]) if config.get("interpolation") else None,
        float(crop) if isinstance(crop, int | float) else None,
        tuple(map(str, names)) if names else None,
    )


def _of_transformers(folder: Path) -> Configuration | None:
    model, processor = _read(folder / "config.json"), _read(folder / "preprocessor_config.json")
    labels = model.get("id2label")
    try:
        names = listed(labels) if isinstance(labels, Mapping) else []
    except (TypeError, ValueError):
        names = []
    if all(name == f"LABEL_{row}" for row, name in enumerate(names)):  # what transformers writes where nobody named them
        names = []
    if not processor and not names:
        return None
    normalised = processor.get("do_normalize", True)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    range_, crop = (255 * factor if isinstance(factor, int | float) and factor > 0 else 1.0), processor.get("crop_pct")
    size, filter_ = processor.get("size"), processor.get("resample")
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge")
    return Configuration(
        f"{folder / 'preprocessor_config.json'}" if processor else f"{folder / 'config.json'}",
        three(processor.get("image_mean") if normalised else 0.0, range_),
        three(processor.get("image_std") if normalised else 1.0, range_),
        pair(size),
        _NUMBERED.get(filter_) if isinstance(filter_, int) else None,
        float(crop) if isinstance(crop, int | float) else None,
        tuple(names) or None,
    )


def three(values: Any, range_: float = 1.0) -> tuple[float, ...] | None:
    """Three numbers, of pixels from 0 to `range_`, for pixels from 0 to 1."""
    if isinstance(values, int | float):
        values = [values] * 3
    fine = isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(value, int | float) for value in values)
    return tuple(float(value) / range_ for value in values) if fine else None


def pair(size: Any) -> tuple[int, int] | None:
    """Height and width, from both or one side."""
    if isinstance(size, int):
        return size, size
    fine = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    return (size[0], size[1]) if fine else None
