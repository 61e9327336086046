"""A plain layout for anyone's frames: point files and one ``frames.json`` that says what they are.

``frames.json`` holds ``frames``, a list in the order of time, and what all frames share:

- ``columns``: names of the numbers of a point in ``.bin`` files (little-endian float32) and ``.npy`` arrays: x, y, z, then any others;
- ``classes``: names, in the order of labels;
- ``cameras``: by name ``intrinsics`` (3x3), and ``lidar2cam``, ``cam2ego`` or ``sensor2ego`` (4x4); fx, fy, cx, cy in the place of
  ``intrinsics`` are understood;
- ``lidar2ego``: 4x4, where points and boxes are not in the vehicle's frame (x ahead, y left, z up).

Each frame may have: ``lidar`` (its file; by default ``lidar/<frame>.bin``), ``time_s`` or ``timestamp_ns``, ``sequence``, ``ego2global`` or
``ego2world`` (4x4), ``images`` (a file by camera), ``split`` ("train" or "val") and ``boxes``: a list of ``name`` and ``box`` (7 or 9
numbers: geometric centre, length, width, height, yaw[, velocity]), with ``track`` and ``num_lidar_pts`` if they are known. A file ``flow``
(.npz with ``flow`` [N, 3]) beside the frames is how its points move until the next one, in that one's coordinates.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.files import Folder
from stillroom.tasks.points.augment import moved
from stillroom.tasks.points.frames import Frame, View, boxes_of
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.pcd import read_pcd
from stillroom.tasks.points.place import Place, open_place, rigid
from stillroom.tasks.points.ply import columns_of, read_ply
from stillroom.tasks.points.sources import FrameSource, ListedFrames, split_by

NAME = "frames.json"
ENDINGS = (".bin", ".npy", ".pcd", ".ply", ".las", ".laz")
_LISTED = 5  # names that a message has
_TURNS = 4 * np.pi  # beyond which an angle is not one of radians
_RUNS_BACK = "a time for each frame of a sequence that is later than the one before"


def open_points(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with `NAME`; frames without a ``split`` are held out in whole sequences (``val=0.2``).

    Raises:
        InputError: something in it cannot be used; the frame is named.
    """
    reader = open_folder(path, argument)
    frames = reader.listed()
    words = [str(reader.told(index).get("split", "")) for index in range(len(frames))]
    train, val, said = split_by(frames, words, options, argument)
    if not reader.classes:
        raise InputError(argument, f"{path}, whose frames have no boxes", "boxes with names: this task trains on them")
    if unknown := reader.unknown():
        listed = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(_LISTED))
        said = (*said, f"left out {unknown.total()} boxes of names that are not among the classes: {listed}")
    first = frames.frame(0)
    return FrameSource(
        name="points", classes=ClassList(reader.classes), train=train, val=val, columns=first.columns,
        said=said, fingerprint=reader.place.fingerprint("points", reader.place.text(NAME), names=frames.names),
    )  # fmt: skip


def open_folder(path: str, argument: str) -> FolderFrames:
    """The reader of a folder or archive with `NAME`.

    Raises:
        InputError: there is none, or it is not as it should be.
    """
    place = open_place(path, argument).within(NAME)
    if place is None:
        raise InputError(argument, path, f"a folder with {NAME}, which says what its point files are")
    content = place.json(NAME)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise place.fail(NAME, "without a list of frames", "{'columns': [...], 'frames': [{'lidar': FILE}, ...]}")
    _check(place, content)
    return FolderFrames(place, content)


def _check(place: Place, content: Mapping[str, Any]) -> None:
    """Raises InputError where something in it is not of the kind that it should be."""

    def texts(found: Any) -> bool:
        return isinstance(found, list) and bool(found) and all(isinstance(one, str) for one in found)

    for key in ("classes", "columns"):
        if key in content and (not texts(content[key]) or len(set(content[key])) < len(content[key])):
            raise place.fail(NAME, f"with {key} {str(content[key])[:40]!r}", f"{key} as a list of names, each once")
    if lacking := [name for name in "xyz" if name not in content.get("columns", "xyz")]:
        raise place.fail(NAME, f"with columns without {lacking[0]}", "x, y and z among them")
    for index, told in enumerate(content["frames"]):
        if not isinstance(told, dict):
            raise place.fail(NAME, f"where frame {index} is {str(told)[:40]!r}", "{'lidar': FILE, ...} for each frame")
        boxes, images = told.get("boxes", []), told.get("images", {})
        if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes) or not isinstance(images, dict):
            raise place.fail(NAME, f"where boxes or images of frame {index} are something else", "boxes as a list, images by camera")
        for key in ("time_s", "timestamp_ns"):
            if key in told and not (isinstance(told[key], int | float) and np.isfinite(told[key])):
                raise place.fail(NAME, f"where {key} of frame {index} is {str(told[key])[:40]!r}", "a number")


@dataclass(frozen=True)
class FolderFrames:
    """Reads the frames of a folder.

    Args:
        place: where they lie.
        content: of its `NAME`.
    """

    place: Place
    content: Mapping[str, Any]

    def told(self, index: int) -> Mapping[str, Any]:
        """What the file says of a frame."""
        found: Mapping[str, Any] = self.content["frames"][index]
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Of boxes: those that are listed, else all that occur, in alphabetical order."""
        if "classes" in self.content:
            return tuple(map(str, self.content["classes"]))
        return tuple(sorted({str(box["name"]) for told in self.content["frames"] for box in told.get("boxes", []) if "name" in box}))

    def unknown(self) -> Counter[str]:
        """How many boxes are of each name that is not among the classes."""
        known = set(self.classes)
        return Counter(str(box.get("name")) for told in self.content["frames"] for box in told.get("boxes", []) if
                       str(box.get("name")) not in known)  # fmt: skip

    def listed(self) -> ListedFrames:
        """All frames.

        Raises:
            InputError: a file is missing or no multiple of its columns, a time runs back, or a sequence stands in two pieces.
        """
        names: list[str] = []
        sequences: list[str] = []
        last: dict[str, float] = {}
        for index, told in enumerate(self.content["frames"]):
            name = self._file(told, index)
            if name not in self.place.files:
                raise self.place.fail(name, f"which frame {index} names, and which is not there", "that file")
            if name.endswith(".bin"):
                self.place.check_width(name, len(self._columns(name)))
            sequence = str(told.get("sequence", "sequence"))
            if sequence in last and sequences[-1] != sequence:
                raise self.place.fail(
                    NAME, f"where frame {index} goes on with sequence {sequence}", "the frames of a sequence behind each other"
                )
            time = self._time(told)
            if time is not None and time <= last.get(sequence, -np.inf):
                raise self.place.fail(NAME, f"where frame {index} is of {time:g} s, after {last[sequence]:g} s", _RUNS_BACK)
            last[sequence] = -np.inf if time is None else time
            names.append(name)
            sequences.append(sequence)
        return ListedFrames(self.frame, range(len(names)), names, sequences)

    def frame(self, index: int) -> Frame:
        """One frame, in the vehicle's coordinates."""
        told = self.told(index)
        name = self._file(told, index)
        points, columns = self._points(name)
        pose = next((told[key] for key in ("ego2global", "ego2world", "pose") if key in told), None)
        lidar2ego = rigid(self.content["lidar2ego"], self.place, NAME) if "lidar2ego" in self.content else np.eye(4)
        frame = Frame(
            points=points,
            columns=columns,
            views=tuple(self._view(camera, file, lidar2ego) for camera, file in told.get("images", {}).items()),
            time=self._time(told) or 0.0,
            name=name,
            sequence=str(told.get("sequence", "sequence")),
            flow=self._flow(index, len(points)),
            **self._boxes(told, index),
        )
        if "lidar2ego" in self.content:
            views = frame.views  # which are in the vehicle's coordinates already
            frame = replace(moved(frame, lidar2ego), views=views, meta={})
        return replace(frame, ego2global=None if pose is None else rigid(pose, self.place, NAME))

    def _file(self, told: Mapping[str, Any], index: int) -> str:
        if "lidar" in told:
            return str(told["lidar"])
        if "frame" in told:
            return f"lidar/{told['frame']}.bin"
        raise self.place.fail(NAME, f"where frame {index} has no lidar", "the point file of each frame")

    def _columns(self, name: str) -> tuple[str, ...]:
        if "columns" in self.content:
            return tuple(map(str, self.content["columns"]))
        sizes = {told.get("num_points") for told in self.content["frames"] if told.get("lidar", f"lidar/{told.get('frame')}.bin") == name}
        count = sizes.pop() if sizes else None
        width = self.place.files[name] // 4 // count if count and self.place.files[name] % (4 * count) == 0 else 4
        return ("x", "y", "z", "intensity", "ring", *(f"value {k}" for k in range(5, width)))[:width]

    def _time(self, told: Mapping[str, Any]) -> float | None:
        if "timestamp_ns" in told:
            return int(told["timestamp_ns"]) * 1e-9
        return float(told["time_s"]) if "time_s" in told else None

    def _points(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return read_points(self.place, name, self._columns(name), declared="columns" in self.content)

    def _view(self, camera: str, file: str, lidar2ego: np.ndarray) -> View:
        """A picture with its camera.

        Raises:
            InputError: the camera has no calibration.
        """
        told = {**self.content.get("cameras", {}), **self.content.get("sensors", {})}.get(camera)
        if told is None or not ("intrinsics" in told or "fx" in told) or not {"lidar2cam", "cam2ego", "sensor2ego"} & set(told):
            raise self.place.fail(
                file, f"a picture of camera {camera}, which has no calibration", "its intrinsics and lidar2cam in cameras"
            )
        if "intrinsics" in told:
            intrinsics = np.array(told["intrinsics"], np.float64)
        else:
            intrinsics = np.array([[told["fx"], 0, told["cx"]], [0, told["fy"], told["cy"]], [0, 0, 1.0]])
        if "lidar2cam" in told:
            cam2ego = lidar2ego @ np.linalg.inv(rigid(told["lidar2cam"], self.place, NAME))
        else:
            cam2ego = rigid(told.get("cam2ego", told.get("sensor2ego")), self.place, NAME)
        if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
            raise self.place.fail(NAME, f"with intrinsics of camera {camera} of shape {list(intrinsics.shape)}", "3x3 finite numbers")
        return View(camera, self.place.image(file), intrinsics, cam2ego)

    def _boxes(self, told: Mapping[str, Any], index: int) -> dict[str, Any]:
        rows = [box for box in told.get("boxes", []) if str(box.get("name")) in self.classes]
        try:
            boxes = boxes_of([[float(value) for value in row["box"]] for row in rows])
        except (KeyError, TypeError, ValueError):
            raise self.place.fail(NAME, f"where a box of frame {index} is not of 7 or 9 numbers", "boxes of 7 or 9 numbers each") from None
        if len(boxes) and np.nanmax(np.abs(boxes[:, 6])) > _TURNS:
            got = f"where a box of frame {index} has the yaw {np.nanmax(np.abs(boxes[:, 6])):g}"
            raise self.place.fail(NAME, got, "angles in radians")
        about = {"track": np.array([str(row.get("track", "")) for row in rows], str)}
        if all("num_lidar_pts" in row for row in rows):
            about["points"] = np.array([row["num_lidar_pts"] for row in rows], np.int64)
        return {"boxes": boxes, "labels": np.array([self.classes.index(str(row["name"])) for row in rows], np.int64), "about": about}

    def _flow(self, index: int, count: int) -> np.ndarray | None:
        """How the points of a frame that has such a file move, without what the vehicle moves."""
        file = self.told(index).get("flow") or (self.content.get("flow") if index == 0 else None)
        if not file or index + 1 >= len(self.content["frames"]):
            return None
        with np.load(BytesIO(self.place.bytes(file)), allow_pickle=False) as arrays:
            flow = arrays["flow"].astype(np.float64)
        if flow.shape != (count, 3):
            raise self.place.fail(file, f"with flow of shape {list(flow.shape)} of {count} points", "a vector for each point")
        now, then = (rigid(self.told(at).get("ego2global", self.told(at).get("ego2world")), self.place, NAME) for at in (index, index + 1))
        points = self._points(self._file(self.told(index), index))[0][:, :3].astype(np.float64)
        next2now = np.linalg.inv(now) @ then
        return np.asarray((points + flow) @ next2now[:3, :3].T + next2now[:3, 3] - points, np.float32)


def find_points(places: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The point files at files, folders and patterns, and the places that hold none."""
    files: list[Path] = []
    empty = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            below = sorted(path.rglob("*"))
        else:
            below = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(place))]
        found = [file for file in below if file.suffix.lower() in ENDINGS]
        files += found
        empty += [] if found else [place]
    return list(dict.fromkeys(files)), empty


def file_points(file: Path, columns: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The points of a single file, see `read_points`."""
    place = Place(Folder(file.parent), {file.name: file.stat().st_size}, "", "IMAGE", str(file.parent))
    return read_points(place, file.name, columns)


def read_points(place: Place, name: str, columns: tuple[str, ...], *, declared: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """A file's points, float32 [N, D], and the names of their columns; intensities up to 255, or of 16 bits, are brought to [0, 1].

    Args:
        place: where it lies.
        name: of the file; its ending (`ENDINGS`) says what it is.
        columns: of raw numbers and arrays, which do not name them.
        declared: an array of other columns is refused.

    Raises:
        InputError: it is of no known kind, damaged, or of other columns.
    """
    ending = f".{name.rpartition('.')[2].lower()}"
    if ending == ".bin":
        points, columns = _place_first(place.rows(name, len(columns)).astype(np.float32), columns)
    elif ending == ".npy":
        points, columns = _array(place, name, columns, declared)
    elif ending == ".pcd":
        points, columns = read_pcd(place.bytes(name), lambda what: place.fail(name, what, "a PCD file that is whole"))
    elif ending == ".ply":
        points, columns = columns_of(read_ply(place.bytes(name), lambda what: place.fail(name, what, "a PLY file with vertices")))
    elif ending in (".las", ".laz"):
        points, columns = _las(place, name)
    else:
        raise place.fail(name, "a point file of a kind that is not known", " ".join(ENDINGS))
    if "intensity" in columns and len(points):
        at = columns.index("intensity")
        bright = float(np.nanmax(points[:, at], initial=0))
        if bright > 1:
            points = points.copy()
            points[:, at] /= 255 if bright <= 255 else 65535
    return points, columns


def _array(place: Place, name: str, columns: tuple[str, ...], declared: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        points = np.load(BytesIO(place.bytes(name)), allow_pickle=False)
    except ValueError as error:
        raise place.fail(name, f"which is no array ({error})", "an array of numbers [N, columns]") from None
    if points.ndim != 2 or points.shape[1] < 3 or (declared and points.shape[1] != len(columns)):
        raise place.fail(name, f"an array of shape {list(points.shape)}", f"[N, {len(columns)}]: {', '.join(columns)}")
    named = columns if len(columns) == points.shape[1] else ("x", "y", "z", *(f"value {k}" for k in range(3, points.shape[1])))
    return _place_first(points.astype(np.float32), named)


def _place_first(points: np.ndarray, columns: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns with x, y, z before all others."""
    order = [*map(columns.index, "xyz"), *(k for k, name in enumerate(columns) if name not in ("x", "y", "z"))]
    return (points, columns) if order == list(range(len(columns))) else (points[:, order], tuple(columns[k] for k in order))


def _las(place: Place, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        import laspy  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(place.argument, name, "laspy to be installed: pip install 'stillroom[points]'") from None
    cloud = laspy.read(BytesIO(place.bytes(name)))
    return np.stack([cloud.x, cloud.y, cloud.z, cloud.intensity], 1).astype(np.float32), ("x", "y", "z", "intensity")
