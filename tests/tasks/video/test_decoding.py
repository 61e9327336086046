"""Videos as players show them; PyAV is needed."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.engine.loading import Loader
from stillroom.errors import InputError
from stillroom.tasks.video import VideoData
from stillroom.tasks.video.decoding import VideoFile

av = pytest.importorskip("av", reason="PyAV decodes videos")

IDENTITY = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
CLOCKWISE = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # as a phone that is held upright writes it: a tag of -90


def level(number: int) -> int:
    return 20 + 6 * number


def film(path: Path, count: int = 24, *, size: tuple[int, int] = (48, 64), stamps: list[int] | None = None, codec: str = "libx264") -> Path:
    """A video of `count` flat frames, brighter from one to the next, whose upper left is black; with B-frames, and one key frame in 8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2", "g": "8"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if stamps else 25)
        for number in range(count):
            picture = np.full((*size, 3), level(number), np.uint8)
            picture[-size[0] // 4 :] = rng.integers(0, 255, (size[0] // 4, size[1], 3))
            picture[: size[0] // 4, : size[1] // 4] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamps[number] if stamps else number, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(frames: torch.Tensor) -> list[float]:
    """The levels of frames [F, 3, H, W]."""
    return frames[:, :, frames.shape[2] // 2, frames.shape[3] // 2].float().mean(1).tolist()


def test_frames_come_in_the_order_of_their_time_wherever_the_reading_begins(tmp_path: Path) -> None:
    video = VideoFile(film(tmp_path / "a.mp4"))
    assert len(video) == 24
    for indices in ([0, 1, 2, 3], [13, 14, 15, 16], [23, 5, 14, 14]):
        assert shown(video.read(indices)) == pytest.approx([level(number) for number in indices], abs=3)


def test_a_rotation_tag_turns_frames_as_a_player_does(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 3, size=(128, 72))
    content = path.read_bytes()
    at = content.index(b"tkhd")
    place = content.index(IDENTITY, at)
    path.write_bytes(content[:place] + CLOCKWISE + content[place + len(CLOCKWISE) :])
    (frame,) = VideoFile(path).read([0])
    assert frame.shape == (3, 72, 128)
    assert frame[:, 4, -8].float().mean() < 12  # what was coded at the upper left is at the upper right
    assert frame[:, 4, 8].float().mean() > 15


def test_a_video_of_which_fewer_frames_decode_than_its_header_says_repeats_the_last_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = film(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov") - 4
    start += (end - start) * 2 // 3
    content[start:end] = bytes(end - start)
    path.write_bytes(bytes(content))
    video = VideoFile(path)
    assert len(video) == 24
    last, before = video.read([23, 22])
    assert torch.equal(last, before)
    assert shown(video.read([0])) == pytest.approx([level(0)], abs=3)
    assert "cannot be decoded; the frame before is repeated" in caplog.text


def test_where_the_frame_rate_changes_numbers_count_even_steps_of_time(tmp_path: Path) -> None:
    stamps = [40 * number for number in range(12)] + [440 + 200 * number for number in range(1, 7)]
    video = VideoFile(film(tmp_path / "a.mkv", 18, stamps=stamps))
    assert video.check() == "of changing frame rate, read in even steps of time"
    half = shown(video.read([9]))[0]  # in the middle of the time, of which the slow frames have most
    assert level(12) <= half + 3
    assert VideoFile(film(tmp_path / "b.mkv", 18)).check() == ""


def test_parts_are_cut_by_seconds_and_by_numbers(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    assert shown(VideoFile(path, seconds=(0.2, 0.4)).read([0, 5])) == pytest.approx([level(5), level(10)], abs=3)
    assert shown(VideoFile(path, frames=(3, 99)).read([0, 20])) == pytest.approx([level(3), level(23)], abs=3)
    with pytest.raises(InputError, match="as long as its label"):
        VideoFile(path, seconds=(5, 6)).check()


def test_folders_of_videos_are_read_by_workers_and_broken_ones_are_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for verb in ("lift", "push"):
            for number in range(2):
                film(tmp_path / split / verb / f"{number}.mp4", 10 + number)
    (tmp_path / "train/lift/broken.mp4").write_bytes(b"nothing of a video")
    options: dict[str, Any] = {"frames": 3, "image_size": 16, "batch_size": 2}
    data = VideoData(f"clips:{tmp_path}", workers=2, **options)
    assert "left out 1 video that cannot be decoded: train/lift/broken" in " ".join(data.first_lines())
    assert (data.train_size, data.heads) == (4, {"action": ("lift", "push")})
    here = VideoData(f"clips:{tmp_path}", workers=0, **options)
    loaders: list[Loader] = [one.train_loader(seed=3) for one in (data, here)]
    for a, b in zip(*loaders, strict=True):
        assert torch.equal(a.clips["rgb"], b.clips["rgb"])
    loaders[0].end_workers()
    with pytest.raises(InputError, match="strict"):
        VideoData(f"clips:{tmp_path}", strict=True, **options)
