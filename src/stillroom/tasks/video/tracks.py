"""What a clip is made of: one track for each modality, read frame by frame; in image files, in memory, as boxes or as sound."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.stores import UnreadableImage, read_image
from stillroom.tasks.video.audio import MelSpectrogram, segments
from stillroom.tasks.video.layout import BOXES, EMPTY_BOX

RGB, FLOW, DEPTH, BOX, AUDIO = "rgb", "flow", "depth", "boxes", "audio"
MODALITIES = (RGB, FLOW, DEPTH, BOX, AUDIO)
PICTURES = (RGB, FLOW, DEPTH)  # which share what is drawn for a clip: frames, crop and colours
_WINDOW = 1.116  # seconds of sound around a frame
_CATEGORIES, _SIDES = {"object": 1, "hand": 2}, {"left": 1, "right": 2}


class Track(Protocol):
    """One modality of a clip."""

    def __len__(self) -> int:
        """How many frames it has."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """What belongs to each of the frames: pictures uint8 [F, 3, H, W], boxes float32 [F, N, 8], or sound [F, samples]."""


@dataclass(frozen=True)
class Clip:
    """A piece of video with a label for each head.

    Args:
        name: where it comes from.
        tracks: by modality; one that it lacks is not there.
        labels: class numbers, by head.
    """

    name: str
    tracks: Mapping[str, Track]
    labels: tuple[int, ...]


class Clips:
    """A list of clips, with what `ImageSetData` asks of images.

    Args:
        clips: of it.
        heads: names of the labels' heads.
    """

    def __init__(self, clips: Sequence[Clip], heads: Sequence[str]) -> None:
        self.clips, self.heads = tuple(clips), tuple(heads)
        self.labels = np.array([clip.labels for clip in self.clips], np.int64).reshape(-1, len(self.heads))

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """Where one comes from."""
        return self.clips[index].name

    def take(self, indices: np.ndarray) -> Clips:
        """Those of the given indices, renumbered from 0."""
        return Clips([self.clips[i] for i in indices.tolist()], self.heads)

    def having(self, modality: str) -> np.ndarray:
        """Whether each has this modality, bool [N]."""
        return np.array([modality in clip.tracks for clip in self.clips], bool)


@dataclass(frozen=True)
class FrameFiles:
    """Frames in image files.

    Args:
        store: where they lie.
        channels: names of the files in the order of frames: of one picture each, or of two, the horizontal and the vertical part of an
            optical flow, which become the channels 1 and 2.
        numbers: of the frames, as the files' names say, rising, int64 [N].
        start, stop: first and last number of the clip, both included.
    """

    store: Store
    channels: tuple[tuple[str, ...], ...]
    numbers: np.ndarray
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start + 1

    @property
    def whole(self) -> int:
        """Frames of the whole video."""
        return int(self.numbers[-1]) + 1

    def read(self, indices: Sequence[int]) -> Tensor:
        """Its frames; one that is missing shows the frame before it.

        Raises:
            InputError: a file that cannot be decoded, or of another size than the others.
        """
        asked = np.clip(self.start + np.asarray(indices), self.start, self.stop)
        places = np.maximum(np.searchsorted(self.numbers, asked, side="right") - 1, 0).tolist()
        known = {place: self._picture(place) for place in set(places)}
        if len({picture.shape for picture in known.values()}) > 1:
            sizes = {f"{picture.shape[1]} x {picture.shape[0]}": self.channels[0][place] for place, picture in known.items()}
            told = ", ".join(f"{name} of {size}" for size, name in list(sizes.items())[:2])
            raise InputError("data", f"frames of one clip in several sizes: {told} pixels", "frames of one size")
        return torch.from_numpy(np.stack([known[place] for place in places])).permute(0, 3, 1, 2)

    def _picture(self, place: int) -> np.ndarray:
        if len(self.channels) == 1:
            return np.asarray(self._opened(self.channels[0][place], "RGB"))
        parts = [np.asarray(self._opened(names[min(place, len(names) - 1)], "L")) for names in self.channels]
        return np.stack([*parts, np.zeros_like(parts[0])], -1)

    def _opened(self, name: str, mode: str) -> Image.Image:
        try:
            return read_image(io.BytesIO(self.store.read(name)), name).convert(mode)
        except OSError as error:
            raise InputError("data", f"{name} ({error})", "a frame that can be decoded") from None
        except UnreadableImage as error:
            raise InputError("data", str(error), "a frame that can be decoded") from None


@dataclass(frozen=True)
class Held:
    """A track in memory: a tensor [L, ...] of which frames are rows."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Rows; behind the end the last one."""
        return self.rows[torch.as_tensor(indices).clamp_max(len(self.rows) - 1)]


@dataclass(frozen=True)
class Sound:
    """Sound beside frames.

    Args:
        samples: float32 [N].
        rate: samples per second.
        fps: frames per second; 0 where all of the sound belongs to every frame.
        start: number of the clip's first frame in the sound.
    """

    samples: Tensor
    rate: int
    fps: float
    start: int = 0
    front: MelSpectrogram = field(default_factory=MelSpectrogram)

    def __len__(self) -> int:
        return 1

    def read(self, indices: Sequence[int]) -> Tensor:
        """[F, samples]: a window of 1.116 seconds around each frame; or [1, N], all of it."""
        if not self.fps:
            return self.samples[None]
        centres = [int((self.start + index) * self.rate / self.fps) for index in np.asarray(indices).tolist()]
        return segments(self.samples, int(_WINDOW * self.rate), centres)

    def pictures(self, indices: Sequence[int], size: int) -> Tensor:
        """Log-mel pictures of these, normalised: [F or 1, 3, size, size]."""
        return self.front.picture(self.read(indices), size)


def boxes_of(found: Sequence[Mapping[str, Any]], where: str) -> np.ndarray:
    """The boxes of one frame, float32 [N, 8] (see `layout.Boxes`), the surest first, padded.

    Args:
        found: ``box`` (x1, y1, x2, y2 as shares of width and height), ``category`` (object or hand), ``score``; of hands ``side`` (left
            or right) and ``state`` (1 to 5).
        where: they were read, for messages.

    Raises:
        InputError: one of them cannot be read so.
    """
    rows = np.zeros((BOXES, 8), np.float32)
    rows[:, 1:5] = EMPTY_BOX
    try:
        for row, one in zip(rows, sorted(found, key=lambda one: -float(one.get("score", 1))), strict=False):
            x1, y1, x2, y2 = map(float, one["box"])
            if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
                raise ValueError(f"box {one['box']}")
            side = _SIDES.get(str(one.get("side", "")), 0)
            row[:] = _CATEGORIES[str(one["category"])], x1, y1, x2, y2, float(one.get("score", 1)), side, int(one.get("state", 0))
            if not 0 <= row[7] <= 5:
                raise ValueError(f"state {one['state']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("data", f"{where} ({error})", "boxes as shares of the picture, of category object or hand") from None
    return rows


def read_boxes(store: Store, name: str) -> np.ndarray:
    """A JSON list with a list of boxes for each frame: [L, N, 8]."""
    try:
        frames = json.loads(store.read(name))
        return np.stack([boxes_of(found, name) for found in frames])
    except (ValueError, TypeError, OSError) as error:
        raise InputError("data", f"{name} ({error})", "a JSON list with a list of boxes for each frame") from None


def read_sound(store: Store, name: str, frames: int, start: int) -> Sound:
    """The mean of the channels of a wav file, which lasts as long as its video.

    Args:
        store, name: of the file, integers of 16 bits.
        frames: of the whole video.
        start: number of the clip's first frame.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with wave.open(io.BytesIO(store.read(name))) as file:
            if file.getsampwidth() != 2:
                raise wave.Error(f"{8 * file.getsampwidth()} bits")
            content = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            rate = file.getframerate()
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise InputError("data", f"{name} ({error})", "a wav file of 16-bit samples") from None
    if not len(content):
        raise InputError("data", f"{name} without a sample", "a wav file of 16-bit samples")
    samples = torch.from_numpy((content / 32768).mean(1).astype(np.float32))
    return Sound(samples, rate, frames * rate / len(samples), start, MelSpectrogram(sample_rate=rate, f_max=min(8000.0, rate / 2)))
