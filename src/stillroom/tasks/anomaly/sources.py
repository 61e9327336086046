"""Where pictures of products come from: sets in MVTec AD's and VisA's layouts, a plain folder of good ones, drawn textures."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near
from stillroom.tasks.anomaly.inspected import GOOD, Inspected, InspectedFiles, read_mask, size_of
from stillroom.tasks.anomaly.textures import CATEGORIES, textures
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import list_files, passed_over, printable, single_top, told_apart
from stillroom.tasks.images.sources import IMAGENET_STATISTICS, Kind, Source, held_out_share, open_spec, whole_numbers
from stillroom.tasks.images.tables import read_table

_GOOD_FOLDERS = (GOOD, "ok", "normal")  # MVTec AD and MPDD; BTAD; VisA
_ANOMALY = "anomaly"  # VisA's only kind of defect
_TRUTH = "ground_truth"
_VISA = (["data", "images"], ["data", "masks"])
_VISA_TEST = 100  # normal pictures of VisA that are held out for the test where no table splits them
_SIZE, _TEXTURE = 256, 64  # pixels
_LISTED = 5  # names that a message shows


@dataclass(frozen=True, kw_only=True)
class AnomalySource(Source):
    """Good pictures to train on, and pictures to test on. `classes` are the categories.

    Attributes:
        train, val: good pictures, and the test set.
        share: of each category's training pictures that is held out, to choose the epoch and to make the threshold of.
        image_size: pixels, by default.
    """

    train: Inspected
    val: Inspected
    share: float
    image_size: int


@dataclass
class _Listed:
    """Pictures of a category, as they are found: names, kinds and masks."""

    train: list[str]
    test: list[tuple[str, str, str | None]]


def open_source(spec: str, argument: str = "data") -> AnomalySource:
    """What a specification of data names.

    Args:
        spec: ``mvtec:ROOT[,category=a+b][,val=0.2]``: MVTec AD, MPDD, BTAD or VisA as they lie on disk, or anything in their layouts, in a
            folder or a zip, one category or several; ``good:FOLDER[,val=0.2]``: good pictures alone, at any depth;
            ``textures[:category=wood+stone,train=64,test=40,seed=0]``: drawn.
        argument: what errors call it.

    Raises:
        InputError: no such kind or option; no such layout, or one that contradicts itself.
    """
    return open_spec(spec, KINDS, argument)


# Drawn ----------------------------------------------------------------------------------------------------------------------------------


def _open_textures(path: str, options: dict[str, str], argument: str) -> AnomalySource:
    numbers = {"train": 64, "test": 40, "seed": 0} | whole_numbers({k: v for k, v in options.items() if k in _COUNTS}, argument)
    names = _chosen(options, CATEGORIES, argument)
    train, test = textures(names, numbers["train"], numbers["test"], numbers["seed"])
    digest = hashlib.sha256(repr(("textures/1", names, sorted(numbers.items()))).encode())
    return _source("textures", names, train, test, digest, options, argument, size=_TEXTURE)


_COUNTS = ("train", "test", "seed")


# Folders and zips -----------------------------------------------------------------------------------------------------------------------


def _open_good(path: str, options: dict[str, str], argument: str) -> AnomalySource:
    store, files, _ = list_files(path, argument)
    images, others = told_apart(store, files)
    category = PurePosixPath(Path(path).expanduser().resolve()).stem
    listed = {category: _Listed(images, [])}
    return _found("good", store, files, listed, options, argument, [*passed_over(others), "good pictures alone: nothing to test on"])


def _open_mvtec(path: str, options: dict[str, str], argument: str) -> AnomalySource:
    store, files, folders = list_files(path, argument)
    images, others = told_apart(store, files)
    name = PurePosixPath(Path(path).expanduser().resolve()).stem
    top = single_top(files, folders)
    stray: list[str] = []
    tree: dict[str, list[str]] = defaultdict(list)  # by category: the pictures' paths within it
    for image in images:
        parts = image.removeprefix(top).split("/")
        folders_of = [part.lower() for part in parts[:-1]]
        marks = [i for i, part in enumerate(folders_of) if part in ("train", "test", _TRUTH) or folders_of[i : i + 2] in _VISA]
        if marks:
            tree["/".join(parts[: marks[0]])].append(image)
        else:
            stray.append(image)
    roots = {root: root or top.rstrip("/") or name for root in sorted(tree)}
    if not roots:
        expected = "a set in the layout of MVTec AD (CATEGORY/train/good, CATEGORY/test/..., CATEGORY/ground_truth/...) or of VisA"
        raise InputError(argument, path, f"{expected}; good pictures alone: good:{path}")
    chosen = _chosen(options, tuple(roots.values()), argument)
    table = _visa_table(store, files, top, argument)
    said = passed_over([other for other in others if not other.lower().endswith((".csv", ".txt", ".md", ".pdf", ".json"))])
    said += passed_over(stray, "in no folder train, test or ground_truth", "picture")
    listed = {}
    for root, category in roots.items():
        if category in chosen:
            prefix = f"{top}{root}/" if root else top
            inside = {image[len(prefix) :]: image for image in tree[root]}
            visa = any(one.lower().startswith("data/") for one in inside)
            listed[category] = _visa(category, inside, table, said) if visa else _mvtec(category, inside, argument)
    return _found("mvtec", store, files, {category: listed[category] for category in chosen}, options, argument, said)


def _mvtec(category: str, inside: Mapping[str, str], argument: str) -> _Listed:
    """A category of train/good, test/KIND and ground_truth/KIND."""
    by_folder: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place in sorted(inside):
        split, _, rest = place.partition("/")
        kind, slash, _ = rest.partition("/")
        by_folder[split.lower(), kind if slash else ""].append(place)
    strange = [kind for split, kind in by_folder if split == "train" and kind.lower() not in _GOOD_FOLDERS]
    if strange:
        got = f"{category}/train/{strange[0]}" if strange[0] else f"pictures in {category}/train itself"
        raise InputError(argument, got, f"training pictures in {category}/train/{GOOD} alone ({', '.join(_GOOD_FOLDERS)})")
    train = [inside[place] for (split, _), places in by_folder.items() if split == "train" for place in places]
    masks = {
        (kind.lower(), _stem(place)): inside[place] for (split, kind), places in by_folder.items() if split == _TRUTH for place in places
    }
    test: list[tuple[str, str, str | None]] = []
    for (split, kind), places in by_folder.items():
        if split != "test":
            continue
        named = GOOD if kind.lower() in _GOOD_FOLDERS else kind
        if not named:
            raise InputError(argument, f"pictures in {category}/test itself", f"folders in it: {GOOD}, and one for each kind of defect")
        for place in places:
            stem = PurePosixPath(place).stem
            mask = masks.pop((kind.lower(), f"{stem}_mask"), None) or masks.pop((kind.lower(), stem), None)
            test.append((inside[place], named, mask))
    _check_pairs(category, test, list(masks.values()), argument)
    return _Listed(train, test)


def _visa(category: str, inside: Mapping[str, str], table: Mapping[str, str], said: list[str]) -> _Listed:
    """A category of VisA: Data/Images/{Normal,Anomaly} and Data/Masks/Anomaly; split by the set's own table, where it is there."""
    masks = {_stem(place): name for place, name in inside.items() if place.lower().startswith("data/masks/")}
    images = {place: name for place, name in sorted(inside.items()) if place.lower().startswith("data/images/")}
    kinds = {name: GOOD if place.split("/")[2].lower() in _GOOD_FOLDERS else _ANOMALY for place, name in images.items()}
    good = [name for name, kind in kinds.items() if kind == GOOD]
    trained = {name for name in good if table.get(_told(name)) == "train"}
    if not trained:
        held = min(_VISA_TEST, len(good) // 2)
        trained = set(good) - {good[i] for i in sample_order(0, 0, len(good))[:held].tolist()}
        said.append(f"{category}: no table splits its normal pictures: {held}, always the same, are held out for the test")
    test = [(name, kind, masks.get(PurePosixPath(name).stem) if kind != GOOD else None) for name, kind in kinds.items()]
    _check_pairs(category, [one for one in test if one[1] != GOOD], [], "data")
    return _Listed([name for name in good if name in trained], [one for one in test if one[0] not in trained])


def _visa_table(store: Store, files: Iterable[str], top: str, argument: str) -> dict[str, str]:
    """VisA's split_csv/1cls.csv: the split of each picture, by the last four parts of its path; nothing where there is none."""
    name = f"{top}split_csv/1cls.csv"
    if name not in set(files):
        return {}
    table = read_table(name, argument, asked=("image", "split"), content=store.read(name))
    if lacking := [column for column in ("image", "split") if column not in table.head]:
        raise InputError(argument, f"{name} with the columns {', '.join(table.head)}", f"a column {lacking[0]}")
    rows = zip(table.column("image"), table.column("split"), strict=True)
    return {_told(image): split.lower() for image, split in rows if image and split}


def _told(name: str) -> str:
    """A picture as VisA's table tells it apart: its category, and where it lies there."""
    return "/".join(name.split("/")[-5:])


def _stem(place: str) -> str:
    return PurePosixPath(place).stem


def _check_pairs(category: str, test: Sequence[tuple[str, str, str | None]], left: Sequence[str], argument: str) -> None:
    """Raises InputError where some defects have masks and others none, or a mask has no picture. Masks may be absent altogether."""
    without = [name for name, kind, mask in test if kind != GOOD and mask is None]
    masked = any(mask is not None for _, kind, mask in test if kind != GOOD)
    if without and (masked or left):
        rest = f"; masks without a picture: {_few(left)}" if left else ""
        raise InputError(
            argument,
            f"{category}: {len(without)} pictures of defects without a mask, the first {_few(without)}{rest}",
            "a mask for each, of the same stem or with _mask behind it, in the folder of its kind",
        )
    if left:
        raise InputError(argument, f"{category}: {len(left)} masks without a picture, the first {_few(left)}", "a picture of the same stem")


# From what was listed to a source -------------------------------------------------------------------------------------------------------


def _found(
    kind: str,
    store: Store,
    sizes: Mapping[str, int],
    listed: Mapping[str, _Listed],
    options: Mapping[str, str],
    argument: str,
    said: Sequence[str],
) -> AnomalySource:
    """A source of listed files, whose masks and copies were looked at."""
    notes = list(said)
    for category, found in listed.items():
        if len(found.train) < 2:
            got = f"{category}: {len(found.train)} good picture{'' if len(found.train) == 1 else 's'} to train on"
            raise InputError(argument, got, "at least two, one to train on and one to hold out")
        _check_masks(store, category, found.test, argument, notes)
        _check_copies(store, sizes, category, found, argument, notes)
    names = tuple(listed)
    train = [(name, GOOD, None, k) for k, found in enumerate(listed.values()) for name in found.train]
    test = [(*one, k) for k, found in enumerate(listed.values()) for one in found.test]
    digest = hashlib.sha256(repr((kind, names)).encode())
    splits = []
    for rows in (train, test):
        pictures = [name for name, *_ in rows]
        digest.update(repr([(name, sizes[name], of, mask, k) for name, of, mask, k in rows]).encode(errors="surrogateescape"))
        labels, kinds = np.array([k for *_, k in rows], np.int64), np.array([of for _, of, _, _ in rows], dtype=np.str_)
        splits.append(InspectedFiles(store, pictures, labels, kinds, [mask for _, _, mask, _ in rows]))
    return _source(kind, names, splits[0], splits[1], digest, options, argument, said=notes)


def _source(
    kind: str,
    names: tuple[str, ...],
    train: Inspected,
    test: Inspected,
    digest: hashlib._Hash,
    options: Mapping[str, str],
    argument: str,
    *,
    size: int = _SIZE,
    said: Sequence[str] = (),
) -> AnomalySource:
    mean, std = IMAGENET_STATISTICS
    share = held_out_share(dict(options), argument)
    for k, name in enumerate(names):
        kinds = test.kinds[test.labels == k]
        missing = [what for what, there in (("good", (kinds == GOOD).any()), ("anomalous", (kinds != GOOD).any())) if not there]
        if missing and len(kinds):
            said = [*said, f"{name}: no {' and no '.join(missing)} picture to test on: AUROC, AP and F1 of its pictures are undefined"]
    return AnomalySource(
        name=kind, classes=names, train=train, val=test, mean=mean, std=std, fingerprint=digest.hexdigest()[:16], share=share,
        image_size=size, said=tuple(said),
    )  # fmt: skip


def _check_masks(store: Store, category: str, test: Sequence[tuple[str, str, str | None]], argument: str, said: list[str]) -> None:
    """Raises InputError at a mask that contradicts its picture."""
    for name, kind, mask in test:
        if mask is None:
            continue
        marked, size = read_mask(store, mask, argument), size_of(store, name)
        if size is not None and marked.shape != size:
            got = f"{printable(mask)} of {marked.shape[1]} x {marked.shape[0]} pixels for a picture of {size[1]} x {size[0]}"
            raise InputError(argument, got, "masks of their pictures' sizes")
        if kind == GOOD and marked.any():
            raise InputError(argument, f"{printable(mask)}, in which something is marked", "an empty mask of a good picture, or none")
        if kind != GOOD and not marked.any():
            raise InputError(argument, f"{printable(mask)}, an empty mask of the defect {kind}", "something marked in it")
    if any(kind != GOOD for _, kind, _ in test) and not any(mask for _, kind, mask in test if kind != GOOD):
        said.append(f"{category}: no masks: nothing is measured by pixel")


def _check_copies(store: Store, sizes: Mapping[str, int], category: str, found: _Listed, argument: str, said: list[str]) -> None:
    """Raises InputError at a file that is there as good and as a defect; notes test pictures that were trained on."""
    kinds = dict.fromkeys(found.train, GOOD) | {name: kind for name, kind, _ in found.test}
    alike = Counter(sizes[name] for name in kinds)
    by_content: dict[str, list[str]] = defaultdict(list)
    for name in kinds:
        if alike[sizes[name]] > 1:  # else it has no copy
            by_content[hashlib.sha256(store.read(name)).hexdigest()].append(name)
    trained, leaked = set(found.train), []
    for names in by_content.values():
        good = [name for name in names if kinds[name] == GOOD]
        bad = [name for name in names if kinds[name] != GOOD]
        if good and bad:
            got = f"the same picture as good and as {kinds[bad[0]]}: {printable(good[0])} and {printable(bad[0])}"
            raise InputError(argument, got, "pictures that are either good or not")
        if trained.intersection(names):
            leaked += [name for name in names if name not in trained]
    if leaked:
        said.append(f"{category}: {len(leaked)} good test pictures are training pictures too, the first {printable(leaked[0])}")


def _chosen(options: Mapping[str, str], known: Sequence[str], argument: str) -> tuple[str, ...]:
    """The categories that were asked for, in the order of the set; by default all."""
    if "category" not in options:
        return tuple(known)
    asked = [part.strip() for part in options["category"].split("+")]
    for one in asked:
        if one not in known:
            raise InputError(argument, f"category={one}", f"a category of the set: {near(one, known, most=20)}")
    return tuple(name for name in known if name in asked)


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


KINDS: Sequence[Kind[AnomalySource]] = (
    Kind("mvtec", _open_mvtec, ("category", "val"), needs_path="ROOT"),
    Kind("good", _open_good, ("val",), needs_path="FOLDER"),
    Kind("textures", _open_textures, ("category", "val", *_COUNTS), needs_path=None),
)
