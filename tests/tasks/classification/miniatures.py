"""Small data sets in the layouts that the real ones have on disk."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (12, 12), **options: Any) -> None:
    """One image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def classes_of_pictures(
    root: Path, classes: Sequence[str] = ("cat", "dog"), count: int = 5, size: tuple[int, int] = (12, 12), extension: str = "png"
) -> Path:
    """`root`/CLASS/0.png, ...: red says the class (40 each), green the number (10 each)."""
    for number, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i}.{extension}", (40 * number, 10 * i, 0), size)
    return root


def pictures_of_every_mode(root: Path, size: tuple[int, int] = (60, 44)) -> list[Path]:
    """One picture as people's files have it: 16 bits a channel, with a palette, in CMYK, with alpha, lying down, gray, moving."""
    root.mkdir(parents=True, exist_ok=True)
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colours = np.stack([across, down, (across * down) ** 2], -1)
    image = Image.fromarray((255 * colours).astype(np.uint8))
    alpha = image.copy()
    alpha.putalpha(Image.fromarray((255 * across).astype(np.uint8)))
    exif = Image.Exif()
    exif[274] = 6
    deep = Image.fromarray((65535 * across * down).astype(np.uint16))
    saved: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("deep.png", deep, {}),
        ("deep.tiff", deep, {}),
        ("palette.png", image.quantize(16), {}),
        ("clear_palette.png", image.quantize(16), {"transparency": 3}),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("alpha.png", alpha, {}),
        ("gray_alpha.png", alpha.convert("LA"), {}),
        ("turned.jpg", image, {"exif": exif, "quality": 95}),
        ("gray.png", image.convert("L"), {}),
        ("bits.png", image.convert("1"), {}),
        ("animation.gif", image, {"save_all": True, "append_images": [image.rotate(90)]}),
    ]
    for name, one, options in saved:
        one.save(root / name, **options)
    return [root / name for name, _, _ in saved]


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    """The folder as a zip, with what macOS adds."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
        file.writestr("__MACOSX/cat/._0.png", b"not an image")
    return archive


def cifar100(root: Path, train: int = 20, test: int = 10) -> Path:
    """CIFAR-100's Python version: pickles of noise, of five classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> None:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    for name, count in (("train", train), ("test", test)):
        pixels = numbers.integers(0, 256, (count, 3072), np.uint8)
        write(name, {"data": pixels, "fine_labels": [i % 5 for i in range(count)], "filenames": [f"{name}_{i}.png" for i in range(count)]})
    write("meta", {"fine_label_names": ["apple", "baby", "bear", "beaver", "bed"]})
    return root


def tiny_imagenet(root: Path) -> Path:
    """Tiny-ImageNet's folder, of two classes with three training images each."""
    wnids = ("n01443537", "n01629819")
    for wnid in wnids:
        for i in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", size=(64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes\n")
    rows = [f"val_{i}.JPEG\t{wnids[1 - i]}\t0\t0\t63\t63\n" for i in range(2)]
    for i in range(2):
        picture(root / "val" / "images" / f"val_{i}.JPEG", size=(64, 64))
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander, Salamandra\n")
    (root / "test" / "images").mkdir(parents=True)
    return root


def imagenet(root: Path) -> Path:
    """ImageNet's folders train and val, of two classes with three photographs each."""
    for split in ("train", "val"):
        classes_of_pictures(root / split, ("n01440764", "n01443537"), 3, (80, 60), "JPEG")
    return root
