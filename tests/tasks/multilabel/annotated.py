"""Small sets in the formats that multi-label data have on disk; an image's colour says its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.tasks.classification.miniatures import picture

NAMES = ("cat", "dog", "sea")
# of six images: which of the names they show, and how often
SHOWN: tuple[dict[str, int], ...] = ({"cat": 1}, {"dog": 2}, {"sea": 1, "cat": 3}, {}, {"cat": 1, "dog": 1, "sea": 1}, {"dog": 1, "sea": 2})


def pictures(root: Path, names: Sequence[str], size: tuple[int, int] = (16, 12), extension: str = "jpg") -> None:
    """`root`/NAME.jpg: a channel for each label."""
    for name, shown in zip(names, SHOWN * -(-len(names) // len(SHOWN)), strict=False):
        colour = tuple(60 + 60 * shown.get(label, 0) for label in NAMES)
        picture(root / f"{name}.{extension}", (colour[0], colour[1], colour[2]), size)


def coco(root: Path, count: int = 6, size: tuple[int, int] = (16, 12)) -> str:
    """`root`/images and `root`/annotations.json; category ids have gaps, and one annotation is of a crowd."""
    pictures(root / "images", [f"{i:012d}" for i in range(count)], size)
    ids = {"cat": 3, "dog": 7, "sea": 8}
    annotations = [
        {"id": 100 * i + j, "image_id": 10 + i, "category_id": ids[name], "iscrowd": int(j > 0), "bbox": [0, 0, 4, 4]}
        for i in range(count)
        for name, times in SHOWN[i % 6].items()
        for j in range(times)
    ]
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i:012d}.jpg"} for i in range(count)],
        "categories": [{"id": ids[name], "name": name} for name in reversed(NAMES)],
        "annotations": annotations,
    }
    (root / "annotations.json").write_text(json.dumps(content))
    return f"coco:{root / 'images'},{root / 'annotations.json'}"


def voc(root: Path, top: str = "VOCdevkit/VOC2007", count: int = 6, size: tuple[int, int] = (16, 12)) -> Path:
    """Pascal VOC's layout with the splits trainval and test: the first two thirds, and the rest."""
    names = [f"{i:06d}" for i in range(count)]
    pictures(root / top / "JPEGImages", names, size)
    (root / top / "Annotations").mkdir()
    (root / top / "ImageSets/Main").mkdir(parents=True)
    for i, name in enumerate(names):
        things = [label for label, times in SHOWN[i % 6].items() for _ in range(times)]
        objects = "".join(f"<object><name>{thing}</name><difficult>1</difficult></object>" for thing in things)
        (root / top / f"Annotations/{name}.xml").write_text(f"<annotation><filename>x</filename>{objects}</annotation>")
    at = count - count // 3
    for split, listed in (("trainval", names[:at]), ("test", names[at:])):
        (root / top / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in listed))
    (root / top / "ImageSets/Main/cat_trainval.txt").write_text(f"{names[0]}  1\n")
    return root


def tags(root: Path, count: int = 6, name: str = "tags.csv", start: int = 0, size: tuple[int, int] = (16, 12)) -> Path:
    """`root`/tags.csv with its images in `root`/photos."""
    names = [f"{start + i}" for i in range(count)]
    pictures(root / "photos", names, size, "png")
    rows = [f"photos/{image}.png,{' ; '.join(SHOWN[i % 6])}" for i, image in enumerate(names)]
    (root / name).write_text("\n".join(["File,tags", *rows]) + "\n")
    return root / name
