"""Tiny sets of several targets in the layouts that people have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from PIL import Image
from scipy.io import savemat

SIZE = (24, 32)
CLASSES = ("wall", "box", "ball")
DECLARED: dict[str, dict[str, Any]] = {
    "semseg": {"kind": "classes", "classes": list(CLASSES), "folder": "labels"},
    "depth": {"kind": "depth", "unit": "mm", "max": 9},
    "normals": {"kind": "normals", "axes": "right+down+forward"},
    "edges": {"kind": "edges", "from": "semseg"},
}


def scene(seed: int, size: tuple[int, int] = SIZE) -> dict[str, np.ndarray]:
    """A wall with a box and a ball before it: `image` [H, W, 3], `labels` [H, W], `depth` in millimetres, `normals` of eight bits."""
    rng = np.random.default_rng(seed)
    labels, depth = np.zeros(size, np.uint8), np.full(size, 4000, np.uint16)
    normals = np.broadcast_to(np.array([128, 128, 0], np.uint8), (*size, 3)).copy()
    for label, metres, direction in ((1, 3000, (128, 0, 128)), (2, 2000, (255, 128, 128))):
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        inside = np.s_[top : top + size[0] // 2, left : left + size[1] // 3]
        labels[inside], depth[inside], normals[inside] = label, metres, direction
    colours = np.array([(70, 70, 70), (200, 80, 40), (40, 90, 210)])[labels]
    image = (colours + rng.normal(0, 10, colours.shape)).clip(0, 255).astype(np.uint8)
    return {"image": image, "labels": labels, "depth": depth, "normals": normals}


def dense(root: Path, count: int = 6, declared: Mapping[str, Any] = DECLARED, size: tuple[int, int] = SIZE) -> Path:
    """Folders of pictures and of targets with a targets.yaml; two of six measure."""
    for folder in ("image", "labels", "depth", "normals"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        for name, values in scene(i, size).items():
            Image.fromarray(values).save(root / name / f"p{i}.png")
    (root / "targets.yaml").write_text(yaml.safe_dump(dict(declared), sort_keys=False))
    (root / "train.txt").write_text("\n".join(f"p{i}" for i in range(count - 2)))
    (root / "val.txt").write_text("\n".join(f"p{i}" for i in range(count - 2, count)))
    return root


def nyud_small(root: Path, count: int = 5) -> Path:
    """NYU Depth V2 as numbered from 0, with 255 between things, depth in millimetres."""
    for folder in ("images", "labels40", "depth", "normals"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        found = scene(i)
        found["labels"][:, 10] = 255
        Image.fromarray(found["image"]).save(root / "images" / f"{i:04d}.jpg", quality=95)
        for name, folder in (("labels", "labels40"), ("depth", "depth"), ("normals", "normals")):
            Image.fromarray(found[name]).save(root / folder / f"{i:04d}.png")
    (root / "meta.json").write_text(json.dumps({"classes": ["wall", "floor", "cabinet"]}))
    (root / "train.txt").write_text("\n".join(f"{i:04d}" for i in range(count - 2)))
    (root / "test.txt").write_text("\n".join(f"{i:04d}" for i in range(count - 2, count)))
    return root


def nyud_papers(root: Path, count: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """NYU Depth V2 as multi-task papers have it: MATLAB and NumPy files, classes from 1, metres."""
    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        found = scene(i, size)
        Image.fromarray(found["image"]).save(root / "images" / f"{i}.jpg")
        savemat(root / "segmentation" / f"{i}.mat", {"segmentation": found["labels"] + 0})
        savemat(root / "depth" / f"{i}.mat", {"depth": found["depth"].astype(np.float32) / 1000})
        np.save(root / "normals" / f"{i}.npy", found["normals"].astype(np.float32) / 127.5 - 1)
        np.save(root / "edge" / f"{i}.npy", (found["labels"] > 1).astype(np.float32))
    (root / "gt_sets" / "train.txt").write_text("\n".join(map(str, range(count - 2))))
    (root / "gt_sets" / "val.txt").write_text("\n".join(map(str, range(count - 2, count))))
    return root


def pascal(root: Path, count: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """PASCAL-Context as multi-task papers have it; the first picture has a person with parts, the second none, the others no file."""
    for folder in (
        "JPEGImages",
        "semseg/VOC12",
        "human_parts",
        "sal_distill",
        "normals_distill",
        "pascal-context/trainval",
        "ImageSets/Context",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        found = scene(i, size)
        Image.fromarray(found["image"]).save(root / "JPEGImages" / f"{i}.jpg")
        labels = np.where(found["labels"] == 1, 15, found["labels"]).astype(np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(root / "semseg/VOC12" / f"{i}.png")
        Image.fromarray((255 * (found["labels"] > 0)).astype(np.uint8)).save(root / "sal_distill" / f"{i}.png")
        Image.fromarray(found["normals"]).save(root / "normals_distill" / f"{i}.png")
        savemat(root / "pascal-context/trainval" / f"{i}.mat", {"LabelMap": found["labels"].astype(np.uint16) + 258})
    for i, number in ((0, 15), (1, 3)):
        masks = [np.zeros(size, np.uint8) for _ in range(2)]
        masks[0][:4, :4], masks[1][4:8, :4] = 1, 1
        parts = np.array(
            [(name, mask) for name, mask in zip(("lear", "ruarm"), masks, strict=True)], [("part_name", object), ("mask", object)]
        )
        one = np.array(
            [("thing", number, np.ones(size, np.uint8), parts)], [(key, object) for key in ("class", "class_ind", "mask", "parts")]
        )
        savemat(root / "human_parts" / f"{i}.mat", {"anno": {"imname": str(i), "objects": one}})
    (root / "ImageSets/Context" / "train.txt").write_text("0\n1")
    (root / "ImageSets/Context" / "val.txt").write_text("\n".join(map(str, range(2, count))))
    return root
