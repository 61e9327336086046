"""CachedTeacher: what a network once answered, in the place of the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.cache.answers import LOGITS, Form, named_inputs, names_in, output_files, put_together
from stillroom.engine.cache.formats import Format
from stillroom.engine.cache.store import CacheFolder
from stillroom.engine.cache.sums import PREFIX, Sums
from stillroom.engine.cache.views import Views
from stillroom.engine.teacher import Teacher
from stillroom.errors import InputError

CACHE = "cache:"  # before a folder, in the place of a teacher: the answers in it teach
_RESIDENT = 2**30  # bytes of answers that are copied to an accelerator, where they are then found without waiting for it


class CachedTeacher(Teacher):
    """A teacher's answers from a finished cache; a distiller cannot tell it from the network.

    It answers batches of the training set whose `views` say which recorded view of each sample they show (`batch.ids` says of which), and
    the one input that the cache has as its example, which methods learn shapes from. To anything else it has no answer, and says so.

    Args:
        path: the cache's folder.
        expected: what it must have been built from, as far as that is known: entries of its key. What the teacher was given (`teacher_*`)
            is the cache's own where nothing else is expected.
        argument: what the user calls it, for messages.

    Attributes:
        views: which views it has answers to.
        result: what was measured of the network, with its answers on the validation set.
        about: the task's own description, e.g. the classes.

    Raises:
        InputError: no cache, one that is not finished, is damaged, or is of something else.
    """

    def __init__(self, path: str | Path, expected: Mapping[str, Any] | None = None, *, argument: str = "teacher") -> None:
        self._folder = CacheFolder(Path(path), argument)
        record = self._folder.read()
        if record is None:
            raise InputError(argument, f"{path}, which is no cache", "a folder that `stillroom cache` wrote")
        known = {name: value for name, value in (expected or {}).items() if value is not None or not name.startswith("teacher_")}
        self._folder.check(known, record, "the data options that it was built with, or a cache that is built with these")
        rows = record["samples"] * record["views"]["count"]
        if record["done"] < rows:
            got = f"{path}, of which {record['done']} of {rows} rows are done"
            raise InputError(argument, got, "a finished cache: the command that began it goes on with it")
        self._record = record
        self.views = Views(**record["views"])
        self.about: dict[str, Any] = record["about"]
        self.result = self._folder.load_result()
        self._formats = {name: Format.from_json(described) for name, described in record["outputs"].items()}
        self._form: Form = record.get("answer", LOGITS)
        self._parts = tuple(names_in(self._form))
        self._files = output_files(self._form, list(self._formats))
        self._example = {name: torch.from_numpy(value) for name, value in self._folder.load("example.npz").items()}
        self._arrays: dict[torch.device, dict[str, Tensor]] = {}
        self._sums: dict[str, Sums] = {}
        self._on(torch.device("cpu"))  # damage is found now rather than at the first step

    @property
    def folder(self) -> Path:
        """Where the cache is."""
        return self._folder.path

    @property
    def samples(self) -> int:
        """N, how many samples it has answers to."""
        return int(self._record["samples"])

    @property
    def stored(self) -> tuple[str, ...]:
        """The module paths whose outputs are stored besides the answer."""
        return tuple(self._formats)[len(self._parts) :]

    @property
    def answer(self) -> tuple[str, ...]:
        """What an answer consists of: its keys, or logits alone."""
        return tuple(self._form) if isinstance(self._form, dict) else (LOGITS,)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Nothing; asking for the first one is answered with what to do instead."""
        return _NoNetworks(self)

    @torch.compiler.disable
    def __call__(self, batch_or_tensor: Any) -> Tensor:
        """The stored logits [B, C, ...] of a batch, float32, on its device; or what else the network answered with, in its form.

        Raises:
            InputError: the batch shows no recorded views.
        """
        told: Tensor = put_together(self._form, self._answers(batch_or_tensor, self._parts))
        return told

    def tap(self, *paths: str, argument: str = "paths") -> Callable[[Any], tuple[Any, dict[str, Any]]]:
        """A callable ``batch -> (answer, {path: feature})`` of stored outputs.

        Args:
            *paths: module paths of the network that answered.
            argument: what the user calls the paths; named in errors.

        Raises:
            InputError: a path that is not stored.
        """
        for path in paths:
            if path not in self.stored:
                features = f"one of those that the cache stores: {', '.join(self.stored)}" if self.stored else "no feature"
                raise InputError(argument, repr(path), f"{features}; `stillroom cache --taps` stores more")

        @torch.compiler.disable
        def answer(batch_or_tensor: Any) -> tuple[Any, dict[str, Tensor]]:
            found = self._answers(batch_or_tensor, (*self._parts, *paths))
            return put_together(self._form, found), {path: found[path] for path in paths}

        return answer

    def rows(self, batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The stored outputs of these names to a batch of recorded views, float32 on the CPU."""
        return {name: values.cpu() for name, values in self._answers(batch, names).items()}

    def fingerprint(self) -> str:
        """A hash over what the answers were computed from and how they are stored."""
        parts = {name: self._record[name] for name in ("key", "views", "outputs", "samples")}
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def parameters(self) -> dict[str, Tensor]:
        """What was drawn for each view, by name: a row for each sample and view, [N, V, ...]."""
        shape = self._record["samples"], self.views.count
        arrays = {name: values for name, values in self._on(torch.device("cpu")).items() if name.startswith("view.")}
        for name in arrays:
            self._refuse_altered(name)
        return {name.removeprefix("view."): values.view(*shape, *values.shape[1:]) for name, values in arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_sums": {}}  # mapped again where it is needed

    def __repr__(self) -> str:
        return f"CachedTeacher({str(self.folder)!r}, views={self.views.count})"

    def _answers(self, batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
        if isinstance(batch, Tensor | Mapping) and not hasattr(batch, "ids"):
            given = named_inputs(batch)
            device = next(iter(given.values())).device
            if not all(name in self._example and _close(value, self._example[name]) for name, value in given.items()):
                got = f"bare inputs {[list(value.shape) for value in given.values()]}"
                raise InputError("batch", got, "a batch with ids: a cache answers to samples, and to its own example only")
            return {name: self._example[self._files[name]].to(device) for name in names}
        views_B = getattr(batch, "views", None)
        if views_B is None:
            expected = "training samples in recorded views, which data.replaying(teacher.views) gives"
            raise InputError("batch", "samples in no view that the cache has answers to", expected)
        rows_B = batch.ids * self.views.count + views_B
        arrays = self._on(batch.ids.device)
        if next(iter(arrays.values())).device != rows_B.device:
            rows_B = rows_B.cpu()  # too much to be kept on the device
        found = {}
        for name in names:
            layout, file = self._formats[name], self._files[name]
            stored = {suffix: arrays[file + suffix][rows_B] for suffix in layout.arrays}
            for suffix in stored if rows_B.device.type == "cpu" else ():  # what lies elsewhere was looked at when it went there
                self._refuse_altered(file + suffix, rows_B)
            found[name] = layout.decode({suffix: values.to(batch.ids.device) for suffix, values in stored.items()})
        return found

    def _refuse_altered(self, name: str, rows_B: Tensor | None = None) -> None:
        """Raises InputError when rows of an array, or any of it, are not as they were written; an old cache has no sums to tell."""
        if (sums := self._sums.get(name)) is None:
            return
        altered = sums.altered(None if rows_B is None else rows_B.numpy())
        if len(altered):
            samples = sorted({int(row) // self.views.count for row in altered})
            got = f"{self.folder}/rows/{name}.npy, altered since it was written, in the rows of the samples {samples[:5]}"
            raise InputError(self._folder.argument, got, "a cache that is not damaged: the command that built it, with --overwrite")

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The arrays [N * V, ...]: on the device, or mapped into the CPU's memory where they are too large for it."""
        if device not in self._arrays:
            cpu = torch.device("cpu")
            if cpu not in self._arrays:
                rows = self._record["samples"] * self.views.count
                flat = {name: array.reshape(rows, *array.shape[2:]) for name, array in self._folder.open(self._record).items()}
                kept = {name[len(PREFIX) :]: flat.pop(name) for name in list(flat) if name.startswith(PREFIX)}
                self._sums = {name: Sums(sums, flat[name]) for name, sums in kept.items() if name in flat}
                self._arrays[cpu] = {name: torch.from_numpy(array) for name, array in flat.items()}
            answers = {name: array for name, array in self._arrays[cpu].items() if not name.startswith("view.")}
            small = sum(array.nbytes for array in answers.values()) <= _RESIDENT
            if device != cpu:
                for name in answers if small else ():
                    self._refuse_altered(name)
                self._arrays[device] = {name: array.to(device) for name, array in answers.items()} if small else self._arrays[cpu]
        return self._arrays[device]


def _close(values: Tensor, kept: Tensor) -> bool:
    return values.shape == kept.shape and torch.allclose(values.detach().float().cpu(), kept.float(), atol=1e-3)


class _NoNetworks(tuple[nn.Module, ...]):
    """No networks, with an answer for who asks for the first one (to find a layer in it)."""

    teacher: CachedTeacher

    def __new__(cls, teacher: CachedTeacher) -> _NoNetworks:
        made = super().__new__(cls)
        made.teacher = teacher
        return made

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int):
            return super().__getitem__(index)
        stored = f"one of those stored: {', '.join(self.teacher.stored)}" if self.teacher.stored else "from a cache built with --taps"
        raise InputError("teacher_layer", "nothing", f"the module path of a feature, {stored} (a cache has no network to look in)")
