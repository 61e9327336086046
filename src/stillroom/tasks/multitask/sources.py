"""Where pictures and their dense targets come from: ``solids``, ``nyud:ROOT``, ``pascal-context:ROOT``, ``dense:ROOT``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np

from stillroom.engine.plain import plain_yaml
from stillroom.errors import InputError, near, one_of
from stillroom.tasks.images.data import hashed
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import list_files, printable, single_top
from stillroom.tasks.images.label_maps import IGNORE, VOC_CLASSES, LabelSpace, content_of_map, label_space
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
from stillroom.tasks.images.whole_pictures import pixels_of
from stillroom.tasks.multitask.batches import Decode, DenseFiles, DenseMemory, truth_of
from stillroom.tasks.multitask.decoding import INNER_AXES, PARTS, UNITS, Depth, EdgesOf, HumanParts, Labels, Mask, Normals, doubts
from stillroom.tasks.multitask.solids import CLASSES, draw
from stillroom.tasks.multitask.targets import KINDS, WEIGHTS, Target
from stillroom.tasks.multitask.targets import Kind as TargetKind

_MOST = 512  # pixels of the shorter side that is trained on, by default
_LOOKED_AT = 24  # pictures of a split whose targets are looked at before a run
_LISTED = 5  # names that a message has
_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation", "test", "testing"), "val")
_DECLARED = "targets.yaml"
_NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "blinds", "desk",
    "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper",
    "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MultiTaskSource(Source):
    """Pictures and truths that were found and listed. Its classes are the targets' names.

    Attributes:
        targets: what is known of each pixel.
        image_size: of the shorter side that is trained on, in pixels, by default.
        ratio: width over height of what is trained on.
        augment: name of the default augmentation.
    """

    targets: tuple[Target, ...]
    image_size: int
    ratio: float
    augment: str


@dataclass(frozen=True)
class Declared:
    """A target, and where and how its files are read.

    Args:
        target: what it is.
        folders: that its files lie in; of several the first that is there.
        decode: a file's content.
        unit: of depth: metres of a step.
    """

    target: Target
    folders: tuple[str, ...]
    decode: Decode
    unit: float = 1.0


def open_source(spec: str, argument: str = "data") -> MultiTaskSource:
    """What a specification of data names.

    Args:
        spec: ``solids`` (drawn; ``solids:train=150,val=100,teacher=1500,size=48,seed=0``);
            ``nyud:ROOT``: NYU Depth V2, a folder or a zip with images, depth, normals, and labels40 (with meta.json) or segmentation;
            ``pascal-context:ROOT``: JPEGImages, semseg, human_parts, sal_distill, normals_distill, ImageSets/Context;
            ``dense:ROOT``: image (or images), a folder for each target, and targets.yaml, which says what they are.
            All but ``solids``: ``train=FILE`` and ``val=FILE`` name lists of pictures in it, or ``val=0.2`` holds out a share;
            ``axes=right+up+backward`` (not ``dense``): where the components of the normals point.
        argument: what errors call it.

    Raises:
        InputError: no such kind or option; nothing in that layout, or something that contradicts itself.
    """
    return open_spec(spec, KINDS_OF_DATA, argument, others=", followed by where the pictures are, e.g. dense:rooms")


def _open_solids(path: str, options: dict[str, str], argument: str) -> MultiTaskSource:
    given = {"train": 150, "val": 100, "teacher": 1500, "size": 48, "seed": 0, **whole_numbers(options, argument)}
    parts: dict[str, Any] = {}
    for number, split in enumerate(("train", "val", "teacher")):
        pixels, truths = draw(given[split], given["size"], 3 * given["seed"] + number)
        parts[split] = DenseMemory(pixels, truths, [f"{split}/{i}" for i in range(given[split])])
    weights = {"depth": 1.0, "normals": 2.0, "edges": 10.0}
    targets = (
        Target("semseg", "classes", CLASSES),
        *(Target(kind, kind, weight=weight, tolerance=1.0 / (2**0.5 * given["size"])) for kind, weight in weights.items()),  # type: ignore[arg-type]
    )
    mean, std = IMAGENET_STATISTICS
    return MultiTaskSource(
        name="solids", classes=tuple(one.name for one in targets), **parts, mean=mean, std=std, targets=targets, image_size=given["size"],
        ratio=1.0, augment="none", fingerprint=hashed(repr(("solids/1", sorted(given.items())))), said=_looked(parts, targets),
    )  # fmt: skip


# NYU Depth V2 ---------------------------------------------------------------------------------------------------------------------------


def _open_nyud(path: str, options: dict[str, str], argument: str) -> MultiTaskSource:
    store, sizes, folders = list_files(path, argument)
    known = {PurePosixPath(name).name for name in folders}
    axes = Normals(options.get("axes", INNER_AXES))
    if "labels40" in known:  # numbered from 0, 255 for what is unlabelled, depth in millimetres
        meta = next((name for name in sorted(sizes) if PurePosixPath(name).name == "meta.json"), None)
        found = json.loads(store.read(meta)) if meta is not None else {}
        labels = Labels(LabelSpace(tuple(found.get("classes", _NYU40))))
        semseg, depth = Declared(Target("semseg", "classes", labels.space.classes), ("labels40",), labels), Depth(UNITS["mm"])
        edges: Decode = EdgesOf(labels)
    else:
        labels = Labels(LabelSpace(_NYU40, tuple(range(1, 41)), (0, IGNORE)))
        semseg, depth = Declared(Target("semseg", "classes", _NYU40), ("segmentation", "semseg"), labels), Depth(UNITS["m"])
        edges = EdgesOf(labels)
    drawn = "edge" in known
    declared = [
        semseg,
        Declared(Target("depth", "depth"), ("depth",), depth, depth.unit),
        Declared(Target("normals", "normals", weight=WEIGHTS["normals"]), ("normals",), axes),
        Declared(
            Target("edges", "edges", weight=WEIGHTS["edges"], positive_weight=0.8, tolerance=0.011),
            ("edge",) if drawn else semseg.folders,
            Mask() if drawn else edges,
        ),
    ]
    return _of_files("nyud", store, sizes, folders, ("images", "image"), declared, options, argument)


# PASCAL-Context -------------------------------------------------------------------------------------------------------------------------


def _open_pascal(path: str, options: dict[str, str], argument: str) -> MultiTaskSource:
    store, sizes, folders = list_files(path, argument)
    labels = Labels(LabelSpace(VOC_CLASSES))
    known = set(folders)
    outlined = next((one for one in ("pascal-context/trainval", "edge") if any(f"/{name}".endswith(f"/{one}") for name in known)), None)
    decode: Decode = EdgesOf(labels) if outlined is None else Mask() if outlined == "edge" else EdgesOf()
    classes = ("semseg/VOC12", "semseg/pascal-context", "semseg", "SegmentationClass")
    declared = [
        Declared(Target("semseg", "classes", VOC_CLASSES), classes, labels),
        Declared(Target("human_parts", "classes", PARTS, weight=2.0), ("human_parts",), HumanParts()),
        Declared(Target("sal", "saliency", weight=WEIGHTS["saliency"]), ("sal_distill", "sal"), Mask()),
        Declared(
            Target("normals", "normals", weight=WEIGHTS["normals"]),
            ("normals_distill", "normals"),
            Normals(options.get("axes", INNER_AXES)),
        ),
        Declared(
            Target("edges", "edges", weight=WEIGHTS["edges"], positive_weight=0.95, tolerance=0.0075),
            classes if outlined is None else (outlined,),
            decode,
        ),
    ]
    found = _of_files("pascal-context", store, sizes, folders, ("JPEGImages", "images"), declared, options, argument)
    return replace(found, said=("PASCAL-Context with 21 classes (there are sets of 59 and 60: not to be compared)", *found.said))


# Any set, by targets.yaml ---------------------------------------------------------------------------------------------------------------


def _open_dense(path: str, options: dict[str, str], argument: str) -> MultiTaskSource:
    store, sizes, folders = list_files(path, argument)
    file = next((name for name in sorted(sizes, key=len) if PurePosixPath(name).name in (_DECLARED, "targets.yml")), None)
    if file is None:
        raise InputError(argument, path, f"a {_DECLARED} in it, which says of each folder of targets its kind and unit")
    try:
        content = plain_yaml(store.read(file).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(argument, file, f"YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or not content or not all(isinstance(one, dict) for one in content.values()):
        raise InputError(argument, file, "a mapping for each target, e.g. depth: {kind: depth, unit: mm}")
    declared: dict[str, Declared] = {}
    for name, one in sorted(content.items(), key=lambda item: "from" in item[1]):  # what is made from others behind these
        declared[str(name)] = _declared(str(name), one, declared, store, sizes, f"{argument}: {file}: {name}")
    listed = [declared[str(name)] for name in content]
    return _of_files("dense", store, sizes, folders, ("image", "images"), listed, options, argument)


_KEYS = {
    "classes": ("classes", "ids", "ignore"), "saliency": (), "depth": ("unit", "missing", "max"), "normals": ("axes",),
    "edges": ("from", "tolerance", "positive_weight"),
}  # fmt: skip


def _declared(
    name: str, said: Mapping[str, Any], others: Mapping[str, Declared], store: Store, sizes: Mapping[str, int], argument: str
) -> Declared:
    """A target of targets.yaml.

    Raises:
        InputError: what is said of it is not enough, or means nothing.
    """
    kind = cast("TargetKind", one_of(f"{argument}: kind", str(said.get("kind")), KINDS))
    known = ("kind", "folder", "weight", *_KEYS[kind])
    if unknown := [key for key in said if key not in known]:
        raise InputError(argument, unknown[0], f"one of {near(str(unknown[0]), known, most=len(known))}")
    folders: tuple[str, ...] = (str(said.get("folder", name)),)
    unit = 1.0
    more: dict[str, Any] = {"weight": float(said.get("weight", WEIGHTS[kind]))}
    decode: Decode = Mask()
    if kind == "classes":
        labels = Labels(_space(said, store, sizes, argument))
        decode, more["classes"] = labels, labels.space.classes
    elif kind == "depth":
        unit = _unit(said.get("unit"), argument)
        decode = Depth(unit, *(None if said.get(key) is None else float(said[key]) for key in ("max", "missing")))
    elif kind == "normals":
        if "axes" not in said:
            raise InputError(argument, "no axes", f"where the components point: axes: {INNER_AXES}, or right+up+backward, ...")
        decode = Normals(str(said["axes"]))
    elif kind == "edges":
        more |= {key: float(said[key]) for key in ("tolerance", "positive_weight") if key in said}
        if "from" in said:
            of = others.get(str(said["from"]))
            if of is None or not isinstance(of.decode, Labels):
                raise InputError(f"{argument}: from", said["from"], "a target of the kind classes")
            folders, decode = of.folders, EdgesOf(of.decode)
    return Declared(Target(name, kind, **more), folders, decode, unit)


def _unit(said: object, argument: str) -> float:
    """Metres of a step in the files: of m, cm, mm, or a number."""
    text = str(said)
    if text in UNITS:
        return UNITS[text]
    if not is_number(text) or not 0 < float(text) < np.inf:
        raise InputError(f"{argument}: unit", said if said is not None else "nothing", "m, cm, mm, or the metres of a step, e.g. 0.001")
    return float(text)


def _space(said: Mapping[str, Any], store: Store, sizes: Mapping[str, int], argument: str) -> LabelSpace:
    """The classes: names, a file of them in the set, or one elsewhere."""
    classes = said.get("classes", "")
    named = [str(one) for one in classes] if isinstance(classes, list) else str(classes).split("+")
    options = {"classes": "+".join(named), **{key: str(said[key]) for key in ("ids", "ignore") if key in said}}
    inside = next((name for name in sizes if len(named) == 1 and PurePosixPath(name).name == named[0]), None)
    if inside is None:
        return label_space(options, argument)
    del options["classes"]
    return label_space(options, argument, found=content_of_map(store, inside).decode("utf-8-sig"))


# From what was listed to a source -------------------------------------------------------------------------------------------------------


def _of_files(
    kind: str,
    store: Store,
    sizes: Mapping[str, int],
    folders: set[str],
    pictures: tuple[str, ...],
    declared: Sequence[Declared],
    options: Mapping[str, str],
    argument: str,
) -> MultiTaskSource:
    """Pictures with the files of each target that bear their names; some of them are looked at."""
    top = single_top(sizes, folders)
    image_of = _in_folders(sizes, top, pictures)
    files_of = {one.target.name: _in_folders(sizes, top, one.folders) for one in declared}
    if not image_of:
        raise InputError(argument, f"{kind}:… without pictures", f"pictures in a folder {' or '.join(pictures)}")
    for one in declared:
        if not set(files_of[one.target.name]) & set(image_of):
            expected = f"files in {' or '.join(one.folders)} that bear the pictures' names"
            raise InputError(argument, f"no file of the target {one.target.name}", expected)
    keys, said = _split(store, sizes, image_of, options, argument), []
    decode = {one.target.name: one.decode for one in declared}
    parts: dict[str, Any] = {}
    for split, some in keys.items():
        files = {name: [known[key][1] if key in known else "" for key in some] for name, known in files_of.items()}
        parts[split] = DenseFiles(store, [image_of[key][1] for key in some], files, decode)
        missing = {name: names.count("") for name, names in files.items() if "" in names}
        told = "it is in no loss and no figure"
        said += [f"{count} of {len(some)} {split} pictures without {name}: {told}" for name, count in missing.items()]
    targets = tuple(one.target for one in declared)
    looked = _looked(parts, targets, {one.target.name: one.unit for one in declared})
    shapes = {pixels_of(part.image(index)).shape[1:] for part in parts.values() for index in _some(len(part))[:_LISTED]}
    height, width = next(iter(shapes))
    named = sorted((name, sizes[name]) for found in (image_of, *files_of.values()) for _, name in found.values())
    mean, std = IMAGENET_STATISTICS
    return MultiTaskSource(
        name=kind, classes=tuple(one.name for one in targets), **parts, mean=mean, std=std, targets=targets,
        image_size=min(int(min(height, width)), _MOST), ratio=width / height if len(shapes) == 1 else 1.0, augment="scale",
        fingerprint=hashed(repr((kind, targets, [repr(one.decode) for one in declared], keys, named))), said=(*said, *looked),
    )  # fmt: skip


def _in_folders(sizes: Mapping[str, int], top: str, folders: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Files in the first of the folders that there is, with their split and their name, by their key: the path in it without the ending."""
    for folder in folders:
        found: dict[str, tuple[str, str]] = {}
        wanted = folder.split("/")
        for name in sizes:
            parts = name.removeprefix(top).split("/")
            place = next((i for i in range(len(parts) - len(wanted)) if parts[i : i + len(wanted)] == wanted), None)
            if place is not None:
                rest = [*parts[:place], *parts[place + len(wanted) : -1]]
                split = next((_SPLITS[part] for part in rest if part in _SPLITS), "")
                found["/".join([*(part for part in rest if part not in _SPLITS), PurePosixPath(name).stem])] = split, name
        if found:
            return found
    return {}


def _split(
    store: Store, sizes: Mapping[str, int], image_of: Mapping[str, tuple[str, str]], options: Mapping[str, str], argument: str
) -> dict[str, list[str]]:
    """Keys of the pictures to train on and to measure with: by lists, by folders, or by a share."""
    keys = sorted(image_of)
    if not is_number(options.get("val", "")):
        lists = {PurePosixPath(name).name: name for name in sorted(sizes, key=len, reverse=True) if name.endswith(".txt")}
        names = {"train": options.get("train", "train.txt"), "val": options.get("val", "val.txt" if "val.txt" in lists else "test.txt")}
        if asked := [name for split, name in names.items() if split in options and name not in lists]:
            raise InputError(argument, asked[0], f"a list of pictures in the set: {near(asked[0], lists)}")
        if set(names.values()) <= set(lists):
            found = {split: _listed(store, lists[name], image_of, argument) for split, name in names.items()}
            if both := set(found["train"]) & set(found["val"]):
                raise InputError(argument, f"{printable(both.pop())} in both lists", "lists that share no picture")
            return found
        if {split for split, _ in image_of.values()} >= {"train", "val"}:
            return {wanted: [key for key in keys if image_of[key][0] == wanted] for wanted in ("train", "val")}
    held_N = held_out_samples(len(keys), held_out_share(dict(options), argument))
    found = {split: sorted(keys[i] for i in np.flatnonzero(part)) for split, part in (("train", ~held_N), ("val", held_N))}
    if not found["train"]:
        raise InputError(argument, f"{len(keys)} pictures", "at least one to train on and one to measure with")
    return found


def _listed(store: Store, name: str, image_of: Mapping[str, Any], argument: str) -> list[str]:
    """The keys that a list names."""
    lines = [line.split()[0] for line in store.read(name).decode("utf-8-sig").splitlines() if line.strip()]
    keys = [line if line in image_of else PurePosixPath(line).stem for line in lines]
    if missing := [key for key in keys if key not in image_of]:
        raise InputError(argument, f"{name}, which names {', '.join(missing[:_LISTED])}", "the names of pictures that are there")
    if not keys:
        raise InputError(argument, f"{name}, which is empty", "a name in each line")
    return list(dict.fromkeys(keys))


def _some(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(_LOOKED_AT, count)).round().astype(np.int64)).tolist()


def _looked(parts: Mapping[str, Any], targets: Sequence[Target], units: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """What some of the pictures' truths hold, a sentence for each target.

    Raises:
        InputError: a truth of another size than its picture, numbers that mean no class, or values that cannot be what they are said to be.
    """
    said = []
    for target in targets:
        truths = []
        for part in (parts["train"], parts["val"]):
            for index in _some(len(part)):
                try:
                    height, width = (int(side) for side in pixels_of(part.image(index)).shape[1:])
                    truths.append(truth_of(part, index, target.name, (height, width), labelled=target.labelled, channels=target.channels))
                except UnreadableImage as error:
                    if part.readable(index, ends=False):
                        raise InputError("data", str(error), f"a file of the target {target.name} that can be read") from None
        if doubt := doubts(target.kind, truths, (units or {}).get(target.name, 0.0)):
            right = "its unit declared (mm?)" if target.kind == "depth" else "unit vectors, of 8 bits as (n + 1) / 2"
            raise InputError("data", f"{target.name}: {doubt}", right)
        said.append(f"{target.name}, of {len(truths)} pictures: {_said_of(target, truths)}")
    return tuple(said)


def _said_of(target: Target, truths: Sequence[np.ndarray]) -> str:
    if target.labelled:
        names = target.classes or ("nothing", "object" if target.kind == "saliency" else "edge")
        counts = sum((np.bincount(one.reshape(-1), minlength=IGNORE + 1) for one in truths), np.zeros(IGNORE + 1, np.int64))
        shares = 100 * counts / max(counts.sum(), 1)
        order = np.argsort(-counts[: len(names)], kind="stable")[:_LISTED].tolist()
        told = ", ".join(f"{number} {names[number]} {shares[number]:.3g} %" for number in sorted(order) if counts[number])
        rest = f" of {len(names)} classes" if target.kind == "classes" else ""
        off = f"; right within {target.tolerance:.2g} of the diagonal" if target.kind == "edges" else ""
        return f"{told or 'nothing known'}{rest}; {shares[IGNORE]:.3g} % not known{off}"
    values = np.concatenate([one.reshape(len(one), -1) for one in truths], 1) if truths else np.empty((1, 0))
    known = values[:, np.isfinite(values).all(0)]
    unknown = f"{100 * (1 - known.shape[1] / max(values.shape[1], 1)):.3g} % not known"
    if not known.size:
        return unknown
    if target.kind == "depth":
        low, middle, high = np.percentile(known, (1, 50, 99))
        return f"{low:.2f} to {high:.2f} m, median {middle:.2f} m; {unknown}"
    return f"mean direction ({', '.join(f'{one:.2f}' for one in known.mean(1))}), x right, y down, z forward; {unknown}"


_OF_SETS = ("train", "val", "axes")
KINDS_OF_DATA: Sequence[Kind[MultiTaskSource]] = (
    Kind("solids", _open_solids, ("train", "val", "teacher", "size", "seed"), needs_path=None),
    Kind("nyud", _open_nyud, _OF_SETS, needs_path="ROOT"),
    Kind("pascal-context", _open_pascal, _OF_SETS, needs_path="ROOT"),
    Kind("dense", _open_dense, _OF_SETS[:2], needs_path="ROOT"),
)
