"""Where classified images come from, as one string: ``digits``, ``imagefolder:photos,val=0.2``, ``cifar100:PATH``, ``my.module:function``.

`open_source` only lists: names, labels, classes. Pixels are read when they are asked for, or once and for all by `images.into_memory`
where a whole set is small.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import logging
import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.errors import InputError, near
from stillroom.tasks.images.folders import check_same, find_splits, list_classes, list_files, passed_over, single_top, told_apart
from stillroom.tasks.images.labelled import SMALL, folder_source, number_order_note, source_of
from stillroom.tasks.images.records import open_hf, open_parquet
from stillroom.tasks.images.shapes import SIZE, class_names, shape_images
from stillroom.tasks.images.shards import open_webdataset
from stillroom.tasks.images.sources import (
    IMAGENET_STATISTICS,
    Kind,
    LabelledSource,
    held_out_share,
    kind_of,
    open_spec,
    split_options,
    whole_numbers,
)
from stillroom.tasks.images.stores import DatasetImages, FileImages, MemoryImages, UnreadableImage, hold_out, stratified
from stillroom.tasks.images.table_labels import COLUMNS, open_csv, open_relabelled

logger = logging.getLogger(__name__)

__all__ = ["KINDS", "SMALL", "open_source"]

CIFAR_STATISTICS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
TINY_IMAGENET_STATISTICS = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
_PAPERS = "the papers' size"
_CIFAR = {  # folder, training files, test files, file of class names, and the two keys
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta", "labels", "label_names"),
    100: ("cifar-100-python", ["train"], ["test"], "meta", "fine_labels", "fine_label_names"),
}


def open_source(spec: str, *, argument: str = "data") -> LabelledSource:
    """Find and list the images that a specification names.

    Args:
        spec: one of
            ``digits``: scikit-learn's 8x8 scans, 900 for training and 897 for validation;
            ``shapes``: 60 classes of 16x16 pictures, each a shape, a hue and a texture, drawn when asked for; 50 of each class for training
            and 20 for validation, or ``,train=N,val=N``; with ``,teacher=N`` a teacher is trained on so many, which begin with
            the students'; with ``,seed=1`` on other pictures, to choose settings on;
            ``imagefolder:PATH``: a folder, zip or tar of ``train/CLASS/*.jpg`` and ``val/`` or ``test/``, or of ``CLASS/*.jpg``, of which
            the share ``,val=0.2`` (stratified, always the same images) is held out; with ``,labels=FILE`` the training images that a
            table names have its labels;
            ``csv:FILE``: a table (CSV with any delimiter, JSON lines) with an image and its label in each row, see `table_labels.open_csv`;
            ``webdataset:SHARDS``: tar shards, see `shards.open_webdataset`;
            ``parquet:FILE_OR_FOLDER``, ``hf:FOLDER``: images in tables, see `records.open_parquet` and `records.open_hf`;
            ``cifar10:PATH``, ``cifar100:PATH``: the Python version of the sets as torchvision keeps it, downloaded where missing;
            ``tiny-imagenet:PATH``, ``imagenet:PATH``: a folder or zip in the original layout;
            ``package.module:function`` or ``file.py:function``: called with the options as keyword arguments, returns (train, val), torch
            data sets of (image, label) with an optional attribute ``classes``, neither augmented nor normalised.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    kind = kind_of(spec)
    try:
        if kind not in (known.name for known in KINDS):
            place, _, function = spec.partition(":")
            if function and (place.endswith(".py") or (re.fullmatch(r"[\w.]+", place) and _module_exists(place))):
                return _from_function(place, *split_options(function, argument), argument)
            if kind.endswith(".py"):
                raise InputError(argument, spec, "file.py:function")
            if Path(spec).exists():
                raise InputError(argument, spec, f"a kind before the path, e.g. imagefolder:{spec}")
        return open_spec(spec, KINDS, argument, others=", or package.module:function")
    except UnreadableImage as error:
        raise InputError(argument, f"{spec} ({error})", "images that can be read") from None


# Opening, kind by kind ----------------------------------------------------------------------------------------------------------------


def _open_digits(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.from_numpy((scans.images * (255 / 16)).round().astype(np.uint8))[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = scans.target.astype(np.int64)
    images = MemoryImages(pixels, labels, [f"digits/{i}" for i in range(len(labels))])
    taken = stratified(labels, 900)
    left = np.setdiff1d(np.arange(len(labels)), taken)
    classes = tuple(str(digit) for digit in range(10))
    # the digits' own mean and standard deviation (all 900 training scans), rounded
    return source_of("digits", classes, images.take(taken), images.take(left), {}, 8, ((0.306,) * 3, (0.376,) * 3), "digits")


def _open_shapes(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    counts = {"train": 50, "val": 20, "seed": 0, **whole_numbers(options, argument)}
    # the mean and standard deviation of all 3 000 training pictures, rounded
    images = shape_images(counts["train"], seed=counts["seed"]), shape_images(counts["val"], val=True, seed=counts["seed"])
    source = source_of("shapes", class_names(), *images, {}, SIZE, ((0.47,) * 3, (0.29,) * 3), "digits")
    if "teacher" not in counts:
        return source
    fingerprint = hashlib.sha256(f"{source.fingerprint}, {counts['teacher']} for the teacher".encode()).hexdigest()[:16]
    return replace(source, teacher=shape_images(counts["teacher"], seed=counts["seed"]), fingerprint=fingerprint)


def _open_imagefolder(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    if "labels" in options:
        return open_relabelled(path, options, argument)
    if strange := [name for name in COLUMNS if name in options]:
        raise InputError(argument, f"{strange[0]}={options[strange[0]]}", "it beside labels=FILE")
    store, files, folders = list_files(path, argument)
    images, others = told_apart(store, files)
    train, val = find_splits(images, folders)
    if val is not None and "val" in options:
        raise InputError(argument, f"val={options['val']}", f"no such option, since {path} has a folder {val} of its own")
    classes, names, labels = list_classes(images, folders, train, path, argument)
    notes = [*number_order_note(classes), *passed_over(others)]
    if val is None:
        share = held_out_share(options, argument)
        held_out = hold_out(labels, classes, share, argument)
        split = [FileImages(store, [names[i] for i in np.flatnonzero(part)], labels[part]) for part in (~held_out, held_out)]
        notes.append(f"held out {share:.0%} of each class to validate on: {held_out.sum()} images, always the same")
    else:
        split = [FileImages(store, names, labels)]
        split.append(FileImages(store, *list_classes(images, folders, val, path, argument, known=classes)[1:]))
    used = {*split[0].names, *split[1].names}
    notes += passed_over(
        [name for name in images if name not in used], f"in no class's folder of {train or 'the top'}{f' or {val}' if val else ''}", "image"
    )
    return folder_source("imagefolder", classes, split[0], split[1], files, notes)


def _open_imagenet(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    store, files, folders = list_files(path, argument)
    images, others = told_apart(store, files)
    train, val = find_splits(images, folders)
    if val is None:
        raise InputError(argument, path, "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (sort the flat val folder into one folder per class)")
    classes, names, labels = list_classes(images, folders, train, path, argument)
    val_classes, val_names, val_labels = list_classes(images, folders, val, path, argument)
    check_same(classes, val_classes, argument)
    split = FileImages(store, names, labels), FileImages(store, val_names, val_labels)
    return source_of("imagenet", classes, *split, files, 224, IMAGENET_STATISTICS, "imagenet", why=_PAPERS, notes=passed_over(others))


def _open_tiny_imagenet(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    store, files, folders = list_files(path, argument)
    top = single_top(files, folders)
    annotations = f"{top}val/val_annotations.txt"
    if annotations not in files or f"{top}train" not in folders:
        raise InputError(argument, path, "the original layout: train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt")
    wnids, names, labels = list_classes(told_apart(store, files)[0], folders, f"{top}train", path, argument)
    rows = [line.split("\t")[:2] for line in store.read(annotations).decode(errors="replace").splitlines() if line.strip()]
    if not rows or min(map(len, rows)) < 2:
        raise InputError(argument, annotations, "a line for each image: its file, a tab, its class")
    if strange := sorted({row[1] for row in rows} - set(wnids)):
        raise InputError(argument, f"{annotations} with {', '.join(strange[:5])}", "only classes that the train folder has")
    number = {wnid: i for i, wnid in enumerate(wnids)}
    listed = [(f"{top}val/images/{name}", number[wnid]) for name, wnid in rows]
    if missing := [name for name, _ in listed if name not in files]:
        raise InputError(argument, path, f"every file of {annotations}; missing: {', '.join(missing[:5])}")
    val = FileImages(store, [name for name, _ in listed], np.array([label for _, label in listed], np.int64))
    classes = _words(store.read(f"{top}words.txt").decode(), wnids) if f"{top}words.txt" in files else wnids
    split = FileImages(store, names, labels), val
    return source_of("tiny-imagenet", classes, *split, files, 64, TINY_IMAGENET_STATISTICS, "tiny-imagenet")


def _open_cifar(path: str, options: dict[str, str], argument: str, *, of: int) -> LabelledSource:
    kind = f"cifar{of}"
    folder, train_files, test_files, meta, label_key, names_key = _CIFAR[of]
    root = Path(path).expanduser()
    root = root if root.name == folder else root / folder
    if missing := [name for name in (*train_files, *test_files, meta) if not (root / name).is_file()]:
        _download_cifar(of, root.parent, f"{kind}:{path}", f"the files {', '.join(missing)} in {root}", argument)
    classes = tuple(map(str, _unpickle(root / meta, argument).get(names_key, ())))
    if not classes:
        raise InputError(argument, str(root / meta), f"the names of the classes ({names_key})")
    train, val = (_read_cifar([root / name for name in names], label_key, len(classes), argument) for names in (train_files, test_files))
    return source_of(kind, classes, train, val, {}, 32, CIFAR_STATISTICS, "cifar")


KINDS = (
    Kind("digits", _open_digits, needs_path=None),
    Kind("shapes", _open_shapes, ("train", "val", "teacher", "seed"), needs_path=None),
    Kind("imagefolder", _open_imagefolder, ("val", "labels", *COLUMNS)),
    Kind("csv", open_csv, ("val", "root", *COLUMNS), needs_path="FILE"),
    Kind("webdataset", open_webdataset, ("val", "image", "label"), needs_path="SHARDS"),
    Kind("parquet", open_parquet, ("val", "image", "label"), needs_path="FILE_OR_FOLDER"),
    Kind("hf", open_hf, ("val", "image", "label"), needs_path="FOLDER"),
    Kind("cifar10", partial(_open_cifar, of=10)),
    Kind("cifar100", partial(_open_cifar, of=100)),
    Kind("tiny-imagenet", _open_tiny_imagenet),
    Kind("imagenet", _open_imagenet),
)


def _from_function(place: str, function: str, options: dict[str, str], argument: str) -> LabelledSource:
    spec = f"{place}:{function}"
    module = _load_file(place, argument) if place.endswith(".py") else importlib.import_module(place)
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(
            argument, spec, f"a function of {place}, e.g. {near(function, [n for n in vars(module) if not n.startswith('_')])}"
        )
    values = {name: _literal(value) for name, value in options.items()}
    try:
        inspect.signature(make).bind(**values)
    except TypeError as error:
        raise InputError(argument, spec, f"options that the function takes ({error})") from None
    pair = make(**values)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(argument, spec, f"a function that returns (train, val), not {type(pair).__name__}")
    labels = [_dataset_labels(dataset, spec, argument) for dataset in pair]
    stated = [tuple(map(str, dataset.classes)) if getattr(dataset, "classes", None) else None for dataset in pair]
    if stated[0] and stated[1]:
        check_same(stated[0], stated[1], argument)
    count = int(max(part.max() for part in labels)) + 1
    classes = stated[0] or stated[1] or tuple(map(str, range(count)))
    if count > len(classes):
        from_one = " (they start at 1: take 1 off)" if min(part.min() for part in labels) == 1 and count == len(classes) + 1 else ""
        raise InputError(argument, spec, f"labels below {len(classes)}, the number of its classes; the largest is {count - 1}{from_one}")
    if len(classes) < 2:
        raise InputError(argument, spec, "at least two classes")
    train, val = (DatasetImages(dataset, part, split) for dataset, part, split in zip(pair, labels, ("train", "val"), strict=True))
    return folder_source(spec, classes, train, val, {})


# Formats --------------------------------------------------------------------------------------------------------------------------------


def _words(text: str, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each WordNet id, with the id where two classes share it."""
    words = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    return tuple(name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


class _ArraysOnly(pickle.Unpickler):
    """Reads CIFAR's pickles, which hold arrays and plain values, and refuses to run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(path: Path, argument: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = dict(_ArraysOnly(file, encoding="latin1").load())
            return content
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise InputError(argument, str(path), f"a file of the Python version of CIFAR ({error})") from None


def _read_cifar(paths: Sequence[Path], label_key: str, classes: int, argument: str) -> MemoryImages:
    pixels, labels, names = [], [], []
    for path in paths:
        part = _unpickle(path, argument)
        data, numbers = (np.asarray(part.get(key, ())) for key in ("data", label_key))
        fits = data.shape == (len(numbers), 3072) and data.dtype == np.uint8 and len(part.get("filenames", ())) == len(numbers) > 0
        if not fits or numbers.dtype.kind not in "iu" or not 0 <= numbers.min() <= numbers.max() < classes:
            expected = f"data (uint8 [N, 3072]), {label_key} (from 0 to {classes - 1}) and filenames of N images"
            raise InputError(argument, str(path), expected)
        pixels.append(data)
        labels.append(numbers.astype(np.int64))
        names += part["filenames"]
    return MemoryImages(torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, 32, 32)), np.concatenate(labels), names)


def _download_cifar(classes: int, root: Path, spec: str, expected: str, argument: str) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    logger.info("%s: not on disk, downloading it", spec)
    new = not root.exists()
    try:
        {10: CIFAR10, 100: CIFAR100}[classes](str(root), download=True)
    except Exception as error:  # whatever the network, the server or the disk answered
        if new and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise InputError(argument, spec, f"{expected} (downloading them failed: {error})") from None


def _load_file(place: str, argument: str) -> Any:
    path = Path(place).expanduser()
    if not path.is_file():
        raise InputError(argument, place, "a Python file that exists")
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path.resolve()):
        name = f"stillroom_data_{name}"  # the user's json.py must not replace the library's
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # loader workers find its classes by this name
    spec.loader.exec_module(module)
    return module


def _dataset_labels(dataset: Any, spec: str, argument: str) -> np.ndarray:
    """int64 [N]; from `targets` or `labels` where the data set has them, else by reading every sample once."""
    for name in ("targets", "labels"):
        if (stated := getattr(dataset, name, None)) is not None and len(stated) == len(dataset):
            values = np.asarray(stated)
            break
    else:
        try:
            values = np.asarray([dataset[i][1] for i in range(len(dataset))])
        except (TypeError, IndexError, ValueError) as error:
            raise InputError(argument, spec, f"data sets of (image, label), with a length ({error})") from None
    if len(values) == 0:
        raise InputError(argument, spec, "images in both data sets; one is empty")
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
        raise InputError(argument, spec, "one whole number from 0 as the label of each image")
    return values.astype(np.int64)


# Reading a specification ----------------------------------------------------------------------------------------------------------------


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
