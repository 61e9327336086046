"""Answers of networks and caches to whole sets of clips, and the ensemble's weights from those to held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from stillroom.engine import Lab, Teacher
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.methods.mm_ego.ensemble import check_logits, held_out_weights
from stillroom.tasks.video import VideoBatch, VideoData, averaged_logits
from stillroom.tasks.video.scores import all_right, calibration_error

_PRESENT, _LABELS = "present", "labels."


class _Recorded(NamedTuple):
    """Samples as a cache is asked about them."""

    ids: Tensor
    views: Tensor


def answers_to(predict: Callable[[VideoBatch], Mapping[str, Tensor]], data: VideoData, device: torch.device) -> dict[str, Tensor]:
    """Logits [N, C_a] of all validation clips of the data by head; their labels [N] by ``labels.HEAD``, and which of the data's modalities
    they have as ``present`` [N, M]. In one process, whatever their number.
    """
    rows: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in data.eval_loader():
            moved = move_data_to_device(batch, device)
            found = {**predict(moved), **{_LABELS + head: labels for head, labels in moved.labels.items()}, _PRESENT: moved.present}
            for name, values in found.items():
                rows.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def held_out_answers(lab: Lab, name: str, teacher: Teacher, held: VideoData, ids: np.ndarray) -> dict[str, Tensor]:
    """What a teacher answers to held-out clips, remembered in the run's folder; see `answers_to`.

    Args:
        lab: of the run.
        name: the teacher's modality.
        teacher: a network; or a cache, whose answers to the first recorded view of the same clips are taken.
        held: the clips, as a validation set.
        ids: of them in the training set.

    Raises:
        InputError: an answer is no number.
    """

    def compute() -> Mapping[str, Tensor]:
        if isinstance(teacher, CachedTeacher):
            told: Any = teacher(_Recorded(torch.from_numpy(ids), torch.zeros(len(ids), dtype=torch.int64)))
            found = answers_to(lambda batch: {}, held, torch.device("cpu"))
            return {**told, **found}
        return answers_to(lambda batch: averaged_logits(_Asked(teacher), batch.of(name)), held, lab.device)

    key = f"{teacher.fingerprint()} {held.fingerprint}"
    found = lab.remember(f"held-out-{name}", key, compute)
    check_logits(logits_in(found), f"the teacher of {name}")
    return found


class _Asked(nn.Module):
    """A teacher as a network."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self._teacher = teacher

    def forward(self, inputs: Tensor) -> Any:
        return self._teacher(inputs)


def logits_in(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `answers_to` that are logits."""
    return {name: values for name, values in answers.items() if name != _PRESENT and not name.startswith(_LABELS)}


def weights_by_head(
    answers: Mapping[str, Mapping[str, Tensor]], modalities: Sequence[str], heads: Sequence[str], weight_temperature: float
) -> dict[str, Tensor]:
    """w [M] by head, from the teachers' losses on held-out clips; 0 for one that does not know the head.

    Args:
        answers: of `held_out_answers`, by modality.
        modalities: all that the data know.
        heads: of the data.
        weight_temperature: gamma.

    Raises:
        InputError: a head that nobody knows, or no clip at all.
    """
    weights = {}
    for head in heads:
        some = next((one[head] for one in answers.values() if head in one), None)
        if some is None:
            raise InputError("teachers", ", ".join(answers), f"one that answers for the head {head}")
        logits_NMC = torch.stack([one.get(head, torch.zeros_like(some)) for one in answers.values()], 1)
        first = next(iter(answers.values()))
        known = [first[_PRESENT][:, list(modalities).index(name)] & (head in one) for name, one in answers.items()]
        weights[head] = held_out_weights(logits_NMC, first[_LABELS + head], weight_temperature, torch.stack(known, 1))
    return weights


def scores_in_views(network: nn.Module, data: VideoData, device: torch.device) -> dict[str, Tensor]:
    """``top1`` (all heads right) and ``ece`` (the mean over heads) in % of a network on the validation clips, in the data's test views."""
    network.to(device).eval()
    found = answers_to(lambda batch: averaged_logits(network, batch), data, device)
    network.cpu()
    logits = logits_in(found)
    labels = {head: found[_LABELS + head] for head in logits}
    errors = [100 * calibration_error(values, labels[head]) for head, values in logits.items()]
    return {"top1": 100 * all_right(logits, labels).double().mean(), "ece": torch.tensor(sum(errors) / len(errors))}
