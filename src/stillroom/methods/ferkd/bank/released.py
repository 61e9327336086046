"""The layout in which FKD's label banks were released: one file for each image, read and written without running anything in it.

    ROOT/train/CLASS/STEM.tar       a list of three tensors: coords [M, 4], flips [M], labels (`LabelFormat.to_released`)

STEM is the image's path below ``train/`` up to its first dot. The files are PyTorch's own, that is pickles: they are read by
``torch.load(weights_only=True)``, which makes tensors and plain values and refuses whatever else a pickle asks for.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.folder import Rows, refuse_unsound
from stillroom.methods.ferkd.bank.labels import LabelDtype, LabelFormat, SoftLabels
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.writer import BankPlan, write_bank


class Record(NamedTuple):
    """What a file holds: M crops of one image.

    Attributes:
        coords: float32 [M, 4].
        flips: bool [M].
        labels: of these crops.
    """

    coords: Tensor
    flips: Tensor
    labels: SoftLabels


@dataclass(frozen=True)
class ReleasedImages:
    """The images whose records are to be read, in the order of the bank to be.

    Args:
        names: of the images, relative to their data set.
        targets: their classes, int [N].
        classes: names of the C classes.
    """

    names: Sequence[str]
    targets: np.ndarray
    classes: Sequence[str]


def record_paths(root: Path, names: Sequence[str], argument: str) -> list[Path]:
    """Where the records of images are.

    Raises:
        InputError: two images would have one file.
    """
    paths: dict[Path, str] = {}
    for name in names:
        path = root / "train" / f"{_below_train(name).partition('.')[0]}.tar"
        if path in paths:
            raise InputError(argument, f"{paths[path]} and {name}", "images whose paths differ before the first dot, as this layout needs")
        paths[path] = name
    return list(paths)


def read_record(path: Path, form: LabelFormat, argument: str = "records") -> Record:
    """One image's crops and labels.

    Args:
        path: of the file.
        form: of the labels.
        argument: what the user calls the files.

    Raises:
        InputError: the file is missing, damaged, holds anything but tensors and plain values, or another kind of labels.
    """
    if not path.exists():
        raise InputError(argument, f"no record {path}", "one for every image of the data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other protocols of pickles, which are read or refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0].strip()
        raise InputError(argument, f"{path}, which is refused unread ({reason[:160]})", "a list of three tensors") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(argument, f"{path}, which cannot be read ({reason[:160]})", "a list of three tensors") from None
    try:
        coords, flips, labels = (part if isinstance(part, Tensor) else torch.as_tensor(part) for part in content)
        crops = len(coords)
        if coords.shape != (crops, 4) or flips.shape != (crops,) or len(labels) != crops or not crops:
            raise ValueError(f"shapes {list(coords.shape)}, {list(flips.shape)}, {list(labels.shape)}")
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{path}, which holds something else ({str(error)[:160]})"
        raise InputError(argument, got, "coords [M, 4], flips [M] and labels of M crops") from None
    try:
        soft = form.from_released(labels)
    except InputError as error:
        raise InputError(error.argument, f"{path} with {error.got}", error.expected) from None
    return Record(coords.float(), flips.bool(), soft)


def write_record(path: Path, form: LabelFormat, record: Record) -> None:
    """Writes one image's file, whole or not at all; numbers in float32, which class numbers and recovery need."""
    buffer = io.BytesIO()
    torch.save([record.coords.float(), record.flips.bool(), form.to_released(record.labels)], buffer)
    write_atomic(path, buffer.getvalue())


def import_released(
    root: Path,
    folder: Path,
    images: ReleasedImages,
    *,
    label_type: str,
    crops: int,
    dtype: LabelDtype = "fp16",
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> LabelBank:
    """Makes a bank of released records; resumable and shared like every `write_bank`.

    Args:
        root: folder that holds ``train``.
        folder: of the bank.
        images: whose records.
        label_type: of the records.
        crops: M, the most crops that a record may have; those of fewer are left with fewer.
        dtype: of the bank's probabilities.
        progress: see `write_bank`.

    Raises:
        InputError: a record that is missing, refused, damaged, has more crops or labels that cannot be; it is named.
    """
    form = LabelFormat.of(label_type, len(images.classes), dtype)
    paths = record_paths(root, images.names, "records")
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError("records", f"no record {missing}", "one for every image of the data")
    shapes = BankPlan({}, form, crops, images.classes, images.names, kept=True).record()["arrays"]

    def rows(first: int, last: int) -> Iterator[Rows]:
        for number in range(first, last):
            record = read_record(paths[number], form)
            found = len(record.coords)
            if found > crops:
                raise InputError("crops", f"{crops}, fewer than the {found} of {paths[number]}", "at least as many")
            row = {name: np.zeros((1, *shape), np.dtype(kind)) for name, (shape, kind) in shapes.items()}
            row["coords"][0, :found], row["flips"][0, :found] = record.coords.numpy(), record.flips.numpy()
            for name, values in record.labels.arrays().items():
                row[name][0, :found] = values
            row["targets"][0], row["kept"][0, :found] = images.targets[number], True
            refuse_unsound(form, row, "records", partial(unsound, paths[number]))
            yield row

    def unsound(path: Path, image: int, crop: int) -> str:
        return f"{path} with a label or a box that cannot be (crop {crop})"

    key = {"records": str(root.resolve())}
    return write_bank(folder, BankPlan(key, form, crops, images.classes, images.names, kept=True), rows, progress=progress)


def export_released(bank: LabelBank, root: Path) -> None:
    """Writes a bank in the released layout: discarded crops are left out; records that are there are replaced.

    Raises:
        InputError: two images would have one file, or a file is there that is no such record; nothing was written then.
    """
    paths = record_paths(root, bank.names, "export")
    for path in paths:
        if os.path.lexists(path):
            read_record(path, bank.format, "export")
    for number, path in enumerate(paths):
        image = np.array([number])
        crops = np.flatnonzero(bank.kept(image)[0])
        here = np.full_like(crops, number)
        coords, flips = bank.boxes(here, crops)
        write_record(path, bank.format, Record(torch.from_numpy(coords), torch.from_numpy(flips), bank.soft(here, crops)))


def _below_train(name: str) -> str:
    """An image's path below its folder ``train``; as it is, where there is none."""
    parts = name.split("/")
    return "/".join(parts[parts.index("train") + 1 :]) if "train" in parts[:-1] else name
