"""Where pairs come from: ``compositions``, ``pairs:FILE.csv``, ``coco:IMAGES,CAPTIONS.json``, ``webdataset:SHARDS``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import content_of
from stillroom.tasks.images.clip_formats import STATISTICS
from stillroom.tasks.images.files import Store, open_store
from stillroom.tasks.images.folders import find_splits, list_classes, list_files, passed_over, told_apart
from stillroom.tasks.images.labelled import split_named
from stillroom.tasks.images.locating import locate
from stillroom.tasks.images.shards import image_of, open_shards
from stillroom.tasks.images.sources import Kind, Source, held_out_samples, held_out_share, open_spec, whole_numbers
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages
from stillroom.tasks.images.table_labels import COLUMNS, image_column, named_column
from stillroom.tasks.images.tables import Table, read_table
from stillroom.tasks.images.tokens import Tokenizer, of_words
from stillroom.tasks.imagetext import compositions

TEXT = ("text", "caption", "captions", "title", "sentence", "description", "alt_text", "txt")  # usual names of a caption's column
_SPLIT = ("split", "set", "partition", "subset")
_TEXTS = ("txt", "text", "caption", "json")  # files of a sample with its caption
_PHOTOGRAPHS, _DRAWINGS = 224, 64  # pixels
_TABLE = "pairs.csv"


@dataclass(frozen=True)
class Captions:
    """The captions of images.

    Attributes:
        texts: every different one.
        groups: for each image, by its label, which of the texts are its own, int64.
    """

    texts: tuple[str, ...]
    groups: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class PairSource(Source):
    """Images with captions; an image's label is its place among `captions.groups`.

    Attributes:
        captions: of both splits.
        image_size: height and width in pixels by default, and why.
        augment: name of the default augmentation.
        tokenizer: of drawn captions; None where one is to be learnt or named.
        drawn: whether nothing of it is real.
    """

    captions: Captions
    image_size: int
    why: str
    augment: str
    tokenizer: Tokenizer | None = None
    drawn: bool = False


def open_source(spec: str) -> PairSource:
    """Find and list the pairs that a specification names; see `ImageTextData`.

    Raises:
        InputError: anything about it that cannot be used.
    """
    return open_spec(spec, KINDS, "data")


def _open_compositions(path: str, options: dict[str, str], argument: str) -> PairSource:
    counts = {"train": 24, "val": 4, "seed": 0, **whole_numbers(options, argument)}
    seed = counts["seed"]
    train, val = compositions.combinations(seed)
    texts = [compositions.captions(train, counts["train"], seed), [[" ".join(one)] for one in val for _ in range(counts["val"])]]
    found = _captions([*texts[0], *texts[1]])
    split = []
    for number, (of, pictures) in enumerate(((train, counts["train"]), (val, counts["val"]))):
        first = number * len(texts[0])
        names = [f"{' '.join(one)}, no. {i + 1}" for one in of for i in range(pictures)]
        split.append(MemoryImages(compositions.drawn(of, pictures, 2 * seed + number), np.arange(first, first + len(names)), names))
    return PairSource(
        name="compositions",
        classes=(),
        train=split[0],
        val=split[1],
        mean=compositions.STATISTICS[0],
        std=compositions.STATISTICS[1],
        fingerprint=hashlib.sha256(f"compositions/1 {counts} {found.texts}".encode()).hexdigest()[:16],
        captions=found,
        image_size=compositions.SIDE,
        why="the size of these pictures",
        augment="none",
        tokenizer=of_words(compositions.WORDS, compositions.CONTEXT),
        drawn=True,
    )


def _open_pairs(path: str, options: dict[str, str], argument: str) -> PairSource:
    place, content = Path(path).expanduser(), None
    if place.suffix.lower() not in (".zip", ".tar") and not place.is_dir():
        store = open_store(options.get("root", str(place.parent)), argument)
    else:  # the table lies in it
        store = open_store(path, argument)
        content, path = content_of(store, options.get("table", _TABLE), argument), f"{path}/{options.get('table', _TABLE)}"
    asked: dict[str, str] = {what: options[what] for what in ("image", "text", "split") if what in options}
    table = read_table(path, argument, asked=[*TEXT, *asked.values()], content=content)
    named = named_column(table, "image", asked["image"], path, argument) if "image" in asked else None
    table, image = image_column(table, named, store, path, argument)
    text = _column(table, "text", asked, TEXT, path, argument)
    if text is None:
        raise InputError(argument, f"{path} with the columns {', '.join(table.head)}", "a column of captions, text=COLUMN")
    split = _column(table, "split", asked, _SPLIT, path, argument)
    names, sizes = locate(table.column(image), store, path, argument)
    splits = [_split(cell, path, argument) for cell in table.column(split)] if split is not None else [""] * len(names)
    said = [*table.said, f"images are in column {image}, captions in column {text}{f', splits in column {split}' if split else ''}"]
    if "root" in options:
        others = set(told_apart(store, store.listing()[0])[0]) - set(names)
        said += passed_over(sorted(others), "that the table does not name", "image")
    rows = list(zip(names, table.column(text), splits, strict=True))
    return _source("pairs", store, rows, sizes, options, path, argument, said)


def _column(table: Table, what: str, asked: Mapping[str, str], usual: Iterable[str], path: str, argument: str) -> str | None:
    if what in asked:
        return named_column(table, what, asked[what], path, argument)
    plain = {name.strip().lower(): name for name in reversed(table.head)}
    return next((plain[name] for name in usual if name in plain), None)


def _split(cell: str, path: str, argument: str) -> str:
    found = split_named(cell) if cell else ""
    if found is None:
        raise InputError(argument, f"{path} with the split {cell}", "train, val or test")
    return found


def _open_coco(path: str, options: dict[str, str], argument: str) -> PairSource:
    images, comma, annotations = (part.strip() for part in path.rpartition(","))
    if not comma:
        raise InputError(argument, f"coco:{path}", "coco:IMAGES,CAPTIONS.json")
    rows, sizes, store = _coco_rows(images, annotations, "", argument)
    if "val_annotations" not in options:
        return _source("coco", store, rows, sizes, options, annotations, argument, [])
    if "val" in options:
        raise InputError(argument, f"val={options['val']}", "either a share to hold out or val_annotations, not both")
    val = _coco_rows(options.get("val_images", images), options["val_annotations"], "val", argument)
    elsewhere = val[2] if "val_images" in options else None
    train = [(name, text, "train") for name, text, _ in rows]
    return _source("coco", store, [*train, *val[0]], {**sizes, **val[1]}, options, annotations, argument, [], val_store=elsewhere)


def _coco_rows(images: str, annotations: str, split: str, argument: str) -> tuple[list[tuple[str, str, str]], dict[str, int], Store]:
    """The captions of COCO's ``captions_train2017.json`` and its like."""
    store = list_files(images, argument)[0]
    try:
        content = json.loads(Path(annotations).expanduser().read_bytes())
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        found = [(files[mark["image_id"]], "" if mark["caption"] is None else str(mark["caption"])) for mark in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(argument, annotations, f"COCO's images and annotations with captions ({error})") from None
    names, sizes = locate([name for name, _ in found], store, annotations, argument)
    return [(name, text, split) for name, (_, text) in zip(names, found, strict=True)], sizes, store


def _open_webdataset(path: str, options: dict[str, str], argument: str) -> PairSource:
    """Shards are listed once and read in place, sample by sample: every process has as many steps, and a run goes on at any of them."""
    shards, options = open_shards(path, options, argument)
    store = shards.store
    rows, without = [], []
    for key, fields in shards.samples().items():
        image, text = image_of(fields, None, store), _caption(fields, store)
        if image is None or text is None:
            without.append(key)
        else:
            rows.append((image, text, shards.split_of(image)))
    if not rows:
        raise InputError(argument, path, f"samples of an image and a caption (.{', .'.join(_TEXTS)}); there are none")
    said = [shards.said, *passed_over(without, "without an image or a caption", "sample")]
    sizes = {name: store.size(name) or 0 for name, _, _ in rows}
    return _source("webdataset", store, rows, sizes, options, path, argument, said)


def _caption(fields: Mapping[str, str], store: Store) -> str | None:
    for extension in _TEXTS:
        if extension not in fields:
            continue
        text = store.read(fields[extension]).decode("utf-8", "replace")
        if extension != "json":
            return text
        try:
            content = json.loads(text)
        except ValueError:
            return None
        return next((str(content[name]) for name in TEXT if isinstance(content, dict) and content.get(name) is not None), None)
    return None


KINDS = (
    Kind("compositions", _open_compositions, ("train", "val", "seed"), needs_path=None),
    Kind("pairs", _open_pairs, ("root", "table", "text", "val", *(name for name in COLUMNS if name != "label")), needs_path="FILE.csv"),
    Kind("coco", _open_coco, ("val", "val_images", "val_annotations"), needs_path="IMAGES,CAPTIONS.json"),
    Kind("webdataset", _open_webdataset, ("val",), needs_path="SHARDS"),
)


# From rows to a source ------------------------------------------------------------------------------------------------------------------


def _captions(of_images: Sequence[Sequence[str]]) -> Captions:
    texts = {text: number for number, text in enumerate(dict.fromkeys(text for own in of_images for text in own))}
    return Captions(tuple(texts), tuple(np.array([texts[text] for text in own], np.int64) for own in of_images))


def _source(
    name: str,
    store: Store,
    rows: Sequence[tuple[str, str, str]],
    sizes: Mapping[str, int],
    options: Mapping[str, str],
    where: str,
    argument: str,
    said: list[str],
    *,
    val_store: Store | None = None,
) -> PairSource:
    """A source of rows (image, caption, split): empty captions and repeated rows are left out, and a share is held out where no split is.

    Raises:
        InputError: an image in two splits, or nothing to train or to measure on.
    """
    own: dict[tuple[str, str], dict[str, None]] = {}
    split_of: dict[str, str] = {}
    empty, repeated = [], []
    for image, text, split in rows:
        if val_store is None and (before := split_of.setdefault(image, split)) != split:
            got = f"{where} with {image} in {before or 'no split'} and in {split or 'none'}"
            raise InputError(argument, got, "one split of each image")
        kept = own.setdefault((split, image), {})
        if not (plain := " ".join(text.split())):
            empty.append(image)
        elif plain in kept:
            repeated.append(image)
        else:
            kept[plain] = None
    said = [*said, *passed_over(empty, "without a caption", "row"), *passed_over(repeated, "that were there before", "row")]
    images = [(split, image) for (split, image), kept in own.items() if kept]
    splits = {split for split, _ in images}
    held_out = next((split for split in ("val", "test") if split in splits), None)
    if held_out is not None and "val" in options:
        raise InputError(argument, f"val={options['val']}", f"no share to hold out, since {where} has a split {held_out} of its own")
    if held_out is None:
        share = held_out_share(dict(options), argument)
        held_N = held_out_samples(len(images), share)
        parts = [[images[i] for i in np.flatnonzero(part)] for part in (~held_N, held_N)]
        said.append(f"held out {share:.0%} of the images to measure with: {held_N.sum()}, always the same")
    else:
        others = [image for kind, image in images if kind not in ("train", "", held_out)]
        said += passed_over(others, f"in neither train nor {held_out}", "image")
        parts = [[one for one in images if one[0] in ("train", "")], [one for one in images if one[0] == held_out]]
    if not all(parts):
        raise InputError(argument, f"{where} with {len(parts[0])} images to train on and {len(parts[1])} to measure with", "some of both")
    found = _captions([list(own[one]) for part in parts for one in part])
    first = len(parts[0])
    train = FileImages(store, [image for _, image in parts[0]], np.arange(first))
    val = FileImages(val_store or store, [image for _, image in parts[1]], np.arange(first, first + len(parts[1])))
    digest = hashlib.sha256(repr((name, found.texts, [group.tolist() for group in found.groups])).encode(errors="surrogateescape"))
    digest.update("\n".join(f"{image} {sizes[image]}" for part in parts for _, image in part).encode(errors="surrogateescape"))
    size, why = _size(train)
    return PairSource(
        name=name,
        classes=(),
        train=train,
        val=val,
        mean=STATISTICS[0],
        std=STATISTICS[1],
        fingerprint=digest.hexdigest()[:16],
        said=tuple(said),
        captions=found,
        image_size=size,
        why=why,
        augment="mirror" if size == _DRAWINGS else "crop90",
    )


def _size(images: Images) -> tuple[int, str]:
    """64 pixels where the first images are no larger, else 224."""
    sizes = []
    for index in range(min(len(images), 8)):
        image = images.image(index)
        sizes.append(max(image.shape[-2:] if hasattr(image, "shape") else image.size))
    small = max(sizes) <= _DRAWINGS
    return (_DRAWINGS, "the size of these images") if small else (_PHOTOGRAPHS, "the default for photographs; --image-size takes less time")


# Classes, for scores without training on them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZeroShot:
    """Classified images that nothing is trained on.

    Attributes:
        classes: their names, for prompts.
        images: with their labels.
    """

    classes: tuple[str, ...]
    images: FileImages


def open_zero_shot(place: str) -> ZeroShot:
    """A folder or zip of classes: its val or test folder where it has one, else all of it; "_" in a name is a space.

    Raises:
        InputError: there are no classes of images.
    """
    path = place.removeprefix("imagefolder:")
    store, files, folders = list_files(path, "zero_shot")
    images = told_apart(store, files)[0]
    train, val = find_splits(images, folders)
    classes, names, labels = list_classes(images, folders, val if val is not None else train, path, "zero_shot")
    return ZeroShot(tuple(name.replace("_", " ") for name in classes), FileImages(store, names, labels))
