"""Videos: their frames as a player shows them, by PyAV (the extra `video`).

Frames are numbered in the order of their time stamps, whatever their order in the file and whatever its header says of their number, and
are turned as the file's rotation tag says. Where the frame rate changes, numbers count even steps in time. Nothing is kept open: a file
is opened by the process that reads it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError

logger = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
_UNEVEN = 1.5  # times the usual distance of two frames, from which on the frame rate changes
_KNOWN = 4096  # files whose time stamps are kept


class BrokenVideo(InputError):
    """A file of which no frame can be decoded."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        stamps: of every frame, rising, in units of the stream, int64 [N].
        unit: seconds of a unit.
        shown: which frame is shown at each of N even steps in time, int64 [N]; with an even frame rate 0, 1, ...
        even: whether the frame rate is.
    """

    stamps: np.ndarray
    unit: float
    shown: np.ndarray
    even: bool

    def between(self, start: float, stop: float) -> np.ndarray:
        """The steps from `start` to `stop` seconds after the first frame; empty where the video ends before."""
        seconds = (self.stamps - self.stamps[0]) * self.unit
        times = np.linspace(seconds[0], seconds[-1], len(seconds))
        return np.flatnonzero((times >= start - 1e-6) & (times <= stop + 1e-6))


def pyav(path: Path) -> Any:
    """The library.

    Raises:
        InputError: it is not installed; the video that is to be decoded is named.
    """
    try:
        import av
    except ImportError:
        raise InputError("data", str(path), "PyAV to be installed, which decodes videos: pip install 'stillroom[video]'") from None
    return av


def opened(path: Path) -> Any:
    """The file's container.

    Raises:
        BrokenVideo: it cannot be opened, or has no pictures.
        InputError: PyAV is not installed.
    """
    try:
        container = pyav(path).open(str(path))
    except (OSError, ValueError) as error:
        raise BrokenVideo("data", f"{path} ({error})", "a video that can be decoded") from None
    if not container.streams.video:
        container.close()
        raise BrokenVideo("data", f"{path}, which has no pictures", "a video that can be decoded")
    return container


@functools.lru_cache(_KNOWN)
def timeline(path: Path) -> Timeline:
    """The time stamps of a video's frames, read without decoding any.

    Raises:
        BrokenVideo: it has none.
    """
    with opened(path) as container:
        stream = container.streams.video[0]
        try:
            found = sorted({packet.pts for packet in container.demux(stream) if packet.pts is not None})
        except (OSError, ValueError, pyav(path).error.FFmpegError) as error:
            raise BrokenVideo("data", f"{path} ({error})", "a video that can be decoded") from None
        unit = float(stream.time_base or 1)
    if not found:
        raise BrokenVideo("data", f"{path}, in which there is no frame", "a video that can be decoded")
    stamps = np.array(found, np.int64)
    steps = np.diff(stamps)
    usual = np.median(steps) if len(steps) else 1.0
    even = not len(steps) or bool(steps.max() <= _UNEVEN * usual)
    shown = np.arange(len(stamps))
    if not even:
        times = np.linspace(stamps[0], stamps[-1], len(stamps))
        shown = np.searchsorted(stamps, times + 0.25 * usual, side="right") - 1
    return Timeline(stamps, unit, shown, even)


def decoded(path: Path, frames: Sequence[int]) -> np.ndarray:
    """Frames of a video by their numbers in time, uint8 [F, H, W, 3]; what cannot be decoded shows the last frame before it.

    Raises:
        BrokenVideo: nothing can be decoded.
    """
    stamps = timeline(path).stamps
    wanted = sorted(set(frames))
    found = _from(path, stamps, wanted, seek=True)
    if not found or min(found) > wanted[0]:  # the place that was sought lies behind: from the beginning then
        found = _from(path, stamps, wanted, seek=False)
    if not found:
        raise BrokenVideo("data", f"{path}, of which no frame can be decoded", "a video that can be decoded")
    known = np.array(sorted(found))
    if missing := set(wanted) - set(found):
        logger.warning("%s: %d of its %d frames cannot be decoded; the frame before is repeated", path, len(missing), len(stamps))
    places = np.maximum(np.searchsorted(known, frames, side="right") - 1, 0)
    return np.stack([found[number] for number in known[places].tolist()])


def _from(path: Path, stamps: np.ndarray, wanted: Sequence[int], *, seek: bool) -> dict[int, np.ndarray]:
    """The wanted frames that can be decoded, by their numbers, and the last one before where the end cannot."""
    found: dict[int, np.ndarray] = {}
    asked, last, before = set(wanted), wanted[-1], None
    with opened(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the loader's processes share the cores
        try:
            if seek and wanted[0]:
                container.seek(int(stamps[wanted[0]]), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                number = int(np.searchsorted(stamps, frame.pts))
                before = (number, frame)
                if number in asked:
                    found[number] = _upright(frame)
                if number >= last:
                    break
        except (OSError, ValueError, pyav(path).error.FFmpegError):
            pass  # what could be decoded is what there is
        if before is not None and before[0] < last:
            found.setdefault(before[0], _upright(before[1]))
    return found


def _upright(frame: Any) -> np.ndarray:
    """[H, W, 3], turned as a player shows it."""
    turned: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return turned


@dataclass(frozen=True)
class VideoFile:
    """A video, or a part of it, as a track of a clip.

    Args:
        path: the file.
        seconds: from when to when; None for all of it.
        frames: its first and last frame by their numbers in time; None likewise.
    """

    path: Path
    seconds: tuple[float, float] | None = None
    frames: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._steps())

    @property
    def whole(self) -> int:
        """Frames of the whole video."""
        return len(timeline(self.path).stamps)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Its frames, uint8 [F, 3, H, W]."""
        steps = self._steps()
        frames = decoded(self.path, timeline(self.path).shown[steps[np.asarray(indices)]].tolist())
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)

    def check(self) -> str:
        """What is to be said of the file before anything is trained: nothing, or that its frame rate changes.

        Raises:
            BrokenVideo: no frame can be decoded, or it ends before this part begins.
        """
        if not len(self):
            raise BrokenVideo(
                "data", f"{self.path}, which ends before {self.seconds or self.frames}", "a video that is as long as its label"
            )
        decoded(self.path, [int(self._steps()[0])])
        return "" if timeline(self.path).even else "of changing frame rate, read in even steps of time"

    def _steps(self) -> np.ndarray:
        line = timeline(self.path)
        if self.seconds is not None:
            return line.between(*self.seconds)
        first, last = self.frames or (0, len(line.stamps) - 1)
        return np.arange(first, min(last + 1, len(line.stamps)))
