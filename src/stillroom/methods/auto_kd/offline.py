"""The teachers' answers, asked once before the search (section 5 of Auto-KD's specification): to the images that candidates are trained on,
in a cache; and to those that score them, as the Gram matrices that are all that CKA needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn.functional import cross_entropy

from stillroom.engine import Lab, Teacher, Trained
from stillroom.engine.cache import CachedTeacher, Storage, Views, build_cache
from stillroom.losses.precision import at_least_float32
from stillroom.losses.similarity import alignment, centred_gram, chunk_sizes
from stillroom.methods.auto_kd.distiller import features_of
from stillroom.methods.auto_kd.reward import OMEGA, score_of


class Grams:
    """Collects the features of a set's samples, batch by batch, into the centred Gram matrices of its chunks.

    Args:
        samples: in all; each batch brings the next ones.

    Attributes:
        found: for each layer the matrices of the chunks so far.
    """

    def __init__(self, samples: int) -> None:
        self._sizes = chunk_sizes(samples)
        self._held: list[list[Tensor]] = []
        self.found: list[list[Tensor]] = []

    def add(self, features: Sequence[Tensor]) -> None:
        """The features of a batch, one tensor [B, ...] for each layer."""
        self.found = self.found or [[] for _ in features]
        self._held = self._held or [[] for _ in features]
        for held, found, one in zip(self._held, self.found, features, strict=True):
            held.append(at_least_float32(one.detach()).flatten(1))
            while len(found) < len(self._sizes) and sum(map(len, held)) >= (size := self._sizes[len(found)]):
                rows = torch.cat(held)
                found.append(centred_gram(rows[:size]))
                held[:] = [rows[size:]]


class ScoreEvaluator:
    """Scores a candidate on held-out images: `score` = omega CE + (1 - omega) mean of 1 - CKA, with its parts `nll` and `gap`, and `top1`.

    Args:
        teachers: for each teacher and each layer the Gram matrices of the chunks.
        samples: held-out images.
        omega: from 0 to 1.
    """

    primary = "score"
    higher_is_better = False

    def __init__(self, teachers: Sequence[Sequence[Sequence[Tensor]]], samples: int, omega: float = OMEGA) -> None:
        self.teachers, self.samples, self.omega = teachers, samples, omega
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._grams, self._loss, self._right = Grams(self.samples), 0.0, 0

    def to(self, device: torch.device) -> ScoreEvaluator:
        """Nothing is kept on a device but what comes from it."""
        return self

    def update(self, answers: tuple[Tensor, Sequence[Tensor]], batch: Any) -> None:
        """Takes in the logits of a batch, and its features of each layer."""
        logits_BC, features = answers
        self._loss += float(cross_entropy(at_least_float32(logits_BC), batch.labels, reduction="sum"))
        self._right += int((logits_BC.argmax(1) == batch.labels).sum())
        self._grams.add(features)

    def compute(self) -> dict[str, float]:
        """The figures."""
        nll = self._loss / self.samples
        similar = [
            fmean(float(alignment(ours, hint.to(ours.device))) for ours, hint in zip(mine, hints, strict=True))
            for layers in self.teachers
            for mine, hints in zip(self._grams.found, layers, strict=True)
        ]
        top1 = 100 * self._right / self.samples
        return {"score": score_of(nll, similar, self.omega), "nll": nll, "gap": 1 - fmean(similar), "top1": top1}

    def details(self) -> dict[str, np.ndarray]:
        """None."""
        return {}


def cached(lab: Lab, teacher: Teacher, taught: Trained, layers: Sequence[str], data: Any, views: Views) -> CachedTeacher:
    """The teacher's answers and features of the training images, in the run's folder; asked once."""
    key = hashlib.blake2b(repr((teacher.fingerprint(), data.fingerprint, list(layers), views)).encode(), digest_size=6).hexdigest()
    return build_cache(
        lab.folder / "answers" / key, teacher, data, taught.result, views=views, storage=Storage("fp16"), taps=layers, device=lab.device
    )


def held_out_grams(lab: Lab, teachers: Sequence[tuple[Teacher, Sequence[str]]], data: Any) -> list[list[list[Tensor]]]:
    """For each teacher and each layer the Gram matrices of the validation images' chunks; asked once.

    Args:
        lab: where to run, and to keep them.
        teachers: with the paths of their layers.
        data: whose validation images.
    """

    def ask() -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, (teacher, layers) in enumerate(teachers):
            answer, grams = teacher.tap(*layers), Grams(len(data.val_labels))
            for batch in data.eval_loader():
                grams.add(features_of(answer(move_data_to_device(batch, lab.device))[1]))
            for layer, chunks in enumerate(grams.found):
                found |= {f"{number}-{layer}-{chunk}": matrix.cpu() for chunk, matrix in enumerate(chunks)}
        return found

    key = repr([(teacher.fingerprint(), list(layers)) for teacher, layers in teachers] + [data.fingerprint])
    kept = lab.remember("held-out", key, ask)
    grouped: dict[int, dict[int, dict[int, Tensor]]] = {}
    for name, matrix in kept.items():
        number, layer, chunk = map(int, name.split("-"))
        grouped.setdefault(number, {}).setdefault(layer, {})[chunk] = matrix
    return [
        [[layers[layer][chunk] for chunk in sorted(layers[layer])] for layer in sorted(layers)] for _, layers in sorted(grouped.items())
    ]
