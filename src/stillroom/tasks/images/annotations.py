"""Annotated images as they lie on disk, brought to one form: COCO's JSON, Pascal VOC's XML, a table of files and tags."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stillroom.errors import InputError
from stillroom.tasks.images.folders import EXTENSIONS, Store, list_files

_HEADS = ("file", "filename", "image", "path")  # of a table's first column, where it has a head


@dataclass(frozen=True)
class Thing:
    """One annotated object, or a tag of the whole image.

    Attributes:
        name: of its class.
        box: (x1, y1, x2, y2) in pixels from the image's left upper corner; None where the annotation has none.
        crowd: it stands for many (COCO's iscrowd), or is too hard to be asked for (Pascal VOC's difficult).
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Annotated:
    """The images of one split, and the objects that each of them shows.

    Attributes:
        store: where the files are.
        names: their paths in it.
        things: of each image.
        sizes: bytes of each file.
        shapes: (height, width) of each image as its annotation says; None where it does not.
    """

    store: Store
    names: list[str]
    things: list[list[Thing]]
    sizes: dict[str, int]
    shapes: list[tuple[int, int] | None]

    @property
    def objects(self) -> list[Counter[str]]:
        """How many objects of which class each image shows."""
        return [Counter(thing.name for thing in things) for things in self.things]


def read_coco(images: str, annotations: str, argument: str) -> tuple[tuple[str, ...], Annotated]:
    """The categories, in the order of their ids, and the images of a COCO annotation file; crowds count as objects.

    Args:
        images: the folder or zip with the files.
        annotations: the JSON file.
        argument: what error messages call them.

    Raises:
        InputError: it is no such file, or names what is not there.
    """
    content = _json(annotations, argument)
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        shapes = {image["id"]: _coco_shape(image) for image in content["images"]}
        marks = [(mark["image_id"], mark["category_id"], mark) for mark in content["annotations"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(argument, annotations, f"COCO's images, categories and annotations ({error} is missing)") from None
    if len(set(files.values())) < len(content["images"]):
        twice = Counter(str(image["file_name"]) for image in content["images"]).most_common(1)[0][0]
        raise InputError(argument, f"{annotations} with images of one id, or with {twice} twice", "each image once, with an id of its own")
    classes = tuple(names[number] for number in sorted(names))
    if len(set(classes)) < len(content["categories"]):
        raise InputError(argument, annotations, "categories of different ids and names")
    if strange := [mark for mark in marks if mark[0] not in files or mark[1] not in names]:
        raise InputError(argument, f"{annotations}, whose annotations name image {strange[0][0]} of category {strange[0][1]}", "known ids")
    things: dict[Any, list[Thing]] = {number: [] for number in files}
    for image, category, mark in marks:
        things[image].append(Thing(names[category], _coco_box(mark, annotations, argument), bool(mark.get("iscrowd", 0))))
    store, sizes, _ = list_files(images, argument)
    found = _located(files.values(), sizes, annotations, argument)
    return classes, Annotated(store, found, list(things.values()), sizes, list(shapes.values()))


def _coco_shape(image: Mapping[str, Any]) -> tuple[int, int] | None:
    return (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None


def _coco_box(mark: Mapping[str, Any], annotations: str, argument: str) -> tuple[float, float, float, float] | None:
    if mark.get("bbox") is None:
        return None
    try:
        x, y, width, height = map(float, mark["bbox"])
    except (TypeError, ValueError):
        raise InputError(argument, f"{annotations} with the bbox {mark['bbox']!r}", "[x, y, width, height], four numbers") from None
    return x, y, x + width, y + height


def read_voc(root: str, splits: Sequence[str], argument: str) -> list[Annotated]:
    """The images of some splits of a set in Pascal VOC's layout, in a folder or a zip, at any depth.

    Args:
        root: holds `JPEGImages`, `Annotations` and `ImageSets/Main`.
        splits: names of lists in `ImageSets/Main`, ``train+val`` for two as one; or none: then all images with an annotation.
        argument: what error messages call it.

    Raises:
        InputError: not that layout, no such split, or files that are missing or damaged.
    """
    store, sizes, _ = list_files(root, argument)
    tops = sorted({name[: match.start()] for name in sizes if (match := re.search(r"(?<![^/])Annotations/[^/]+\.xml$", name))})
    if len(tops) != 1:
        got = f"{root} with {len(tops)} folders Annotations ({', '.join(map(repr, tops))})" if tops else root
        raise InputError(argument, got, "one set in Pascal VOC's layout: JPEGImages, Annotations/*.xml, ImageSets/Main/*.txt")
    top = tops[0]
    pictures = {
        name.rpartition("/")[2].rpartition(".")[0]: name
        for name in sorted(sizes)
        if name.startswith(f"{top}JPEGImages/") and name.rpartition(".")[2].lower() in EXTENSIONS
    }
    if splits:
        listed = [_voc_split(store, sizes, f"{top}ImageSets/Main/", split, argument) for split in splits]
    else:
        annotated = rf"{re.escape(top)}Annotations/([^/]+)\.xml"
        listed = [sorted(match[1] for name in sizes if (match := re.fullmatch(annotated, name)))]
    return [_voc_images(store, sizes, top, pictures, ids, argument) for ids in listed]


def voc_splits(root: str, argument: str) -> list[str]:
    """Names of the lists in `ImageSets/Main` that are of the whole set, not of one class."""
    _, sizes, _ = list_files(root, argument)
    found = {match[1] for name in sizes if (match := re.search(r"(?<![^/])ImageSets/Main/([^/]+)\.txt$", name))}
    return sorted(name for name in found if "_" not in name)


def read_tags(table: str, images: str | None, argument: str) -> Annotated:
    """The images of a CSV file with a file and its tags in each row: ``photos/1.jpg,beach;sea``; a row without tags has none.

    Args:
        table: the file, UTF-8; a first row whose first cell is ``file`` is a head.
        images: the folder or zip that files are relative to; None for the table's own folder.
        argument: what error messages call it.

    Raises:
        InputError: it is no such table, or names a file twice or one that is missing.
    """
    path = Path(table).expanduser()
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(argument, table, f"a CSV file that can be read ({getattr(error, 'strerror', None) or error})") from None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if row]
    if numbered and numbered[0][1][0].strip().lower() in _HEADS:
        numbered = numbered[1:]
    if not numbered:
        raise InputError(argument, table, "a row for each image: file,tag;tag")
    tags: dict[str, list[Thing]] = {}
    for number, row in numbered:
        name = row[0].strip()
        if not name or len(row) > 2:
            raise InputError(argument, f"{table}, row {number}: {','.join(row)}", "file,tag;tag (a name with a comma in quotes)")
        if name in tags:
            raise InputError(argument, f"{table}, row {number}: {name}", "each file once")
        words = (tag.strip() for cell in row[1:] for tag in cell.split(";"))
        tags[name] = [Thing(tag) for tag in dict.fromkeys(words) if tag]
    store, sizes, _ = list_files(str(path.parent) if images is None else images, argument)
    found = _located(tags, sizes, table, argument)
    return Annotated(store, found, list(tags.values()), sizes, [None] * len(found))


def _located(names: Iterable[str], sizes: Mapping[str, int], source: str, argument: str) -> list[str]:
    """The paths in the store, where all may lie in one top folder that the names leave out."""
    tops = {name.partition("/")[0] for name in sizes}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    plain = [name.replace("\\", "/").removeprefix("./") for name in names]
    found = [name if name in sizes else f"{top}{name}" for name in plain]
    if missing := [name for name in found if name not in sizes]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(argument, f"{source} with files that are missing: {', '.join(missing[:5])}{more}", "images that are there")
    return found


def _json(path: str, argument: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(argument, path, f"a JSON file that can be read ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(content, dict):
        raise InputError(argument, path, "COCO's images, categories and annotations")
    return content


def _voc_split(store: Store, sizes: Mapping[str, int], lists: str, split: str, argument: str) -> list[str]:
    ids: dict[str, None] = {}
    for part in split.split("+"):
        name = f"{lists}{part}.txt"
        if name not in sizes:
            known = [found[len(lists) : -4] for found in sorted(sizes) if found.startswith(lists) and "_" not in found[len(lists) :]]
            raise InputError(argument, part, f"a split of ImageSets/Main: {', '.join(known) or 'there is none'}")
        ids |= dict.fromkeys(line.split()[0] for line in store.read(name).decode().splitlines() if line.strip())
    if not ids:
        raise InputError(argument, split, "a split with images in it")
    return list(ids)


def _voc_images(store: Store, sizes: dict[str, int], top: str, pictures: Mapping[str, str], ids: Sequence[str], argument: str) -> Annotated:
    missing = [number for number in ids if number not in pictures or f"{top}Annotations/{number}.xml" not in sizes]
    if missing:
        raise InputError(
            argument, f"no image or no annotation of {', '.join(missing[:5])}", "JPEGImages and Annotations of every listed id"
        )
    things, shapes = [], []
    for number in ids:
        name = f"{top}Annotations/{number}.xml"
        try:
            root = ElementTree.fromstring(store.read(name))
        except ElementTree.ParseError as error:
            raise InputError(argument, name, f"XML ({error})") from None
        things.append([_voc_thing(thing, name, argument) for thing in root.findall("object")])
        shapes.append(_voc_shape(root, name, argument))
    return Annotated(store, [pictures[number] for number in ids], things, sizes, shapes)


def _voc_shape(root: ElementTree.Element, source: str, argument: str) -> tuple[int, int] | None:
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except ValueError:
        raise InputError(argument, f"{source} with a size that is no number", "width and height in pixels") from None
    return (height, width) if height and width else None


def _voc_thing(thing: ElementTree.Element, source: str, argument: str) -> Thing:
    """Pixels count from 1 and the box's last ones belong to it: 1 is taken from its left and upper side alone."""
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise InputError(argument, f"{source} with an object without a name", "a name of each object")
    box = None
    if (corners := thing.find("bndbox")) is not None:
        try:
            x1, y1, x2, y2 = (float(corners.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise InputError(argument, f"{source} with a bndbox that lacks a number", "xmin, ymin, xmax and ymax") from None
        box = x1 - 1, y1 - 1, x2, y2
    return Thing(name, box, (thing.findtext("difficult") or "0").strip() == "1")
