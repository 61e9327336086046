"""Pascal VOC's format: an XML file for each image, in that set's own layout or in other folders."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from posixpath import basename, commonprefix, dirname, join, normpath, splitext
from xml.etree import ElementTree

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import (
    SWAPPED,
    Annotated,
    Notes,
    Places,
    Thing,
    all_relative,
    check_apart,
    content_of,
    decoded,
    extension,
    flag,
    may_be_image,
    note_others,
    split_of,
)
from stillroom.tasks.images.files import open_store
from stillroom.tasks.images.folders import EXTENSIONS, list_files
from stillroom.tasks.images.sources import is_number

# What files that say the first are mostly written in: Python's codec of that name knows fewer characters.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}
_PICTURES = ("JPEGImages", "images", "Images")  # folders beside one of annotations


def open_voc(path: str, options: dict[str, str], argument: str) -> list[Annotated]:
    """The images of ``voc:ROOT``: of two splits (``train`` and ``val`` name them), or of one where a share is to be held out.

    ROOT is a folder or a zip. Splits are lists in `ImageSets/Main`, ``train+val`` for two as one: by default trainval and test, or train
    and val. Where there are none they are the folders called train, and val, valid, validation or test; or else all annotated images are
    one split. An image lies beside its annotation, in a folder of images beside the annotations' own, or where its name occurs once.

    Raises:
        InputError: no annotations, no such split, two that share images, or files that are missing or damaged.
    """
    found = _Set(path, argument)
    share = is_number(options.get("val", ""))
    train, val = found.default_splits(share)
    train, val = options.get("train", train), None if share else options.get("val", val)
    parts = [found.images(split) for split in ((train,) if val is None else (train, val))]
    if len(parts) == 2:
        check_apart(parts[0], parts[1], f"train={train}, val={val}", argument)
    if not found.lists:
        note_others(parts, {basename(splitext(name)[0]) for name in found.annotations})
    relative = all_relative(parts)
    return [_placed(part, relative) for part in parts]


def read_voc_files(root: str, argument: str) -> tuple[dict[str, ElementTree.Element], Annotated]:
    """All annotations below a place by themselves, by their paths, and as they are read; the images, which need not be there, have theirs.

    Raises:
        InputError: no annotations, or one that is damaged.
    """
    found, notes = _Set(root, argument, pictures=False), Notes()
    read = {path: found.read(path, notes) for path in found.annotations.values()}
    roots = {path: element for path, element in read.items() if element.tag.lower() == "annotation"}
    things = [[_thing(thing, path, argument) for thing in element.findall("object")] for path, element in roots.items()]
    shapes = [_shape(element, path, argument) for path, element in roots.items()]
    part = Annotated(found.store, list(roots), things, found.sizes, shapes, [False] * len(roots), notes, list(roots))
    return roots, _placed(part, all_relative([part]))


class _Set:
    """The annotations and images below one place.

    Args:
        root: a folder or a zip.
        argument: what error messages call it.
        pictures: whether there must be images.

    Attributes:
        lists: the files in `ImageSets/Main`, by their names.
        annotations: XML files by what they are called; of a set without lists by their paths.
    """

    def __init__(self, root: str, argument: str, *, pictures: bool = True) -> None:
        self.argument = argument
        if pictures:
            self.store, self.sizes, _ = list_files(root, argument)
        else:
            self.store = open_store(root, argument)
            self.sizes, _ = self.store.listing()
        xml = [name for name in self.sizes if name.lower().endswith(".xml")]
        own = [name for name in xml if basename(dirname(name)) == "Annotations"]
        lists = [match for name in sorted(self.sizes) if (match := re.search(r"(?<![^/])ImageSets/Main/([^/]+)\.txt$", name))]
        tops = sorted({match.string[: match.start()] for match in lists})
        if not xml or len(tops) > 1:
            got = f"{root} with {len(tops)} folders ImageSets ({', '.join(map(repr, tops))})" if tops else root
            raise InputError(argument, got, "one set in Pascal VOC's layout: JPEGImages, Annotations/*.xml, ImageSets/Main/*.txt")
        if len({dirname(name) for name in own}) == 1:
            xml = own
        xml.sort(key=splitext)
        self.lists = {match[1]: match.string for match in lists}
        self.annotations = {basename(splitext(name)[0]) if lists else name: name for name in xml}
        self.folders = {} if lists else {split: [name for name in xml if split_of(name) == split] for split in ("train", "val", "test")}
        self.pictures: dict[str, list[str]] = defaultdict(list)
        for name in sorted(filter(may_be_image, self.sizes)):
            self.pictures[basename(splitext(name)[0])].append(name)
        self.places = Places(self.sizes, root, argument)

    def default_splits(self, share: bool) -> tuple[str | None, str | None]:
        """What is trained on and what is held out, where nobody says so; None are all images, and a share of them."""
        known = [name for name in self.lists if "_" not in name]  # the others are of one class each
        if known:
            if share:
                return None, None
            train, val = ("trainval" if "trainval" in known else "train", "test") if "test" in known else ("train", "val")
            return known[0] if len(known) == 1 else train, val if val in known and len(known) > 1 else None
        there = [split for split, names in self.folders.items() if names]
        if "train" not in there:
            return None, None
        return "train", next((split for split in there[1:] if not share), None)

    def images(self, split: str | None) -> Annotated:
        """Those of a split; of all, if it is None."""
        keys = list(self.annotations) if split is None else list(dict.fromkeys(key for part in split.split("+") for key in self._of(part)))
        notes, names, paths, things, shapes = Notes(), [], [], [], []
        missing: list[str] = []
        for key in keys:
            root = None if key not in self.annotations else self.read(self.annotations[key], notes)
            if root is not None and root.tag.lower() != "annotation" and not self.lists:
                notes.add("XML files that are no annotations, passed over", key)
                continue
            picture = None if root is None else self._picture(self.annotations[key], root, notes)
            if root is None or picture is None:
                missing.append(basename(key))
                continue
            names.append(picture)
            paths.append(self.annotations[key])
            things.append([_thing(thing, self.annotations[key], self.argument) for thing in root.findall("object")])
            shapes.append(_shape(root, self.annotations[key], self.argument))
        if missing:
            got = f"no image or no annotation of {', '.join(missing[:5])}"
            raise InputError(self.argument, got, "JPEGImages and Annotations of every listed id")
        if not names:
            raise InputError(self.argument, split or "no annotation", "a split with images in it")
        return Annotated(self.store, names, things, self.sizes, shapes, [False] * len(names), notes, paths)

    def _of(self, split: str) -> list[str]:
        if split in self.lists:
            text, _ = decoded(content_of(self.store, self.lists[split], self.argument))
            return [self._listed(line) for line in text.splitlines() if line.strip()]
        if folder := self.folders.get(split_of(f"{split}/") or ""):
            return folder
        known = [name for name in self.lists if "_" not in name] or [name for name, there in self.folders.items() if there]
        raise InputError(self.argument, split, f"a split of ImageSets/Main: {', '.join(known) or 'there is none'}")

    def _listed(self, line: str) -> str:
        """The id in a line, which may be a path, end in .jpg, or have a number behind it."""
        for said in (line.strip(), line.split()[0]):
            name = basename(said.replace("\\", "/"))
            for each in (name, splitext(name)[0]):
                if each in self.annotations:
                    return each
        return line.strip()

    def _picture(self, annotation: str, root: ElementTree.Element, notes: Notes) -> str | None:
        folder, stem = dirname(annotation), basename(splitext(annotation)[0])
        beside = [normpath(join(folder, "..", name)) for name in _PICTURES]
        nearest = [*(("" if there == "." else there) for there in beside), folder]

        def rank(path: str) -> tuple[int, bool, int]:
            """How likely a file of that name is the annotation's image."""
            there = dirname(path)
            place = nearest[::-1].index(there) if there in nearest else -1
            return place, extension(path) in EXTENSIONS, len(commonprefix([there.split("/"), folder.split("/")]))

        found = sorted(self.pictures.get(stem, ()), key=rank)
        if len(found) > 1 and rank(found[-1]) == rank(found[-2]) and dirname(found[-1]) != dirname(found[-2]):
            raise InputError(self.argument, f"{annotation}, whose image is {found[-1]} or {found[-2]}", "one image of that name")
        if found:
            return found[-1]
        said = (root.findtext("filename") or "").strip()
        try:
            return self.places.find([said], notes)[0] if said else None
        except InputError:
            return None

    def read(self, name: str, notes: Notes) -> ElementTree.Element:
        """One annotation, in whatever encoding."""
        content = content_of(self.store, name, self.argument)
        try:
            return ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError):
            pass  # an encoding that expat does not know, or that the file does not have
        declared = re.match(rb"""[^<]*<\?xml[^>]*?encoding=["']([\w.:-]+)""", content[:500])
        encoding = declared[1].decode().lower() if declared else "utf-8"
        try:
            text, known = content.decode(_WIDER.get(encoding.replace("-", "_"), encoding)), True
        except (LookupError, ValueError):
            text, known = decoded(content)
        if not known:
            notes.add("XML files in an encoding that they do not say, read as Latin-1", name)
        try:
            return ElementTree.fromstring(re.sub(r"^[^<]*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL).strip())
        except (ElementTree.ParseError, ValueError) as error:
            raise InputError(self.argument, name, f"XML ({error})") from None


def _placed(part: Annotated, relative: bool) -> Annotated:
    """Boxes from the image's corner. Pixels count from 1 and the last ones belong to a box: 1 is taken from its left and upper side."""
    if relative:
        return replace(part, relative=[True] * len(part.names))
    things: list[list[Thing]] = []
    for name, mine in zip(part.names, part.things, strict=True):
        things.append([])
        for thing in mine:
            if thing.box is None:
                things[-1].append(thing)
                continue
            x1, y1, x2, y2 = thing.box
            # A pixel less than the first is how a box without width is written.
            part.notes.add(SWAPPED, name, x1 - x2 > 1 or y1 - y2 > 1)
            x1, x2 = (x2, x1) if x1 - x2 > 1 else (x1, x2)
            y1, y2 = (y2, y1) if y1 - y2 > 1 else (y1, y2)
            things[-1].append(replace(thing, box=(x1 - 1, y1 - 1, x2, y2)))
    return replace(part, things=things)


def _shape(root: ElementTree.Element, source: str, argument: str) -> tuple[int, int] | None:
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        raise InputError(argument, f"{source} with a size that is no number", "width and height in pixels") from None
    return (height, width) if height and width else None


def _thing(thing: ElementTree.Element, source: str, argument: str) -> Thing:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise InputError(argument, f"{source} with an object without a name", "a name of each object")
    box = None
    if (corners := thing.find("bndbox")) is not None:
        try:
            x1, y1, x2, y2 = (float(corners.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise InputError(argument, f"{source} with a bndbox that lacks a number", "xmin, ymin, xmax and ymax") from None
        box = x1, y1, x2, y2
    return Thing(name, box, flag(thing.findtext("difficult") or 0))
