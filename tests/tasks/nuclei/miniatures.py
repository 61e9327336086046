"""Tiny sets of nuclei in the formats that people have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

SIDE = 32


def maps(seed: int, types: int, *, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Instances 2, 4, ... and types [32, 32] of discs in the quarters of a picture."""
    random = np.random.default_rng(seed)
    instances, kinds = np.zeros((SIDE, SIDE), np.int32), np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        y, x = (8 + 16 * part + random.integers(-1, 2) for part in divmod(number, 2))
        inside = (rows - y) ** 2 + (columns - x) ** 2 <= random.integers(14, 30)
        instances[inside], kinds[inside] = 2 * number + 2, random.integers(1, types + 1)
    return instances, kinds


def picture(instances: np.ndarray, kinds: np.ndarray, seed: int) -> Image.Image:
    """Each type in its grey."""
    noise = np.random.default_rng(seed).integers(0, 20, (SIDE, SIDE, 3))
    return Image.fromarray((220 - 25 * kinds[..., None] - 20 * (instances[..., None] > 0) + noise).clip(0, 255).astype(np.uint8))


def folder(root: Path, count: int, types: int, *, seed: int = 0, mat: bool = False, labelled: int | None = None) -> Path:
    """Images and Labels with so many pictures, of which the first `labelled` have labels."""
    for part in ("Images", "Labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        instances, kinds = maps(seed + number, types)
        picture(instances, kinds, number).save(root / f"Images/p{number}.png")
        if labelled is None or number < labelled:
            write(root / f"Labels/p{number}.{'mat' if mat else 'npz'}", inst_map=instances, type_map=kinds)
    return root


def write(path: Path, **arrays: Any) -> None:
    """A ``.npz`` or ``.mat``."""
    if path.suffix == ".mat":
        savemat(path, {name: np.asarray(value, np.float64) for name, value in arrays.items()})
    else:
        np.savez(path, **arrays)


def consep(root: Path, train: int, val: int) -> Path:
    """CoNSeP: Train and Test, .mat, seven types."""
    folder(root / "Train", train, 7, mat=True)
    folder(root / "Test", val, 7, seed=100, mat=True)
    return root


def lizard(root: Path, count: int) -> Path:
    """Lizard: images, Labels/*.mat with a class and an id for each nucleus, info.csv."""
    for part in ("images", "Labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    rows = ["Filename,Source,Split"]
    for number in range(count):
        instances, kinds = maps(number, 6)
        picture(instances, kinds, number).save(root / f"images/dpath_{number}.png")
        ids = np.unique(instances)[1:][::-1]  # listed in an order of their own
        classes = [kinds[instances == one][0] for one in ids]
        savemat(root / f"Labels/dpath_{number}.mat", {"inst_map": instances, "id": ids[:, None], "class": np.array(classes)[:, None]})
        rows.append(f"dpath_{number},dpath,{1 + number % 3}")
    (root / "info.csv").write_text("\n".join(rows) + "\n")
    return root


def pannuke(root: Path, count: int) -> Path:
    """PanNuke: folds of arrays, a channel of instances for each of five types."""
    for fold in (1, 2, 3):
        images, masks = np.zeros((count, SIDE, SIDE, 3)), np.zeros((count, SIDE, SIDE, 6))
        for number in range(count):
            instances, kinds = maps(10 * fold + number, 5)
            images[number] = np.asarray(picture(instances, kinds, number))
            for kind in range(1, 6):
                masks[number, ..., kind - 1] = instances * (kinds == kind)
        for name, array in (("images", images), ("masks", masks)):
            place = root / f"Fold {fold}/{name}/fold{fold}"
            place.mkdir(parents=True)
            np.save(place / f"{name}.npy", array)
    return root
