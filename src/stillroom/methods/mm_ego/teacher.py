"""The ensemble of the modalities' teachers, as one teacher and as one network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.methods.mm_ego.ensemble import (
    Scheme,
    combined,
    equal_weights,
    losses_of_teachers,
    present_weights,
    weights_of_losses,
)
from stillroom.tasks.video import VideoBatch, VideoDistiller, averaged_logits

Answers = Mapping[str, Mapping[str, Tensor]]  # logits [B, C] by modality and head
Weights = Mapping[str, Tensor]  # [M] by head, in the order of the teachers; 0 for one that has not the head


def ensemble_logits(answers: Answers, weights: Weights, present_BM: Tensor | None = None) -> dict[str, Tensor]:
    """T_a [B, C_a] by head: the weighted mean of the teachers' logits, over those that know the head and have their modality.

    Args:
        answers: of the teachers, in the order of the weights.
        weights: by head, [M], or [B, M].
        present_BM: which modality each sample has; None where none is missing.
    """
    ensemble = {}
    for head, known in weights.items():
        shape = next(one[head].shape for one in answers.values() if head in one)
        stacked_BMC = torch.stack([one[head] if head in one else torch.zeros(shape, device=known.device) for one in answers.values()], 1)
        used = known.to(stacked_BMC.device)
        ensemble[head] = combined(stacked_BMC, used if present_BM is None else present_weights(used, present_BM))
    return ensemble


class MultimodalTeacher(Teacher):
    """Several frozen teachers, each of its own modality, that answer as one: logits [B, C_a] by head of a `VideoBatch`.

    Args:
        teachers: by modality; networks, or caches of their answers, to which their clips need not be in the batch.
        modalities: all that the data know, in the order of ``batch.present``.
        weights: w [M] by head; of the scheme per-sample those of the losses on the batch's labels are taken, of the teachers whose weight
            here is above 0.
        scheme: how weights are found.
        weight_temperature: gamma of the scheme per-sample.
        complete: every clip has every modality, so that no weight has to be shared out anew.

    Raises:
        InputError: no teacher.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        modalities: Sequence[str],
        weights: Weights,
        *,
        scheme: Scheme = "held-out",
        weight_temperature: float = 1.0,
        complete: bool = True,
    ) -> None:
        if not teachers:
            raise InputError("arms", "no teacher", "at least one modality")
        self.teachers, self.weights = dict(teachers), dict(weights)
        self.scheme, self.weight_temperature, self.complete = scheme, weight_temperature, complete
        self._columns = [list(modalities).index(name) for name in teachers]
        self._renormalise = None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Those that are no caches."""
        return tuple(network for one in self.teachers.values() if not isinstance(one, CachedTeacher) for network in one.networks)

    def fingerprint(self) -> str:
        """A hash over the teachers and their weights."""
        weights = {head: known.tolist() for head, known in self.weights.items()}
        parts = [(name, one.fingerprint()) for name, one in self.teachers.items()]
        return hashlib.blake2b(repr((parts, weights, self.scheme, self.weight_temperature)).encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def __call__(self, batch: VideoBatch) -> dict[str, Tensor]:
        """T_a by head, float32 without gradient, of a batch with one view of each clip."""
        answers: dict[str, Mapping[str, Tensor]] = {}
        for name, one in self.teachers.items():
            told: Any = one(batch if isinstance(one, CachedTeacher) else batch.of(name))
            answers[name] = told
        present = None if self.complete else batch.present[:, self._columns]
        return ensemble_logits(answers, self._weights_of(answers, batch), present)

    def _weights_of(self, answers: Answers, batch: VideoBatch) -> Weights:
        if self.scheme != "per-sample":
            return self.weights
        found = {}
        for head, known_M in self.weights.items():
            logits_BMC = torch.stack([one.get(head, torch.zeros_like(_some(answers, head))) for one in answers.values()], 1)
            losses_BM = losses_of_teachers(logits_BMC, batch.labels[head])
            found[head] = weights_of_losses(losses_BM, self.weight_temperature, (known_M > 0).to(losses_BM.device).expand_as(losses_BM))
        return found

    def __repr__(self) -> str:
        return f"MultimodalTeacher({', '.join(self.teachers)}, {self.scheme})"


def _some(answers: Answers, head: str) -> Tensor:
    return next(one[head] for one in answers.values() if head in one)


class Ensemble(nn.Module):
    """The teachers' networks as one, with the weights of its answers: inputs by modality to logits by head.

    Args:
        networks: by modality.
        weights: [M] by head.
    """

    def __init__(self, networks: Mapping[str, nn.Module], weights: Weights) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.weights = {head: known.clone() for head, known in weights.items()}

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits [B, C_a] by head."""
        return ensemble_logits({name: network(inputs[name]) for name, network in self.networks.items()}, self.weights)


class ScoredEnsemble(VideoDistiller):
    """How an ensemble answers: each network with the mean of its logits over the views of its modality.

    Args:
        student: the ensemble.
        modalities: all that the data know, in the order of ``batch.present``.
    """

    student: Ensemble

    def __init__(self, student: Ensemble, modalities: Sequence[str]) -> None:
        super().__init__(student)
        self._columns = [list(modalities).index(name) for name in student.networks]

    def predict(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Logits [B, C_a] by head."""
        answers = {name: averaged_logits(network, batch.of(name)) for name, network in self.student.networks.items()}
        return ensemble_logits(answers, self.student.weights, batch.present[:, self._columns])


def uniform(answers: Mapping[str, Sequence[str]], heads: Sequence[str]) -> dict[str, Tensor]:
    """Equal weights by head, of the teachers that know it.

    Args:
        answers: by teacher, the heads that it knows.
        heads: of the data.

    Raises:
        InputError: a head that no teacher knows.
    """
    found = {}
    for head in heads:
        knows_M = torch.tensor([head in known for known in answers.values()])
        if not knows_M.any():
            raise InputError("teachers", ", ".join(answers), f"one that answers for the head {head}")
        found[head] = torch.zeros(len(answers)).masked_scatter(knows_M, equal_weights(int(knows_M.sum())))
    return found
