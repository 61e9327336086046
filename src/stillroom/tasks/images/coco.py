"""COCO's format: one JSON file of images, categories and objects; boxes or, where there are none, masks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import (
    Annotated,
    Box,
    Notes,
    Places,
    Thing,
    all_relative,
    check_apart,
    content_of,
    flag,
    note_others,
    split_of,
)
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.folders import check_same, list_files

COCO_OPTIONS = ("val_images", "val_annotations", "val", "empty")
_MANY = 0.25  # share of boxes that reach out of their images, above which they are doubted
_PARTS = "COCO's images, categories and annotations"


def open_coco(path: str, options: dict[str, str], argument: str) -> tuple[tuple[str, ...], list[Annotated]]:
    """The categories, in the order of their ids, of ``coco:IMAGES,ANNOTATIONS.json`` or ``coco:ROOT``, and the images of one split or two.

    With ``val_images`` or ``val_annotations`` there is a second split. ROOT is a folder or a zip that holds the annotations too, and says
    by the names of files or folders which split they are of: Roboflow's ``train/_annotations.coco.json``, COCO's own
    ``annotations/instances_train2017.json``. Crowds count as objects.

    Raises:
        InputError: not COCO's format, or it names what is not there; other categories, or images of the first split, in the second; a
            share to hold out besides it.
    """
    images, comma, annotations = (part.strip() for part in path.rpartition(","))
    if not comma:
        return _open_root(path, options, argument)
    classes, train = _read(images, annotations, argument)
    if "val_annotations" not in options and "val_images" not in options:
        note_others([train])
        return classes, [train]
    if "val" in options:
        raise InputError(argument, f"val={options['val']}", "either a share to hold out or val_annotations, not both")
    val_images = options.get("val_images", images)
    other, val = _read(val_images, options.get("val_annotations", annotations), argument)
    check_same(classes, other, argument)
    if Path(val_images).expanduser().resolve() == Path(images).expanduser().resolve():
        check_apart(train, val, f"coco:{path} and its validation images", argument)
        note_others([train, val])
    else:
        note_others([train])
        note_others([val])
    return classes, [train, val]


def _open_root(root: str, options: dict[str, str], argument: str) -> tuple[tuple[str, ...], list[Annotated]]:
    if root.lower().endswith(".json"):
        raise InputError(argument, f"coco:{root}", "coco:IMAGES,ANNOTATIONS.json")
    store, sizes, _ = list_files(root, argument)
    by_split: dict[str, list[str]] = {}
    files = sorted(name for name in sizes if name.lower().endswith(".json"))
    for name in files:
        words = re.sub(r"[^a-z/]+", "/", name.lower())  # train2017 is of the split train
        by_split.setdefault(split_of(f"{words}/") or "" if len(files) > 1 else "", []).append(name)
    train = next((split for split in ("train", "") if split in by_split), "")
    held_out = next((split for split in ("val", "test") if split in by_split and train and "val" not in options), None)
    read = []
    for split in (train, held_out) if held_out else (train,):
        names = by_split.get(split, [])
        # COCO's own files of keypoints and captions lie beside those of objects.
        names = [name for name in names if re.search(r"instances|_annotations\.coco", name)] or names
        if len(names) != 1:
            got = f"coco:{root} with {len(names)} files of annotations{f' ({names[0]}, {names[1]}, ...)' if len(names) > 1 else ''}"
            raise InputError(argument, got, "coco:IMAGES,ANNOTATIONS.json, or one JSON file for each of the folders train and valid")
        places = Places(sizes, names[0], argument, near=names[0].rpartition("/")[0] + "/" if "/" in names[0] else "")
        read.append(_parsed(_json(content_of(store, names[0], argument), names[0], argument), store, names[0], argument, places))
    classes, parts = read[0][0], [part for _, part in read]
    if held_out:
        check_same(classes, read[1][0], argument)
        check_apart(parts[0], parts[1], f"coco:{root}", argument)
    note_others(parts)
    return classes, parts


def annotation_file(images: str, annotations: str) -> Path:
    """Where a file of annotations is, whose path may be relative to the images."""
    path, beside = Path(annotations).expanduser(), Path(images).expanduser() / annotations
    return beside if beside.is_file() and not path.is_file() else path


def _read(images: str, annotations: str, argument: str) -> tuple[tuple[str, ...], Annotated]:
    """The categories and images of an annotation file."""
    try:
        content = annotation_file(images, annotations).read_bytes()
    except OSError as error:
        raise InputError(argument, annotations, f"a JSON file that can be read ({error.strerror or error})") from None
    read = _json(content, annotations, argument)
    store, sizes, _ = list_files(images, argument)
    return _parsed(read, store, annotations, argument, Places(sizes, annotations, argument))


def _json(content: bytes, source: str, argument: str) -> dict[str, Any]:
    try:
        read = json.loads(content)  # in whatever UTF, with a byte-order mark or without
    except (ValueError, RecursionError) as error:
        raise InputError(argument, source, f"a JSON file that can be read ({error})") from None
    if not isinstance(read, dict):
        raise InputError(argument, source, _PARTS)
    return read


def read_coco_file(path: str, argument: str) -> tuple[dict[str, Any], Annotated]:
    """A file of annotations by itself, as it is written and as it is read; its images, which need not be there, by the names in it.

    Raises:
        InputError: it cannot be read, or is not COCO's format.
    """
    try:
        content = _json(Path(path).expanduser().read_bytes(), path, argument)
    except OSError as error:
        raise InputError(argument, path, f"a JSON file that can be read ({error.strerror or error})") from None
    return content, _parsed(content, Folder(Path(path).parent), path, argument, None)[1]


def _parsed(content: dict[str, Any], store: Store, source: str, argument: str, places: Places | None) -> tuple[tuple[str, ...], Annotated]:
    """The categories and the images; without `places` these are not looked for."""
    notes = Notes()
    try:
        names = {image_key(category["id"]): str(category["name"]) for category in content["categories"]}
        files = {image_key(image["id"]): str(image["file_name"]) for image in content["images"]}
        shapes = [_shape(image) for image in content["images"]]
        marks = [(image_key(mark["image_id"]), image_key(mark["category_id"]), mark) for mark in content["annotations"]]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(argument, source, f"{_PARTS} ({error} is missing)") from None
    if len(set(files.values())) < len(content["images"]):
        twice = Counter(str(image["file_name"]) for image in content["images"]).most_common(1)[0][0]
        raise InputError(argument, f"{source} with images of one id, or with {twice} twice", "each image once, with an id of its own")
    # Numbers before texts, each in their order.
    classes = tuple(names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key)))
    if len(set(classes)) < len(content["categories"]):
        raise InputError(argument, source, "categories of different ids and names")
    if strange := [mark for mark in marks if mark[0] not in files or mark[1] not in names]:
        raise InputError(argument, f"{source}, whose annotations name image {strange[0][0]} of category {strange[0][1]}", "known ids")
    things: dict[int | str, list[Thing]] = {key: [] for key in files}
    for image, category, mark in marks:
        box = _box(mark, source, argument)
        mask = mark.get("segmentation") if box is None else None
        things[image].append(Thing(names[category], box, flag(mark.get("iscrowd", 0)), mask or None))
    found, sizes = (places.find(files.values(), notes), places.sizes) if places else (list(files.values()), {})
    read = Annotated(store, found, list(things.values()), sizes, shapes, [False] * len(found), notes, list(files))
    relative = all_relative([read])
    return classes, replace(read if relative else _with_corners_read(read), relative=[relative] * len(found))


def _with_corners_read(read: Annotated) -> Annotated:
    """The same; where its boxes must be (x1, y1, x2, y2), not COCO's (x, y, width, height), read so.

    They must, where many would reach out of their image as the one, and all lie in it as the other, with corners in order.
    """
    boxes, out = 0, 0
    for things, shape in zip(read.things, read.shapes, strict=True):
        height, width = shape or (0, 0)
        for x, y, right, below in (thing.box for thing in things if thing.box is not None):
            if not (x < right - x <= width + 1 and y < below - y <= height + 1):
                return read
            boxes, out = boxes + 1, out + (right > width + 1 or below > height + 1)
    if out < _MANY * boxes or not boxes:
        return read
    read.notes.add("boxes of two corners, not of a corner and a size, read so", read.names[0], boxes)
    return replace(read, things=[[_of_corners(thing) for thing in things] for things in read.things])


def _of_corners(thing: Thing) -> Thing:
    """The same with the box whose second corner was read as its size."""
    if thing.box is None:
        return thing
    x, y, right, below = thing.box
    return replace(thing, box=(x, y, right - x, below - y))


def image_key(said: Any) -> int | str:
    """An id, of an image or a category, as it is compared: 7, 7.0 and "7" are one."""
    if isinstance(said, str):
        text = said.strip()
        return int(text) if text.isdecimal() else text
    return int(said)


def _shape(image: Mapping[str, Any]) -> tuple[int, int] | None:
    return (int(float(image["height"])), int(float(image["width"]))) if image.get("height") and image.get("width") else None


def _box(mark: Mapping[str, Any], source: str, argument: str) -> Box | None:
    bbox = mark.get("bbox")
    try:
        if not bbox or (mark.get("segmentation") and not any(bbox)):  # who has masks alone may write zeros
            return None
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        raise InputError(argument, f"{source} with the bbox {bbox!r}"[:300], "[x, y, width, height], four numbers") from None
    return x, y, x + width, y + height


def mask_bounds(mask: Any) -> Box:
    """The box around one of COCO's masks: polygons, or run lengths, as a list or compressed.

    Raises:
        ValueError: it is none.
    """
    try:
        if not isinstance(mask, Mapping):
            numbers = list(_flat(mask))
            if len(numbers) % 2:
                raise ValueError("an odd number of coordinates")
            return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
        from faster_coco_eval.core.mask import frPyObjects, toBbox  # type: ignore[import-untyped]

        size, counts = [int(side) for side in mask["size"]], mask["counts"]
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"a mask of the size {size}")
        if not isinstance(counts, str):
            counts = frPyObjects({"size": size, "counts": list(counts)}, *size)["counts"]
        x, y, width, height = toBbox({"size": size, "counts": counts}).tolist()
        return x, y, x + width, y + height
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError, RuntimeError) as error:
        raise ValueError(str(error)) from None


def _flat(polygons: Any) -> Iterator[float]:
    """x, y, x, y, ... of one polygon or of several, in pairs or not."""
    for part in polygons:
        if isinstance(part, list):
            yield from _flat(part)
        else:
            yield float(part)
