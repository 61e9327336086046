"""Whatever stands in an annotation file, reading it gives boxes or one line that says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.tasks.detection.sources import open_source
from tests.tasks.detection.test_as_people_have_it import BOXES, HEIGHT, WIDTH, coco, images, voc, xml, yolo

COUNT = 4
NUMBERS = st.integers() | st.floats() | st.sampled_from([-1, 0, 1, 0.5, 1e300, 10**400])
TEXTS = st.text(max_size=8) | st.sampled_from(["0", "1", "cat", "../x", "0.jpg", "%", "?d=", "NaN", "１", "²"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "counts", "size", "name", "0"]) | TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything in nested lists and dictionaries."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with something else at the end of a way; without it, if that is `...`."""
    if not path:
        return None if value is ... else value
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def read(spec: str) -> None:
    """Boxes that lie in their images, or one line."""
    source, said = None, "data: got"
    try:
        source = open_source(spec)
    except InputError as error:
        said = str(error)
    assert said.startswith("data: got")
    if source is None:
        return
    for part in (source.train, source.val):
        for boxes, shape in zip(part.boxes, part.shapes, strict=True):
            assert np.isfinite(boxes).all()
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
            assert (boxes[:, 2:] <= np.array(shape[::-1])).all()
    assert source.train.objects(len(source.classes)).sum() > 0


def segmented(content: dict[str, Any]) -> None:
    for mark in content["annotations"][::2]:
        del mark["bbox"]
        mark["segmentation"] = [[1, 2, 30, 2, 30, 20]]
    content["annotations"][2]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [100, 30, HEIGHT * WIDTH - 130]}


@given(data=st.data())
@FEW
def test_coco(data: st.DataObject, tmp_path: Path) -> None:
    images(tmp_path / "images", range(COUNT))
    content = coco(segmented, range(COUNT))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(content), key=len)))
        content = replaced(content, path, data.draw(VALUES | st.just(...)))
    (tmp_path / "boxes.json").write_text(json.dumps(content), encoding="utf-8", errors="replace")
    read(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")


@given(
    counts=st.lists(st.integers(-5, 3000), max_size=6) | st.text(max_size=10) | VALUES,
    size=st.lists(st.integers(-1, 70), max_size=3) | VALUES,
)
@FEW
def test_masks(counts: Any, size: Any, tmp_path: Path) -> None:
    images(tmp_path / "images", range(COUNT))
    content = coco(segmented, range(COUNT))
    content["annotations"][2]["segmentation"] = {"size": size, "counts": counts}
    (tmp_path / "boxes.json").write_text(json.dumps(content), encoding="utf-8", errors="replace")
    read(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")


ENCODINGS = st.sampled_from(["utf-8", "utf-16", "latin-1", "gbk", "big5", "utf-7", "idna", "base64", "nothing", "rot13", "undefined"])


@given(data=st.data(), said=ENCODINGS, split=st.booleans())
@FEW
def test_voc(data: st.DataObject, said: str, split: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("voc")
    spec = voc(root, xml(), lists=split)
    text = xml(head=f'<?xml version="1.0" encoding="{said}"?>', more="<difficult>0</difficult>").encode()
    start = data.draw(st.integers(0, len(text)))
    put = data.draw(st.binary(max_size=8) | st.sampled_from([b"</object>", b"<object>", b"&x;", b"1e999", b"nan", b"-", b"<!--"]))
    (root / "Annotations/1.xml").write_bytes(text[:start] + put + text[start + data.draw(st.integers(0, 12)) :])
    if split:
        (root / "ImageSets/Main/train.txt").write_bytes(b"1\n2\n3\n4\n" + data.draw(st.binary(max_size=8)))
    read(spec)


@given(data=st.data())
@FEW
def test_yolo(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("yolo")
    yolo(root)
    content: Any = {"path": ".", "train": "images/train", "val": ["images/val"], "names": {"0": "cat", "1": "dog"}, "nc": "2"}
    if data.draw(st.booleans()):
        path = data.draw(st.sampled_from(sorted(places(content), key=len)))
        content = replaced(content, path, data.draw(VALUES | st.just(...)))
    (root / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8", errors="replace")
    text = BOXES.encode()
    start = data.draw(st.integers(0, len(text)))
    put = data.draw(st.binary(max_size=8) | st.sampled_from([b" 0.5", b" 7", b"-", b"e9", b"\n", b"nan", b"inf", b"1e400"]))
    (root / "labels/train/1.txt").write_bytes(text[:start] + put + text[start + data.draw(st.integers(0, 12)) :])
    read(f"yolo:{root}")


@given(content=st.binary(max_size=60))
@FEW
def test_any_bytes_in_the_place_of_a_file(content: bytes, tmp_path: Path) -> None:
    images(tmp_path / "images", range(COUNT))
    for name in ("boxes.json", "data.yaml", "images/0.xml"):
        (tmp_path / name).write_bytes(content)
    read(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")
    read(f"yolo:{tmp_path / 'data.yaml'}")
    read(f"voc:{tmp_path}")
