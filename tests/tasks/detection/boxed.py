"""Small sets of images with boxes, in the layouts that the real ones have on disk; what lies in a box is bright."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE = (24, 20)  # width, height
Box = tuple[float, float, float, float]


@dataclass
class Picture:
    """One image and what its annotation says.

    Attributes:
        things: class, box (x1, y1, x2, y2), and whether it is a crowd.
        said: (width, height) in the annotation; None where it says nothing.
    """

    things: list[tuple[str, Box, bool]] = field(default_factory=lambda: [("cat", (4, 4, 14, 12), False)])
    size: tuple[int, int] = SIZE
    said: tuple[int, int] | None = SIZE
    mode: str = "RGB"
    orientation: int = 1
    file: str = ""


def pictures(count: int = 6) -> list[Picture]:
    """Cats, and dogs in every second one."""
    made = [Picture(file=f"{i:06d}.jpg") for i in range(count)]
    for one in made[::2]:
        one.things = [*one.things, ("dog", (10, 2, 20, 18), False)]
    return made


def save(picture: Picture, folder: Path) -> None:
    """As a file, whose boxes are bright where they lie in the file."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", picture.size, (40, 40, 40))
    for _, box, _ in picture.things:
        if box[0] < box[2] and box[1] < box[3]:
            ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(220, 220, 220))
    options: dict[str, Any] = {"exif": _exif(picture.orientation)} if picture.orientation > 1 else {}
    image.convert(picture.mode).save(folder / picture.file, **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def coco(root: Path, made: Sequence[Picture], classes: Sequence[str] = ("cat", "dog"), **changes: Any) -> str:
    """`root`/images and `root`/boxes.json; category ids have gaps, and `changes` replace parts of the annotation."""
    ids = {name: 7 * (k + 1) for k, name in enumerate(classes)}
    for one in made:
        save(one, root / "images")
    marks = [
        {"id": 100 * i + j, "image_id": 10 + i, "category_id": ids[name], "iscrowd": int(crowd), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, one in enumerate(made)
        for j, (name, (x1, y1, x2, y2), crowd) in enumerate(one.things)
    ]
    images = [
        {"id": 10 + i, "file_name": one.file, **({"width": one.said[0], "height": one.said[1]} if one.said else {})}
        for i, one in enumerate(made)
    ]
    content = {"images": images, "categories": [{"id": ids[name], "name": name} for name in reversed(classes)], "annotations": marks}
    (root / "boxes.json").write_text(json.dumps({**content, **changes}))
    return f"coco:{root / 'images'},{root / 'boxes.json'},val=0.34"


def voc(root: Path, made: Sequence[Picture]) -> str:
    """`root` in Pascal VOC's layout, without splits."""
    (root / "Annotations").mkdir(parents=True)
    for one in made:
        save(one, root / "JPEGImages")
        objects = "".join(
            f"<object><name>{name}</name><difficult>{int(crowd)}</difficult><bndbox><xmin>{x[0]}</xmin><ymin>{y[0]}</ymin>"
            f"<xmax>{x[1]}</xmax><ymax>{y[1]}</ymax></bndbox></object>"
            for name, (x1, y1, x2, y2), crowd in one.things
            for x, y in [(_inclusive(x1, x2), _inclusive(y1, y2))]
        )
        size = f"<size><width>{one.said[0]}</width><height>{one.said[1]}</height><depth>3</depth></size>" if one.said else ""
        path = root / "Annotations" / f"{Path(one.file).stem}.xml"
        path.write_text(f"<annotation>{size}{objects}</annotation>")
    return f"voc:{root},val=0.34"


def _inclusive(first: float, last: float) -> tuple[float, float]:
    """Pixels count from 1, and the last one belongs to the box."""
    return (first + 1, last) if first <= last else (first, last + 1)


FORMATS = {"coco": coco, "voc": voc}
