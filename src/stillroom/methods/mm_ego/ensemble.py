"""The multimodal teacher: a weight for every teacher and head, from losses on clips that no teacher was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stillroom.errors import InputError, positive

Scheme = Literal["uniform", "held-out", "per-sample"]


def losses_of_teachers(logits_BMC: Tensor, labels_B: Tensor) -> Tensor:
    """CE(t_m, y) of every sample and teacher: [B, M], float32."""
    each_BM: Tensor = cross_entropy(logits_BMC.float().movedim(1, 2), labels_B[:, None].expand(-1, logits_BMC.shape[1]), reduction="none")
    return each_BM


def weights_of_losses(losses: Tensor, weight_temperature: float, known: Tensor | None = None) -> Tensor:
    """w = softmax over the teachers of ( - l / gamma ), the last dimension; an unknown teacher's weight is 0.

    Args:
        losses: l, [M], or [B, M] for weights of every sample.
        weight_temperature: gamma > 0; a large one gives equal weights, a small one the best teacher alone.
        known: bool, of the shape of `losses`: which teachers answer; at least one of each row. By default all.

    Raises:
        InputError: gamma is not above 0.
    """
    scaled = -losses.float() / positive("weight_temperature", weight_temperature)
    return (scaled if known is None else scaled.masked_fill(~known, -torch.inf)).softmax(-1)


def held_out_weights(logits_NMC: Tensor, labels_N: Tensor, weight_temperature: float, present_NM: Tensor | None = None) -> Tensor:
    """w [M] from the mean loss of every teacher over held-out samples, each over those that it has its modality of.

    Args:
        logits_NMC: what the teachers answer to the held-out samples; no gradient is needed.
        labels_N: their labels.
        weight_temperature: gamma.
        present_NM: which teacher has an answer to which sample; by default each to all. One without any has the weight 0.

    Raises:
        InputError: no held-out sample, or one that nobody answers.
    """
    present = torch.ones(logits_NMC.shape[:2], dtype=torch.bool) if present_NM is None else present_NM.bool()
    if not present.any():
        raise InputError("teachers_held_out", f"{len(labels_N)} samples with an answer", "at least one: a mean of nothing has no value")
    losses_NM = losses_of_teachers(logits_NMC, labels_N).where(present, 0)
    counts_M = present.sum(0)
    return weights_of_losses(losses_NM.sum(0) / counts_M.clamp_min(1), weight_temperature, counts_M > 0)


def present_weights(weights: Tensor, present_BM: Tensor) -> Tensor:
    """[B, M]: the weights of the teachers that a sample has the modality of, made to sum to 1; the others' are 0.

    A sample of which no teacher with a weight has its modality gets no weights at all (NaN): see `check_present`.

    Args:
        weights: [M], or [B, M].
        present_BM: 1 where the teacher answers.
    """
    used_BM = weights.float() * present_BM.to(weights.device, torch.float32)
    return used_BM / used_BM.sum(-1, keepdim=True)


def check_present(weights_M: Tensor, present_NM: Tensor) -> None:
    """Raises InputError where a sample has the modality of no teacher of a weight above 0."""
    lacking_N = (weights_M.float() * present_NM.float()).sum(-1) <= 0
    if bool(lacking_N.any()):
        got = f"{int(lacking_N.sum())} clip(s) without the modality of any teacher, the first no. {int(lacking_N.nonzero()[0])}"
        raise InputError("data", got, "one modality at least of which a teacher has a weight")


def combined(logits_BMC: Tensor, weights: Tensor) -> Tensor:
    """T = sum_m w_m t_m [B, C]: logits are averaged, not probabilities. A teacher of weight 0 has no say, whatever it answers.

    Args:
        logits_BMC: t_m.
        weights: [M], or [B, M].
    """
    weights_BM1 = weights.float().expand(logits_BMC.shape[:2])[..., None]
    return (weights_BM1 * logits_BMC.float()).where(weights_BM1 > 0, 0).sum(1)


def check_logits(answers: Mapping[str, Tensor], teacher: str) -> None:
    """Raises InputError, which names the teacher, where logits are no numbers."""
    if not all(bool(logits.isfinite().all()) for logits in answers.values()):
        raise InputError("teacher", f"{teacher}, which answers with values that are no numbers", "finite logits")


def equal_weights(teachers: int) -> Tensor:
    """w = 1/M."""
    return torch.full((teachers,), 1 / teachers)
