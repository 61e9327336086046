"""Images to learn features from: a pile without classes, ``images:FOLDER``, or any classified images, whose labels only measure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.classified import open_source as open_classified
from stillroom.tasks.images.folders import list_files, passed_over, told_apart
from stillroom.tasks.images.labelled import folder_source
from stillroom.tasks.images.sources import Kind, LabelledSource, held_out_samples, held_out_share, kind_of, open_spec
from stillroom.tasks.images.stores import FileImages
from stillroom.tasks.images.unlabelled import NO_LABEL

_HELD_OUT = "0.05"  # of images without labels, which validation can say little about


def open_source(spec: str, *, argument: str = "data") -> LabelledSource:
    """Find and list the images that a specification names.

    Args:
        spec: ``images:PATH[,val=0.05]``: a folder, zip or tar in which every image file at any depth counts, without classes; or anything
            that `images.classified.open_source` reads.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    if kind_of(spec) == KINDS[0].name:
        return open_spec(spec, KINDS, argument)
    try:
        return open_classified(spec, argument=argument)
    except InputError as error:
        expected = f"{error.expected}; images without classes are images:PATH"
        raise InputError(error.argument, error.got, expected) from None


def _open_images(path: str, options: Mapping[str, str], argument: str) -> LabelledSource:
    store, files, _ = list_files(path, argument)
    names, others = told_apart(store, files)
    if len(names) < 2:
        raise InputError(argument, f"{path} with {len(names)} image", "at least two, one to train on and one to hold out")
    share = held_out_share({"val": _HELD_OUT, **options}, argument)
    held_out = held_out_samples(len(names), share, spare=True)
    train, val = (
        FileImages(store, [names[i] for i in np.flatnonzero(part)], np.full(int(part.sum()), NO_LABEL)) for part in (~held_out, held_out)
    )
    notes = [*passed_over(others), f"held out {share:.0%} of the images to look at: {len(val)}, always the same"]
    return folder_source("images", (), train, val, files, notes)


KINDS = (Kind("images", _open_images, ("val",)),)
