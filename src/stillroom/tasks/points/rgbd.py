"""One's own scans with a depth camera: folders of pictures with depth, poses and intrinsics.

A scan is a folder that holds ``color/``, ``depth/`` (16 bits, millimetres), ``pose/`` (4x4 text, camera to world) and the intrinsics, as
`scannet.posed_views` reads them, and, if there is one, ``points.ply``; else its points are those of the depth maps, thinned out. A data
set of single views, ``scenes/<name>/{color.jpg, depth8.png, label40.png}`` with a ``meta.json`` above, is read as well (NYU Depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.place import Place, open_place
from stillroom.tasks.points.ply import columns_of, read_ply
from stillroom.tasks.points.raycast import pixel_rays
from stillroom.tasks.points.rooms import thinned
from stillroom.tasks.points.scannet import CLASSES, classes_of, posed_views
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out

COLUMNS = ("x", "y", "z", "red", "green", "blue")
_GRID = 0.03  # metres
_FAR = 8.0  # metres beyond which depth cameras guess


def open_rgbd(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with one scan or several.

    A share of the scans is held out (``val=0.2``); of a single scan, which has no labels to measure with, the scan itself is shown.

    Raises:
        InputError: there is no scan.
    """
    place = open_place(path, argument)
    singles = sorted({name.rpartition("/")[0] for name in place.files if name.endswith("/depth8.png")})
    if singles:
        reader = SingleViews(place)
        frames = ListedFrames(reader.frame, singles, [name.rpartition("/")[2] for name in singles])
    else:
        depths = [folder for folder in place.folders() if folder == "depth" or folder.endswith("/depth")]
        scans = [folder.removesuffix("depth").removesuffix("/") for folder in depths]
        scans = [scan for scan in scans if place.inside(f"{scan}/color" if scan else "color")]
        if not scans:
            raise InputError(argument, path, "scans: folders with color/, depth/ and pose/")
        frames = ListedFrames(Scans(place).frame, scans, [scan or "scan" for scan in scans])
    said: tuple[str, ...] = ()
    if len(frames) == 1:
        train = val = frames
        said = ("one scan alone: it is trained on and shown, and there is nothing to measure with",)
    else:
        train, val = held_out(frames, options, argument)
    return FrameSource(
        name="rgbd", classes=ClassList(CLASSES), train=train, val=val, columns=COLUMNS, pointwise=True, said=said,
        fingerprint=place.fingerprint("rgbd", tuple(val.names), names=sorted(place.files)),
    )  # fmt: skip


@dataclass(frozen=True)
class Scans:
    """Reads scans of several posed views.

    Args:
        place: where they lie.
    """

    place: Place

    def frame(self, scan: str) -> Frame:
        """A scan; its points have no labels."""
        views = posed_views(self.place, scan)
        name = f"{scan}/points.ply" if scan else "points.ply"
        if name in self.place.files:
            points, columns = columns_of(
                read_ply(self.place.bytes(name), lambda what: self.place.fail(name, what, "a PLY file with vertices"))
            )
        else:
            if not any(view.depth is not None for view in views):
                raise self.place.fail(
                    f"{scan}/depth", "without a map that has a picture and a pose", "depth/<n>.png, color/<n>, pose/<n>.txt"
                )
            points, columns = fused(views), COLUMNS
        frame = Frame(points, columns, views=views, ego2global=np.eye(4), name=scan or "scan", sequence=scan or "scan")
        return frame.with_columns(COLUMNS)


@dataclass(frozen=True)
class SingleViews:
    """Reads scenes of one view each.

    Args:
        place: where they lie; a ``meta.json`` says intrinsics, turns to the world, and what depth and labels mean.
    """

    place: Place

    def frame(self, scene: str) -> Frame:
        """A scene: the points of its depth map, with the classes of ScanNet where there are labels."""
        top = scene.partition("scenes/")[0]
        meta = self.place.json(f"{top}meta.json")
        name = scene.rpartition("/")[2]
        camera = meta["intrinsics"]
        intrinsics = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1.0]])
        cam2ego = np.eye(4)
        if name not in meta["cam2world_rotation"]:
            raise self.place.fail(f"{scene}/color.jpg", "a picture of a camera whose pose is not known", "its turn in meta.json")
        cam2ego[:3, :3] = meta["cam2world_rotation"][name]
        steps = self.place.map(f"{scene}/depth8.png").astype(np.float32)
        depth = np.where(steps > 0, (steps + 0.5) * 9.99547 / 255, 0).astype(np.float32)
        view = View(name, self.place.image(f"{scene}/color.jpg"), intrinsics, cam2ego, depth=depth)
        labels: np.ndarray | None = None
        if f"{scene}/label40.png" in self.place.files:
            raw = self.place.map(f"{scene}/label40.png").astype(np.int64)
            labels = classes_of(np.where(raw == 255, 0, raw + 1))  # files count from zero
        points, at = back_projected(view)
        kept = thinned(points[:, :3], _GRID, np.random.default_rng(0))
        return Frame(
            points[kept], COLUMNS, point_labels=None if labels is None else labels[at[0], at[1]][kept], views=(view,), ego2global=np.eye(4),
            name=name, sequence=name,
        )  # fmt: skip


def back_projected(view: View) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The points of a view's depth map with their colours, float32 [N, 6], and their rows and columns."""
    assert view.depth is not None
    row, column = np.nonzero((view.depth > 0) & (view.depth < _FAR))
    seen = row, column
    rays = pixel_rays(view.intrinsics, view.cam2ego, *view.depth.shape)[seen]
    place = view.cam2ego[:3, 3] + rays * view.depth[seen][:, None]
    return np.concatenate((place, view.image[seen] / 255), 1).astype(np.float32), seen


def fused(views: Sequence[View], grid: float = _GRID) -> np.ndarray:
    """The points of several views on a grid, one of each cell, float32 [N, 6]."""
    points = np.concatenate([back_projected(view)[0] for view in views if view.depth is not None])
    return points[thinned(points[:, :3], grid, np.random.default_rng(0))]
