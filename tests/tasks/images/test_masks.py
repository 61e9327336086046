"""Masks as programs write them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.tasks.images.masks import check_opaque, read_mask
from stillroom.tasks.images.stores import UnreadableImage

SHAPE = np.zeros((20, 30), np.uint8)
SHAPE[5:15, 8:20] = 1


def written(image: Image.Image, format: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    file.seek(0)
    return file


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(SHAPE, "P")
    image.putpalette([0, 0, 0, *colour])
    return image


def cut_out() -> Image.Image:
    return Image.fromarray(np.dstack([np.zeros((20, 30, 3), np.uint8), 255 * SHAPE]), "RGBA")  # black all over: the alpha is the shape


@pytest.mark.parametrize(
    "file",
    [
        written(Image.fromarray(255 * SHAPE)),
        written(Image.fromarray(SHAPE)),  # 0 and 1
        written(Image.fromarray(3 * SHAPE)),  # numbers of objects
        written(Image.fromarray(SHAPE.astype(bool))),
        written(Image.fromarray(255 * SHAPE).convert("RGB")),
        written(Image.fromarray(65535 * SHAPE.astype(np.uint16))),
        written(palette((255, 255, 255))),
        written(palette((128, 0, 0))),  # a VOC palette, which grey would make 38
        written(cut_out()),
        written(Image.fromarray(255 * SHAPE), "JPEG", quality=60),  # rings
    ],
    ids=["grey", "0-1", "ids", "bits", "rgb", "16-bit", "white palette", "coloured palette", "cut-out", "jpeg"],
)
def test_whatever_wrote_it_a_mask_is_the_same(file: io.BytesIO) -> None:
    mask = read_mask(file, "mask")
    assert mask.shape == (1, 20, 30)
    assert np.array_equal(mask[0].numpy(), 255 * SHAPE)


def test_soft_edges_stay_soft() -> None:
    soft = np.linspace(0, 255, 600).reshape(20, 30).round().astype(np.uint8)
    assert np.array_equal(read_mask(written(Image.fromarray(soft)), "mask")[0].numpy(), soft)


def test_what_is_no_mask_is_refused_by_name(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    with pytest.raises(UnreadableImage, match=r"^holiday.png: a coloured picture"):
        read_mask(written(photo), "holiday.png")
    with pytest.raises(UnreadableImage, match=r"broken.png: not a readable mask"):
        read_mask(io.BytesIO(b"nothing"), "broken.png")
    with pytest.raises(UnreadableImage, match="no such file"):
        read_mask(tmp_path / "mask.png")


def test_only_what_is_transparent_is_refused() -> None:
    opaque = Image.fromarray(np.full((20, 30, 4), 255, np.uint8), "RGBA")
    check_opaque(written(opaque), "photo.png")
    with pytest.raises(UnreadableImage, match=r"photo.png: it is transparent in parts"):
        check_opaque(written(cut_out()), "photo.png")
