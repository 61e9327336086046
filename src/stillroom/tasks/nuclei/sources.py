"""Where pictures of nuclei come from: ``drawn``, ``nuclei:ROOT``, ``consep:ROOT``, ``lizard:ROOT``, ``pannuke:ROOT``."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stillroom.errors import InputError, near, one_of
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.folders import list_files, printable, told_apart
from stillroom.tasks.images.sources import Kind, Source, held_out_samples, held_out_share, is_number, open_spec, whole_numbers
from stillroom.tasks.nuclei.drawn import COARSE, FINE, SIDE, draw
from stillroom.tasks.nuclei.instances import Outlining
from stillroom.tasks.nuclei.maps import NucleiArrays, NucleiFiles, NucleiImages, NucleiMap, numbered, read_type_map, whole_numbers_of

_SIZE = 128  # pixels that are trained on, by default
_LOOKED_AT = 200  # maps of a split that are read before a run
_LISTED = 5  # files that a message names
_PIXELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # networks read values from 0 to 1
CONSEP = ("other", "inflammatory", "healthy epithelial", "malignant epithelial", "fibroblast", "muscle", "endothelial")
_CONSEP_MERGED = "miscellaneous:1;inflammatory:2;epithelial:3+4;spindle-shaped:5+6+7"
LIZARD = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
PANNUKE = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation", "test", "testing"), "val")
_PIECES = ("keep", "split")


@dataclass(frozen=True, kw_only=True)
class NucleiSource(Source):
    """Pictures and their nuclei that were found and listed; training pictures may be without.

    Attributes:
        image_size: of what is trained on, in pixels, by default.
        augment: name of the default augmentation.
        outlining: how nuclei are made of a network's maps.
        nuclei: of each class, int64 [2, C], in the training and validation maps that were looked at.
        looked_at: how many these are, of each split.
        empty: how many of these have no nucleus.
    """

    image_size: int
    augment: str
    outlining: Outlining
    nuclei: np.ndarray
    looked_at: tuple[int, int]
    empty: tuple[int, int]


def open_source(spec: str, argument: str = "data") -> NucleiSource:
    """What a specification of data names.

    Args:
        spec: ``drawn`` (``drawn:domain=source,train=400,val=200,seed=0``; the domain is target by default);
            ``nuclei:ROOT``: a folder or zip with ``Images`` and ``Labels``, a ``.npz`` or ``.mat`` with `inst_map` and `type_map` or
            `inst_type` for each picture, in ``train`` and ``test`` or not, in one domain or several (``domain=stained``); names of the
            classes in ``meta.json`` or by ``classes=a+b``; training pictures may have no file;
            ``consep:ROOT``: CoNSeP's release; its seven types are merged to the four of papers, unless ``merge=none``;
            ``lizard:ROOT``: Lizard's release, ``val=`` the number of the split that is measured on, by default 3;
            ``pannuke:ROOT``: PanNuke's folds, ``train=1+2,val=3`` by default.
            All but ``drawn``: ``merge=lymphoid:2+4;other:1+3`` joins types and names them; of nuclei in files ``scale=0.5`` resizes
            pictures and maps, ``pieces=split`` makes a nucleus of each piece of a number that has several.
        argument: what errors call it.

    Raises:
        InputError: no such kind or option; nothing in that layout, or something that contradicts itself.
    """
    return open_spec(spec, KINDS, argument, others=", followed by where the pictures are, e.g. nuclei:my_slides")


def _open_drawn(path: str, options: dict[str, str], argument: str) -> NucleiSource:
    domain = one_of(f"{argument} domain", options.pop("domain", "target"), ("source", "target"))
    given = {"train": 400, "val": 200, "seed": 0, **whole_numbers(options, argument)}
    seeds = {split: 4 * given["seed"] + 2 * (domain == "target") + number for number, split in enumerate(("train", "val"))}
    parts = {split: draw(given[split], seed, domain) for split, seed in seeds.items()}
    classes = FINE if domain == "target" else COARSE
    return _made("drawn", classes, parts, [domain, sorted(given.items())], Outlining(edge_kernel=7, least=8), argument, size=SIDE)


# What the labels say --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merging:
    """Types of the files, and the classes that they are joined to.

    Attributes:
        classes: names.
        of_type: the class of each type, the background's 0 first.
    """

    classes: tuple[str, ...]
    of_type: tuple[int, ...]

    @classmethod
    def read(cls, text: str, types: Sequence[str], argument: str) -> Merging:
        """What ``name:1+2;other:3`` says of these types; ``none`` leaves them apart.

        Raises:
            InputError: another form, or not each type once.
        """
        if text in ("", "none"):
            return cls(tuple(types), tuple(range(len(types) + 1)))
        groups = re.findall(r"(?:^|;)([^:;]+):(\d+(?:\+\d+)*)(?=;|$)", text)
        of_type = [0] * (len(types) + 1)
        for number, (_, members) in enumerate(groups, 1):
            for member in map(int, members.split("+")):
                if not 1 <= member <= len(types) or of_type[member]:
                    raise InputError(argument, f"merge={text}", f"each of the types 1 to {len(types)} once")
                of_type[member] = number
        if not groups or not all(of_type[1:]) or ";".join(map(":".join, groups)) != text:
            raise InputError(argument, f"merge={text}", f"name:1+2;other:3 with each of the types 1 to {len(types)} once")
        return cls(tuple(name.strip() for name, _ in groups), tuple(of_type))


@dataclass(frozen=True)
class _Labels:
    """Reads files with nuclei of several formats, in one way; `met` counts what was strange in them."""

    store: Store
    types: int
    of_type: tuple[int, ...]
    pieces: str
    met: Counter[str] = field(default_factory=Counter, compare=False)

    def __call__(self, name: str) -> NucleiMap:
        held = _content(self.store, name)
        if "inst_map" not in held:
            raise InputError("data", f"{printable(name)} with {', '.join(held) or 'nothing'}", "inst_map, and type_map or inst_type")
        instances_HW = whole_numbers_of(held["inst_map"], f"{printable(name)}: inst_map")
        if "type_map" in held:
            types_HW = whole_numbers_of(held["type_map"], f"{printable(name)}: type_map")
            nuclei, mixed = read_type_map(instances_HW, types_HW, printable(name), self.types)
            self.met["nuclei with pixels of several types: they have that of most"] += mixed
        else:
            nuclei = self._typed(instances_HW, held, name)
        pieces_HW, count = _pieces(nuclei.instances)
        if count > len(nuclei.types) - 1:
            several = "are made" if self.pieces == "split" else "are no (pieces=split)"
            self.met[f"pieces beyond the first of their numbers, which {several} nuclei of their own"] += count - len(nuclei.types) + 1
            if self.pieces == "split":
                first = np.unique(pieces_HW, return_index=True)[1]
                nuclei = numbered(pieces_HW, nuclei.types[nuclei.instances.ravel()[first]])
        return NucleiMap(nuclei.instances, np.array(self.of_type)[nuclei.types])

    def _typed(self, instances_HW: np.ndarray, held: Mapping[str, Any], name: str) -> NucleiMap:
        """Of a list of types, one for each nucleus in the order of their numbers, or of the numbers that are listed beside them."""
        present = np.unique(instances_HW[instances_HW > 0])
        found = held.get("inst_type", held.get("class"))
        listed = np.ones(len(present), np.int64) if found is None and self.types == 1 else found
        if listed is None:
            raise InputError("data", printable(name), "type_map or inst_type beside inst_map, since there are several classes")
        listed = np.asarray(listed).ravel().astype(np.int64)
        ids = np.asarray(held["id"]).ravel().astype(np.int64) if "id" in held else present
        if len(listed) != len(ids) or not set(present.tolist()) <= set(ids.tolist()):
            got = f"{printable(name)} with {len(listed)} types for {len(present)} nuclei"
            raise InputError("data", got, "one type for each nucleus, in the order of their numbers")
        if listed.size and not 1 <= listed.min() <= listed.max() <= self.types:
            wrong = int(listed.max() if listed.max() > self.types else listed.min())
            raise InputError("data", f"{printable(name)}, with the class {wrong}", f"classes from 1 to {self.types}")
        types = np.zeros(int(max(ids.max(initial=0), present.max(initial=0))) + 1, np.int64)
        types[ids] = listed
        return numbered(instances_HW, types)


def _pieces(instances_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected pieces of all nuclei, numbered from 1; pixels that touch by a corner are connected."""
    from scipy import ndimage

    found, count = np.zeros(instances_HW.shape, np.int64), 0
    for number, box in enumerate(ndimage.find_objects(instances_HW), 1):
        if box is not None:
            parts, several = ndimage.label(instances_HW[box] == number, np.ones((3, 3)))
            found[box] = np.where(parts > 0, parts + count, found[box])
            count += several
    return found, count


def _content(store: Store, name: str) -> dict[str, Any]:
    """What a ``.npz`` or ``.mat`` holds, by name.

    Raises:
        InputError: it cannot be read.
    """
    try:
        file = io.BytesIO(store.read(name))
        if name.lower().endswith(".npz"):
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        from scipy.io import loadmat

        return {key: value for key, value in loadmat(file).items() if not key.startswith("__")}
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise InputError("data", f"{printable(name)} ({error})", "a .npz, or a .mat of version 7 or before, that is whole") from None


# Folders of pictures and of labels ------------------------------------------------------------------------------------------------------


def _open_folders(path: str, options: dict[str, str], argument: str) -> NucleiSource:
    return _folders("nuclei", path, options, argument)


def _open_consep(path: str, options: dict[str, str], argument: str) -> NucleiSource:
    return _folders("consep", path, {"merge": _CONSEP_MERGED, **options}, argument, CONSEP)


def _folders(kind: str, path: str, options: dict[str, str], argument: str, usual: Sequence[str] = ()) -> NucleiSource:
    store, sizes, _ = list_files(path, argument)
    images, others = told_apart(store, sizes)
    pictures: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))  # by domain and split: name by stem
    for name in images:
        if (place := _placed(name, "images")) is not None:
            pictures[place[0]][place[1]][PurePosixPath(name).stem] = name
    labels = {(*place, PurePosixPath(name).stem): name for name in others if (place := _placed(name, "labels")) is not None}
    if not pictures:
        raise InputError(argument, path, "folders Images and Labels in it")
    domain = options.get("domain", next(iter(pictures)) if len(pictures) == 1 else "")
    if domain not in pictures:
        raise InputError(argument, f"domain={domain}" if domain else path, f"domain= one of {', '.join(sorted(pictures))}")
    types = tuple(options["classes"].split("+")) if "classes" in options else _listed_classes(store, sizes) or tuple(usual)
    if not types:
        raise InputError(argument, path, 'names of the classes: classes=a+b+c, or a meta.json with {"classes": {"1": "a"}}')
    splits = {split: [(name, labels.get((domain, split, stem), "")) for stem, name in found.items()]
              for split, found in pictures[domain].items()}  # fmt: skip
    if kind == "consep" and "val" not in splits:
        raise InputError(argument, path, "CoNSeP's folders Train and Test")
    return _of_files(kind, store, sizes, _split(splits, options, argument), types, options, argument)


def _placed(name: str, role: str) -> tuple[str, str] | None:
    """Domain and split of a file in a folder of that role; None for one that is in none."""
    parts = PurePosixPath(name).parts[:-1]
    lowered = [part.lower() for part in parts]
    if role not in lowered:
        return None
    split = next((_SPLITS[part] for part in lowered if part in _SPLITS), "train")
    before = [part for part in parts[: lowered.index(role)] if part.lower() not in _SPLITS]
    return (before[-1] if before else ""), split


def _listed_classes(store: Store, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Those of a ``meta.json``, by number."""
    for name in sizes:
        if PurePosixPath(name).name == "meta.json":
            try:
                classes = json.loads(store.read(name))["classes"]
                return tuple(str(classes[str(number)]) for number in range(1, len(classes) + 1))
            except (ValueError, KeyError, TypeError):
                continue
    return ()


def _split(splits: Mapping[str, list[tuple[str, str]]], options: Mapping[str, str], argument: str) -> dict[str, list[tuple[str, str]]]:
    """Those to train on and those to measure with, all of which have labels; without a split a share of those with labels is held out."""
    train, val = list(splits.get("train", [])), list(splits.get("val", []))
    if not val:
        labelled = [pair for pair in train if pair[1]]
        chosen = {labelled[i] for i in np.flatnonzero(held_out_samples(len(labelled), held_out_share(dict(options), argument)))}
        train, val = [pair for pair in train if pair not in chosen], [pair for pair in train if pair in chosen]
    elif "val" in options:
        raise InputError(argument, f"val={options['val']}", "none: the folders say which pictures are measured on")
    if alone := [name for name, label in val if not label]:
        raise InputError(argument, f"no labels of {', '.join(map(printable, alone[:_LISTED]))}", "labels of what is measured on")
    if not train or not val:
        raise InputError(argument, f"{len(train)} + {len(val)} pictures", "at least one to train on and one with labels to measure with")
    return {"train": train, "val": val}


def _of_files(
    kind: str,
    store: Store,
    sizes: Mapping[str, int],
    splits: Mapping[str, list[tuple[str, str]]],
    types: Sequence[str],
    options: Mapping[str, str],
    argument: str,
) -> NucleiSource:
    merging = Merging.read(options.get("merge", ""), types, argument)
    scale = options.get("scale", "1")
    if not is_number(scale) or not 0 < float(scale) <= 16:
        raise InputError(argument, f"scale={scale}", "a number above 0 and at most 16")
    pieces = one_of(f"{argument} pieces", options.get("pieces", "keep"), _PIECES)
    read = _Labels(store, len(types), merging.of_type, pieces)
    parts = {
        split: NucleiFiles(store, [name for name, _ in pairs], [label for _, label in pairs], read, float(scale))
        for split, pairs in splits.items()
    }
    listed = [[(name, sizes[name], label, sizes.get(label)) for name, label in pairs] for pairs in splits.values()]
    return _made(kind, merging.classes, parts, [types, merging.of_type, scale, pieces, listed], Outlining(), argument)


# Lizard ---------------------------------------------------------------------------------------------------------------------------------


def _open_lizard(path: str, options: dict[str, str], argument: str) -> NucleiSource:
    store, sizes, _ = list_files(path, argument)
    images, others = told_apart(store, sizes)
    labels = {PurePosixPath(name).stem: name for name in others if name.lower().endswith(".mat")}
    tables = [name for name in others if PurePosixPath(name).name == "info.csv"]
    if not labels or not tables:
        raise InputError(argument, path, "Lizard's release: its images, Labels/*.mat and info.csv")
    rows = [line.split(",") for line in store.read(tables[0]).decode("utf-8-sig").splitlines() if line.strip()]
    heads = [head.strip().lower() for head in rows[0]]
    if "filename" not in heads or "split" not in heads:
        raise InputError(argument, f"{tables[0]} with {', '.join(heads)}", "columns Filename and Split")
    split_of = {PurePosixPath(row[heads.index("filename")].strip()).stem: row[heads.index("split")].strip() for row in rows[1:]}
    asked = options.get("val", "3")
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    for name in images:
        stem = PurePosixPath(name).stem
        if stem in labels and stem in split_of:
            splits["val" if split_of[stem] == asked else "train"].append((name, labels[stem]))
    if not splits["train"] or not splits["val"]:
        raise InputError(argument, f"val={asked}", f"a number of info.csv's Split: {', '.join(sorted(set(split_of.values())))}")
    return _of_files("lizard", store, sizes, splits, LIZARD, options, argument)


# PanNuke --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Channels:
    """Reads PanNuke's masks: a channel of instance numbers for each type, and one of background."""

    masks: Sequence[np.ndarray]
    places: Sequence[tuple[int, int]]
    of_type: tuple[int, ...]
    met: Counter[str] = field(default_factory=Counter, compare=False)

    def __call__(self, index: int) -> NucleiMap:
        part, row = self.places[index]
        channels_HWC = np.asarray(self.masks[part][row])[..., : len(PANNUKE)].astype(np.int64)
        channel_HW = (channels_HWC > 0).argmax(2)
        instances_HW = np.take_along_axis(channels_HWC, channel_HW[..., None], 2)[..., 0]
        types_HW = np.where(instances_HW > 0, channel_HW + 1, 0)
        nuclei, mixed = read_type_map(_apart(instances_HW, types_HW), types_HW, f"picture {row}", len(PANNUKE))
        self.met["nuclei in two channels of types: they have the type of most pixels"] += mixed
        return NucleiMap(nuclei.instances, np.array(self.of_type)[nuclei.types])


def _apart(instances_HW: np.ndarray, types_HW: np.ndarray) -> np.ndarray:
    """The instances, pieces of one number in several channels that do not touch being numbered anew: they are several nuclei."""
    from scipy import ndimage

    pairs = np.unique(np.stack((instances_HW, types_HW))[:, instances_HW > 0], axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    found = instances_HW.copy()
    for number in numbers[counts > 1].tolist():
        parts_HW, several = ndimage.label(instances_HW == number, np.ones((3, 3)))
        for piece in range(2, several + 1):
            found[parts_HW == piece] = found.max() + 1
    return found


def _open_pannuke(path: str, options: dict[str, str], argument: str) -> NucleiSource:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InputError(argument, path, "a folder of PanNuke's unpacked folds, whose arrays are read in place")
    files: dict[str, dict[str, str]] = defaultdict(dict)
    store = Folder(root)
    sizes, _ = store.listing()
    for name in sizes:
        place = PurePosixPath(name)
        if place.name in ("images.npy", "masks.npy") and (fold := re.search(r"fold[ _]?(\d+)", name.lower())):
            files[fold[1]][place.stem] = name
    whole = {fold: found for fold, found in files.items() if len(found) == 2}
    merging = Merging.read(options.get("merge", ""), PANNUKE, argument)
    parts: dict[str, NucleiArrays] = {}
    listed = []
    for split, usual in (("train", "1+2"), ("val", "3")):
        folds = options.get(split, usual).split("+")
        if missing := [fold for fold in folds if fold not in whole]:
            raise InputError(
                argument, f"{split}={missing[0]}", f"a fold with images.npy and masks.npy: {near(missing[0], whole) or 'none'}"
            )
        pixels, masks = ([np.load(root / whole[fold][what], mmap_mode="r") for fold in folds] for what in ("images", "masks"))
        if any(p.ndim != 4 or m.shape[:3] != p.shape[:3] or m.shape[3] != len(PANNUKE) + 1 for p, m in zip(pixels, masks, strict=True)):
            got = f"{split} arrays {[list(p.shape) for p in pixels]} and {[list(m.shape) for m in masks]}"
            raise InputError(argument, got, "images [N, H, W, 3] and masks [N, H, W, 6]")
        places = [(part, row) for part, array in enumerate(pixels) for row in range(len(array))]
        names = [f"fold{folds[part]}/{row}" for part, row in places]
        parts[split] = NucleiArrays(pixels, _Channels(masks, places, merging.of_type), names)
        listed.append([(fold, sizes[whole[fold]["images"]], sizes[whole[fold]["masks"]]) for fold in folds])
    return _made("pannuke", merging.classes, parts, [merging.of_type, listed], Outlining(), argument)


# From what was listed to a source -------------------------------------------------------------------------------------------------------


def _made(
    kind: str, classes: tuple[str, ...], parts: Mapping[str, Any], content: Any, outlining: Outlining, argument: str, *, size: int = 0
) -> NucleiSource:
    """A source, some maps of which were looked at."""
    found = [_look(parts[split], len(classes)) for split in ("train", "val")]
    met: Counter[str] = Counter()
    for read in {id(part.read): part.read for part in parts.values()}.values():
        met += getattr(read, "met", Counter())
    if not found[1][0].any():
        raise InputError(argument, "pictures to measure with that have no nucleus", "some nuclei in them")
    mean, std = _PIXELS
    return NucleiSource(
        name=kind, classes=classes, train=parts["train"], val=parts["val"], mean=mean, std=std, fingerprint=_digest(kind, classes, content),
        said=tuple(f"{number} {said}" for said, number in met.items() if number), image_size=size or _SIZE,
        augment="none" if size else "flips", outlining=outlining, nuclei=np.stack([counts for counts, _, _ in found]),
        looked_at=(found[0][1], found[1][1]), empty=(found[0][2], found[1][2]),
    )  # fmt: skip


def _look(images: NucleiImages, num_classes: int) -> tuple[np.ndarray, int, int]:
    """Of some labelled pictures: nuclei by class, int64 [C]; how many pictures; how many are empty.

    Raises:
        InputError: a map that cannot be used.
    """
    known = np.flatnonzero(images.labelled)
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), _LOOKED_AT)).round().astype(np.int64))] if len(known) else known
    counts, empty = np.zeros(num_classes + 1, np.int64), 0
    for index in chosen.tolist():
        types = images.nuclei(index).types
        counts += np.bincount(types[1:], minlength=num_classes + 1)
        empty += len(types) == 1
    return counts[1:], len(chosen), empty


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:16]


_COMMON = ("merge", "scale", "pieces")
KINDS: Sequence[Kind[NucleiSource]] = (
    Kind("drawn", _open_drawn, ("domain", "train", "val", "seed"), needs_path=None),
    Kind("nuclei", _open_folders, (*_COMMON, "domain", "classes", "val"), needs_path="ROOT"),
    Kind("consep", _open_consep, _COMMON, needs_path="ROOT"),
    Kind("lizard", _open_lizard, (*_COMMON, "val"), needs_path="ROOT"),
    Kind("pannuke", _open_pannuke, ("merge", "train", "val"), needs_path="ROOT"),
)
