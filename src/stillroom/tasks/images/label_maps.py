"""Label maps: the class of every pixel, from image files that hold numbers, indices into a palette, or colours."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import decoded
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import printable
from stillroom.tasks.images.listed import no_list
from stillroom.tasks.images.stores import UnreadableImage, reason_of

IGNORE = 255  # the class of pixels that count nowhere
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_MOST = 254  # classes that fit beside it into eight bits
_LOSSY = ("JPEG", "MPO", "WEBP")  # formats that write other numbers than they were given
_NUMBERS = 2**24  # as many as there are colours
_NAMED = 5  # numbers and colours that a message names
_VOID_COLOUR = (224, 224, 192)  # of Pascal VOC's palette: its index 255

Colour = tuple[int, int, int]


def voc_colours(count: int) -> tuple[Colour, ...]:
    """The first colours of Pascal VOC's palette, which most programs write label maps with: bits of the index, spread over the channels."""
    bits = [[[(index >> (3 * bit + channel)) & 1 for bit in range(3)] for channel in range(3)] for index in range(count)]
    return tuple(tuple(sum(on << (7 - bit) for bit, on in enumerate(channel)) for channel in colour) for colour in bits)  # type: ignore[misc]


@dataclass(frozen=True)
class LabelSpace:
    """Which numbers, or which colours, of a set's label maps mean which class. Nothing is shifted unless `ids` says so.

    Attributes:
        classes: their names.
        ids: the number of each class in the files; by default 0, 1, 2, ...
        ignored: numbers whose pixels count nowhere.
        colours: of each class, for maps in colour; None where they are not known.

    Raises:
        InputError: two classes of one name, number or colour, no class or too many, or a number that is both a class and ignored.
    """

    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()
    ignored: tuple[int, ...] = (IGNORE,)
    colours: tuple[Colour, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= _MOST:
            raise InputError("classes", f"{len(self.classes)} classes", f"from 1 to {_MOST}")
        for what, several in (("name", self.classes), ("number", self.numbers), ("colour", self.colours or ())):
            if len(set(several)) < len(several):
                twice = next(one for place, one in enumerate(several) if one in several[:place])
                raise InputError("classes", f"the {what} {twice} twice", f"a {what} of each class of its own")
        if len(self.numbers) != len(self.classes):
            raise InputError("ids", f"{len(self.numbers)} numbers for {len(self.classes)} classes", "one for each class, in their order")
        if both := set(self.numbers) & set(self.ignored):
            raise InputError("ids", f"{both.pop()}, which is ignored too", "numbers that are not among those of ignore=")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of each class in the files."""
        return self.ids or tuple(range(len(self.classes)))

    @cached_property
    def _of_number(self) -> np.ndarray:
        """Class by number, int16; -1 for numbers that mean nothing."""
        table = np.full(max(*self.numbers, *self.ignored, 0) + 2, -1, np.int16)
        table[list(self.numbers)] = np.arange(len(self.classes))
        table[list(self.ignored)] = IGNORE
        return table

    def read(self, content: bytes, name: str) -> np.ndarray:
        """The class of each pixel, uint8 [H, W], of a file; `IGNORE` where it counts nowhere.

        A palette image is its indices, whatever their colours; one of one channel its numbers; one of three channels is read by the
        colours, or by its numbers where all channels are alike and these are no colours of the list.

        Raises:
            InputError: numbers or colours that mean no class, which are named; colours without a list; a format that changes numbers.
            UnreadableImage: it cannot be decoded.
        """
        pixels = map_pixels(content, name)
        return self.of_numbers(pixels, name) if pixels.ndim == 2 else self._coloured(pixels, name)

    def of_numbers(self, numbers_HW: np.ndarray, name: str) -> np.ndarray:
        """The class of each pixel, uint8 [H, W], by whole numbers; see `read`."""
        found_HW = self._of_number[numbers_HW.clip(-1, len(self._of_number) - 1)]
        if (found_HW < 0).any():
            unknown, counts = np.unique(numbers_HW[found_HW < 0], return_counts=True)
            got = ", ".join(f"{number} ({count} pixels)" for number, count in zip(unknown[:_NAMED], counts, strict=False))
            known = f"{min(self.numbers)} to {max(self.numbers)}"
            expected = f"numbers of the {len(self.classes)} classes ({known}), or ignored ones ({', '.join(map(str, self.ignored))})"
            raise InputError("data", f"{printable(name)} with the numbers {got}", f"{expected}; classes=, ids= and ignore= say others")
        return found_HW.astype(np.uint8)

    def _coloured(self, pixels_HW3: np.ndarray, name: str) -> np.ndarray:
        codes_HW = pixels_HW3 @ [1 << 16, 1 << 8, 1]
        of_code = {code(colour): index for index, colour in enumerate(self.colours or ())}
        if IGNORE in self.ignored:
            of_code.setdefault(code(_VOID_COLOUR), IGNORE)
        present, inverse = np.unique(codes_HW, return_inverse=True)
        unknown = [one for one in present.tolist() if one not in of_code]
        if not unknown:
            return np.array([of_code[one] for one in present.tolist()], np.uint8)[inverse].reshape(codes_HW.shape)
        if (pixels_HW3 == pixels_HW3[..., :1]).all():
            return self.of_numbers(pixels_HW3[..., 0], name)
        shown = ", ".join(str((one >> 16, one >> 8 & 255, one & 255)) for one in unknown[:_NAMED])
        listed = "the colours of the list of classes" if self.colours else "a list of classes with their colours (classes=FILE: name r g b)"
        raise InputError("data", f"{printable(name)} with the colours {shown}{', ...' * (len(unknown) > _NAMED)}", listed)


def map_pixels(content: bytes, name: str) -> np.ndarray:
    """The numbers of a label map, int64 [H, W], or its colours [H, W, 3]; of a palette image the indices. Transparency is left out.

    Raises:
        InputError: a format that changes numbers.
        UnreadableImage: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            values = np.asarray(ImageOps.exif_transpose(image))
            lossy, alpha = image.format in _LOSSY, image.mode in ("LA", "RGBA")
        pixels = values.astype(np.int64)
        if values.dtype.kind == "f" and not (pixels == values).all():
            raise ValueError("floating-point values that are no whole numbers")
    except Exception as error:  # formats' readers raise whatever they stumble over in damaged bytes
        raise UnreadableImage(f"{printable(name)}: not a readable label map ({reason_of(error)})") from None
    if lossy:
        raise InputError("data", f"{printable(name)}, a JPEG or WebP", "label maps as PNG: this format changes the numbers")
    pixels = pixels[..., :-1] if alpha else pixels
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def code(colour: Sequence[int]) -> int:
    """A colour as one number."""
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def read_classes(text: str) -> tuple[tuple[str, ...], tuple[Colour, ...] | None]:
    """Names of classes, and their colours where every line has one: a line for each, ``name``, or ``name r g b``; or a JSON list of names.

    Raises:
        ValueError: some lines have a colour and others none.
    """
    if text.lstrip().startswith("["):
        return tuple(map(str, json.loads(text))), None
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    split = [re.fullmatch(r"(.+?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)", line) for line in lines]
    if split and split[0] is None and all(split[1:]) and len(split) > 1:
        lines, split = lines[1:], split[1:]  # the heads of a table
    if not any(split):
        return tuple(lines), None
    if not all(split):
        raise ValueError(f"a colour behind every name or behind none; {lines[split.index(None)]!r} has none")
    found = [(match[1], tuple(int(match[number]) for number in (2, 3, 4))) for match in split if match]
    return tuple(name for name, _ in found), tuple(colour for _, colour in found)  # type: ignore[misc]


def label_space(options: Mapping[str, str], argument: str, *, found: str | None = None, usual: Sequence[str] = ()) -> LabelSpace:
    """What the options of a specification, and what lies beside the label maps, say of their classes.

    Args:
        options: ``classes``: a file (see `read_classes`) or names, ``cat+dog``; ``ids``: ``0+255`` or ``1-150``; ``ignore``: likewise.
        argument: what the user calls the specification.
        found: text of a list of classes that lies beside the maps.
        usual: the names where nothing says others.

    Raises:
        InputError: no names, or something else than is asked for.
    """
    given, colours = options.get("classes"), None
    try:
        if given is not None and Path(given).expanduser().is_file():
            classes, colours = read_classes(decoded(Path(given).expanduser().read_bytes())[0])
        elif given is not None:
            no_list(given, argument, "classes")
            classes = tuple(name.strip() for name in given.split("+"))
        else:
            classes, colours = (tuple(usual), None) if found is None else read_classes(found)
    except (OSError, ValueError) as error:
        raise InputError(
            argument, f"classes={given or 'the list beside the label maps'}", f"a list of classes ({reason_of(error)})"
        ) from None
    if not classes or not all(classes):
        raise InputError(argument, f"classes={given or 'nothing'}", "the classes: classes=FILE, with a name in each line, or classes=a+b+c")
    ids = _numbers(options["ids"], argument, "ids") if "ids" in options else ()
    ignored = _numbers(options["ignore"], argument, "ignore") if "ignore" in options else tuple({IGNORE} - set(ids))
    return LabelSpace(classes, ids, ignored, colours)


def _numbers(text: str, argument: str, option: str) -> tuple[int, ...]:
    """``0+255`` or ``1-150``, or both."""
    found: list[int] = []
    for part in text.split("+"):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise InputError(argument, f"{option}={text}", f"whole numbers, as in {option}=0+255 or {option}=1-150")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _NUMBERS:
            raise InputError(argument, f"{option}={text}", f"numbers that rise, below {_NUMBERS}, as in {option}=1-150")
        found += range(first, last + 1)
    return tuple(found)


def content_of_map(store: Store, name: str) -> bytes:
    """A file's bytes.

    Raises:
        UnreadableImage: it is not there, or cannot be read.
    """
    try:
        return store.read(name)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UnreadableImage(f"{printable(name)}: cannot be read ({reason_of(error)})") from None
