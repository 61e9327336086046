"""One stage of an experiment on disk: its fingerprint, what finished, and what can go on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule
from torch import Tensor

from stillroom._version import __version__
from stillroom.engine.distiller import Distiller
from stillroom.engine.plain import plain_json
from stillroom.engine.run.written import (
    EVENTS,
    OF_A_STAGE,
    Record,
    read_arrays,
    refuse_foreign,
    refuse_links,
    remove,
    write_arrays,
    write_atomic,
)
from stillroom.engine.training import Training
from stillroom.errors import InputError

# Seconds: the data workers of a run that was killed notice it within five, and hold what it held until then.
_PATIENCE = 10.0
CHECKPOINT_FILES = "checkpoint"  # a folder of a stage with files, *.npy, that its checkpoint refers to
_LIGHTNING_ATTRIBUTES = frozenset(vars(LightningModule()))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors, equal exactly when names, shapes, types and values are."""
    hasher = hashlib.blake2b(digest_size=12)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        if tensor.numel():  # an empty one cannot be seen as bytes
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def fingerprint(distiller: Distiller, plan: Training, data: str, batch_size: int, seed: int, precision: str) -> dict[str, Any]:
    """What a stage's result depends on, one entry each: code, method and its numbers, initial weights, teacher, data, training, seed.

    The number of devices is left out on purpose: a run may go on with more or fewer.
    """
    parts: dict[str, Any] = {"code": code_version(type(distiller))}
    for prefix, one in _distillers(distiller):
        parts[f"{prefix}method"] = type(one).__qualname__
        parts |= {f"{prefix}{name}": value for name, value in _options(one).items()}
    parts["architecture"] = hashlib.blake2b(repr(distiller).encode(), digest_size=12).hexdigest()
    parts["initial weights"] = digest(distiller.state_dict())
    parts["teacher"] = None if distiller.teacher is None else distiller.teacher.fingerprint()
    parts |= {"data": data, "batch_size": batch_size, "seed": seed, "precision": precision, **asdict(plan)}
    return json.loads(json.dumps(parts, default=str))


def code_version(kind: type) -> str:
    """Stillroom's version and a hash of the source files in which a class and its bases (up to Lightning's) are written."""
    hasher = hashlib.blake2b(digest_size=6)
    for module in sorted({base.__module__ for base in kind.__mro__ if issubclass(base, Distiller)}):
        try:
            hasher.update(inspect.getsource(sys.modules[module]).encode())
        except (OSError, TypeError):  # typed into an interactive session: nothing to read
            hasher.update(module.encode())
    return f"{__version__}+{hasher.hexdigest()}"


def _distillers(distiller: Distiller, prefix: str = "") -> list[tuple[str, Distiller]]:
    found = [(prefix, distiller)]
    for name, child in distiller.named_children():
        if isinstance(child, Distiller):
            found += _distillers(child, f"{prefix}{name}.")
    return found


def _options(distiller: Distiller) -> dict[str, Any]:
    """The plain numbers, words and tensors that a method keeps as attributes."""
    found: dict[str, Any] = {}
    for name, value in vars(distiller).items():
        if name.startswith("_") or name in _LIGHTNING_ATTRIBUTES or name in ("teacher", "progress", "plan", "guard"):
            continue
        if isinstance(value, Tensor):
            found[name] = digest({name: value})
        elif value is None or isinstance(value, bool | int | float | str | tuple | list | dict):
            found[name] = value
    return found


class StageFolder:
    """The files of one stage: `stage.json`, `student.safetensors`, `best.safetensors`, `details.npz`, TensorBoard events; `student.json`,
    which says what network it is; `indices.json` where only part of a set was trained on; `last.ckpt` while it is not finished.

    A stage is finished when `stage.json` says so; it is written last.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "stage.json"
        self.last_checkpoint = path / "last.ckpt"
        self.student = path / "student.safetensors"
        self.best = path / "best.safetensors"
        self.details = path / "details.npz"

    def companion(self, name: str) -> Path:
        """The weights of a network that is kept beside the student; see `Distiller.companions`."""
        return self.path / f"{name}.safetensors"

    def read(self) -> dict[str, Any] | None:
        """The stage's record, or None when there is none."""
        if not self.record.exists():
            return None
        expected = "a folder that Stillroom wrote, or a new one"
        try:
            found: dict[str, Any] = plain_json(self.record.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError("out", f"{self.record} that cannot be read ({error})", expected) from error
        if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), dict):
            raise InputError("out", f"{self.record}, which Stillroom did not write", expected)
        return found

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes the stage's record."""
        self._refuse_links()
        if (written := Record.around(self.record)) is not None:
            written.enter({self.path / EVENTS: None})
        write_atomic(self.record, json.dumps(record, indent=1, default=str))

    def drop_checkpoint(self) -> None:
        """Removes what a killed stage would go on from, with the files that it refers to; a finished one has its weights."""
        self.last_checkpoint.unlink(missing_ok=True)
        referred = self.path / CHECKPOINT_FILES
        if (around := Record.around(self.record)) is not None and (written := Record.of(around.folder)) is not None:
            remove([file for file in referred.glob("*.npy") if written.ours(file)], self.path)

    def write_details(self, details: Mapping[str, np.ndarray]) -> None:
        """Writes the per-sample results (ids, labels, predictions) of the final evaluation."""
        write_arrays(self.details, details)

    def write_indices(self, indices: Mapping[str, np.ndarray]) -> None:
        """Writes which samples of the whole set the stage was given, `indices.json`; nothing for all of them."""
        if indices:
            write_atomic(self.path / "indices.json", json.dumps({name: ids.tolist() for name, ids in indices.items()}))

    def read_details(self) -> dict[str, np.ndarray]:
        """The per-sample results, empty when the task keeps none."""
        return read_arrays(self.details, "out") if self.details.exists() else {}

    def open(self, parts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of this stage when it was begun before with the same fingerprint.

        Raises:
            InputError: the folder holds this stage with another fingerprint; the message says what differs. Or there is no stage yet, and
                a file in the way of one that Stillroom did not write.
        """
        record = self.read()
        if record is None or not record.get("finished"):
            self._refuse_links()
        if record is None:
            refuse_foreign(self.path / name for name in OF_A_STAGE)
            return None
        old = record["fingerprint"]
        differs = [f"{key} was {old.get(key)!r}, now {parts.get(key)!r}" for key in {**old, **parts} if old.get(key) != parts.get(key)]
        if differs:
            raise InputError(
                "out", f"{self.path}, which holds this stage of another run ({'; '.join(differs[:4])})", "another folder, or --overwrite"
            )
        return record

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keeps other processes out while the stage is worked on; a process that dies has it no longer.

        Raises:
            InputError: another process has it.
        """
        lock = FileLock(self.path / ".lock")
        self._refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise InputError("out", f"{self.path}, on which another run is at work", "another folder, or a little patience") from None
        except OSError as error:
            raise InputError("out", f"{lock.lock_file} ({error.strerror})", "a folder that can be written, without a link in it") from None
        try:
            yield
        finally:
            lock.release()

    def _refuse_links(self) -> None:
        """Nothing that a stage writes goes through a link: not its folder, nor those in it."""
        refuse_links(self.path / EVENTS / "any")
        for name in (EVENTS, CHECKPOINT_FILES):
            if (place := self.path / name).is_symlink() or (os.path.lexists(place) and not place.is_dir()):
                raise InputError("out", f"{place}, which is no folder that Stillroom made", "another folder, or that one moved away")
