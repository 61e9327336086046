"""Where pictures and the classes of their pixels come from: ``objects``, ``voc:ROOT``, ``masks:ROOT``, ``coco:IMAGES,PANOPTIC.json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stillroom.errors import InputError, near
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import list_files, printable, single_top, told_apart
from stillroom.tasks.images.label_maps import IGNORE, VOC_CLASSES, LabelSpace, content_of_map, label_space, map_pixels, voc_colours
from stillroom.tasks.images.sources import (
    IMAGENET_STATISTICS,
    Kind,
    Source,
    held_out_samples,
    held_out_share,
    is_number,
    open_spec,
    whole_numbers,
)
from stillroom.tasks.images.stores import UnreadableImage
from stillroom.tasks.images.unlabelled import open_unlabelled
from stillroom.tasks.segmentation.masked import MaskedFiles, MaskedMemory, mask_of, size_of
from stillroom.tasks.segmentation.objects import CLASSES, SIDE, draw

_SIZE = 128  # pixels that are trained on, by default
_LOOKED_AT = 300  # masks of a split whose pixels are counted before a run
_LISTED = 5  # files that a message names
BACKGROUND = "background"
_PICTURES = ("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "leftimg8bit")  # what folders are called
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentationclass", "gtfine", "gt")
_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation", "test", "testing"), "val")
_VOC_MASKS = "SegmentationClass"
_CLASS_LISTS = ("class_names.txt", "classes.txt", "class_dict.csv")
_COMMON = ("classes", "ids", "ignore", "train_images", "val")


@dataclass(frozen=True, kw_only=True)
class SegmentationSource(Source):
    """Pictures and masks that were found and listed; training pictures may have no masks.

    Attributes:
        background: which class is none of the others; None where there is no such class.
        image_size: of what is trained on, in pixels, by default.
        augment: name of the default augmentation.
        colours: of the classes, for pictures of them.
        pixels: of each class, and last of those that count nowhere, int64 [2, C + 1], in the training and the validation masks that were
            looked at.
        looked_at: how many these are, of each split.
    """

    background: int | None
    image_size: int
    augment: str
    colours: tuple[tuple[int, int, int], ...]
    pixels: np.ndarray
    looked_at: tuple[int, int]


def open_source(spec: str, argument: str = "data") -> SegmentationSource:
    """What a specification of data names.

    Args:
        spec: ``objects`` (drawn; ``objects:train=1500,val=200,seed=0``);
            ``voc:ROOT``: Pascal VOC's layout in a folder or a zip: JPEGImages, SegmentationClass, ImageSets/Segmentation; ``masks=FOLDER``
            another folder of masks, ``train=`` and ``val=`` other lists;
            ``masks:ROOT``: folders of pictures and of masks, with train and val in them, around them, or split by ``val=0.2``; a mask bears
            its picture's name, with ``suffix=`` behind it;
            ``coco:IMAGES,PANOPTIC.json``: COCO's panoptic format; ``pngs=FOLDER`` where its masks are elsewhere, ``val_images=`` and
            ``val_annotations=`` for the other split.
            All but ``objects``: ``classes=FILE`` or ``classes=a+b`` names the classes, ``ids=0+255`` their numbers in the files,
            ``ignore=0`` numbers that count nowhere, ``train_images=SPEC`` pictures without masks to train on instead.
        argument: what errors call it.

    Raises:
        InputError: no such kind or option; nothing in that layout, or something that contradicts itself.
    """
    return open_spec(spec, KINDS, argument, others=", followed by where the pictures are, e.g. voc:VOC2012")


def _open_objects(path: str, options: dict[str, str], argument: str) -> SegmentationSource:
    given = {"train": 1500, "val": 200, "seed": 0, **whole_numbers(options, argument)}
    parts: dict[str, Any] = {}
    for number, split in enumerate(("train", "val")):
        pixels, masks, _ = draw(given[split], 2 * given["seed"] + number)
        parts[split] = MaskedMemory(pixels, masks, [f"{split}/{i}" for i in range(len(masks))])
    pixels_C = np.stack([np.bincount(part.masks.reshape(-1), minlength=256)[[*range(len(CLASSES)), IGNORE]] for part in parts.values()])
    mean, std = IMAGENET_STATISTICS
    return SegmentationSource(
        name="objects", classes=CLASSES, **parts, mean=mean, std=std, background=0, image_size=SIDE, augment="none", pixels=pixels_C,
        fingerprint=_digest("objects/1", sorted(given.items())), colours=voc_colours(len(CLASSES)),
        looked_at=(given["train"], given["val"]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Maps:
    """Reads the label maps of a store."""

    store: Store
    space: LabelSpace

    def __call__(self, name: str) -> np.ndarray:
        return self.space.read(content_of_map(self.store, name), name)


# Pascal VOC -----------------------------------------------------------------------------------------------------------------------------


def _open_voc(path: str, options: dict[str, str], argument: str) -> SegmentationSource:
    store, sizes, _ = list_files(path, argument)
    images, _ = told_apart(store, sizes)
    folder = options.get("masks", _VOC_MASKS)
    if folder != _VOC_MASKS and "classes" not in options:
        raise InputError(argument, f"masks={folder}", f"classes=FILE too: the set's own list names those of {_VOC_MASKS}")
    listed = [name for name in sorted(sizes) if re.search(r"(?<![^/])ImageSets/Segmentation/[^/]+\.txt$", name)]
    lists = {PurePosixPath(name).stem: name for name in listed}
    picture_of = {PurePosixPath(name).stem: name for name in images if _within(name, "JPEGImages")}
    map_of = {PurePosixPath(name).stem: name for name in images if _within(name, folder)}
    if not lists or not picture_of or not map_of:
        there = sorted({PurePosixPath(name).parent.name for name in images})[:_LISTED]
        expected = f"Pascal VOC's layout: JPEGImages, {folder} (or masks=FOLDER), ImageSets/Segmentation/*.txt; without lists: masks:{path}"
        raise InputError(argument, f"{path} with pictures in {', '.join(there) or 'no folder'}", expected)
    share = is_number(options.get("val", ""))
    asked = {"train": options.get("train", "train"), **({} if share else {"val": options.get("val", "val")})}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for split, names in asked.items():
        keys: list[str] = []
        for name in names.split("+"):
            if name not in lists:
                raise InputError(argument, f"{split}={name}", f"a list of ImageSets/Segmentation: {near(name, lists)}")
            keys += [line.split()[0] for line in store.read(lists[name]).decode("utf-8-sig").splitlines() if line.strip()]
        missing = [key for key in keys if key not in picture_of or key not in map_of]
        if missing:
            got = f"no picture or no mask of {', '.join(missing[:_LISTED])}, which {names} lists"
            raise InputError(argument, got, f"JPEGImages and {folder} of every listed name")
        pairs[split] = [(picture_of[key], map_of[key]) for key in dict.fromkeys(keys)]
    if both := set(pairs["train"]) & set(pairs.get("val", ())):
        raise InputError(argument, f"{printable(both.pop()[0])} in train and in val", "splits that share no picture")
    options = {**options, "val": options["val"] if share else "0.2"}
    space = _space(options, argument, store, sizes, VOC_CLASSES)
    space = space if space.colours else replace(space, colours=voc_colours(len(space.classes)))
    return _of_files("voc", {"train": (store, sizes)}, pairs, _Maps(store, space), space.classes, space.colours, options, argument)


def _within(name: str, folder: str) -> bool:
    return PurePosixPath(name).parent.name == folder


def _space(options: Mapping[str, str], argument: str, store: Store, sizes: Mapping[str, int], usual: Sequence[str] = ()) -> LabelSpace:
    """The classes of the masks: asked for, of a list beside them, or the usual ones; a file that is named may lie in the set itself."""
    asked = options.get("classes")
    beside = next((name for name in sizes if PurePosixPath(name).name.lower() in _CLASS_LISTS), None)
    inside = next((name for name in sizes if asked is not None and name.rpartition("/")[2] == asked), None)
    found = inside or (beside if asked is None else None)
    options = {name: value for name, value in options.items() if name != "classes" or inside is None}
    text = None if found is None else content_of_map(store, found).decode("utf-8-sig")
    return label_space(options, argument, found=text, usual=usual)


# Folders of pictures and of masks -------------------------------------------------------------------------------------------------------


def _open_masks(path: str, options: dict[str, str], argument: str) -> SegmentationSource:
    store, sizes, folders = list_files(path, argument)
    images, _ = told_apart(store, sizes)
    pictures: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # by split and folder: name by stem
    masks: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    top = single_top(sizes, folders)
    for name in images:
        parts = PurePosixPath(name.removeprefix(top)).parts
        inside = [part.lower() for part in parts[:-1]]
        role = next((part for part in inside if part in (*_PICTURES, *_MASKS)), None)
        if role is not None:
            split = next((_SPLITS[part] for part in inside if part in _SPLITS), "")
            rest = "/".join(part for part in inside if part != role and part not in _SPLITS)
            (pictures if role in _PICTURES else masks)[split, rest][PurePosixPath(name).stem] = name
    if not pictures or not masks:
        expected = f"folders of pictures ({', '.join(_PICTURES[:4])}, ...) and of masks ({', '.join(_MASKS[:4])}, ...) in it"
        raise InputError(argument, path, expected)
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for place in sorted({*pictures, *masks}):
        pairs[place[0] or "train"] += _paired(pictures[place], masks[place], options.get("suffix"), argument)
    space = _space(options, argument, store, sizes)
    return _of_files("masks", {"train": (store, sizes)}, pairs, _Maps(store, space), space.classes, space.colours, options, argument)


def _paired(pictures: Mapping[str, str], masks: Mapping[str, str], suffix: str | None, argument: str) -> list[tuple[str, str]]:
    """Pictures and masks of one folder: those of one name; a mask may have `suffix`, by default ``_mask``, behind it, and a picture, where
    a suffix is given, one of its own.

    Raises:
        InputError: some have no counterpart, or more than one.
    """
    found: dict[str, str] = {}
    alone = []
    for stem, mask in masks.items():
        if suffix is not None and not stem.endswith(suffix):
            continue  # of another kind, as Cityscapes has several
        key = stem.removesuffix("_mask" if suffix is None else suffix)
        match = next((one for one in (stem, key) if one in pictures), None)
        if match is None and suffix:
            match = next((one for one in pictures if one.startswith(f"{key}_")), None)
        if match is None or match in found:
            alone.append(mask)
        else:
            found[match] = mask
    alone += [name for stem, name in pictures.items() if stem not in found]
    if alone:
        got = f"{len(alone)} files without a counterpart, the first {', '.join(printable(name) for name in alone[:_LISTED])}"
        raise InputError(argument, got, "for each picture one mask of its name, a PNG; suffix=_gt where the masks' names end in that")
    return [(name, found[stem]) for stem, name in pictures.items()]


# COCO -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panoptic:
    """Reads COCO's panoptic PNGs: a segment's number in the three channels, its class in the JSON file; what is in none counts nowhere."""

    stores: Mapping[str, Store]  # by split
    segments: Mapping[str, Mapping[int, int]]  # by split and file: the class of each segment

    def __call__(self, name: str) -> np.ndarray:
        split, _, file = name.partition(":")
        pixels = map_pixels(content_of_map(self.stores[split], file), file)
        if pixels.ndim != 3:
            raise InputError("data", f"{printable(file)} with one channel", "COCO's panoptic PNGs; maps of class numbers: masks:ROOT")
        present, inverse = np.unique(pixels @ [1, 256, 256**2], return_inverse=True)
        classes = [self.segments[name].get(number, IGNORE) for number in present.tolist()]
        return np.array(classes, np.uint8)[inverse].reshape(pixels.shape[:2])


def _open_coco(path: str, options: dict[str, str], argument: str) -> SegmentationSource:
    images, comma, annotations = path.rpartition(",")
    if not comma or not annotations.endswith(".json"):
        raise InputError(argument, f"coco:{path}", "coco:IMAGES,PANOPTIC.json")
    files = {"train": annotations, **({"val": options["val_annotations"]} if "val_annotations" in options else {})}
    pictures = {split: list_files(options.get("val_images", images) if split == "val" else images, argument) for split in files}
    names: tuple[str, ...] = ()
    pairs: dict[str, list[tuple[str, str]]] = {}
    stores: dict[str, Store] = {}
    segments: dict[str, dict[int, int]] = {}
    for split, file in files.items():
        names, marks = _panoptic(file, argument)
        pngs = options.get("pngs", file.removesuffix(".json"))
        stores[split], mask_sizes, _ = list_files(pngs, argument)
        picture_of, map_of = ({PurePosixPath(name).name: name for name in found} for found in (pictures[split][1], mask_sizes))
        if missing := [name for picture, mask, _ in marks for name, known in ((picture, picture_of), (mask, map_of)) if name not in known]:
            raise InputError(argument, f"{file}, which names {missing[0]}", f"its pictures in {images}, its masks in {pngs}")
        pairs[split] = [(picture_of[picture], f"{split}:{map_of[mask]}") for picture, mask, _ in marks]
        segments |= {f"{split}:{map_of[mask]}": classes for _, mask, classes in marks}
    read = _Panoptic(stores, segments)
    return _of_files("coco", {split: found[:2] for split, found in pictures.items()}, pairs, read, names, None, options, argument)


def _panoptic(file: str, argument: str) -> tuple[tuple[str, ...], list[tuple[str, str, dict[int, int]]]]:
    """Names of the classes; of each annotation the names of picture and mask, and the class of each segment, crowds counting nowhere."""
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8-sig"))
        categories = sorted(content["categories"], key=lambda one: int(one["id"]))
        index = {int(one["id"]): number for number, one in enumerate(categories)}
        picture_of = {one["id"]: one["file_name"] for one in content["images"]}
        marks = []
        for mark in content["annotations"]:
            of = {int(one["id"]): IGNORE if one.get("iscrowd") else index[int(one["category_id"])] for one in mark["segments_info"]}
            marks.append((PurePosixPath(picture_of[mark["image_id"]]).name, PurePosixPath(mark["file_name"]).name, of))
        return tuple(str(one["name"]) for one in categories), marks
    except OSError as error:
        raise InputError(argument, file, f"a file that can be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        got = f"{file} ({type(error).__name__}: {error})"
        raise InputError(argument, got, "COCO's panoptic JSON: images, categories, annotations with file_name and segments_info") from None


# From what was listed to a source -------------------------------------------------------------------------------------------------------


def _of_files(
    kind: str,
    stores: Mapping[str, tuple[Store, Mapping[str, int]]],
    pairs: Mapping[str, list[tuple[str, str]]],
    read: Any,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...] | None,
    options: Mapping[str, str],
    argument: str,
) -> SegmentationSource:
    """A source of files, some masks of which were looked at."""
    train, val = pairs.get("train", []), pairs.get("val", [])
    if not val:
        held_N = held_out_samples(len(train), held_out_share(dict(options), argument))
        train, val = ([train[i] for i in np.flatnonzero(part)] for part in (~held_N, held_N))
    if not train or not val:
        raise InputError(argument, f"{len(train)} + {len(val)} pictures with masks", "at least one to train on and one to measure with")
    parts: dict[str, Any] = {}
    sizes: list[list[Any]] = []
    for split, listed in (("train", train), ("val", val)):
        store, bytes_of = stores.get(split, stores["train"])
        parts[split] = MaskedFiles(store, [picture for picture, _ in listed], [mask for _, mask in listed], read)
        sizes.append([(picture, bytes_of[picture], mask) for picture, mask in listed])
    pixels, looked_at = zip(*(_look(part, len(classes)) for part in parts.values()), strict=True)
    content = _digest(kind, classes, repr(getattr(read, "space", "")), sizes)
    said: tuple[str, ...] = ()
    if "train_images" in options:
        parts["train"], other = open_unlabelled(options["train_images"], 0)
        content, said = _digest(content, other), (f"training pictures without masks: {options['train_images']}",)
    mean, std = IMAGENET_STATISTICS
    return SegmentationSource(
        name=kind, classes=classes, **parts, mean=mean, std=std, fingerprint=content, said=said, image_size=_SIZE, augment="crop",
        background=classes.index(BACKGROUND) if BACKGROUND in classes else None, colours=colours or voc_colours(len(classes)),
        pixels=np.stack(pixels), looked_at=looked_at,
    )  # fmt: skip


def _look(images: MaskedFiles, num_classes: int) -> tuple[np.ndarray, int]:
    """Pixels of each class, and last of those that count nowhere, int64 [C + 1], in some masks, and how many masks these are.

    Raises:
        InputError: a mask of another size than its picture, or with numbers that mean no class.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).round().astype(np.int64))

    def counted(index: int) -> np.ndarray | None:
        try:
            mask_HW = mask_of(images, index, size_of(images.image(index)))
        except UnreadableImage:
            return None  # told later, with all others
        assert mask_HW is not None
        return np.bincount(mask_HW.reshape(-1), minlength=IGNORE + 1)[[*range(num_classes), IGNORE]]

    with ThreadPoolExecutor() as threads:
        found = [counts for counts in threads.map(counted, chosen.tolist()) if counts is not None]
    return sum(found, np.zeros(num_classes + 1, np.int64)), len(found)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:16]


KINDS: Sequence[Kind[SegmentationSource]] = (
    Kind("objects", _open_objects, ("train", "val", "seed"), needs_path=None),
    Kind("voc", _open_voc, (*_COMMON, "train", "masks"), needs_path="ROOT"),
    Kind("masks", _open_masks, (*_COMMON, "suffix"), needs_path="ROOT"),
    Kind("coco", _open_coco, ("val", "val_images", "val_annotations", "pngs", "train_images"), needs_path="IMAGES,PANOPTIC.json"),
)
