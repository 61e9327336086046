"""Tiny segmentation sets in the layouts that people have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.tasks.images.label_maps import voc_colours

CLASSES = ("background", "cat", "dog")


def numbers(seed: int, size: tuple[int, int] = (24, 32), count: int = 3) -> np.ndarray:
    """A label map: a rectangle of each class but the first, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    found = np.zeros(size, np.uint8)
    for one in range(1, count):
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        found[top : top + size[0] // 3, left : left + size[1] // 3] = one
    return found


def picture(labels_HW: np.ndarray, seed: int) -> Image.Image:
    """A photograph of a label map: each class has its colour, with noise."""
    rng = np.random.default_rng(seed)
    colours = np.array([(60, 60, 60), (200, 80, 40), (40, 90, 210), (90, 200, 90)])[labels_HW.clip(max=3)]
    return Image.fromarray((colours + rng.normal(0, 12, (*labels_HW.shape, 3))).clip(0, 255).astype(np.uint8))


def palette(labels_HW: np.ndarray) -> Image.Image:
    """A palette PNG with Pascal VOC's colours."""
    image = Image.fromarray(labels_HW, mode="P")
    image.putpalette([channel for colour in voc_colours(256) for channel in colour])
    return image


def voc(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (24, 32), classes: Sequence[str] = CLASSES) -> Path:
    """Pascal VOC's layout with palette masks; the last row of each mask is 255."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(train + val):
        labels = numbers(i, size, len(classes))
        picture(labels, i).save(root / "JPEGImages" / f"p{i}.jpg", quality=95)
        labels[-1] = 255
        palette(labels).save(root / "SegmentationClass" / f"p{i}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(f"p{i}" for i in range(train)))
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(f"p{i}" for i in range(train, train + val)))
    (root / "class_names.txt").write_text("\n".join(classes))
    return root


def folders(root: Path, count: int = 5, *, suffix: str = "", masks: str = "masks", picture_end: str = "") -> Path:
    """Folders of pictures and of masks of class numbers."""
    for folder in ("images", masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        labels = numbers(i)
        picture(labels, i).save(root / "images" / f"p{i}{picture_end}.png")
        Image.fromarray(labels).save(root / masks / f"p{i}{suffix}.png")
    return root


def panoptic(root: Path) -> tuple[Path, Path]:
    """COCO's panoptic format: pictures, a JSON file, and PNGs beside it; ids 7 (cat) and 90 (dog), a crowd, and places of no segment."""
    (root / "pictures").mkdir(parents=True)
    (root / "panoptic").mkdir()
    images, annotations = [], []
    for i in range(4):
        labels = numbers(i)
        picture(labels, i).save(root / "pictures" / f"{i}.jpg")
        segments = np.choose(labels, [0, 300, 70_000])
        segments[0, 0] = 5  # of a crowd
        rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65_536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(root / "panoptic" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg"})
        told = [{"id": 300, "category_id": 7}, {"id": 70_000, "category_id": 90}, {"id": 5, "category_id": 7, "iscrowd": 1}]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": told})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]}
    (root / "panoptic.json").write_text(json.dumps(content))
    return root / "pictures", root / "panoptic.json"
