"""Building a cache: every view of every training sample past the teacher, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from stillroom.engine.cache.answers import LOGITS, Form, named_inputs, names_in, output_files, take_apart
from stillroom.engine.cache.formats import Format, Storage
from stillroom.engine.cache.store import CacheFolder, Writer
from stillroom.engine.cache.sums import with_sums
from stillroom.engine.cache.teacher import CachedTeacher
from stillroom.engine.cache.views import Views
from stillroom.engine.report.results import StageResult
from stillroom.engine.task import CacheableData
from stillroom.engine.teacher import Teacher
from stillroom.errors import InputError

_ASKED = 4  # samples of a finished cache that the teacher is asked about, in each of two places
_ALIKE = 0.05  # of the largest number of an answer: what another precision may change
Answer = Callable[[Any], tuple[Form, dict[str, Tensor]]]  # batch -> the answer's form; its tensors by their names, then the features


def build_cache(
    folder: str | Path,
    teacher: Teacher,
    data: CacheableData,
    result: StageResult,
    *,
    views: Views | None = None,
    storage: Storage | None = None,
    taps: Sequence[str] = (),
    exact: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, rows: None,
    mark_seconds: float = 5.0,
    wait: bool = False,
) -> CachedTeacher:
    """Stores what the teacher answers to the training set; goes on with a cache that was begun, and reads one that is finished.

    Args:
        folder: of the cache; made when missing.
        teacher: the network or ensemble to ask. It answers with logits, or with lists and mappings of tensors [B, ...]; every sample's
            tensors have the same shapes.
        data: whose training set.
        result: what was measured of the teacher, with its details; whoever uses the cache reports it.
        views: by default one. Without random augmentation more are copies of it.
        storage: how the answers are written down.
        taps: module paths whose outputs are stored besides the answer.
        exact: keys of an answer that is a mapping, whose tensors are stored in fp32 whatever the storage: coordinates, say.
        about: kept with the cache, plain data.
        device: where the teacher runs.
        progress: called with the rows done and the rows there are.
        mark_seconds: a process that is killed loses at most this much work.
        wait: while another process builds it, and then read what that has built.

    Returns:
        The teacher that the cache is now.

    Raises:
        InputError: the folder holds a cache of something else, is being built by another process, or is too small; a tap is unknown;
            an answer is not finite as it would be stored.
        StillroomError: the disk is full.
    """
    views, storage, device = views or Views(), storage or Storage(), torch.device(device)
    cache = CacheFolder(Path(folder))
    if isinstance(teacher, CachedTeacher):
        raise InputError("teacher", f"{teacher}", "a network: what it answered is in a cache already")
    key = {
        "teacher": teacher.fingerprint(),
        "teacher_precision": teacher.precision_on(device),
        **data.cache_key,
        "views": views.count,
        "views_seed": views.seed,
        "dtype": storage.dtype,
        "top": storage.top,
        "rest": storage.rest,
        "taps": list(taps),
        "exact": sorted(exact),
    }
    answer = _answers(teacher, taps, device)
    with cache.locked(wait=wait):
        record = cache.read()
        if record is None:
            record = _begin(cache, key, data, result, views, storage, exact, answer, dict(about or {}))
        else:
            cache.check(key, record, "another folder, or --overwrite")
        rows = record["samples"] * views.count
        if record["done"] == rows:
            _compare(CachedTeacher(folder, argument=cache.argument), answer, data, views)
        else:
            with cache.writer(record) as writer:
                _fill(writer, answer, data, views, rows, progress, mark_seconds)
    return CachedTeacher(folder, argument=cache.argument)


def _compare(cached: CachedTeacher, answer: Answer, data: CacheableData, views: Views) -> None:
    """Asks the teacher, which is at hand, about a few of the samples that a finished cache has answers to.

    Raises:
        InputError: it answers otherwise, by more than precision and the size of a batch can do.
    """
    batches = -(-data.train_size * views.count // _ASKED)
    for start in {0, batches // 2}:
        batch, _ = next(iter(data.every_view(views, batch_size=_ASKED, start=start)))
        told = answer(batch)[1]
        for name, stored in cached.rows(batch, tuple(told)).items():
            said = told[name].float().cpu()
            if (stored - said).abs().max() > _ALIKE * (1 + said.abs().max()):
                got = f"{cached.folder}, whose {name} of the samples {batch.ids.tolist()} is not what the teacher answers"
                raise InputError("out", got, "a cache that is not damaged: --overwrite builds it anew")


def _answers(teacher: Teacher, taps: Sequence[str], device: torch.device) -> Answer:
    """What to ask of the teacher, which runs on the device."""
    if len(set(taps)) < len(taps):
        raise InputError("taps", list(taps), "each path once")
    tapped = teacher.tap(*taps) if taps else lambda inputs: (teacher(inputs), {})

    def answer(inputs: Any) -> tuple[Form, dict[str, Tensor]]:
        told, features = tapped(move_data_to_device(inputs, device))
        form, parts = take_apart(told)
        if both := parts.keys() & set(taps):
            raise InputError("taps", f"{both.pop()}, as a part of the teacher's answer is called", "other paths")
        return form, {**parts, **{path: features[path] for path in taps}}

    return answer


def _begin(
    cache: CacheFolder,
    key: Mapping[str, Any],
    data: CacheableData,
    result: StageResult,
    views: Views,
    storage: Storage,
    exact: Collection[str],
    answer: Answer,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Everything but the rows, with the record last."""
    first, drawn = next(iter(data.every_view(views, batch_size=1)))
    form, answers = answer(first)
    formats = _formats(form, answers, storage, exact)
    files = output_files(form, list(formats))
    arrays = {f"view.{name}": (values.shape[1:], values.dtype) for name, values in drawn.items()}
    for name, layout in formats.items():
        arrays |= {files[name] + suffix: spec for suffix, spec in layout.arrays.items()}
    arrays = with_sums(arrays)
    example = data.example_inputs()
    kept = {files[name]: values.float().cpu().numpy() for name, values in answer(example)[1].items()}
    cache.save("example.npz", {**{name: values.numpy() for name, values in named_inputs(example).items()}, **kept})
    cache.save_result(result)
    record = {
        "key": dict(key),
        "samples": data.train_size,
        "views": {"count": views.count, "seed": views.seed},
        "answer": form,
        "outputs": {name: layout.to_json() for name, layout in formats.items()},
        "arrays": {name: [list(shape), np.lib.format.dtype_to_descr(dtype)] for name, (shape, dtype) in arrays.items()},
        "batch_size": data.batch_size,
        "about": about,
        "done": 0,
    }
    cache.write(record)
    return record


def _formats(form: Form, answers: Mapping[str, Any], storage: Storage, exact: Collection[str]) -> dict[str, Format]:
    parts, mapping = set(names_in(form)), form if isinstance(form, dict) else {}
    if form != LOGITS and storage.top is not None:
        raise InputError("top", f"{storage.top} for an answer of {len(parts)} tensors", "a teacher that answers with logits [B, C]")
    precise = {name for key in exact if key in mapping for name in names_in(mapping[key])}
    formats = {}
    for name, values in answers.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = f"{name}, a {type(values).__name__}"
            raise InputError("teacher" if name in parts else "taps", got, "outputs that are tensors of numbers")
        shape = tuple(values.shape[1:])
        if name == form:
            formats[name] = Format.of_logits(shape, storage)
        else:
            formats[name] = Format(shape, "fp32" if name in precise else storage.dtype)
    return formats


def _fill(
    writer: Writer,
    answer: Answer,
    data: CacheableData,
    views: Views,
    rows: int,
    progress: Callable[[int, int], None],
    mark_seconds: float,
) -> None:
    """The rows that are missing. The batches are those of whoever began, so that their answers are the same to the last bit."""
    formats = {name: Format.from_json(described) for name, described in writer.record["outputs"].items()}
    files = output_files(writer.record["answer"], list(formats))
    batch_size = writer.record["batch_size"]
    loader = data.every_view(views, batch_size=batch_size, start=writer.done // batch_size)
    marked = time.monotonic()
    pending: Callable[[], None] | None = None
    for batch, drawn in loader:
        form, answers = answer(batch)
        if form != writer.record["answer"]:
            raise InputError("teacher", "answers of several forms", "the same tensors for every sample")
        encoded: list[tuple[str, Format, dict[str, Tensor]]] = []
        for name, layout in formats.items():
            values = answers[name]
            if values.shape != (len(batch.ids), *layout.shape):
                expected = f"{[len(batch.ids), *layout.shape]}: outputs of one shape, a row for each sample"
                raise InputError("teacher" if name in names_in(form) else "taps", f"{name} of shape {list(values.shape)}", expected)
            encoded.append((files[name], layout, layout.encode(values)))
        if pending is not None:
            pending()  # while an accelerator computes the answers above
        pending = partial(_write, writer, batch.ids, encoded, drawn)
        if time.monotonic() - marked >= mark_seconds:
            pending()
            pending = None
            writer.mark()
            marked = time.monotonic()
        progress(writer.done, rows)
    if pending is not None:
        pending()
    writer.mark()
    progress(writer.done, rows)


def _write(writer: Writer, ids: Tensor, encoded: list[tuple[str, Format, dict[str, Tensor]]], drawn: Mapping[str, np.ndarray]) -> None:
    """One batch, once it is known to be sound."""
    rows = {f"view.{name}": values for name, values in drawn.items()}
    for file, layout, arrays in encoded:
        on_cpu = {suffix: array.cpu() for suffix, array in arrays.items()}
        broken = ids[~layout.finite(on_cpu)].unique().tolist()
        if broken:
            got = f"{layout.dtype}, in which the teacher's answers to the samples {broken[:5]} are not finite"
            raise InputError("dtype", got, "bf16 or fp32 if they are only large; a teacher that answers with numbers")
        rows |= {file + suffix: array.numpy() for suffix, array in on_cpu.items()}
    writer.write(rows)
