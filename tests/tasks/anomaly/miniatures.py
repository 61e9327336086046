"""Tiny sets of products in the layouts of public ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (30, 24)) -> Image.Image:
    """Noise around a grey, of this width and height."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(90, 140, (size[1], size[0], 3), dtype=np.uint8))


def spoiled(seed: int) -> tuple[Image.Image, Image.Image]:
    """A picture with a white square of 16 pixels, and its mask."""
    pixels, mask = np.array(picture(seed)), np.zeros((24, 30), np.uint8)
    y, x = 4 + seed % 10, 6 + seed % 12
    pixels[y : y + 4, x : x + 4], mask[y : y + 4, x : x + 4] = 255, 255
    return Image.fromarray(pixels), Image.fromarray(mask)


def mvtec(
    root: Path,
    categories: Sequence[str],
    *,
    good: str = "good",
    kinds: Sequence[str] = ("dent", "scratch"),
    suffix: str = "_mask",
    form: str = "png",
    masked: bool = True,
) -> Path:
    """Six good pictures of each category to train on, three to test on, and two of each kind of defect with their masks."""
    for number, category in enumerate(categories):
        for split, count, first in (("train", 6, 0), ("test", 3, 10)):
            folder = root / category / split / good
            folder.mkdir(parents=True)
            for i in range(count):
                picture(1000 * number + first + i).save(folder / f"{'t' if split == 'train' else 'g'}{i}.{form}")
        for k, kind in enumerate(kinds):
            (root / category / "test" / kind).mkdir()
            if masked:
                (root / category / "ground_truth" / kind).mkdir(parents=True)
            for i in range(2):
                image, mask = spoiled(1000 * number + 20 + 10 * k + i)
                image.save(root / category / "test" / kind / f"d{i}.{form}")
                if masked:
                    mask.save(root / category / "ground_truth" / kind / f"d{i}{suffix}.png")
    return root


def visa(root: Path, *, table: bool) -> Path:
    """VisA with one category of seven normal and three anomalous pictures, whose masks hold the ids 1, 2 and 3; `table`: with its split."""
    rows = ["object,split,label,image,mask"]
    for kind, count in (("Normal", 7), ("Anomaly", 3)):
        folder = root / "candle" / "Data" / "Images" / kind
        folder.mkdir(parents=True)
        for i in range(count):
            name = f"{i:0{4 if kind == 'Normal' else 3}}"
            image, mask = spoiled(50 + i) if kind == "Anomaly" else (picture(i), None)
            image.save(folder / f"{name}.JPG", quality=95)
            if mask is not None:
                masks = root / "candle" / "Data" / "Masks" / "Anomaly"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * np.uint8(i + 1)).save(masks / f"{name}.png")
            split = "train" if kind == "Normal" and i < 4 else "test"
            rows.append(f"candle,{split},{kind.lower()},candle/Data/Images/{kind}/{name}.JPG,")
    if table:
        (root / "split_csv").mkdir()
        (root / "split_csv" / "1cls.csv").write_text("\n".join(rows))
    return root
