"""Label maps as people have them: indices, numbers, colours; and what means no class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.images.label_maps import LabelSpace, label_space, read_classes, voc_colours
from stillroom.tasks.images.stores import UnreadableImage
from tests.tasks.segmentation.miniatures import palette

SPACE = LabelSpace(("background", "cat", "dog"), colours=voc_colours(3))


def content(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


def test_vocs_palette() -> None:
    assert voc_colours(22)[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert voc_colours(22)[15] == (192, 128, 128)
    assert voc_colours(256)[255] == (224, 224, 192)


@pytest.mark.parametrize("as_mode", ["palette", "L", "I;16", "rgb by colour", "rgb of numbers", "rgba"])
def test_one_map_in_every_form(as_mode: str) -> None:
    labels = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    grey = Image.fromarray(labels)
    forms = {
        "palette": palette(labels),  # not 38 and 75, which grey levels of its colours are
        "L": grey,
        "I;16": Image.fromarray(labels.astype(np.uint16)),
        "rgb by colour": palette(labels).convert("RGB"),
        "rgb of numbers": grey.convert("RGB"),
        "rgba": palette(labels).convert("RGBA"),
    }
    assert SPACE.read(content(forms[as_mode]), "m.png").tolist() == labels.tolist()


def test_numbers_beyond_the_classes_are_named_with_their_file() -> None:
    wrong = np.array([[0, 3], [7, 7]], np.uint8)
    with pytest.raises(
        InputError, match=r"m\.png with the numbers 3 \(1 pixels\), 7 \(2 pixels\), expected numbers of the 3 classes \(0 to 2"
    ):
        SPACE.read(content(Image.fromarray(wrong)), "m.png")


def test_unknown_colours_are_named_and_colours_need_a_list() -> None:
    coloured = Image.fromarray(np.array([[[128, 0, 0], [9, 8, 7]]], np.uint8))
    with pytest.raises(InputError, match=r"m\.png with the colours \(9, 8, 7\), expected the colours of the list"):
        SPACE.read(content(coloured), "m.png")
    with pytest.raises(InputError, match=r"expected a list of classes with their colours"):
        LabelSpace(("a", "b")).read(content(coloured), "m.png")


def test_formats_that_change_numbers_and_damaged_files() -> None:
    with pytest.raises(InputError, match=r"m\.jpg, a JPEG or WebP, expected label maps as PNG"):
        SPACE.read(content(Image.fromarray(np.zeros((8, 8), np.uint8)), "JPEG"), "m.jpg")
    with pytest.raises(UnreadableImage, match=r"m\.png: not a readable label map"):
        SPACE.read(b"\x89PNG\r\n\x1a\n", "m.png")


def test_numbers_are_moved_only_where_that_is_said() -> None:
    labels = content(Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)))
    with pytest.raises(InputError, match="the numbers 0"):
        label_space({"classes": "wall+floor", "ids": "1-2"}, "data").read(labels, "m.png")
    ade = label_space({"classes": "wall+floor", "ids": "1-2", "ignore": "0+255"}, "data")
    assert ade.read(labels, "m.png").tolist() == [[255, 0, 1, 255]]
    two = label_space({"classes": "no+yes", "ids": "0+255"}, "data")
    assert two.read(content(Image.fromarray(np.array([[0, 255]], np.uint8))), "m.png").tolist() == [[0, 1]]


def test_lists_of_classes(tmp_path: Path) -> None:
    assert read_classes("\ufeffroad\ntraffic light\n\n") == (("road", "traffic light"), None)
    assert read_classes("name,r,g,b\nroad,128,64,128\nsky,70,130,180") == (("road", "sky"), ((128, 64, 128), (70, 130, 180)))
    assert read_classes('["a", "b"]') == (("a", "b"), None)
    (tmp_path / "list.txt").write_text("road 1 2 3\nsky")
    with pytest.raises(InputError, match="a colour behind every name"):
        label_space({"classes": str(tmp_path / "list.txt")}, "data")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the classes"),
        ({"classes": "a+a"}, "the name a twice"),
        ({"classes": "a+b", "ids": "1"}, "1 numbers for 2 classes"),
        ({"classes": "a+b", "ids": "x"}, "whole numbers"),
        ({"classes": "a+b", "ignore": "1"}, "which is ignored too"),
    ],
)
def test_contradictions_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        label_space(options, "data")
