"""Which files belong to a labelled piece of a video: its frames by modality, or the video itself."""

from __future__ import annotations

import os
import re

import numpy as np
import torch

from stillroom.errors import InputError
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.folders import EXTENSIONS
from stillroom.tasks.video.decoding import SUFFIXES, VideoFile
from stillroom.tasks.video.segments import Row
from stillroom.tasks.video.tracks import AUDIO, BOX, DEPTH, FLOW, RGB, FrameFiles, Held, Track, read_boxes, read_sound

_FOLDERS = {  # where a video's frames lie: V its name, P its name up to the first "_" (EPIC's participant)
    RGB: ("V/rgb", "rgb/V", "P/rgb_frames/V", "rgb_frames/V", "frames/V", "20bn-something-something-v2/V", "V"),
    FLOW: ("V/flow", "flow/V", "flow_frames/V", "P/flow_frames/V"),
    DEPTH: ("V/depth", "depth/V"),
}
_BOTH = ("V/flow_{}", "V/flow/{}", "flow_{}/V", "P/flow_frames/V/{}", "flow/V/{}", "flow_frames/V/{}")
_PAIRS = tuple((pattern.format("u"), pattern.format("v")) for pattern in _BOTH)
_VIDEOS = ("V", "videos/V", "P/videos/V", "20bn-something-something-v2/V")
_BOXES, _SOUNDS = ("V/boxes.json", "boxes/V.json"), ("V/audio.wav", "audio/V.wav")
_PARTS = {"rgb", "flow", "flow_u", "flow_v", "depth"}


def is_video(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(SUFFIXES)


def is_frame(name: str) -> bool:
    """By its ending."""
    return name.rpartition(".")[2].lower() in EXTENSIONS


class Finder:
    """Finds files below a folder or in a zip; each folder is listed once.

    Args:
        store: where to look.

    Attributes:
        shortened: the pieces that end behind their video's last frame.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shortened: list[str] = []
        self._inside: dict[str, list[str]] | None = None
        self._sequences: dict[tuple[str, ...], tuple[tuple[tuple[str, ...], ...], np.ndarray]] = {}

    @staticmethod
    def of_modality(folder: str) -> bool:
        """Whether a folder is called as one of a clip's modalities."""
        return folder.lower() in _PARTS

    def tracks(self, row: Row) -> dict[str, Track] | None:
        """What there is of a piece, by modality; None without pictures; nothing where it begins behind their end."""
        found: dict[str, Track] = {}
        for modality, places in _FOLDERS.items():
            pairs = _PAIRS if modality == FLOW else ()
            for folders in (*pairs, *((place,) for place in places)):
                track = self._frames(tuple(_place(folder, row.video) for folder in folders), row, told=modality == RGB)
                if track is not None and not len(track) and modality == RGB:
                    return {}
                if track is not None and len(track):
                    found[modality] = track
                    break
        if RGB not in found:
            video = self._video(row)
            if video is None:
                return None
            found[RGB] = video
        self._beside(found, row)
        return found

    def _files(self, folder: str) -> list[str]:
        """The files of a folder, by their whole names."""
        if isinstance(self.store, Folder):
            try:
                with os.scandir(self.store.root / folder) as inside:
                    names = [one.name for one in inside if one.is_file() and not one.name.startswith(".")]
                    return sorted(f"{folder}/{name}" if folder else name for name in names)
            except OSError:
                return []
        if self._inside is None:
            self._inside = {}
            for name in sorted(self.store.listing()[0]):
                self._inside.setdefault(name.rpartition("/")[0], []).append(name)
        return self._inside.get(folder, [])

    def _frames(self, folders: tuple[str, ...], row: Row, *, told: bool) -> FrameFiles | None:
        if folders not in self._sequences:
            named = [[name for name in self._files(folder) if is_frame(name)] for folder in folders]
            if not all(named):
                return None
            ordered = [sorted(names, key=lambda name: (_number(name), name)) for names in named]
            numbers = np.array([_number(name) for name in ordered[0]], np.int64)
            if len(np.unique(numbers)) < len(numbers):  # names that do not count frames: their order does
                numbers = np.arange(len(numbers))
            self._sequences[folders] = (tuple(map(tuple, ordered)), numbers)
        if row.start is None and row.seconds is not None:
            expected = "numbers of frames, start_frame and stop_frame: how many a second frames in files are is not known"
            raise InputError("data", f"{row.told}, of which there are frames in files", expected)
        channels, numbers = self._sequences[folders]
        start, stop = int(numbers[0]) if row.start is None else row.start, int(numbers[-1]) if row.stop is None else row.stop
        last = int(numbers[-1])
        if told and start <= last < stop:
            self.shortened.append(row.told)
        return FrameFiles(self.store, channels, numbers, start, min(stop, last) if start <= last else start - 1)

    def _video(self, row: Row) -> VideoFile | None:
        if not isinstance(self.store, Folder):
            return None
        for place in _VIDEOS:
            name = _place(place, row.video)
            for suffix in SUFFIXES:
                if (path := self.store.root / f"{name}{suffix}").is_file():
                    frames = None if row.start is None or row.stop is None or row.seconds else (row.start, row.stop)
                    return VideoFile(path, row.seconds, frames)
        return None

    def _beside(self, found: dict[str, Track], row: Row) -> None:
        """Boxes and sound."""
        start, stop = row.start or 0, row.stop
        for name in (_place(place, row.video) for place in _BOXES):
            if self.store.size(name) is not None:
                rows = read_boxes(self.store, name)[start : None if stop is None else stop + 1]
                if len(rows):
                    found[BOX] = Held(torch.from_numpy(rows))
                break
        for name in (_place(place, row.video) for place in _SOUNDS):
            if self.store.size(name) is not None:
                pictures = found[RGB]
                whole = pictures.whole if isinstance(pictures, FrameFiles | VideoFile) else len(pictures)
                found[AUDIO] = read_sound(self.store, name, whole, start)
                break


def _place(pattern: str, video: str) -> str:
    """The path that a pattern means for a video."""
    filled = re.sub(r"\b[VP]\b", lambda found: video if found[0] == "V" else video.partition("_")[0], pattern)
    return filled.strip("/")


def _number(name: str) -> int:
    """The last number in a file's name; -1 without one."""
    found = re.findall(r"\d+", name.rpartition("/")[2].rpartition(".")[0])
    return int(found[-1]) if found else -1
