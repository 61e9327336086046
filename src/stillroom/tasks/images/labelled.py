"""From images that were listed, each with a label, to a source: classes and their order, splits, size, fingerprint, what is to be said."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import passed_over, printable
from stillroom.tasks.images.sources import IMAGENET_STATISTICS, LabelledSource, held_out_share
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages, UnreadableImage, hold_out

SMALL = 64  # pixels; images of one size up to this are trained on as they are
PHOTOGRAPHS = 224  # pixels that all others are brought to
SPLITS = {  # what tables, folders and shards call the part of a set that an image belongs to
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


@dataclass(frozen=True)
class Item:
    """An image that was listed.

    Attributes:
        name: in its store.
        label: as it is written; "" for none.
        split: "train", "val" or "test"; "" where nothing says it.
    """

    name: str
    label: str
    split: str = ""


def source_of(
    name: str,
    classes: tuple[str, ...],
    train: Images,
    val: Images,
    sizes: Mapping[str, int],
    image_size: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    augment: str,
    *,
    why: str = "the size of these images",
    notes: Sequence[str] = (),
) -> LabelledSource:
    """A source with its fingerprint; `sizes`: bytes of each file."""
    digest = hashlib.sha256(repr((name, classes)).encode())
    for images in (train, val):
        digest.update(np.ascontiguousarray(images.labels).tobytes())
        if isinstance(images, FileImages):
            digest.update("\n".join(f"{path} {sizes[path]}" for path in images.names).encode(errors="surrogateescape"))
        elif isinstance(images, MemoryImages):
            digest.update(images.pixels[:: max(1, len(images) // 1000)].numpy().tobytes())
    mean, std = statistics
    return LabelledSource(
        name=name,
        classes=classes,
        train=train,
        val=val,
        mean=mean,
        std=std,
        fingerprint=digest.hexdigest()[:16],
        image_size=image_size,
        augment=augment,
        why=why,
        said=tuple(notes),
    )


def folder_source(
    name: str, classes: tuple[str, ...], train: Images, val: Images, sizes: Mapping[str, int], notes: Sequence[str] = ()
) -> LabelledSource:
    """Small images of one size are used as they are, with CIFAR's augmentation; all others as ImageNet's."""
    small, why = _small_size(train)
    size, augment = small or PHOTOGRAPHS, "cifar" if small else "imagenet"
    return source_of(name, classes, train, val, sizes, size, IMAGENET_STATISTICS, augment, why=why, notes=notes)


def _small_size(images: Images) -> tuple[int | None, str]:
    """The shorter side, if 64 images spread over the set all have the same small size (an odd one elsewhere is resized), and why."""
    sizes: dict[tuple[int, int], None] = {}
    failures = []
    for index in np.unique(np.linspace(0, len(images) - 1, 64).astype(int)).tolist():
        try:
            image = images.image(index)
        except UnreadableImage as error:
            failures.append(error)
            continue
        sizes[image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])] = None
        shown = " and ".join(f"{width} × {height}" for width, height in sizes)
        if max(max(size) for size in sizes) > SMALL:
            return None, f"the default for photographs, of which one is {shown.split(' and ')[-1]}"
        if len(sizes) > 1:
            return None, f"the default where images differ in size, as here {shown} pixels; --image-size {min(min(sizes))} takes less time"
    if not sizes:
        raise failures[0]
    (size,) = sizes
    return min(size), f"all images are {shown} pixels, which is small enough to be taken as it is"


# From items to a source -----------------------------------------------------------------------------------------------------------------


def items_source(
    kind: str,
    store: Store,
    items: Sequence[Item],
    options: Mapping[str, str],
    argument: str,
    *,
    where: str,
    classes: Sequence[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> LabelledSource:
    """A source of labelled items: of the split that each says it is in, or of a share that is held out where none is said.

    Args:
        kind: of data.
        store: where the items are.
        items: of all splits.
        options: with ``val``, a share to hold out, where the items' splits say nothing.
        argument: what errors call the data.
        where: what the items were listed in, for messages.
        classes: their names in the order of a network's answers; by default the labels that training items have, in the order of numbers
            where all are whole numbers, else in that of text.
        sizes: bytes of each file, where they are known; by default the store's.
        notes: what is to be said already.

    Raises:
        InputError: an image with two labels; no label; fewer than two classes; a validation label that no training image has; no image to
            train or to validate on; a share to hold out of a set that has a validation split.
    """
    said = list(notes)
    unlabelled = [item.name for item in items if not item.label]
    said += passed_over(unlabelled, "without a label", "image")
    kept = _each_once([item for item in items if item.label], where, argument, said)
    if not kept:
        raise InputError(argument, where, "images with labels; there are none")
    kept = _splits(kept, options, where, argument, said)
    training = [item.label for item in kept if item.split != "val"]
    order = tuple(classes) if classes is not None else _order(training, said)
    number = {label: k for k, label in enumerate(order)}
    if unknown := Counter(item.label for item in kept if item.label not in number):
        what = ", ".join(f"{label} ({count} image{'' if count == 1 else 's'})" for label, count in unknown.most_common(5))
        raise InputError(argument, f"{where} with validation labels that no training image has: {what}", "labels of training images")
    if len(order) < 2:
        raise InputError(argument, f"{where} with {len(order)} class ({', '.join(order)})", "at least two")
    labels = np.array([number[item.label] for item in kept], np.int64)
    held_out = np.array([item.split == "val" for item in kept])
    if not held_out.any():
        share = held_out_share(dict(options), argument)
        held_out = hold_out(labels, order, share, argument)
        said.append(f"held out {share:.0%} of each class to validate on: {held_out.sum()} images, always the same")
    known = {item.name: store.size(item.name) or 0 for item in kept} if sizes is None else sizes
    train, val = (FileImages(store, [kept[i].name for i in np.flatnonzero(part)], labels[part]) for part in (~held_out, held_out))
    return folder_source(kind, order, train, val, known, said)


def _each_once(items: Sequence[Item], where: str, argument: str, said: list[str]) -> list[Item]:
    """The items without those that are there twice with one label."""
    first: dict[str, Item] = {}
    repeated = []
    for item in items:
        known = first.setdefault(item.name, item)
        if known is not item:
            if known.label != item.label:
                got = f"{where} with {printable(item.name)} as {known.label} and as {item.label}"
                raise InputError(argument, got, "one label of each image (several: --task multilabel, e.g. of stillroom run l2d)")
            if known.split != item.split:
                raise InputError(
                    argument, f"{where} with {printable(item.name)} in {known.split} and in {item.split}", "splits that share none"
                )
            repeated.append(item.name)
    said += passed_over(repeated, "named before with the same label", "row")
    return list(first.values())


def _splits(items: list[Item], options: Mapping[str, str], where: str, argument: str, said: list[str]) -> list[Item]:
    """The items to train and to validate on; where there are validation and test images, without the latter."""
    found = Counter(item.split for item in items)
    held_out = next((split for split in ("val", "test") if found[split]), None)
    if held_out is None:
        return items
    if "val" in options:
        raise InputError(argument, f"val={options['val']}", f"no share to hold out, since {where} has a split {held_out} of its own")
    train = "train" if found["train"] else ""  # a table may mark the others alone
    if not found[train]:
        raise InputError(argument, f"{where} with no training image", "at least one")
    said += passed_over([item.name for item in items if item.split not in (train, held_out)], f"in neither train nor {held_out}", "image")
    return [Item(item.name, item.label, "train" if item.split == train else "val") for item in items if item.split in (train, held_out)]


def _order(labels: Sequence[str], said: list[str]) -> tuple[str, ...]:
    """The classes in the order of a network's answers."""
    names = set(labels)
    if not all(name.isascii() and name.isdecimal() for name in names):
        return tuple(sorted(names))
    numbers = sorted(set(map(int, names)))
    if numbers[0] == 1:
        said.append(f"labels start at 1: label 1 is the first of a network's {len(numbers)} answers")
    if missing := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if numbers[-1] - numbers[0] < 10_000 else []:
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        said.append(
            f"labels are numbers from {numbers[0]} to {numbers[-1]} of which no training image has {few}: the others are the classes"
        )
    return tuple(sorted(names, key=lambda name: (int(name), name)))


def plain_label(text: str) -> str:
    """A label as it is compared: without spaces around it, and a whole number without a fraction ("3.0", as columns with holes have it)."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.strip())


def split_named(text: str) -> str | None:
    """Which split a word means; None for none of those that are known."""
    return SPLITS.get(text.strip().lower())


def split_of_path(name: str) -> str:
    """Which split a file's path says it is of, by a folder's name or the beginning of its own; "" for none."""
    for part in reversed(name.lower().split("/")):
        if word := next((word for word in re.split(r"[^a-z]+", part) if word in SPLITS), None):
            return SPLITS[word]
    return ""


def number_order_note(classes: Sequence[str]) -> list[str]:
    """What is said of classes whose names are numbers but stand in the order of text."""
    if not all(name.isascii() and name.isdecimal() for name in classes):
        return []
    by_number = sorted(classes, key=int)
    if by_number == list(classes):
        return []
    shown, others = (", ".join(names[:4]) + (", ..." if len(names) > 4 else "") for names in (list(classes), by_number))
    return [f"classes are numbers in the order of text ({shown}): a teacher of bare weights may have them as {others}"]
