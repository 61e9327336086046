"""KITTI: single frames with boxes (object), and drives (raw). Everything is in the lidar's coordinates, x ahead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stillroom.errors import InputError, one_of
from stillroom.tasks.points.frames import Frame, View, boxes_of
from stillroom.tasks.points.grid import KITTI
from stillroom.tasks.points.place import Place, open_place, rigid
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out, no_share

COLUMNS = ("x", "y", "z", "intensity")
REACH = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)
NEIGHBOURS: Mapping[str, str] = {"Van": "Car", "Person_sitting": "Pedestrian"}  # neither to be found nor wrong
_LEFT = ("Truck", "Tram", "Misc", "DontCare")  # kinds that nobody is measured on
_PICTURES = (".png", ".jpg", ".jpeg")
_EARTH = 6378137.0  # metres


class Calibration(NamedTuple):
    """Of a frame.

    Attributes:
        intrinsics: [3, 3], of the left colour camera.
        cam2velo: [4, 4], from that camera to the lidar.
        rect2velo: [4, 4], from the rectified reference camera, in which boxes are given, to the lidar.
    """

    intrinsics: np.ndarray
    cam2velo: np.ndarray
    rect2velo: np.ndarray


def calibration(place: Place, name: str, camera: str = "P2") -> Calibration:
    """Of a file with P2, R0_rect (or R_rect) and Tr_velo_to_cam (or Tr_velo_cam, Tr).

    Raises:
        InputError: something of it is missing.
    """
    told = place.matrices(name)
    projection, turn = told.get(camera), told.get("R0_rect", told.get("R_rect", np.eye(3).ravel() if "Tr" in told else None))
    velo2cam = told.get("Tr_velo_to_cam", told.get("Tr_velo_cam", told.get("Tr")))
    if projection is None or turn is None or velo2cam is None or (len(projection), len(turn), len(velo2cam)) != (12, 9, 12):
        lacking = [key for key, value in ((camera, projection), ("R0_rect", turn), ("Tr_velo_to_cam", velo2cam)) if value is None]
        raise place.fail(name, f"without {lacking[0]}" if lacking else "with matrices of other sizes", "a camera's whole calibration")
    projection = projection.reshape(3, 4)
    rectify = np.eye(4)
    rectify[:3, :3] = turn.reshape(3, 3)
    velo2rect = rectify @ rigid(velo2cam, place, name)
    rect2cam = np.eye(4)
    rect2cam[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return Calibration(projection[:, :3], np.linalg.inv(rect2cam @ velo2rect), np.linalg.inv(velo2rect))


# Objects --------------------------------------------------------------------------------------------------------------------------------


def open_kitti(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive as KITTI's object benchmark: ``training/{velodyne, image_2, calib, label_2}``, and ``ImageSets`` if there are.

    ``velodyne_reduced`` takes the place of ``velodyne`` where that is missing. Lists ``ImageSets/train.txt`` and ``val.txt`` say which
    frames are which; else a share is held out (``val=0.2``). ``cameras=0`` leaves pictures away.

    Raises:
        InputError: files are missing or damaged.
    """
    place = open_place(path, argument)
    found = place.within("label_2/")
    if found is None:
        raise InputError(argument, path, "KITTI's folders training/velodyne, training/calib and training/label_2")
    lists = place.within("ImageSets/")
    cloud = next((name for name in ("velodyne", "velodyne_reduced") if found.inside(name, ".bin")), None)
    if cloud is None:
        raise InputError(argument, path, "the point files training/velodyne/*.bin")
    keys = [name.rpartition("/")[2].removesuffix(".bin") for name in found.inside(cloud, ".bin")]
    labelled = [key for key in keys if f"label_2/{key}.txt" in found.files]
    for key in labelled:
        found.check_width(f"{cloud}/{key}.bin", 4)
    pictures = {name.rpartition("/")[2].rpartition(".")[0]: name for name in found.inside("image_2", *_PICTURES)}
    cameras = options.get("cameras", "1") != "0" and bool(pictures)
    if cameras and (blind := [key for key in labelled if key not in pictures]):
        raise InputError(argument, f"{len(blind)} frames without a picture, the first {blind[0]}", "pictures of all frames, or cameras=0")
    reader = KittiObjects(found, cloud, pictures if cameras else {})
    frames = ListedFrames(reader.frame, labelled, labelled)
    one_of(f"{argument} cameras", options.get("cameras", "1"), ("0", "1"))
    splits = {
        name: set(lists.lines(f"ImageSets/{name}.txt")) for name in ("train", "val") if lists and f"ImageSets/{name}.txt" in lists.files
    }
    said = (f"{len(keys) - len(labelled)} frames without a label file, left out",) if len(keys) > len(labelled) else ()
    if len(splits) == 2:
        no_share(options, argument, "ImageSets/val.txt")
        if both := splits["train"] & splits["val"]:
            raise InputError(argument, f"frame {min(both)} in train.txt and in val.txt", "lists that share no frame")
        train, val = (frames.take(np.flatnonzero(np.isin(labelled, list(splits[name])))) for name in ("train", "val"))
        there = set(labelled)
        if lost := sorted((splits["train"] | splits["val"]) - there):
            said = (*said, f"ImageSets name {len(lost)} frames that are not there, the first {lost[0]}")
        if rest := sorted(there - splits["train"] - splits["val"]):
            said = (*said, f"passed over {len(rest)} frames in neither list of ImageSets, the first {rest[0]}")
    elif splits and "val" not in options:
        raise InputError(argument, f"ImageSets/{min(splits)}.txt alone", "ImageSets/train.txt and val.txt, or a share: val=0.2")
    else:
        train, val = held_out(frames, options, argument)
    said = (*said, *_kinds(found, labelled, argument))
    names = [f"label_2/{key}.txt" for key in labelled] + [f"{cloud}/{key}.bin" for key in labelled]
    return FrameSource(
        name="kitti", classes=KITTI, train=train, val=val, columns=COLUMNS, reach=REACH, measure="kitti", said=said,
        fingerprint=found.fingerprint("kitti", tuple(val.names), names=names),
    )  # fmt: skip


def _kinds(place: Place, keys: Sequence[str], argument: str) -> tuple[str, ...]:
    """What is said of boxes in label files whose kind is none of KITTI's.

    Raises:
        InputError: there is no box of a kind that is trained on.
    """
    lines = (line for key in keys for line in place.lines(f"label_2/{key}.txt"))
    kinds = Counter(line.split()[0] for line in lines)
    if not set(kinds) & set(KITTI.names):
        got = f"labels of {', '.join(kind for kind, _ in kinds.most_common(5)) or 'nothing'}"
        raise InputError(argument, got, f"boxes of {', '.join(KITTI.names)}, so written; other classes: points:FOLDER")
    others = Counter({kind: count for kind, count in kinds.items() if kind not in (*KITTI.names, *NEIGHBOURS, *_LEFT)})
    told = ", ".join(f"{kind} ({count})" for kind, count in others.most_common(5))
    return (f"left out {others.total()} boxes of kinds that KITTI has not: {told}",) if others else ()


@dataclass(frozen=True)
class KittiObjects:
    """Reads frames of the object benchmark.

    Args:
        place: with ``calib`` and ``label_2``.
        cloud: the folder of points.
        pictures: of each frame that has one, its file.
    """

    place: Place
    cloud: str
    pictures: Mapping[str, str]

    def frame(self, key: str) -> Frame:
        """The frame of a number such as "000008"."""
        calib = calibration(self.place, f"calib/{key}.txt")
        views: tuple[View, ...] = ()
        if key in self.pictures:
            views = (View("image_2", self.place.image(self.pictures[key]), calib.intrinsics, calib.cam2velo),)
        points = self.place.rows(f"{self.cloud}/{key}.bin", 4).astype(np.float32)
        return Frame(points=points, columns=COLUMNS, views=views, name=key, **self.objects(key, calib))

    def objects(self, key: str, calib: Calibration) -> dict[str, Any]:
        """Boxes, labels and more of each, from a label file; Van and Person_sitting as ignored, regions of DontCare in `meta`.

        Raises:
            InputError: a line is not as KITTI writes it.
        """
        name = f"label_2/{key}.txt"
        boxes, labels, about, ignored, neighbours, careless = [], [], [], [], [], []
        for line in self.place.lines(name):
            kind, *words = line.split()
            try:
                truncated, occluded, _, left, top, right, bottom, h, w, length, x, y, z, turned = map(float, words[:14])
            except ValueError:
                raise self.place.fail(name, f"with the line {line[:40]!r}", "a class and 14 numbers a line, as KITTI writes them") from None
            if kind == "DontCare":
                careless.append([left, top, right, bottom])
                continue
            # the file gives the middle of the bottom, y downwards
            centre = calib.rect2velo[:3, :3] @ [x, y - h / 2, z] + calib.rect2velo[:3, 3]
            box = [*centre, length, w, h, (-turned - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi]
            if kind in KITTI.names:
                boxes.append(box)
                labels.append(KITTI.names.index(kind))
                about.append([truncated, occluded, bottom - top, left, top, right, bottom])
            elif kind in NEIGHBOURS:
                ignored.append(box)
                neighbours.append(KITTI.names.index(NEIGHBOURS[kind]))
        told = np.array(about, np.float32).reshape(-1, 7)
        return {
            "boxes": boxes_of(boxes),
            "labels": np.array(labels, np.int64),
            "about": {"truncated": told[:, 0], "occluded": told[:, 1].astype(np.int64), "pixels": told[:, 2], "bbox": told[:, 3:]},
            "ignored": boxes_of(ignored),
            "ignored_labels": np.array(neighbours, np.int64),
            "meta": {"dont_care": np.array(careless, np.float32).reshape(-1, 4)},
        }


# Drives ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KittiDrives:
    """Reads frames of raw drives, ``<date>/<date>_drive_<number>_sync/{velodyne_points, image_02, oxts}``, calibrated beside them.

    Args:
        place: with the folders of dates.
    """

    place: Place

    def listed(self) -> ListedFrames:
        """All frames of all drives, in the order of time.

        Raises:
            InputError: there is none, or a drive lacks its calibration.
        """
        keys, names, drives = [], [], []
        for folder in self.place.folders():
            if not folder.endswith("velodyne_points/data"):
                continue
            drive = folder.removesuffix("/velodyne_points/data")
            for name in self.place.inside(folder, ".bin"):
                self.place.check_width(name, 4)
                keys.append((drive, name.rpartition("/")[2].removesuffix(".bin")))
                names.append(name)
                drives.append(drive)
        if not keys:
            raise InputError(self.place.argument, self.place.path, "KITTI's raw drives: .../velodyne_points/data/*.bin")
        return ListedFrames(self.frame, keys, names, drives)

    def frame(self, key: tuple[str, str]) -> Frame:
        """The frame of a drive and a number such as "0000000008"."""
        drive, number = key
        date = drive.rpartition("/")[0]
        velo2cam = self._pose(f"{date}/calib_velo_to_cam.txt" if date else "calib_velo_to_cam.txt")
        imu2velo = self._pose(f"{date}/calib_imu_to_velo.txt" if date else "calib_imu_to_velo.txt")
        views: tuple[View, ...] = ()
        picture = next((f for f in self.place.inside(f"{drive}/image_02/data", *_PICTURES) if f"/{number}." in f), None)
        if picture is not None:
            name = f"{date}/calib_cam_to_cam.txt" if date else "calib_cam_to_cam.txt"
            told = self.place.matrices(name)
            if "P_rect_02" not in told or "R_rect_00" not in told:
                raise self.place.fail(name, "without P_rect_02 or R_rect_00", "the calibration of the pictures' camera")
            projection, rectify = told["P_rect_02"].reshape(3, 4), np.eye(4)
            rectify[:3, :3] = told["R_rect_00"].reshape(3, 3)
            rect2cam = np.eye(4)
            rect2cam[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
            views = (View("image_02", self.place.image(picture), projection[:, :3], np.linalg.inv(rect2cam @ rectify @ velo2cam)),)
        points = self.place.rows(f"{drive}/velodyne_points/data/{number}.bin", 4).astype(np.float32)
        pose = self._imu(drive, number) @ np.linalg.inv(imu2velo)
        start = self._imu(drive, self._first(drive)) @ np.linalg.inv(imu2velo)
        return Frame(
            points=points,
            columns=COLUMNS,
            views=views,
            ego2global=np.linalg.inv(start) @ pose,
            time=0.1 * int(number),
            name=f"{drive}/{number}",
            sequence=drive,
        )

    def _pose(self, name: str) -> np.ndarray:
        told = self.place.matrices(name)
        if "R" not in told or "T" not in told:
            raise self.place.fail(name, "without R or T", "a calibration")
        return rigid(np.column_stack((told["R"].reshape(3, 3), told["T"])), self.place, name)

    def _first(self, drive: str) -> str:
        return self.place.inside(f"{drive}/velodyne_points/data", ".bin")[0].rpartition("/")[2].removesuffix(".bin")

    def _imu(self, drive: str, number: str) -> np.ndarray:
        """Pose of the inertial unit by its latitude, longitude, altitude and three angles, on a Mercator map."""
        name = f"{drive}/oxts/data/{number}.txt"
        values = self.place.numbers(name)[0]
        scale = np.cos(np.deg2rad(self.place.numbers(f"{drive}/oxts/data/{self._first(drive)}.txt")[0][0]))
        lat, lon, alt, roll, pitch, yaw = values[:6]
        east = scale * _EARTH * np.deg2rad(lon)
        north = scale * _EARTH * np.log(np.tan(np.pi * (90 + lat) / 360))
        turns = []
        for axis, angle in enumerate((roll, pitch, yaw)):
            i, j = [(1, 2), (2, 0), (0, 1)][axis]
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            turns.append(turn)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turns[2] @ turns[1] @ turns[0], (east, north, alt)
        return pose
