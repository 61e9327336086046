"""Small sets in the layouts that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """Smooth colours, uint8 [H, W, 3]; `size` is width and height."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(30, 225, (4, 5, 3), np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))


def shape(size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A rectangle in the middle, uint8 [H, W], 0 and 255."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[size[1] // 4 : size[1] // 2, size[0] // 3 : 2 * size[0] // 3] = 255
    return mask


def darker(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The foreground at half its brightness."""
    return np.where(mask[..., None] > 0, picture // 2, picture).astype(np.uint8)


def iharmony4(root: Path, photos: int = 5, variants: int = 2, size: tuple[int, int] = (48, 40), *, lists: bool = True) -> Path:
    """A subset with composites of so many photos, the last of which tests."""
    for folder in ("composite_images", "masks", "real_images"):
        (root / folder).mkdir(parents=True)
    names: list[list[str]] = [[], []]
    for number in range(photos):
        picture, mask = photo(number, size), shape(size)
        Image.fromarray(picture).save(root / f"real_images/p{number}.png")
        Image.fromarray(mask).save(root / f"masks/p{number}_7.png")
        for variant in range(1, variants + 1):
            name = f"p{number}_7_{variant}.png"
            Image.fromarray(darker(picture, mask)).save(root / "composite_images" / name)
            names[number == photos - 1].append(name)
    if lists:
        for word, listed in zip(("train", "test"), names, strict=True):
            (root / f"{root.name}_{word}.txt").write_text("\n".join(listed))
    return root


def photos_and_masks(root: Path, photos: int = 4, size: tuple[int, int] = (48, 40)) -> tuple[Path, Path]:
    """Folders of photos and of their masks, named in three ways."""
    for folder in ("photos", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(photos):
        Image.fromarray(photo(number, size)).save(root / f"photos/p_{number}.jpg", quality=95)
        name = (f"p_{number}", f"p_{number}_mask", f"p_{number}_dog")[number % 3]
        Image.fromarray(shape(size)).save(root / f"masks/{name}.png")
    return root / "photos", root / "masks"
