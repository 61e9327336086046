"""Piles of images without labels, beside a labelled set or behind it: ``imagefolder:photos,unlabelled=more-photos``."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.folders import counted, list_files, passed_over, told_apart
from stillroom.tasks.images.stores import FileImages, Images, decodable, taken

logger = logging.getLogger(__name__)

NO_LABEL = -1  # in a label's place, behind a labelled set


def read_unlabelled(spec: str, argument: str = "data") -> tuple[str, str | None]:
    """A specification of data without the option ``unlabelled``, and where that says images without labels are.

    Raises:
        InputError: the option is there twice, or says nothing.
    """
    found = re.findall(r",\s*unlabelled=([^,]*)", spec)
    if len(found) > 1 or found == [""]:
        raise InputError(argument, f"unlabelled={found[-1]}", "the option unlabelled once, with a folder, a zip or other data")
    return re.sub(r",\s*unlabelled=[^,]*", "", spec), found[0] if found else None


def open_unlabelled(spec: str, label: int) -> tuple[Images, str]:
    """A pile of images whose labels, if it has some, are forgotten; and what tells its content from another's.

    Args:
        spec: ``imagefolder:PATH`` or PATH alone, a folder or zip in which every image file at any depth counts; or any other specification
            of data, of which the training images are taken.
        label: what stands in the place of their labels.

    Raises:
        InputError: no such pile.
    """
    kind, _, path = spec.partition(":")
    path = path if kind == "imagefolder" else spec
    found = bool(path) and Path(path).expanduser().exists()
    if not found and ":" not in spec and spec.partition(",")[0] not in ("digits", "shapes"):
        raise InputError("unlabelled", spec or "nothing", "a folder or a zip file that exists, or other data such as cifar100:PATH")
    if kind != "imagefolder" and not found:
        source = open_source(spec, argument="unlabelled")
        return taken(source.train, np.arange(len(source.train)), np.full(len(source.train), label)), source.fingerprint
    store, files, _ = list_files(path, "unlabelled")
    names, others = told_apart(store, files)
    if others:
        logger.warning("unlabelled: %s", *passed_over(others))
    content = hashlib.sha256("\n".join(f"{name} {files[name]}" for name in names).encode(errors="surrogateescape")).hexdigest()[:16]
    return FileImages(store, names, np.full(len(names), label)), content


def readable(images: Images, *, strict: bool) -> Images:
    """The images of a pile that can be decoded; one warning names the others.

    Raises:
        InputError: there is none, or there are others, and `strict`.
    """
    (kept,), names = decodable([images], strict=strict, argument="unlabelled")
    if not len(kept):
        raise InputError("unlabelled", counted(names), "at least one image that can be decoded")
    return taken(images, kept) if names else images
