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
from stillroom.tasks.classification.folders import EXTENSIONS, Folder, Zip, list_files, single_top

_HEADS = ("file", "filename", "image", "path")  # of a table's first column, where it has a head


@dataclass(frozen=True)
class Annotated:
    """The images of one split, and how many objects of which class each of them shows.

    Attributes:
        store: where the files are.
        names: their paths in it.
        objects: of each image; 1 where objects are not counted.
        sizes: bytes of each file.
    """

    store: Folder | Zip
    names: list[str]
    objects: list[Counter[str]]
    sizes: dict[str, int]


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
        pairs = [(annotation["image_id"], annotation["category_id"]) for annotation in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise InputError(argument, annotations, f"COCO's images, categories and annotations ({error} is missing)") from None
    classes = tuple(names[number] for number in sorted(names))
    if len(set(classes)) < len(content["categories"]):
        raise InputError(argument, annotations, "categories of different ids and names")
    if strange := [pair for pair in pairs if pair[0] not in files or pair[1] not in names]:
        raise InputError(argument, f"{annotations}, whose annotations name image {strange[0][0]} of category {strange[0][1]}", "known ids")
    objects: dict[Any, Counter[str]] = {number: Counter() for number in files}
    for image, category in pairs:
        objects[image][names[category]] += 1
    store, sizes, folders = list_files(images, argument)
    found = _located(files.values(), sizes, single_top(sizes, folders), annotations, argument)
    return classes, Annotated(store, found, list(objects.values()), sizes)


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
    tags: dict[str, Counter[str]] = {}
    for number, row in numbered:
        name = row[0].strip()
        if not name or len(row) > 2:
            raise InputError(argument, f"{table}, row {number}: {','.join(row)}", "file,tag;tag (a name with a comma in quotes)")
        if name in tags:
            raise InputError(argument, f"{table}, row {number}: {name}", "each file once")
        tags[name] = Counter({tag.strip(): 1 for cell in row[1:] for tag in cell.split(";") if tag.strip()})
    store, sizes, folders = list_files(str(path.parent) if images is None else images, argument)
    found = _located(tags, sizes, single_top(sizes, folders), table, argument)
    return Annotated(store, found, list(tags.values()), sizes)


def _located(names: Iterable[str], sizes: Mapping[str, int], top: str, source: str, argument: str) -> list[str]:
    """The paths in the store, where all may lie in one top folder that the names leave out."""
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


def _voc_split(store: Folder | Zip, sizes: Mapping[str, int], lists: str, split: str, argument: str) -> list[str]:
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


def _voc_images(
    store: Folder | Zip, sizes: dict[str, int], top: str, pictures: Mapping[str, str], ids: Sequence[str], argument: str
) -> Annotated:
    missing = [number for number in ids if number not in pictures or f"{top}Annotations/{number}.xml" not in sizes]
    if missing:
        raise InputError(
            argument, f"no image or no annotation of {', '.join(missing[:5])}", "JPEGImages and Annotations of every listed id"
        )
    objects = []
    for number in ids:
        name = f"{top}Annotations/{number}.xml"
        try:
            found = ElementTree.fromstring(store.read(name)).findall("object")
        except ElementTree.ParseError as error:
            raise InputError(argument, name, f"XML ({error})") from None
        objects.append(Counter((thing.findtext("name") or "").strip() for thing in found))
    if any("" in counted for counted in objects):
        raise InputError(argument, f"{top}Annotations with an object without a name", "a name of each object")
    return Annotated(store, [pictures[number] for number in ids], objects, sizes)
