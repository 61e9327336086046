"""Where composites come from, as one string: ``iharmony4:ROOT``, ``csv:FILE``, ``composites:FOLDER``, ``blobs:SOURCE``, ``patches``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from stillroom.engine.loading import sample_seeds
from stillroom.errors import InputError, near
from stillroom.tasks.harmonization.recolouring import relit
from stillroom.tasks.harmonization.scenes import MaskFiles, Scenes
from stillroom.tasks.images import classified
from stillroom.tasks.images.beside import MASKS, PHOTOS, by_stem, called, longest_beginning, photos_with_masks
from stillroom.tasks.images.files import Store, open_store
from stillroom.tasks.images.folders import counted, list_files, passed_over, told_apart
from stillroom.tasks.images.labelled import SPLITS
from stillroom.tasks.images.locating import locate
from stillroom.tasks.images.masks import OpaqueFiles
from stillroom.tasks.images.patches import patches
from stillroom.tasks.images.sources import (
    IMAGENET_STATISTICS,
    Kind,
    Source,
    held_out_samples,
    held_out_share,
    open_spec,
    whole_numbers,
)
from stillroom.tasks.images.stores import MemoryImages
from stillroom.tasks.images.tables import read_table

_SIZE = 64  # pixels of photos by default: minutes on two cores
_ROLES = {"composite": ("composite_images", "composites", "composite"), "mask": MASKS, "real": PHOTOS}  # and what folders are called
_PATCH = 32  # pixels
_APART = 2**20  # keeps what is drawn of patches apart from what a training draws with the same seed


@dataclass(frozen=True, kw_only=True)
class HarmonySource(Source):
    """Photos with masks and composites, as far as there are such; `train` and `val` are `Scenes`.

    Attributes:
        image_size: height and width in pixels that networks are given, by default.
        why: that size, in words.
        augment: name of the default augmentation.
    """

    image_size: int = _SIZE
    why: str = "the default, whatever the photos' size"
    augment: str = "crop"


def open_source(spec: str, *, strict: bool = False, argument: str = "data") -> HarmonySource:
    """Find and list the samples that a specification names.

    Args:
        spec: one of
            ``patches``: procedural: 32x32 patches of scikit-learn's two photographs, each under a random light, with random masks and
            composites that are new in every epoch; ``train=2000``, ``val=300``, ``seed=0``;
            ``blobs:SOURCE``: the same of any images that classification reads, e.g. ``blobs:cifar10:data/cifar10``;
            ``iharmony4:ROOT``: a folder or zip in iHarmony4's or ccHarmony's layout, ``composite_images/<photo>_<mask>_<number>.jpg``,
            ``masks/<photo>_<mask>.png``, ``real_images/<photo>.jpg`` and lists ``*train.txt`` and ``*test.txt`` of composites, at the top
            or in a folder for each subset; ``,subset=HCOCO+HFlickr`` reads these alone; without lists ``,val=0.2`` of the photos is held
            out;
            ``csv:FILE``: a table with columns composite, mask and real (others are named: ``,composite=NAME``) and, if there is one, split;
            ``,root=FOLDER`` where files are not beside it; ``,val=0.2``;
            ``composites:FOLDER``: photos in ``FOLDER/photos`` (or real_images, images) and ``FOLDER/masks``, or ``,masks=FOLDER``; a mask
            belongs to the photo whose name, without its ending, its own begins with; composites are new in every epoch; ``,val=0.2``.
        strict: refuse data with files that cannot be decoded, which are left out otherwise, with one warning.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    found = open_spec(spec, KINDS, argument, others=", followed by where the photos are, e.g. iharmony4:iHarmony4")
    said: list[str] = []
    parts = {}
    for split in ("train", "val"):
        parts[split], more = getattr(found, split).looked_at(strict=strict)
        said += [f"{'training' if split == 'train' else 'validation'}: {one}" for one in more]
    return HarmonySource(**{**vars(found), **parts, "said": (*found.said, *said)})


# Without files --------------------------------------------------------------------------------------------------------------------------


def _open_patches(path: str, options: dict[str, str], argument: str) -> HarmonySource:
    from sklearn.datasets import load_sample_images

    given = {"train": 2000, "val": 300, "seed": 0, **whole_numbers(options, argument)}
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    parts = {}
    for number, (split, first, last) in enumerate((("train", 0.0, 0.7), ("val", 0.7, 1.0))):  # no pixel is in both
        sides = [picture.crop((int(first * picture.width), 0, int(last * picture.width), picture.height)) for picture in pictures]
        cut = patches(sides, given[split], _PATCH, seed=given["seed"] + _APART)
        lights = sample_seeds(given["seed"] + _APART, 2 + number, np.arange(given[split]))
        pixels = (relit(cut.float() / 255, lights) * 255).round().to(torch.uint8)
        parts[split] = Scenes(MemoryImages(pixels, np.zeros(len(pixels), np.int64), [f"{split}/{i}" for i in range(len(pixels))]))
    said = ("procedural data: patches of two photographs under random lights, with random masks; for a first look",)
    return _source("patches", parts, {}, repr(sorted(given.items())), image_size=_PATCH, why="the patches'", augment="none", said=said)


def _open_blobs(path: str, options: dict[str, str], argument: str) -> HarmonySource:
    spec = ",".join([path, *(f"{name}={value}" for name, value in options.items())])
    images = classified.open_source(spec, argument=argument)
    parts = {split: Scenes(getattr(images, split)) for split in ("train", "val")}
    said = (*images.said, "masks and composites are drawn, new ones in every epoch")
    return _source("blobs", parts, {}, images.fingerprint, image_size=images.image_size, why=images.why, augment="none", said=said)


# iHarmony4's layout ---------------------------------------------------------------------------------------------------------------------


def _open_iharmony4(path: str, options: dict[str, str], argument: str) -> HarmonySource:
    store, files, folders = list_files(path, argument)
    images, others = told_apart(store, files)
    roots = sorted({str(PurePosixPath(folder).parent) for folder in folders if called(folder, _ROLES["composite"])})
    roots = ["" if root == "." else root for root in roots]
    if not roots:
        raise InputError(argument, f"iharmony4:{path}", "folders composite_images, masks and real_images in it")
    roots = _subset(roots, options.get("subset"), path, argument)
    triplets: dict[str, list[tuple[str, str, str]]] = {"train": [], "val": [], "": []}
    said: list[str] = []
    for root in roots:
        of = {role: by_stem(images, root, words) for role, words in _ROLES.items()}
        listed = _lists(store, [name for name in others if name.endswith(".txt")], root)
        found = {file: _belonging(stem, of, path, argument) for stem, file in of["composite"].items()}
        missing = [name for name in listed if name not in of["composite"]]
        said += passed_over(missing, f"that lists of {root or path} name and that are not there", "composite")
        said += passed_over([stem for stem in of["composite"] if listed and stem not in listed], "that no list names", "composite")
        for stem, file in of["composite"].items():
            if not listed or stem in listed:
                triplets[listed.get(stem, "")].append((file, *found[file]))
    return _triplet_source("iharmony4", store, files, triplets, options, said, path, argument)


def _subset(roots: Sequence[str], wanted: str | None, path: str, argument: str) -> list[str]:
    if wanted is None:
        return list(roots)
    named = {(PurePosixPath(root).name or PurePosixPath(path).stem).lower(): root for root in roots}
    if unknown := [name for name in wanted.split("+") if name.lower() not in named]:
        raise InputError(argument, f"subset={wanted}", f"those that {path} has: {near(unknown[0].lower(), named, most=8)}")
    return [named[name.lower()] for name in wanted.split("+")]


def _lists(store: Store, texts: Iterable[str], root: str) -> dict[str, str]:
    """Splits by the stems of composites, of the lists beside them; of those further up only where there are none."""
    found: dict[str, str] = {}
    places = [root, *(str(parent) if str(parent) != "." else "" for parent in PurePosixPath(root).parents)] if root else [""]
    for place in places:
        for name in texts:
            inside, _, file = name.rpartition("/")
            split = next((split for word, split in (("train", "train"), ("test", "val")) if file[:-4].lower().endswith(word)), None)
            if inside == place and split is not None:
                lines = store.read(name).decode("utf-8-sig", "replace").split()
                found |= {PurePosixPath(line.replace("\\", "/")).stem: split for line in lines if _lies_in(line, root)}
        if found:
            return found
    return found


def _lies_in(line: str, root: str) -> bool:
    """Whether a line of a list may name a file of a set: a bare name, or a path with the set's name in it."""
    parts = PurePosixPath(line.replace("\\", "/")).parts
    return len(parts) < 3 or not root or PurePosixPath(root).name in parts


def _belonging(stem: str, of: Mapping[str, Mapping[str, str]], path: str, argument: str) -> tuple[str, str]:
    """Mask and photo of a composite: the longest beginnings of its name, up to an underscore, that there are such of."""
    found = []
    for role in ("mask", "real"):
        match = longest_beginning(stem, of[role])
        if match is None:
            raise InputError(argument, f"{path}, whose composite {stem} has no {'photo' if role == 'real' else role}", "one for each")
        found.append(of[role][match])
    return found[0], found[1]


# Tables and photos with masks -----------------------------------------------------------------------------------------------------------


def _open_csv(path: str, options: dict[str, str], argument: str) -> HarmonySource:
    store = open_store(options.get("root") or str(PurePosixPath(path).parent), argument)
    columns = {role: options.get(role, role) for role in (*_ROLES, "split")}
    table = read_table(path, argument, asked=columns.values())
    if missing := [columns[role] for role in _ROLES if columns[role] not in table.head]:
        got = f"{path} with the columns {', '.join(table.head)}"
        raise InputError(argument, got, f"a column {missing[0]}, or one that is named by an option, as in ,composite=NAME")
    sizes: dict[str, int] = {}
    named = []
    for role in _ROLES:
        cells = table.column(columns[role])
        known = list(dict.fromkeys(cells))
        names, found = locate(known, store, path, argument)
        sizes |= found
        named.append([dict(zip(known, names, strict=True))[cell] for cell in cells])
    splits = [""] * len(table.rows)
    if columns["split"] in table.head:
        splits = ["train" if _split(cell, path, argument) == "train" else "val" for cell in table.column(columns["split"])]
    triplets: dict[str, list[tuple[str, str, str]]] = {"train": [], "val": [], "": []}
    for row, split in zip(zip(*named, strict=True), splits, strict=True):
        triplets[split].append((row[0], row[1], row[2]))
    return _triplet_source("csv", store, sizes, triplets, options, list(table.said), path, argument)


def _split(cell: str, path: str, argument: str) -> str:
    if cell.lower() not in SPLITS:
        raise InputError(argument, f"{path} with the split {cell or 'nothing'}", f"one of {', '.join(SPLITS)}")
    return SPLITS[cell.lower()]


def _open_composites(path: str, options: dict[str, str], argument: str) -> HarmonySource:
    pairs, photos, masks, said = photos_with_masks(path, options.get("masks"), argument)
    parts = {}
    for split, chosen in _held_out([photo for photo, _ in pairs], options, argument).items():
        mine = [pairs[i] for i in chosen.tolist()]
        reals = OpaqueFiles(photos, [photo for photo, _ in mine], np.zeros(len(mine), np.int64))
        parts[split] = Scenes(reals, MaskFiles(masks, [mask for _, mask in mine]))
    return _source("composites", parts, {}, repr(pairs), said=(*said, "composites are made, new ones in every epoch"))


# Splits and sources ---------------------------------------------------------------------------------------------------------------------


def _held_out(photos: Sequence[str], options: dict[str, str], argument: str) -> dict[str, np.ndarray]:
    """Which samples train and which validate, int64 [N]: a share of the photos, with all that was made of them, always the same ones."""
    share, different = held_out_share(options, argument), sorted(set(photos))
    if len(different) < 2:
        raise InputError(argument, f"{len(different)} photo", "at least two: one to train on and one to hold out")
    held = {different[i] for i in np.flatnonzero(held_out_samples(len(different), share, spare=True))}
    validates = np.array([photo in held for photo in photos])
    return {"train": np.flatnonzero(~validates), "val": np.flatnonzero(validates)}


def _triplet_source(
    name: str,
    store: Store,
    sizes: Mapping[str, int],
    triplets: dict[str, list[tuple[str, str, str]]],
    options: dict[str, str],
    said: list[str],
    path: str,
    argument: str,
) -> HarmonySource:
    """Of composites, masks and photos, by split; those of no split are shared out."""
    if rest := triplets.pop(""):
        shared = _held_out([real for _, _, real in rest], options, argument)
        triplets = {split: triplets[split] + [rest[i] for i in chosen.tolist()] for split, chosen in shared.items()}
    for split, found in triplets.items():
        if not found:
            raise InputError(argument, f"{name}:{path} without a composite to {'train on' if split == 'train' else 'measure with'}", "some")
    both = {real for _, _, real in triplets["train"]} & {real for _, _, real in triplets["val"]}
    if both:
        said.append(f"{counted(sorted(both), 'photo{s} of both training and validation composites')}: the validation is too easy")
    parts = {}
    for split, found in triplets.items():
        labels = np.zeros(len(found), np.int64)
        made, masks, reals = (list(column) for column in zip(*found, strict=True))
        parts[split] = Scenes(OpaqueFiles(store, reals, labels), MaskFiles(store, masks), OpaqueFiles(store, made, labels))
    said.append(f"{len({real for found in triplets.values() for _, _, real in found})} photos")
    return _source(name, parts, sizes, repr(triplets), said=tuple(said))


def _source(name: str, parts: Mapping[str, Scenes], sizes: Mapping[str, int], described: str, **more: Any) -> HarmonySource:
    digest = hashlib.sha256(repr((name, described, sorted(sizes.items()))).encode(errors="surrogateescape")).hexdigest()[:16]
    mean, std = IMAGENET_STATISTICS
    train, val = parts["train"], parts["val"]
    return HarmonySource(name=name, classes=(), train=train, val=val, mean=mean, std=std, fingerprint=digest, **more)


KINDS: tuple[Kind[HarmonySource], ...] = (
    Kind("patches", _open_patches, ("train", "val", "seed"), None),
    Kind("blobs", _open_blobs, ("val", "train", "labels"), "SOURCE"),
    Kind("iharmony4", _open_iharmony4, ("subset", "val"), "ROOT"),
    Kind("csv", _open_csv, (*_ROLES, "split", "root", "val"), "FILE"),
    Kind("composites", _open_composites, ("masks", "val"), "FOLDER"),
)
