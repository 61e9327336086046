"""Which frames of a video are a clip, and which part of a frame is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from stillroom.errors import InputError, one_of

SAMPLERS = ("uniform", "dense")
CROPS = (1, 3)


def segment_bounds(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last frame, both included, of each of `count` segments of a video of `length` frames: int64 [count] both.

    Segment i reaches from round(i s) to round((i+1) s), s = (length - 1) / count, halves to the even number.
    """
    bounds = np.array([round(number * (length - 1) / count) for number in range(count + 1)], np.int64)
    return bounds[:-1], bounds[1:]


def test_frames(length: int, frames: int, clips: int, sampler: str, stride: int) -> np.ndarray:
    """The frames of the clips that a video is tested on, int64 [clips, frames], below `length`.

    `uniform` takes the middles of ``frames * clips`` segments of the whole video, consecutive ones a clip. `dense` takes every
    `stride`-th frame from evenly spaced starts; what would lie behind the end repeats the clip's last frame.

    Args:
        length: frames of the video.
        frames: F, of a clip.
        clips: how many.
        sampler: uniform or dense.
        stride: of dense, from one frame to the next.

    Raises:
        InputError: an unknown sampler.
    """
    one_of("sampling", sampler, SAMPLERS)
    if sampler == "uniform":
        low, high = segment_bounds(length, frames * clips)
        return ((low + high) // 2).reshape(clips, frames)
    span = frames * stride
    interval = (length - span + 1) / clips
    starts = [int(clip * interval + interval / 2) if length > span - 1 else 0 for clip in range(clips)]
    return _strided(np.array(starts), length, frames, stride)


test_frames.__test__ = False  # type: ignore[attr-defined]  # a sampler of test clips, no test of pytest's


def train_frames(length: int, frames: int, sampler: str, stride: int, random: Sequence[float]) -> np.ndarray:
    """The frames of one clip to train on, int64 [frames], below `length`.

    Args:
        length, frames, sampler, stride: as of `test_frames`; of uniform each frame is drawn from its segment, of dense the start.
        random: `frames` numbers in [0, 1); dense reads the first.

    Raises:
        InputError: an unknown sampler.
    """
    one_of("sampling", sampler, SAMPLERS)
    if sampler == "uniform":
        low, high = segment_bounds(length, frames)
        return low + (np.asarray(random[:frames]) * (high - low + 1)).astype(np.int64)
    start = int(random[0] * max(length - frames * stride + 1, 1))
    return _strided(np.array([start]), length, frames, stride)[0]


def _strided(starts: np.ndarray, length: int, frames: int, stride: int) -> np.ndarray:
    indices = starts[:, None] + stride * np.arange(frames)
    last = starts + (length - 1 - starts) // stride * stride  # the last frame of the sequence that the video has
    return np.minimum(indices, last[:, None]).astype(np.int64)


def crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Top and left of the crops that a frame is tested on.

    One is in the centre; three lie along the longer side, in the order first, last, middle.

    Args:
        height, width: of the frame, of which the shorter is `size`.
        size: S, of a crop.
        crops: 1 or 3.

    Raises:
        InputError: another number of crops, or a frame smaller than one.
    """
    if crops not in CROPS:
        raise InputError("test_crops", crops, "1 or 3")
    if min(height, width) < size:
        raise InputError("frames", f"{height} x {width} pixels", f"at least {size} in each direction")
    if crops == 1:
        return [(round((height - size) / 2), round((width - size) / 2))]  # as torchvision's centre
    step = math.floor((max(height, width) - size) / 2)
    offsets = (0, 2 * step, step)
    return [(0, offset) if width >= height else (offset, 0) for offset in offsets]


def cropped(frames: Tensor, size: int, crops: int) -> list[Tensor]:
    """The crops of frames [..., H, W], each [..., size, size]; see `crop_corners`."""
    if crops == 1:
        return [center_crop(frames, [size, size])]
    corners = crop_corners(int(frames.shape[-2]), int(frames.shape[-1]), size, crops)
    return [frames[..., top : top + size, left : left + size] for top, left in corners]
