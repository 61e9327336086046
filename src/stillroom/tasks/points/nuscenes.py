"""nuScenes: its tables read by themselves, lidar sweeps put together, cameras and boxes in the coordinates of the vehicle.

nuScenes' lidar looks along its y; everything here is in the vehicle's frame at the time of the key frame's sweep, x ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.folders import passed_over
from stillroom.tasks.images.listed import lines_of
from stillroom.tasks.images.sources import whole_numbers
from stillroom.tasks.points.frames import Frame, View, boxes_of
from stillroom.tasks.points.grid import NUSCENES
from stillroom.tasks.points.metrics import ATTRIBUTES
from stillroom.tasks.points.place import Place, open_place
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out, indexed, no_share

COLUMNS = ("x", "y", "z", "intensity", "lag")
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
_TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor", "sample_annotation", "instance", "category")
_OPTIONAL = ("attribute",)
_ROOF = 1.0  # metres: returns of the own car around the sensor
_FAR_APART = 1.5  # seconds between annotations of which a velocity is no longer told
_MINI_VAL = ("scene-0103", "scene-0916")
_RACK = "static_object.bicycle_rack"
CATEGORIES: Mapping[str, str] = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}

Rows = Mapping[str, Any]


def rotation(quaternion: Any) -> np.ndarray:
    """A turn of a quaternion (w, x, y, z) of any length, [3, 3]."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose_of(row: Rows) -> np.ndarray:
    """The transform of a row with `rotation` and `translation`, [4, 4]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(row["rotation"]), row["translation"]
    return pose


def open_nuscenes(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with nuScenes' tables (``v1.0-mini``, ``v1.0-trainval``, ...) and the files that they name.

    Options: ``sweeps=10`` clouds in each frame, the key frame's among them (by default 10; the first frames of a scene have those that
    there are); ``cameras=0`` without pictures; ``version=v1.0-trainval`` where there are several; ``val_scenes=FILE`` with the names of
    the scenes to measure with, one a line; of v1.0-mini they are the official two, else a share of the scenes is held out (``val=0.2``).

    Raises:
        InputError: tables or files are missing, or an option cannot be used.
    """
    options = dict(options)
    val_scenes, version = options.pop("val_scenes", ""), options.pop("version", "")
    numbers = {"sweeps": 10, "cameras": 1} | whole_numbers({k: v for k, v in options.items() if k in ("sweeps", "cameras")}, argument,
                                                           zero=("cameras",))  # fmt: skip
    place = open_place(path, argument)
    versions = sorted({name.split("/")[-2] for name in place.files if name.endswith("/sample_annotation.json")})
    if not versions or (version and version not in versions) or (len(versions) > 1 and not version):
        raise InputError(
            argument, path, f"one of the tables' folders {versions}, by version=..." if versions else "nuScenes' tables, v1.0-..."
        )
    version = version or versions[0]
    found = place.within(f"{version}/")
    assert found is not None
    place = found
    missing = [table for table in _TABLES if f"{version}/{table}.json" not in place.files]
    if missing:
        raise InputError(argument, f"{path} without {missing[0]}.json", f"all of {version}'s tables")
    reader = NuScenes(place, numbers["sweeps"], bool(numbers["cameras"]))
    tables = {name: size for name, size in place.files.items() if name.startswith(f"{version}/")}
    rows = indexed(place.store, {place.top + name: size for name, size in tables.items()}, lambda: _list(place, version))
    absent = [row["lidar"][0]["file"] for row in rows if row["lidar"][0]["file"] not in place.files]
    rows = [row for row in rows if row["lidar"][0]["file"] in place.files]
    if not rows:
        raise InputError(argument, path, "the lidar files that its tables name; none of them is there")
    frames = ListedFrames(reader.frame, rows, [row["lidar"][0]["file"] for row in rows], [row["scene"] for row in rows])
    lost = sum(sweep["file"] not in place.files for row in rows for sweep in row["lidar"][1 : numbers["sweeps"]])
    said = (f"{lost} sweeps that the tables name are not there; their frames have fewer",) if lost else ()
    said = (*said, *passed_over(absent, "of lidar that the tables name and that are not there: their frames are left out"))
    scenes = list(dict.fromkeys(frames.sequences))
    names = tuple(scene for scene in _MINI_VAL if scene in scenes)
    if val_scenes:
        try:
            names = tuple(lines_of(Path(val_scenes).expanduser().read_bytes()))
        except OSError as error:
            raise InputError(argument, f"val_scenes={val_scenes} ({error.strerror})", "a file with names of scenes, one a line") from None
    if names:
        no_share(options, argument, "val_scenes" if val_scenes else f"{version}'s official list")
    if val_scenes and (strange := [name for name in names if name not in scenes]):
        said = (*said, f"val_scenes names {len(strange)} scenes that are not there, the first {strange[0]}")
    val_N = np.isin(frames.sequences, names)
    if names and (not val_N.any() or val_N.all()):
        raise InputError(argument, f"validation scenes {list(names)[:3]}", f"some, but not all, of {scenes[:3]}, ... in {path}")
    if names:
        train, val = frames.take(np.flatnonzero(~val_N)), frames.take(np.flatnonzero(val_N))
    else:
        train, val = held_out(frames, options, argument)
        said = (
            *said,
            "scenes to measure with were held out at random; val_scenes=FILE names the official ones",
        )
    fingerprint = place.fingerprint("nuscenes", version, numbers, tuple(sorted(set(val.sequences))), names=frames.names)
    return FrameSource(
        name="nuscenes", classes=NUSCENES, train=train, val=val, columns=COLUMNS, fingerprint=fingerprint, measure="nuscenes", said=said,
        attributes=ATTRIBUTES,
    )  # fmt: skip


def _list(place: Place, version: str) -> list[dict[str, Any]]:
    """A row for each key frame, in the order of scenes and time: its sweeps, its cameras and its boxes in global coordinates."""
    tables = {name: place.json(f"{version}/{name}.json") for name in _TABLES}
    attributes = place.json(f"{version}/attribute.json") if f"{version}/attribute.json" in place.files else []
    by = {name: {row["token"]: row for row in rows} for name, rows in tables.items()} | {"attribute": {r["token"]: r for r in attributes}}
    channels = {token: by["sensor"][row["sensor_token"]]["channel"] for token, row in by["calibrated_sensor"].items()}
    keys: dict[str, dict[str, Any]] = {}
    for row in tables["sample_data"]:
        if row["is_key_frame"]:
            keys.setdefault(row["sample_token"], {})[channels[row["calibrated_sensor_token"]]] = row
    boxes: dict[str, list[Any]] = {}
    for row in tables["sample_annotation"]:
        boxes.setdefault(row["sample_token"], []).append(row)
    listed = []
    for scene in tables["scene"]:
        token = scene["first_sample_token"]
        while token and token in by["sample"]:
            sensors = keys.get(token, {})
            if "LIDAR_TOP" in sensors:
                listed.append(
                    {
                        "scene": scene["name"],
                        "token": token,
                        "lidar": _sweeps(sensors["LIDAR_TOP"], by),
                        "cameras": {name: _sensed(sensors[name], by) for name in CAMERAS if name in sensors},
                        "boxes": [_box(row, by) for row in boxes.get(token, [])],
                    }
                )
            token = by["sample"][token]["next"]
    return listed


def _sweeps(row: Rows, by: Mapping[str, Mapping[str, Rows]]) -> list[dict[str, Any]]:
    """A lidar's sweep and those before it, ten at most."""
    found = [_sensed(row, by)]
    while row["prev"] in by["sample_data"] and len(found) < 10:
        row = by["sample_data"][row["prev"]]
        found.append(_sensed(row, by))
    return found


def _sensed(row: Rows, by: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    sensor, ego = by["calibrated_sensor"][row["calibrated_sensor_token"]], by["ego_pose"][row["ego_pose_token"]]
    told = {
        "file": row["filename"],
        "time": row["timestamp"] * 1e-6,
        "sensor2ego": pose_of(sensor).tolist(),
        "ego2global": pose_of(ego).tolist(),
    }
    return told | ({"intrinsics": sensor["camera_intrinsic"]} if sensor.get("camera_intrinsic") else {})


def _box(row: Rows, by: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    instance = by["instance"][row["instance_token"]]
    # newer tables give a lidar-segmentation index besides; names are what stays
    return {
        "category": by["category"][instance["category_token"]]["name"],
        "centre": row["translation"],
        "size": row["size"],  # width, length, height
        "rotation": row["rotation"],
        "velocity": _velocity(row, by),
        "points": row.get("num_lidar_pts", 0) + row.get("num_radar_pts", 0),
        "track": row["instance_token"],
        "attribute": [by["attribute"][token]["name"] for token in row.get("attribute_tokens", []) if token in by["attribute"]],
    }


def _velocity(row: Rows, by: Mapping[str, Mapping[str, Rows]]) -> list[float] | None:
    """Of an annotation by its neighbours in time, metres per second along x and y; None where there are none near enough."""
    annotations = by["sample_annotation"]
    first, last = annotations.get(row["prev"], row), annotations.get(row["next"], row)
    if first is last:
        return None
    seconds = (by["sample"][last["sample_token"]]["timestamp"] - by["sample"][first["sample_token"]]["timestamp"]) * 1e-6
    both = first is not row and last is not row
    if not 0 < seconds <= _FAR_APART * (2 if both else 1):
        return None
    return [(after - before) / seconds for before, after in zip(first["translation"][:2], last["translation"][:2], strict=True)]


@dataclass(frozen=True)
class NuScenes:
    """Reads key frames.

    Args:
        place: where the files lie.
        sweeps: clouds in a frame, as far as there are so many.
        cameras: whether pictures are read.
    """

    place: Place
    sweeps: int = 10
    cameras: bool = True

    def frame(self, row: Rows) -> Frame:
        """The frame of a row of the index."""
        key = row["lidar"][0]
        ego2global = np.array(key["ego2global"])
        global2ego = np.linalg.inv(ego2global)
        clouds = [self._sweep(sweep, key["time"], global2ego) for sweep in row["lidar"][: self.sweeps]]
        views = tuple(self._view(name, told, global2ego) for name, told in row["cameras"].items()) if self.cameras else ()
        return Frame(
            points=np.concatenate(clouds),
            columns=COLUMNS,
            views=views,
            ego2global=ego2global,
            time=key["time"],
            name=key["file"],
            sequence=row["scene"],
            meta={"token": row["token"]},
            **self._boxes(row["boxes"], global2ego),
        )

    def _sweep(self, sweep: Rows, time: float, global2ego: np.ndarray) -> np.ndarray:
        """A cloud in the key frame's coordinates, [N, 5], without the own roof, which is looked for before it is moved."""
        if sweep["file"] not in self.place.files:
            return np.zeros((0, 5), np.float32)
        raw = self.place.rows(sweep["file"], 5)
        raw = raw[(np.abs(raw[:, :2]) >= _ROOF).any(1)]
        sensor2ego = global2ego @ np.array(sweep["ego2global"]) @ np.array(sweep["sensor2ego"])
        cloud = np.empty((len(raw), 5), np.float32)
        cloud[:, :3] = raw[:, :3] @ sensor2ego[:3, :3].T + sensor2ego[:3, 3]
        cloud[:, 3], cloud[:, 4] = raw[:, 3] / 255, time - sweep["time"]
        return cloud

    def _view(self, name: str, told: Rows, global2ego: np.ndarray) -> View:
        if "intrinsics" not in told:
            raise self.place.fail(told["file"], "a picture of a camera without calibration", "its intrinsics in calibrated_sensor.json")
        cam2ego = global2ego @ np.array(told["ego2global"]) @ np.array(told["sensor2ego"])
        return View(name, self.place.image(told["file"]), np.array(told["intrinsics"]), cam2ego)

    def _boxes(self, rows: list[Any], global2ego: np.ndarray) -> dict[str, Any]:
        """Boxes, labels and more of each, in the vehicle's coordinates; racks, in which no bicycle or motorcycle counts, as ignored."""
        turn = global2ego[:3, :3]
        known, racks = [], []
        for row in rows:
            heading = turn @ rotation(row["rotation"])[:, 0]
            velocity = [np.nan] * 2 if row["velocity"] is None else (turn @ [*row["velocity"], 0.0])[:2]
            width, length, height = row["size"]
            centre = turn @ row["centre"] + global2ego[:3, 3]
            box = [*centre, length, width, height, np.arctan2(heading[1], heading[0]), *velocity]
            if row["category"] in CATEGORIES and row["points"] > 0:
                attribute = next((ATTRIBUTES.index(name) for name in row["attribute"] if name in ATTRIBUTES), -1)
                known.append((box, NUSCENES.names.index(CATEGORIES[row["category"]]), row["points"], attribute, row["track"]))
            elif row["category"] == _RACK:
                racks.append(box)
        boxes, labels, points, attributes, tracks = map(list, zip(*known, strict=True)) if known else ([], [], [], [], [])
        about = {"points": np.array(points, np.int64), "attribute": np.array(attributes, np.int64), "track": np.array(tracks, str)}
        return {
            "boxes": boxes_of(boxes),
            "labels": np.array(labels, np.int64),
            "about": about,
            "ignored": boxes_of(racks),
            "ignored_labels": np.full(len(racks), -1, np.int64),
        }
