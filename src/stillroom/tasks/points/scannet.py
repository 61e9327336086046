"""ScanNet: scans of rooms with colours, segments, classes, and the posed pictures that they were made from.

``scans/scene0000_00/`` holds ``*_vh_clean_2.ply`` (the mesh, whose vertices are the points), ``*_vh_clean_2.labels.ply`` (their classes),
``*_vh_clean_2.0.010000.segs.json`` (their segments) and, taken out of the ``.sens`` file, ``color/``, ``depth/``, ``pose/`` and
``intrinsic/``. Poses are camera to world, depth is in millimetres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.listed import lines_of
from stillroom.tasks.images.sources import whole_numbers
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.place import Place, open_place, rigid
from stillroom.tasks.points.ply import columns_of, read_ply
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out, no_share

COLUMNS = ("x", "y", "z", "red", "green", "blue")
CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk", "curtain",
    "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "other furniture",
)  # fmt: skip
NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)  # the ids of `CLASSES` in label files
_REPAIRS = {("scene0270_00", 50), ("scene0270_02", 50), ("scene0384_00", 149)}  # ids that are known to be wrong and have no class
_MESH = "_vh_clean_2.ply"
_SCENE = re.compile(r"(?P<scene>[^/]+)/[^/]+_vh_clean_2\.ply")
_EVERY = 20  # of the pictures
_MILLIMETRES = 1000.0


def open_scannet(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with scans.

    Options: ``every=20``, of the pictures; ``val_scenes=FILE`` with the names of the scenes to measure with, one a line (ScanNet's
    ``scannetv2_val.txt``), which is also found beside the scans; else a share of the rooms is held out (``val=0.2``).

    Raises:
        InputError: files are missing or damaged.
    """
    place = open_place(path, argument)
    number = whole_numbers({k: v for k, v in options.items() if k == "every"}, argument).get("every", _EVERY)
    meshes = sorted(name for name in place.files if name.endswith(_MESH))
    if not meshes:
        raise InputError(argument, path, f"scans: .../scene0000_00/scene0000_00{_MESH}")
    reader = ScanNet(place, number)
    scenes = [name.rpartition("/")[0].rpartition("/")[2] or name.removesuffix(_MESH) for name in meshes]
    frames = ListedFrames(reader.frame, meshes, scenes, [scene.rpartition("_")[0] or scene for scene in scenes])  # a room is scanned twice
    listed = next((name for name in place.files if name.endswith("scannetv2_val.txt")), None)
    names: set[str] = set()
    if "val_scenes" in options:
        try:
            names = set(lines_of(Path(options["val_scenes"]).expanduser().read_bytes()))
        except OSError as error:
            raise InputError(argument, f"val_scenes={options['val_scenes']} ({error.strerror})", "a file with names of scenes") from None
    elif listed is not None:
        names = set(place.lines(listed))
    val_N = np.isin(scenes, list(names))
    if names:
        no_share(options, argument, "val_scenes" if "val_scenes" in options else str(listed))
    if names and val_N.any() and not val_N.all():
        train, val = frames.take(np.flatnonzero(~val_N)), frames.take(np.flatnonzero(val_N))
    elif names:
        raise InputError(argument, f"validation scenes {sorted(names)[:3]}", f"some, but not all, of {scenes[:3]}, ...")
    else:
        train, val = held_out(frames, options, argument)
    return FrameSource(
        name="scannet", classes=ClassList(CLASSES), train=train, val=val, columns=COLUMNS, pointwise=True,
        fingerprint=place.fingerprint("scannet", number, tuple(val.names), names=meshes),
    )  # fmt: skip


@dataclass(frozen=True)
class ScanNet:
    """Reads scans.

    Args:
        place: where they lie.
        every: of the pictures, which are read.
    """

    place: Place
    every: int = _EVERY

    def frame(self, mesh: str) -> Frame:
        """A scan, its pictures not decoded yet: see `views_of`. ``meta["segments"]`` is int64 [N], where the scan has them.

        Raises:
            InputError: points, labels and segments are not of one number; the scan is named.
        """
        folder, _, file = mesh.rpartition("/")
        scene = folder.rpartition("/")[2] or file.removesuffix(_MESH)
        vertices = read_ply(self.place.bytes(mesh), lambda what: self.place.fail(mesh, what, "a PLY file with vertices"))
        points, columns = columns_of(vertices)
        stem = mesh.removesuffix(".ply")
        labels: np.ndarray | None = None
        if (name := f"{stem}.labels.ply") in self.place.files:
            told = read_ply(self.place.bytes(name), lambda what: self.place.fail(name, what, "a PLY file with a label for each vertex"))
            if "label" not in told:
                raise self.place.fail(name, "without labels", "a PLY file with a label for each vertex")
            labels = classes_of(told["label"].astype(np.int64), scene)
        meta = {}
        segments = next((n for n in self.place.inside(folder or ".", ".segs.json") if n.startswith(stem)), None)
        if segments is not None:
            meta["segments"] = np.unique(np.array(self.place.json(segments)["segIndices"], np.int64), return_inverse=True)[1].reshape(-1)
        counts = {"points": len(points), **({"labels": len(labels)} if labels is not None else {})}
        counts |= {"segments": len(meta["segments"])} if meta else {}
        if len(set(counts.values())) > 1:
            told_counts = ", ".join(f"{count} {what}" for what, count in counts.items())
            raise InputError(self.place.argument, f"{scene} with {told_counts}", "as many of each")
        frame = Frame(points, columns, point_labels=labels, ego2global=np.eye(4), name=scene, sequence=scene, meta=meta)
        return replace(frame.with_columns(COLUMNS), views=posed_views(self.place, folder, self.every))


def classes_of(raw: np.ndarray, scene: str = "") -> np.ndarray:
    """Numbers of `CLASSES` of NYU's ids [N]; -1 for those that have none."""
    table = np.full(max(int(raw.max(initial=0)), 40) + 1, -1, np.int64)
    table[list(NYU40)] = np.arange(len(CLASSES))
    for name, number in _REPAIRS:
        if name == scene and number < len(table):
            table[number] = -1
    return np.asarray(table[raw.clip(0)])


def posed_views(place: Place, folder: str, every: int = 1) -> tuple[View, ...]:
    """The pictures of a scan in ``color/``, with their depth, poses and intrinsics; those whose pose is not known are left out.

    Intrinsics are in ``intrinsic/intrinsic_color.txt``, ``intrinsics.txt``, or in ``meta.json`` as ``intrinsics`` or, of pictures of
    W x H, as ``intrinsics_WxH``. A depth map of another size than the picture is brought to it by its nearest pixel.

    Raises:
        InputError: pictures without a camera's calibration.
    """
    within = f"{folder}/" if folder else ""
    pictures = place.inside(f"{within}color", ".jpg", ".png", ".jpeg")
    pictures = sorted(pictures, key=lambda name: (len(name), name))[::every]  # 0, 20, 100 as numbers
    if not pictures:
        return ()
    intrinsics = _intrinsics(place, within)
    if intrinsics is None:
        raise place.fail(pictures[0], "a picture of a camera without calibration", "intrinsic/intrinsic_color.txt, or meta.json")
    views = []
    for name in pictures:
        stem = name.rpartition("/")[2].rpartition(".")[0]
        if (pose := f"{within}pose/{stem}.txt") not in place.files:
            continue
        rows = place.numbers(pose)
        if not np.isfinite(rows).all():  # ScanNet writes infinities where tracking was lost
            continue
        image = place.image(name)
        depth: np.ndarray | None = None
        if (file := f"{within}depth/{stem}.png") in place.files:
            depth = place.map(file).astype(np.float32) / _MILLIMETRES
            if depth.shape != image.shape[:2]:
                row = ((np.arange(image.shape[0]) + 0.5) * depth.shape[0] / image.shape[0]).astype(int)
                column = ((np.arange(image.shape[1]) + 0.5) * depth.shape[1] / image.shape[1]).astype(int)
                depth = depth[row[:, None], column]
        views.append(View(stem, image, intrinsics, rigid(rows, place, pose), depth=depth))
    return tuple(views)


def _intrinsics(place: Place, within: str) -> np.ndarray | None:
    for name in (f"{within}intrinsic/intrinsic_color.txt", f"{within}intrinsics.txt"):
        if name in place.files:
            return np.asarray(place.numbers(name)[:3, :3])
    if (name := f"{within}meta.json") in place.files:
        found = next((value for key, value in place.json(name).items() if key.startswith("intrinsics")), None)
        if isinstance(found, dict):
            return np.array([[found["fx"], 0, found["cx"]], [0, found["fy"], found["cy"]], [0, 0, 1.0]])
        return None if found is None else np.array(found, np.float64)
    return None
