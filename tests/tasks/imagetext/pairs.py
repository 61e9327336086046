"""Small sets of pictures and captions on disk."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 210)}


def picture(colour: str, number: int, size: tuple[int, int] = (30, 26)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(-25, 26, (size[1], size[0], 3)) + np.array(COLOURS[colour])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pairs(root: Path, count: int = 24) -> tuple[Path, Path]:
    """A table with two captions of each picture, of which a quarter is for validation; and a folder of classes."""
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        picture(colour, number).save(root / f"images/{number}.png")
        split = "val" if number % 4 == 3 else "train"
        rows += [(f"images/{number}.png", text, split) for text in (f"a {colour} picture no. {number}", f"something {colour}")]
        place = root / "classes" / colour
        place.mkdir(parents=True, exist_ok=True)
        picture(colour, 100 + number).save(place / f"{number}.png")
    write_table(root / "pairs.csv", rows)
    return root / "pairs.csv", root / "classes"


def write_table(path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...] = ("image", "text", "split")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head[: len(rows[0])], *rows])
    return path


def write_shards(root: Path, shards: int, samples: int) -> str:
    """Tar files as webdataset and img2dataset write them: 000000000.jpg, .txt and .json; answers with their pattern."""
    root.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(root / f"{shard:05}.tar", "w") as tar:
            for sample in range(samples):
                colour, number = list(COLOURS)[sample % 3], shard * samples + sample
                content = io.BytesIO()
                picture(colour, number).save(content, "JPEG")
                for extension, data in (("jpg", content.getvalue()), ("txt", f"a {colour} thing, no. {number}".encode()), ("json", b"{}")):
                    entry = tarfile.TarInfo(f"{number:09}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return f"{root}/{{00000..{shards - 1:05}}}.tar"
