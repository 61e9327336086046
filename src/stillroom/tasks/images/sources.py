"""The grammar of ``--data``: a kind, where its images are, and options behind commas, as in ``imagefolder:photos,val=0.2``.

A task has a table of its kinds; a new kind of data is one line in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near

Found = TypeVar("Found")

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of each channel
_DEFAULT_VAL = "0.2"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was found and listed.

    Attributes:
        name: its kind, e.g. "imagefolder".
        classes: their names; label k is `classes[k]`.
        train, val: the images, with their labels.
        mean, std: of each channel, of pixels in [0, 1].
        fingerprint: hash of classes, labels, file names and sizes; not of where the files lie, nor of every byte.
        teacher: images that a teacher is trained on, where they are others.
        said: what a user must know of how they were found: sentences without a full stop.
    """

    name: str
    classes: tuple[str, ...]
    train: Any
    val: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    teacher: Any = None
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelledSource(Source):
    """Images with labels of the whole image, which networks are given in one size.

    Attributes:
        image_size: their height and width in pixels then, by default.
        augment: name of the default augmentation.
        why: that size, in words.
    """

    image_size: int
    augment: str
    why: str = "the size of these images"


@dataclass(frozen=True)
class Kind(Generic[Found]):
    """A kind of data that a specification may name.

    Args:
        name: what is typed before the colon.
        open: ``(path, options, argument)``: finds and lists the images. Options come as they were typed; `argument` is what errors call it.
        options: names of the options that it has.
        needs_path: what stands behind the colon, as messages write it; None for data that are drawn, or come with a library.
        path: what stands there where nothing was typed.
    """

    name: str
    open: Callable[[str, dict[str, str], str], Found]
    options: tuple[str, ...] = ()
    needs_path: str | None = "PATH"
    path: str = ""


def open_spec(spec: str, kinds: Sequence[Kind[Found]], argument: str, *, others: str = "") -> Found:
    """What the kind that a specification names makes of its path and its options.

    Args:
        spec: ``KIND:PATH,option=value``; ``KIND``, or ``KIND,option=value``, of a kind that needs no path.
        kinds: those that there are.
        argument: what error messages call it.
        others: what the message of an unknown kind says behind their names.

    Raises:
        InputError: no such kind; an option that it has not, or one twice; no path where it needs one, or one where it needs none.
    """
    name, named = kind_of(spec), {kind.name: kind for kind in kinds}
    if name not in named:
        raise InputError(argument, spec, f"one of {near(name, named, most=len(named))}{others}")
    kind, rest = named[name], spec[spec.index(name) + len(name) :]
    if kind.needs_path is None and re.match(r":\s*\w+=", rest):
        rest = f",{rest[1:]}"  # options alone, right behind the colon
    path, options = split_options(rest.removeprefix(":"), argument)
    for option, value in options.items():
        if option not in kind.options:
            known = f"an option of {name}: {near(option, kind.options)}" if kind.options else f"no options: {name} takes none"
            raise InputError(argument, f"{option}={value}", known)
    if kind.needs_path is None and path:
        raise InputError(argument, f"{name}:{path}", f"{name} alone{', or with options' if kind.options else ''}: it needs no path")
    path = path or kind.path
    if kind.needs_path is not None and not path:
        raise InputError(argument, spec, f"{name}:{kind.needs_path}")
    return kind.open(path, options, argument)


def kind_of(spec: str) -> str:
    """What a specification begins with: what stands before its path or its options."""
    return re.split("[:,]", spec, maxsplit=1)[0].strip()


# Options --------------------------------------------------------------------------------------------------------------------------------


def split_options(text: str, argument: str) -> tuple[str, dict[str, str]]:
    """ "path,name=value" -> path and options. A comma belongs to the path unless "name=" follows it."""
    main, *rest = re.split(r",(?=\s*[A-Za-z_]\w*=)", text)
    options: dict[str, str] = {}
    for part in rest:
        name, _, value = part.strip().partition("=")
        if name in options:
            raise InputError(argument, part.strip(), f"the option {name} once")
        options[name] = value.strip()
    return main.strip(), options


def held_out_share(options: dict[str, str], argument: str) -> float:
    """The share of the images that the option `val` holds out, above 0 and below 1; by default a fifth."""
    text = options.get("val", _DEFAULT_VAL)
    if not is_number(text) or not 0 < float(text) < 1:
        raise InputError(argument, f"val={text}", "a share between 0 and 1, e.g. val=0.2")
    return float(text)


def held_out_samples(count: int, share: float, *, spare: bool = False) -> np.ndarray:
    """Which of so many samples are held out to measure with, bool [count]: a share, one at least, always the same ones.

    Args:
        count: samples.
        share: of them.
        spare: leave one at least to train on.
    """
    held_N, wanted = np.zeros(count, bool), max(1, round(share * count))
    held_N[sample_order(0, 0, count)[: min(wanted, count - 1) if spare else wanted]] = True
    return held_N


def is_number(text: str) -> bool:
    """Whether it can be read as one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def whole_numbers(options: dict[str, str], argument: str, *, zero: Sequence[str] = ("seed",)) -> dict[str, int]:
    """Options that are whole numbers of at least 1; those in `zero` may be 0."""
    for name, text in options.items():
        if not text.isdecimal() or (name not in zero and not int(text)):
            raise InputError(argument, f"{name}={text}", f"a whole number{'' if name in zero else ' of at least 1'}")
    return {name: int(text) for name, text in options.items()}


def drops_empty(options: dict[str, str], argument: str, what: str) -> bool:
    """Whether images without any object are left out (``empty=drop``, the default) or kept; `what` the message calls them."""
    empty = options.get("empty", "drop")
    if empty not in ("drop", "keep"):
        raise InputError(argument, f"empty={empty}", f"drop or keep: {what}")
    return empty == "drop"
