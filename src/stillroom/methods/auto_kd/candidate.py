"""One candidate: a short training of the student with a proposed distiller, with sparse weights, scored on held-out images (sections 4 and
5 of Auto-KD's specification)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.study.trial import Trial
from stillroom.errors import InputError, share
from stillroom.methods.auto_kd.distiller import LayerWeights, Searched, features_of, make_searched
from stillroom.methods.auto_kd.space import composition_of
from stillroom.methods.auto_kd.sparse import prune_and_regrow, random_mask


class Candidate(Searched):
    """A student under a distiller, or under none, of whose weights a share is trained.

    Args:
        density: share of each convolution's and linear layer's weights that is trained, above 0; the first convolution, the classifier and
            what aligns features are whole.
        death_rate: share of these that is replaced after the first epoch, by magnitude, falling to none in a cosine; 0 for fixed ones.
        taught: whether the distiller takes part.
        options: those of `Searched`.

    Raises:
        InputError: a share out of its range.
    """

    def __init__(self, *networks: Any, density: float = 1.0, death_rate: float = 0.0, taught: bool = True, **options: Any) -> None:
        super().__init__(*networks, **options)
        if not 0 < density <= 1:
            raise InputError("density", density, "a number above 0 and up to 1")
        self.density, self.death_rate, self.taught = density, share("death_rate", death_rate), taught
        self._generator = torch.Generator().manual_seed(0)  # one mask for all candidates
        self._masks: dict[str, Tensor] = {}
        if density < 1:
            self._masks = {name: random_mask(self._key(weight), density) for name, weight in sparse_weights(self.student).items()}

    @property
    def trained_parameters(self) -> int:
        """The student's weights that are trained."""
        dropped = sum(int((~mask).sum()) for mask in self._masks.values())
        return sum(weight.numel() for weight in self.student.parameters() if weight.requires_grad) - dropped

    def losses(self, batch: Any) -> Losses:
        """As `Searched`; without a distiller the task's own."""
        return super().losses(batch) if self.taught else self.task_losses(batch)

    def predict(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """The student's answer, and its features, which are scored too."""
        answer, features = self._student_with(batch.inputs)
        return answer, features_of(features)

    def on_train_start(self) -> None:
        """Training begins with the masked weights."""
        self._masks = {name: mask.to(self.device) for name, mask in self._masks.items()}
        self._mask()

    def on_train_epoch_start(self) -> None:
        """From the second epoch on some weights are exchanged."""
        if not self.death_rate or not self.current_epoch:
            return
        rate = self.death_rate * (1 + math.cos(math.pi * self.current_epoch / self.plan.epochs)) / 2
        for name, weight in sparse_weights(self.student).items():
            if name in self._masks:
                mask, data = prune_and_regrow(weight.data, self._masks[name], self._key(weight).to(self.device), rate)
                self._masks[name] = mask
                weight.data.copy_(data)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What the step gave to masked weights is taken away again, and from their momentum."""
        self._mask()

    def _mask(self) -> None:
        if not self._masks:
            return
        state: Any = self.optimizers().state  # type: ignore[union-attr]
        for name, weight in sparse_weights(self.student).items():
            mask = self._masks[name]
            weight.data.mul_(mask)
            for value in state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(mask)

    def _key(self, weight: Tensor) -> Tensor:
        return torch.rand(weight.shape, generator=self._generator)


def sparse_weights(network: nn.Module) -> dict[str, Tensor]:
    """By name the weights that may be sparse: of all convolutions and linear layers but the first convolution and the classifier."""
    layers = [
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    ]
    first = next((name for name, module in layers if not isinstance(module, nn.Linear)), None)
    last = layers[-1][0] if layers else None
    return {f"{name}.weight": module.weight for name, module in layers if name not in (first, last)}


@dataclass(frozen=True)
class Shortened:
    """How candidates are trained.

    Args:
        plan: the proxy schedule.
        density, death_rate: see `Candidate`.
        checkpoints: epochs after which a candidate may be given up.
    """

    plan: Training
    density: float = 1.0
    death_rate: float = 0.0
    checkpoints: tuple[int, ...] = ()


@dataclass
class CandidateTraining:
    """Trains and scores a candidate: the objective of a study; can be sent to other processes.

    Args:
        options, seed, settings: of the labs that train. All candidates have the same seed, and so the same first weights.
        data: whose validation images score, by a `ScoreEvaluator`.
        student: the network's specification.
        teachers: which answer from caches, or are asked.
        student_layer, teacher_layer, layer_weights: see `distiller.build`.
        how: the accelerations.
        name: of the search, for folders.
    """

    options: LabOptions
    seed: int
    settings: dict[str, Any]
    data: Any
    student: str
    teachers: Sequence[Teacher]
    student_layer: str
    teacher_layer: str | None
    layer_weights: LayerWeights
    how: Shortened
    name: str = "search"

    def __call__(self, trial: Trial) -> float:
        """The score after the last epoch."""

        def after_epoch(line: dict[str, float]) -> None:
            epoch, score = int(line["epoch"]), line["val/score"]
            seen = epoch * len(self.data.train_loader(seed=self.seed)) * min(self.data.batch_size, self.data.train_size)
            trial.note(images=seen, teacher_images=self.asked * seen, top1=line["val/top1"], gap=line["val/gap"])
            if not math.isfinite(score) or (epoch in self.how.checkpoints and epoch < self.how.plan.epochs):
                trial.report(score, epoch)

        composition = str(composition_of(trial.params))
        trial.note(distiller=composition)
        metrics, parameters = self.train(f"trials/{self.name}-{trial.number}", composition, after_epoch)
        trial.note(parameters=parameters)
        return metrics["score"]

    @property
    def asked(self) -> int:
        """Teachers that are networks, and so asked about every image of every epoch."""
        return sum(not isinstance(teacher, CachedTeacher) for teacher in self.teachers)

    def train(
        self, stage: str, distiller: str | None, after_epoch: Callable[[dict[str, float]], None] | None = None
    ) -> tuple[dict[str, float], int]:
        """What a candidate reaches, and how many weights it trains. Of its stage nothing is left.

        Args:
            stage: its name.
            distiller: the composition; None for labels alone.
            after_epoch: see `Lab`.
        """
        lab = Lab(self.options, self.seed, self.settings, quiet=True, after_epoch=after_epoch)
        task = self.data.task
        network = task.build(self.student, self.data, task.networks, trust_pickle=self.options.trust_pickle, argument="student").network
        kind = partial(Candidate, density=self.how.density, death_rate=self.how.death_rate, taught=distiller is not None)
        made = make_searched(
            network,
            self.teachers,
            self.data,
            distiller or "position>l2",
            self.student_layer,
            self.teacher_layer,
            self.layer_weights,
            kind=kind,
        )
        assert isinstance(made, Candidate)
        try:
            trained = lab.fit(made, self.data, self.how.plan, name=stage)
        finally:
            lab.drop(stage)
        return trained.result.metrics, made.trained_parameters
