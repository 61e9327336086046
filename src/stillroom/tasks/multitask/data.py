"""The data of a multi-task run: pictures cut to one size to train on, whole ones to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, resize

from stillroom.engine.loading import Draw, uniforms
from stillroom.errors import at_least, one_of
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.label_maps import IGNORE
from stillroom.tasks.images.transforms import Parameters
from stillroom.tasks.images.whole_pictures import Kept, pixels_of, prepared
from stillroom.tasks.multitask.batches import DenseBatch, DenseImages, WholeBatch, truth_of
from stillroom.tasks.multitask.metrics import MultiTaskEvaluator
from stillroom.tasks.multitask.sources import MultiTaskSource, open_source
from stillroom.tasks.multitask.targets import chosen

AUGMENTATIONS = ("scale", "mirror", "none")
_MEMORY = 1_000_000_000  # bytes of decoded pictures that are kept
_SCALES = (0.5, 2.0)
_TRIES = 10  # crops that are drawn while one class covers too much
_MOST = 0.75  # of a crop, that one class may cover
_DISTORTED = (("brightness", 0.125), ("contrast", 0.5), ("saturation", 0.5))  # factors around 1, up to so far from it
_HUE = 0.05  # of the circle
_EVALUATED = 16  # pictures of a batch of evaluation: their truths are large

Sample = tuple[Tensor, dict[str, np.ndarray]]  # pixels uint8 [3, H, W]; the truth of each target


class MultiTaskData(ImageSetData):
    """A training and a validation set of pictures with the truth of several dense targets, any of which a picture may be without.

    Networks are trained on parts of pictures in one size. They are measured on whole pictures, resized by their shorter side, against the
    truth in its own size. Sets of up to 1 GB are decoded once and stay in memory.

    Args:
        data: where the images are: ``solids`` (drawn), ``nyud:ROOT``, ``pascal-context:ROOT`` or ``dense:ROOT`` (a folder for each target,
            and targets.yaml); options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; here of the shorter side of what it is trained on; by default the
            pictures' own, 512 at most. The longer side is theirs too, where all have one shape; else both are the same.
        augment: random changes of training images: ``scale`` (half to twice as large, cropped, mirrored half of the time, colours
            distorted), ``mirror`` or ``none``; by default scale, for drawn solids none.
        eval_size: pixels of the shorter side of pictures that are measured on; by default `image_size`.
        only_targets: of the data, that are learnt: ``semseg+depth``; by default all.
        target_weights: of the targets' losses, in the place of their own: ``depth=2+edges=20``.
        edge_matching: measure edges as the literature does, thinned and matched one to one, instead of by the distance to the nearest.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: MultiTaskSource

    def __init__(
        self,
        data: str = "solids",
        *,
        batch_size: int = 8,
        image_size: int | None = None,
        augment: str | None = None,
        eval_size: int | None = None,
        only_targets: str | None = None,
        target_weights: str | None = None,
        edge_matching: bool = False,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        source = open_source(data)
        self.targets = chosen(source.targets, only_targets, target_weights)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.classes = tuple(target.name for target in self.targets)
        self.num_classes = len(self.classes)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.size = _of_ratio(self.image_size, source.ratio)
        self.augment = augment or source.augment
        self.eval_size = self.image_size if eval_size is None else at_least("eval_size", eval_size, 1)
        self.edge_matching = edge_matching
        self._evaluated_in = min(batch_size, _EVALUATED)
        height, width = pixels_of(self._listed[1].image(0)).shape[1:]
        values = 3 + sum(1 if target.labelled else 4 * target.channels for target in self.targets)
        self.in_memory = values * int(height) * int(width) * sum(map(len, self._listed)) <= _MEMORY
        known = {"image_size": self.image_size, "augment": self.augment}
        self._known_by(known, self.eval_size, edge_matching, self.targets, content=repr((source.fingerprint, self.left_out)))

    def of_targets(self, *names: str) -> MultiTaskData:
        """The same data with some of the targets alone: for networks of one each."""
        some = tuple(target for target in self.targets if target.name in names)
        return self.derive(("targets", names), targets=some, classes=tuple(one.name for one in some), num_classes=len(some))

    def first_lines(self) -> list[str]:
        """How many pictures there are, what their targets hold, sizes; and what was met."""
        train, val = map(len, self._listed)
        named = ", ".join(f"{target.name} ({target.kind}, weight {target.weight:g})" for target in self.targets)
        first = f"{train} training + {val} validation images with {self.num_classes} target{'s' * (self.num_classes > 1)}: {named}"
        drawn = "procedural data: " if self.source.name == "solids" else ""
        size = f"{self.size[0]} × {self.size[1]} pixels to train on ({self.augment}); measured whole, the shorter side in {self.eval_size}"
        return [f"{drawn}{first}", *self._met(), size]

    def evaluator(self) -> MultiTaskEvaluator:
        """What measures the answers to all targets."""
        return MultiTaskEvaluator(self.targets, edge_matching=self.edge_matching)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation picture, without random changes."""
        return _Cut(self._val, self, "none", told=False).__getitems__([Draw(0, 0)]).images

    def val_sample(self, index: int) -> Sample:
        """A validation picture with its truth, as they are in the files."""
        return _reader(self._val, self)(index)

    def _described(self) -> dict[str, Any]:
        transform = {"shorter": self.eval_size, "interpolation": "bilinear", "mean": list(self.mean), "std": list(self.std)}
        return {"image_size": self.image_size, "transform": transform, "targets": [target.plain() for target in self.targets]}

    @property
    def _light(self) -> bool:
        return self.in_memory and self.augment != "scale"

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        return _Cut(images, self, self.augment, told=told) if training else _Wholes(images, self)

    def _prepared(self, images: Any) -> Any:
        return images  # kept by those who read them


def _of_ratio(shorter: int, ratio: float) -> tuple[int, int]:
    """Height and width of a shorter side and width over height."""
    return (shorter, round(shorter * ratio)) if ratio >= 1 else (round(shorter / ratio), shorter)


def _reader(images: DenseImages, data: MultiTaskData) -> Kept[Sample]:
    targets = data.targets

    def read(index: int) -> Sample:
        pixels = pixels_of(images.image(index))
        size = int(pixels.shape[1]), int(pixels.shape[2])
        truths = {one.name: truth_of(images, index, one.name, size, labelled=one.labelled, channels=one.channels) for one in targets}
        return pixels, truths

    return Kept(read, len(images), _MEMORY // max(1, data.workers) if data.in_memory else 0)


class _Cut(Dataset[Any]):
    """Batches of parts of pictures, in one size, by their draws; with `told` each with what was drawn, see `transforms`."""

    def __init__(self, images: DenseImages, data: MultiTaskData, augment: str, *, told: bool) -> None:
        self.read, self.size, self.augment, self.told = _reader(images, data), data.size, augment, told
        self.targets = data.targets
        self.crowded = next((one.name for one in data.targets if one.kind == "classes"), None)
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        ids, seeds, views = np.array(draws, np.int64).T
        images, valid, places, flips = [], [], [], []
        truths: dict[str, list[Tensor]] = {target.name: [] for target in self.targets}
        for index, random in zip(ids.tolist(), uniforms(seeds, 6 + 2 * _TRIES), strict=True):
            pixels, known = self.read(index)
            scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * random[0] if self.augment == "scale" else 1.0
            place = self._place(known, (int(pixels.shape[1]), int(pixels.shape[2])), scale, random[6:])
            mirrored = self.augment != "none" and random[1] < 0.5
            image, inside = self._image(pixels, place, random[2:6])
            images.append(image.flip(-1) if mirrored else image)
            valid.append(inside.flip(-1) if mirrored else inside)
            for target in self.targets:
                truth = self._truth(known[target.name], place, labelled=target.labelled)
                truth = truth / np.float32(scale) if target.kind == "depth" else truth
                truth = np.ascontiguousarray(truth[..., ::-1]) if mirrored else truth
                if mirrored and target.kind == "normals":
                    truth[0] *= -1
                truths[target.name].append(torch.from_numpy(truth))
            places.append((*place.source(pixels.shape[1:]), scale))
            flips.append(mirrored)
        stacked = {name: torch.stack(some) for name, some in truths.items()}
        recorded = None if draws[0].view < 0 else torch.from_numpy(views.copy())
        batch = DenseBatch(torch.stack(images), stacked, torch.from_numpy(ids.copy()), recorded, torch.stack(valid))
        drawn: Parameters = {"crop": np.array(places, np.float32), "flip": np.array(flips, bool)}
        return (batch, drawn) if self.told else batch

    def _place(self, known: dict[str, np.ndarray], size: tuple[int, int], scale: float, random: np.ndarray) -> _Place:
        """The part that is shown: drawn anew while one class covers too much of it."""
        factor = scale * min(self.size) / min(size)
        for first in range(0, 2 * _TRIES, 2):
            sides = [_Side.of(*one) for one in zip(size, self.size, (factor,) * 2, self._shares(random[first : first + 2]), strict=True)]
            place = _Place(*sides)
            if self.augment != "scale" or self.crowded is None:
                return place
            labels = known[self.crowded][place.rows.slice, place.columns.slice]
            counts = np.bincount(labels.reshape(-1), minlength=IGNORE + 1)[:IGNORE]
            if counts.max() <= _MOST * max(counts.sum(), 1):
                return place
        return place

    def _shares(self, random: np.ndarray) -> tuple[float, float]:
        return (float(random[0]), float(random[1])) if self.augment == "scale" else (0.5, 0.5)

    def _image(self, pixels: Tensor, place: _Place, random: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalised, and 1 where it is no padding."""
        cut = pixels[:, place.rows.slice, place.columns.slice]
        size = [place.rows.shown, place.columns.shown]
        cut = cut if list(cut.shape[1:]) == size else resize(cut, size, antialias=True)
        if self.augment == "scale":
            change = (adjust_brightness, adjust_contrast, adjust_saturation)
            for adjust, (_, most), share in zip(change, _DISTORTED, random, strict=False):
                cut = adjust(cut, 1 + most * (2 * float(share) - 1))
            cut = adjust_hue(cut, _HUE * (2 * float(random[3]) - 1))
        missing = (0, self.size[1] - size[1], 0, self.size[0] - size[0])
        return pad((cut.float() / 255 - self.mean) / self.std, missing), pad(torch.ones(1, *size, dtype=torch.uint8), missing)

    def _truth(self, truth: np.ndarray, place: _Place, *, labelled: bool) -> np.ndarray:
        """By the nearest pixel; unknown in the padding."""
        rows, columns = place.rows.nearest(), place.columns.nearest()
        found = np.full((*truth.shape[:-2], *self.size), IGNORE if labelled else np.nan, truth.dtype)
        found[..., : len(rows), : len(columns)] = truth[..., rows[:, None], columns]
        return found


@dataclass(frozen=True)
class _Side:
    """What is shown along one side of a picture: `length` pixels from `start` on, in `shown` pixels."""

    start: int
    length: int
    shown: int

    @staticmethod
    def of(side: int, wanted: int, factor: float, share: float) -> _Side:
        """Of a side that is enlarged by a factor: as much as is wanted, from a share of what is left over on; all where it is too short."""
        enlarged = max(1, round(side * factor))
        shown = min(wanted, enlarged)
        length = min(side, max(1, round(shown * side / enlarged)))
        return _Side(int(share * (side - length + 1)) if length < side else 0, length, shown)

    @property
    def slice(self) -> slice:
        """Of the picture's pixels."""
        return slice(self.start, self.start + self.length)

    def nearest(self) -> np.ndarray:
        """The picture's pixel under each that is shown."""
        return self.start + ((np.arange(self.shown) + 0.5) * self.length / self.shown).astype(np.int64)


@dataclass(frozen=True)
class _Place:
    """The part of a picture that is shown."""

    rows: _Side
    columns: _Side

    def source(self, size: Sequence[int]) -> tuple[float, ...]:
        """Top, left, height and width as shares of the picture's."""
        height, width = size
        return self.rows.start / height, self.columns.start / width, self.rows.length / height, self.columns.length / width


class _Wholes(Dataset[Any]):
    """Batches of whole pictures, by their draws."""

    def __init__(self, images: DenseImages, data: MultiTaskData) -> None:
        self.read, self.shorter = _reader(images, data), data.eval_size
        self.mean, self.std = data.mean, data.std

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> WholeBatch:
        samples = [self.read(draw.id) for draw in draws]
        images = [prepared(pixels, self.shorter, self.mean, self.std) for pixels, _ in samples]
        truths = [{name: torch.from_numpy(truth) for name, truth in known.items()} for _, known in samples]
        return WholeBatch(images, truths, torch.tensor([draw.id for draw in draws]))
