"""Sequences in SemanticKITTI's layout: ``sequences/00/{velodyne, labels, image_2, poses.txt, calib.txt, times.txt}``.

A label of 32 bits holds the class in its low half and the instance in its high half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.kitti import Calibration, calibration
from stillroom.tasks.points.place import Place, open_place, rigid
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out, no_share

COLUMNS = ("x", "y", "z", "intensity")
CLASSES = (
    "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road", "parking", "sidewalk",
    "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole", "traffic-sign",
)  # fmt: skip
# The benchmark's classes by the ids in files; moving things count as what they are. Ids that are not here have no class (0 and 1 too).
IDS: Mapping[int, str] = {
    10: "car", 11: "bicycle", 13: "other-vehicle", 15: "motorcycle", 16: "other-vehicle", 18: "truck", 20: "other-vehicle",
    30: "person", 31: "bicyclist", 32: "motorcyclist", 40: "road", 44: "parking", 48: "sidewalk", 49: "other-ground",
    50: "building", 51: "fence", 60: "road", 70: "vegetation", 71: "trunk", 72: "terrain", 80: "pole", 81: "traffic-sign",
    252: "car", 253: "bicyclist", 254: "person", 255: "motorcyclist", 256: "other-vehicle", 257: "other-vehicle", 258: "truck",
    259: "other-vehicle",
}  # fmt: skip
_VAL = ("08",)
_PICTURES = (".png", ".jpg", ".jpeg")


def classes_of(raw: np.ndarray) -> np.ndarray:
    """Numbers of `CLASSES` of raw labels [N], whatever their high half; -1 for none."""
    table = np.full(1 << 16, -1, np.int64)
    for number, name in IDS.items():
        table[number] = CLASSES.index(name)
    return np.asarray(table[raw.astype(np.int64) & 0xFFFF])


def instances_of(raw: np.ndarray) -> np.ndarray:
    """Numbers of the instances, int64 [N]; -1 for none."""
    found = raw.astype(np.int64) >> 16
    return np.where(found > 0, found, -1)


def open_semantic_kitti(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with sequences; sequence 08 is measured with where it is there among others, else a share (``val=0.2``).

    Raises:
        InputError: files are missing or damaged, or frames have no labels.
    """
    reader = KittiSequences(open_place(path, argument))
    frames = reader.listed()
    unlabelled = [name for name in frames.names if not reader.labels_of(name)]
    if unlabelled:
        raise InputError(argument, f"{len(unlabelled)} frames without labels, the first {unlabelled[0]}", "a file in labels/ for each")
    official_N = np.isin([sequence.rpartition("/")[2] for sequence in frames.sequences], _VAL)
    if official_N.any() and not official_N.all():
        no_share(options, argument, "sequence 08")
        train, val = frames.take(np.flatnonzero(~official_N)), frames.take(np.flatnonzero(official_N))
    else:
        train, val = held_out(frames, options, argument)
    return FrameSource(
        name="semantickitti", classes=ClassList(CLASSES), train=train, val=val, columns=COLUMNS, pointwise=True,
        fingerprint=reader.place.fingerprint("semantickitti", tuple(val.names), names=frames.names),
    )  # fmt: skip


@dataclass(frozen=True)
class KittiSequences:
    """Reads sequences of frames, with or without labels.

    Args:
        place: which holds folders called velodyne.
    """

    place: Place

    def listed(self) -> ListedFrames:
        """All frames of all sequences, in the order of time.

        Raises:
            InputError: there is none, or a file is not of whole points.
        """
        keys, names, sequences = [], [], []
        for folder in self.place.folders():
            if folder != "velodyne" and not folder.endswith("/velodyne"):
                continue
            sequence = folder.removesuffix("velodyne").removesuffix("/")
            for number, name in enumerate(self.place.inside(folder, ".bin")):
                self.place.check_width(name, 4)
                keys.append((sequence, number, name))
                names.append(name)
                sequences.append(sequence or "sequence")
        if not keys:
            raise InputError(self.place.argument, self.place.path, "sequences/*/velodyne/*.bin")
        return ListedFrames(self.frame, keys, names, sequences)

    def labels_of(self, name: str) -> str:
        """The file of labels that belongs to one of points; empty where there is none."""
        found = f"{name.rpartition('velodyne/')[0]}labels/{name.rpartition('/')[2].removesuffix('.bin')}.label"
        return found if found in self.place.files else ""

    def frame(self, key: tuple[str, int, str]) -> Frame:
        """The frame of a sequence, a place in it and a file.

        Raises:
            InputError: it has other numbers of points and labels.
        """
        sequence, number, name = key
        points = self.place.rows(name, 4).astype(np.float32)
        point_labels = instances = None
        if labels := self.labels_of(name):
            raw = self.place.rows(labels, 1, "<u4")[:, 0]
            if len(raw) != len(points):
                raise self.place.fail(labels, f"with {len(raw)} labels of {len(points)} points", "a label for each point")
            point_labels, instances = classes_of(raw), instances_of(raw)
        poses, times = self._poses.get(sequence), self._times.get(sequence)
        if poses is not None and number >= len(poses):
            raise self.place.fail(name, f"which is frame {number} of {len(poses)} poses", "a pose for each frame")
        return Frame(
            points=points,
            columns=COLUMNS,
            point_labels=point_labels,
            instances=instances,
            views=self._views(sequence, name),
            ego2global=None if poses is None else poses[number],
            time=float(times[number]) if times is not None and number < len(times) else 0.1 * number,
            name=name,
            sequence=sequence or "sequence",
        )

    def _views(self, sequence: str, name: str) -> tuple[View, ...]:
        folder, stem = self._in(sequence, "image_2"), name.rpartition("/")[2].removesuffix(".bin")
        picture = next((f"{folder}/{stem}{end}" for end in _PICTURES if f"{folder}/{stem}{end}" in self.place.files), None)
        if picture is None:
            return ()
        calib = self._calibrations.get(sequence)
        if calib is None:
            raise self.place.fail(picture, "a picture of a camera without calibration", "calib.txt beside it")
        return (View("image_2", self.place.image(picture), calib.intrinsics, calib.cam2velo),)

    def _in(self, sequence: str, name: str) -> str:
        return f"{sequence}/{name}" if sequence else name

    def _with(self, name: str) -> dict[str, str]:
        """Of each sequence that has it, the file of that name."""
        sequences = [folder.removesuffix("velodyne").removesuffix("/") for folder in self.place.folders() if folder.endswith("velodyne")]
        found = {sequence: self._in(sequence, name) for sequence in sequences}
        return {sequence: file for sequence, file in found.items() if file in self.place.files}

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        return {sequence: calibration(self.place, file) for sequence, file in self._with("calib.txt").items()}

    @cached_property
    def _poses(self) -> dict[str, list[np.ndarray]]:
        """Of each sequence, lidar to global: ``poses_velodyne.txt`` as it is, or ``poses.txt``, which is of the camera."""
        poses = {}
        for sequence, file in self._with("poses.txt").items():
            cam2velo = self._calibrations[sequence].rect2velo if sequence in self._calibrations else np.eye(4)
            poses[sequence] = [cam2velo @ rigid(row, self.place, file) @ np.linalg.inv(cam2velo) for row in self.place.numbers(file)]
        for sequence, file in self._with("poses_velodyne.txt").items():
            poses[sequence] = [rigid(row, self.place, file) for row in self.place.numbers(file)]
        return poses

    @cached_property
    def _times(self) -> dict[str, np.ndarray]:
        return {sequence: self.place.numbers(file)[:, 0] for sequence, file in self._with("times.txt").items()}
