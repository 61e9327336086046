"""The data of a run on sound: batches of recordings, of what was seen, and of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, uniforms
from stillroom.errors import InputError, at_least, one_of, positive
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.folders import counted, warn_left_out
from stillroom.tasks.images.stores import UnreadableImage
from stillroom.tasks.sound.batches import Batch
from stillroom.tasks.sound.metrics import SoundEvaluator
from stillroom.tasks.sound.networks import Shape, cube_points
from stillroom.tasks.sound.recordings import COARSE, FINE, TARGETS, Recordings, Target
from stillroom.tasks.sound.sources import SoundSource, open_source
from stillroom.tasks.sound.spectrogram import FrontEnd, Spectrogram, front_end

_MEMORY = 1_000_000_000  # bytes of decoded samples that are kept
_MEASURED = 512  # training spectrograms that statistics are taken of
_FAINT = 1e-6  # deviation of a frequency that is not heard
_WHAT = "sound{s} that cannot be used"


class SoundData(ImageSetData):
    """A training and a validation set of recordings, with what was seen where they were made.

    Sounds of another rate are resampled; they must have as many channels as the others. Silent and broken files are left out.

    Args:
        data: where the images are (and the recordings): ``rooms`` (made up), ``echoes:ROOT``, ``replica:ROOT`` or ``batvision:ROOT``;
            options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        answer: what networks answer for: ``depth`` in metres or ``segmentation`` of all of the panorama, or ``occupancy`` of voxels.
        image_size: pixels of the images that the network is given; height; the width is in proportion; by default 32 for made-up
            rooms, 192 for panoramas, 128 for cameras.
        rate: samples per second that networks hear; by default 16 000, for replica and batvision 44 100.
        n_fft: samples of a Fourier transform; by default 512, for made-up rooms 64.
        compression: c of log(1 + c x) of a spectrogram's magnitudes x; 0 for the magnitudes as they are.
        standardise: spectrograms have mean 0 and deviation 1 in each ear's every frequency.
        max_depth: metres, of the farthest that a network can answer.
        query_points: that are asked about in each training sample, where occupancy is answered.
        strict: refuse data with image files that cannot be decoded, or sounds that cannot be used, which are left out otherwise, with one
            warning.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: SoundSource

    def __init__(
        self,
        data: str = "rooms",
        *,
        batch_size: int = 32,
        answer: Target = "depth",
        image_size: int | None = None,
        rate: int | None = None,
        n_fft: int | None = None,
        compression: float = 10.0,
        standardise: bool = True,
        max_depth: float = 10.0,
        query_points: int = 1024,
        strict: bool = False,
        **options: Any,
    ) -> None:
        self.target: Target = one_of("answer", answer, TARGETS)  # type: ignore[assignment]
        source = open_source(data)
        if answer not in source.train.has:
            raise InputError("answer", answer, f"what {source.name} has a truth of: {', '.join(sorted(source.train.has))}")
        if answer == "segmentation" and not source.classes:
            raise InputError("data", data, "names of its classes: ,classes=FILE with a name per line, or ,categories=matterport")
        front = front_end(source.rate if rate is None else at_least("rate", rate, 1000), small=source.small, compression=compression)
        self.front: FrontEnd = front if n_fft is None else replace(front, n_fft=n_fft)
        super().__init__(data, source, batch_size=batch_size, strict=strict, **options)
        if self.renormalise is not None:
            raise InputError("teacher_mean", self.teacher_mean or self.teacher_std, "none: what is seen is normalised once")
        self.classes = source.classes if answer == "segmentation" else ()
        self.num_classes = len(self.classes)
        height = source.image_size[0] if image_size is None else at_least("image_size", image_size, 8)
        self.image_size = height
        self.size = height, round(height * source.image_size[1] / source.image_size[0])
        self._statistics: list[Tensor] = []  # one for all data that are derived from these
        self.max_depth, self.query_points, self.standardise = (
            positive("max_depth", max_depth),
            at_least("query_points", query_points, 1),
            standardise,
        )
        samples = 4 * (source.ears * self.front.samples + (3 * FINE**3 if answer == "occupancy" else 4 * self.size[0] * self.size[1]))
        self.in_memory = samples * sum(map(len, self._listed)) <= _MEMORY
        known = {
            "answer": answer,
            "size": list(self.size),
            "front": self.front.to_json(),
            "standardise": standardise,
            "points": query_points,
        }
        kept = source.fingerprint, self.left_out
        parts = kept, *known.values(), max_depth, *self._subsets.values(), self.mean, self.std
        self._identify(*parts, content=repr(kept), **known, **self._subsets)

    def first_lines(self) -> list[str]:
        """How many recordings there are; what is heard and seen; what was met."""
        train, val = map(len, self._listed)
        heard = "two ears" if self.source.heard == "ears" else f"ambisonics as W, Y, Z, X (given as {self.source.heard})"
        front = self.front
        lines = [
            f"{train} training + {val} validation recordings, answered for: {self.target}",
            f"{heard}, {front.samples} samples at {front.rate} Hz; spectrograms of {front.bins} frequencies x {front.frames} times",
            f"what is seen: {self.size[0]} x {self.size[1]} pixels" if self.target != "occupancy" else f"what is seen: {COARSE}^3 voxels",
        ]
        return [*lines, *self.source.said, *([f"left out {counted(self.left_out, _WHAT)}"] if self.left_out else [])]

    def shape(self) -> Shape:
        """What networks read and answer; with statistics of the training spectrograms."""
        mean, std = self.spectrogram_statistics() if self.standardise else (None, None)
        return Shape(self.target, self.size, self.source.ears, self.front, self.classes, self.max_depth, mean, std)

    def spectrogram_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the (compressed) magnitudes of training sounds, of each ear and frequency: [E, F] both."""
        if not self._statistics:
            chosen = self._listed[0]
            sounds = np.stack([chosen.hear(index, self.front) for index in range(min(len(chosen), _MEASURED))])
            std, mean = torch.std_mean(Spectrogram(self.front, self.source.ears).magnitudes(torch.from_numpy(sounds)), (0, 3))
            self._statistics += [mean, std.clamp_min(_FAINT)]
        mean, std = self._statistics
        return mean, std

    def evaluator(self) -> SoundEvaluator:
        """What measures answers."""
        return SoundEvaluator(self.target, len(self.classes))

    def example_inputs(self) -> dict[str, Tensor]:  # type: ignore[override]
        """A batch of one: the first validation recording."""
        return self.val_batch([0]).inputs

    def val_batch(self, indices: Sequence[int]) -> Batch:
        """Validation samples as every evaluation shows them."""
        return _Batches(self._val, self, training=False).__getitems__([Draw(index, 0) for index in indices])

    def val_image(self, index: int) -> Image.Image:
        """What was seen, for people to look at."""
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(self._val.look(index, self.size), 0, -1)))

    def spectrogram(self, index: int) -> np.ndarray:
        """What was heard in a validation recording: the (compressed) magnitudes, [E, F, T]."""
        sound = torch.from_numpy(self._val.hear(index, self.front))[None]
        found: np.ndarray = Spectrogram(self.front, self.source.ears).magnitudes(sound)[0].numpy()
        return found

    def _described(self) -> dict[str, Any]:
        front = {"ears": self.source.ears, "heard": self.source.heard, "max_depth": self.max_depth, **self.front.to_json()}
        return {"image_size": self.image_size, "size": list(self.size), "target": self.target, "transform": front}

    def _samples(self, images: Recordings, *, training: bool, told: bool = False) -> Dataset[Any]:
        return _Batches(images, self, training=training, told=told)

    def _opened(self) -> tuple[Recordings, Recordings]:
        """Those that were asked for and that can be heard."""
        listed = []
        self.left_out, self.animated = [], []
        for split, argument, count in (("train", "subset", self.subset), ("val", "val_subset", self.val_subset)):
            recordings: Recordings = getattr(self.source, split)
            if count is not None:
                self.indices[split] = self._chosen(recordings, argument, count)
                recordings = recordings.take(self.indices[split])
            if self.source.name != "rooms":
                recordings = self._usable(recordings, split)
            listed.append(recordings)
        if self.left_out:
            warn_left_out(self.left_out, _WHAT)
        return listed[0], listed[1]

    def _usable(self, recordings: Recordings, split: str) -> Recordings:
        problems: dict[int, str] = {}
        for index in range(len(recordings)):
            try:
                recordings.hear(index, self.front)
            except UnreadableImage as error:
                problems[index] = str(error)
        kept = np.setdiff1d(np.arange(len(recordings)), list(problems))
        if problems and (self.strict or not len(kept)):
            raise InputError("data", next(iter(problems.values())), f"sounds of {self.source.ears} channels that can be heard")
        self.left_out += list(problems.values())
        if problems and split in self.indices:
            self.indices[split] = self.indices[split][kept]
        return recordings.take(kept) if problems else recordings

    def _prepared(self, images: Recordings) -> Recordings:
        return images  # kept by those who read them, see `_Batches`

    def _taken(self, images: Recordings, indices: np.ndarray) -> Recordings:  # type: ignore[override]
        return images.take(indices)

    @property
    def _light(self) -> bool:
        return self.in_memory


class _Batches(Dataset[Any]):
    """Whole batches by their draws; what was read is kept, up to `_MEMORY` bytes."""

    def __init__(self, recordings: Recordings, data: SoundData, *, training: bool, told: bool = False) -> None:
        self.recordings, self.target, self.size, self.front, self.told = recordings, data.target, data.size, data.front, told
        self.points = data.query_points if training else 0
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._room = _MEMORY // max(1, data.workers)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        ids, seeds, views = np.array(draws, np.int64).T
        sounds, seen, truths = (torch.stack(parts) for parts in zip(*map(self._read, ids.tolist()), strict=True))
        inputs = {"sound": sounds}
        if self.target == "occupancy":
            inputs |= {"sight": seen.float(), "points": self._points(seeds, sounds)}
            index_BQ3 = (inputs["points"] * FINE).long().clamp(0, FINE - 1)
            flat_BQ = (index_BQ3[..., 0] * FINE + index_BQ3[..., 1]) * FINE + index_BQ3[..., 2]
            truths = truths.flatten(1).gather(1, flat_BQ).float()
        else:
            inputs["sight"] = (seen.float() / 255 - self.mean) / self.std
        recorded = None if draws[0].view < 0 else torch.from_numpy(views.copy())
        batch = Batch(inputs, truths, torch.from_numpy(ids.copy()), recorded)
        return (batch, {}) if self.told else batch

    def _points(self, seeds: np.ndarray, like: Tensor) -> Tensor:
        """Random places to train on; the centres of all voxels to measure with."""
        if not self.points:
            return cube_points(like)
        return torch.from_numpy(uniforms(seeds, 3 * self.points).reshape(len(seeds), self.points, 3)).float()

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sound, what is seen, and the truth."""
        if index in self._kept:
            return self._kept[index]
        truth = torch.from_numpy(self.recordings.truth(index, self.target, self.size))
        if self.target == "occupancy":
            seen = truth.view(1, COARSE, 2, COARSE, 2, COARSE, 2).any(6).any(4).any(2)
        else:
            seen = torch.from_numpy(self.recordings.look(index, self.size))
            truth = truth.float() if self.target == "depth" else truth.long()
        found = torch.from_numpy(np.array(self.recordings.hear(index, self.front))), seen, truth
        size = sum(part.nbytes for part in found)
        if size <= self._room:
            self._kept[index] = found
            self._room -= size
        return found
