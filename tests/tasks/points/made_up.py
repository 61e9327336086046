"""Data sets in the formats of others, written from made-up streets and rooms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.rooms import RoomSpec, RoomWorld
from stillroom.tasks.points.supervoxels import SupervoxelSpec, supervoxels
from stillroom.tasks.points.worlds import DrivingWorld, WorldSpec

# A lidar that looks along its y, ahead of and above the vehicle's middle, as nuScenes' does.
LIDAR2EGO = np.array([[0.0, 1, 0, 0.94], [-1, 0, 0, 0.0], [0, 0, 1, 1.84], [0, 0, 0, 1]])
CLASSES = ("car", "pedestrian", "cyclist")
STEP = 0.5  # seconds between key frames
SPEC = WorldSpec(frames=4, step=STEP, cameras=1, image_size=(24, 48), ego_speed=(5.0, 5.0), objects=(6, 6), azimuths=120)


def quaternion(turn: np.ndarray) -> list[float]:
    """(w, x, y, z) of a turn."""
    values, vectors = np.linalg.eigh(
        np.array(
            [
                [turn[0, 0] - turn[1, 1] - turn[2, 2], 0, 0, 0],
                [turn[1, 0] + turn[0, 1], turn[1, 1] - turn[0, 0] - turn[2, 2], 0, 0],
                [turn[2, 0] + turn[0, 2], turn[2, 1] + turn[1, 2], turn[2, 2] - turn[0, 0] - turn[1, 1], 0],
                [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1] + turn[2, 2]],
            ]
        )
        / 3
    )
    x, y, z, w = vectors[:, values.argmax()]
    return [float(w), float(x), float(y), float(z)]


def nuscenes(root: Path, worlds: int = 2) -> list[DrivingWorld]:
    """Tables and files as nuScenes has them; the worlds that they show."""
    made = [DrivingWorld((9, number), SPEC) for number in range(worlds)]
    names = {"car": "vehicle.car", "pedestrian": "human.pedestrian.adult", "cyclist": "vehicle.bicycle"}
    tables: dict[str, list[dict]] = {name: [] for name in ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor",
                                                           "sample_annotation", "instance", "category", "attribute")}  # fmt: skip
    tables["sensor"] = [{"token": "lidar", "channel": "LIDAR_TOP"}, {"token": "camera", "channel": "CAM_FRONT"}]
    tables["category"] = [{"token": name, "name": name} for name in names.values()]
    tables["attribute"] = [{"token": "a", "name": "vehicle.moving"}]
    intrinsics, cam2ego = made[0].camera(0)
    for sensor, pose, camera in (("lidar", LIDAR2EGO, []), ("camera", cam2ego, intrinsics.tolist())):
        tables["calibrated_sensor"].append({"token": sensor, "sensor_token": sensor, "translation": pose[:3, 3].tolist(),
                                            "rotation": quaternion(pose[:3, :3]), "camera_intrinsic": camera})  # fmt: skip
    (root / "samples").mkdir(parents=True)
    for number, world in enumerate(made):
        frames = world.frames()
        tokens = [f"{number}-{index}" for index in range(len(frames))]
        tables["scene"].append({"token": str(number), "name": f"scene-{number:04d}", "first_sample_token": tokens[0]})
        annotations: dict[int, list[str]] = {}
        for index, frame in enumerate(frames):
            around = {"prev": tokens[index - 1] if index else "", "next": tokens[index + 1] if index + 1 < len(frames) else ""}
            tables["sample"].append({"token": tokens[index], "timestamp": int(frame.time * 1e6), **around})
            pose = frame.ego2global
            tables["ego_pose"].append({"token": tokens[index], "translation": pose[:3, 3].tolist(), "rotation": quaternion(pose[:3, :3])})
            cloud = frame.points.copy()
            cloud[:, :3] = (frame.points[:, :3] - LIDAR2EGO[:3, 3]) @ LIDAR2EGO[:3, :3]
            roof = np.array([[0.5, -0.5, 0.1, 9, 0]], np.float32)  # the own car
            cloud = np.concatenate((cloud * [1, 1, 1, 255, 1], roof)).astype("<f4")
            cloud.tofile(root / f"samples/{tokens[index]}.pcd.bin")
            Image.fromarray(frame.views[0].image).save(root / f"samples/{tokens[index]}.png")
            for sensor, ending in (("lidar", "pcd.bin"), ("camera", "png")):
                mark = {name: f"{sensor}-{token}" if token else "" for name, token in around.items()}
                tables["sample_data"].append({"token": f"{sensor}-{tokens[index]}", "sample_token": tokens[index], "is_key_frame": True,
                                              "ego_pose_token": tokens[index], "calibrated_sensor_token": sensor, **mark,
                                              "timestamp": int(frame.time * 1e6),
                                              "filename": f"samples/{tokens[index]}.{ending}"})  # fmt: skip
            boxes = world.boxes(index)
            for thing, kind in enumerate(world.kinds):
                if kind not in names:
                    continue
                centre = pose[:3, :3] @ boxes[thing, :3] + pose[:3, 3]
                yaw = boxes[thing, 6] + np.arctan2(pose[1, 0], pose[0, 0])
                length, width, height = boxes[thing, 3:6]
                token = f"{number}-{thing}-{index}"
                annotations.setdefault(thing, []).append(token)
                tables["sample_annotation"].append({
                    "token": token, "sample_token": tokens[index], "instance_token": f"{number}-{thing}", "attribute_tokens": ["a"],
                    "translation": centre.tolist(), "size": [width, length, height], "num_radar_pts": 0,
                    "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
                    "num_lidar_pts": int((frame.instances == thing).sum()),
                })  # fmt: skip
        by_token = {row["token"]: row for row in tables["sample_annotation"]}
        for thing, seen in annotations.items():
            tables["instance"].append({"token": f"{number}-{thing}", "category_token": names[world.kinds[thing]]})
            for before, token, after in zip(["", *seen[:-1]], seen, [*seen[1:], ""], strict=True):
                by_token[token] |= {"prev": before, "next": after}
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / f"v1.0-mini/{name}.json").write_text(json.dumps(rows))
    return made


# A camera beside the lidar: x right, y down, z ahead, a little ahead of and below it.
VELO2CAM = np.array([[0.0, -1, 0, 0.01], [0, 0, -1, -0.07], [1, 0, 0, -0.27], [0, 0, 0, 1]])
PROJECTION = np.array([[60.0, 0, 40, 4.5], [0, 60, 20, 0.2], [0, 0, 1, 0.003]])


def kitti(root: Path, frames: int = 4, seed: int = 3) -> list[Frame]:
    """KITTI's object benchmark; the frames that it shows. Objects of their world that stand ahead are written, cars among them."""
    made = [DrivingWorld((seed, number), WorldSpec(objects=(8, 8), azimuths=240)).frame() for number in range(frames)]
    for folder in ("velodyne", "image_2", "calib", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    names = ("Car", "Pedestrian", "Cyclist")
    numbers = lambda values: " ".join(f"{value:.12e}" for value in np.ravel(values))  # noqa: E731
    for number, frame in enumerate(made):
        key = f"{number:06d}"
        frame.points[:, :4].astype("<f4").tofile(root / f"training/velodyne/{key}.bin")
        Image.fromarray(np.full((40, 80, 3), 99, np.uint8)).save(root / f"training/image_2/{key}.png")
        lines = [f"P{camera}: {numbers(PROJECTION)}" for camera in range(4)]
        (root / f"training/calib/{key}.txt").write_text(
            "\n".join([*lines, f"R0_rect: {numbers(np.eye(3))}", f"Tr_velo_to_cam: {numbers(VELO2CAM[:3])}", ""])
        )
        rows = []
        for box, label in zip(frame.boxes.astype(float), frame.labels, strict=True):
            x, y, z = VELO2CAM[:3, :3] @ (box[:3] - [0, 0, box[5] / 2]) + VELO2CAM[:3, 3]
            sizes = f"{box[5]:.6f} {box[4]:.6f} {box[3]:.6f}"
            rows.append(f"{names[label]} 0.00 0 0.0 1 2 30 44 {sizes} {x:.6f} {y:.6f} {z:.6f} {-box[6] - np.pi / 2:.6f}")
        rows += ["Van 0.5 1 0.0 1 2 30 44 2 2 5 3 1.7 9 0.1", "DontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10"]
        (root / f"training/label_2/{key}.txt").write_text("\n".join(rows) + "\n")
    return made


def plain(root: Path, frames: list[Frame], **more: object) -> Path:
    """A folder with frames.json; every frame's points as raw numbers."""
    (root / "lidar").mkdir(parents=True)
    told = []
    for number, frame in enumerate(frames):
        frame.points.astype("<f4").tofile(root / f"lidar/{number}.bin")
        boxes = [{"name": CLASSES[k], "box": box[:7].tolist()} for box, k in zip(frame.boxes, frame.labels, strict=True)]
        told.append({"lidar": f"lidar/{number}.bin", "time_s": 0.1 * number, "boxes": boxes, "sequence": f"drive {number // 2}"})
    (root / "frames.json").write_text(json.dumps({"columns": list(frames[0].columns), "frames": told, **more}))
    return root


def write_ply(path: Path, columns: dict[str, np.ndarray]) -> None:
    """A binary PLY file of vertices with these columns."""
    kinds = {"f": "float", "u": "uchar", "i": "int"}
    head = "".join(f"property {kinds[value.dtype.kind]} {name}\n" for name, value in columns.items())
    rows = np.rec.fromarrays(list(columns.values()), names=list(columns))
    path.write_bytes(f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{head}end_header\n".encode() + rows.tobytes())


def scannet(root: Path, scenes: int = 3) -> None:
    """Scans of made-up rooms as ScanNet has them: mesh, labels, segments, posed pictures with depth."""
    ids = (2, 1, 7, 5, 3, 4, 39, 39)  # of floor, wall, table, chair, cabinet, bed, lamp and bin
    spec = RoomSpec(views=2, image_size=(24, 32), grid=0.15)
    for number in range(scenes):
        frame, scene = RoomWorld((8, number), spec).frame(), f"scene{number:04d}_00"
        folder = root / f"scans/{scene}"
        for inner in ("color", "depth", "pose", "intrinsic"):
            (folder / inner).mkdir(parents=True)
        places = {name: frame.points[:, k].astype("<f4") for k, name in enumerate("xyz")}
        colours = {name: (frame.points[:, 3 + k] * 255).astype("u1") for k, name in enumerate(("red", "green", "blue"))}
        write_ply(folder / f"{scene}_vh_clean_2.ply", places | colours)
        write_ply(folder / f"{scene}_vh_clean_2.labels.ply", places | {"label": np.array(ids, "<i4")[frame.point_labels]})
        segments = supervoxels(frame.points[:, :3], frame.points[:, 3:], SupervoxelSpec(0.15, 0.6))
        (folder / f"{scene}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": (segments * 3).tolist()}))
        np.savetxt(folder / "intrinsic/intrinsic_color.txt", frame.views[0].intrinsics)
        for name, view in zip((0, 20), frame.views, strict=True):
            Image.fromarray(view.image).save(folder / f"color/{name}.png")
            Image.fromarray((view.depth * 1000).astype(np.uint16)).save(folder / f"depth/{name}.png")
            np.savetxt(folder / f"pose/{name}.txt", view.cam2ego)
