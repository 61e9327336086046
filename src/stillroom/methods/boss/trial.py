"""One trial of a search: what it starts from, who teaches it, its training, and what is kept of it (sections 2, 3 and 6 of BOSS's
specification)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from stillroom.engine import Distiller, Lab, LabOptions, Teacher, Training
from stillroom.engine.run.console import console
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Finished, Trial
from stillroom.engine.study.weights import WeightStore
from stillroom.methods.boss.distiller import BOSS
from stillroom.methods.boss.selection import Drawn, best_epoch, draw, draw_teacher, ranked
from stillroom.methods.boss.semi import SemiSupervised
from stillroom.methods.boss.space import ALPHA, plan_of
from stillroom.methods.boss.strength import strengthened

if TYPE_CHECKING:
    from stillroom.tasks.classification import ImageData


@dataclass(frozen=True)
class Way:
    """What the trials of a search have of earlier ones.

    Args:
        told: the search in a few words.
        searched: whether hyper-parameters are proposed; else all trials have the default ones.
        random: whether proposals are drawn uniformly.
        student: whether a trial starts from the weights of an earlier one.
        teacher: whether it is taught by one.
        chain: whether it is taught by the one before it, and starts from random numbers.
    """

    told: str
    searched: bool = True
    random: bool = False
    student: bool = False
    teacher: bool = False
    chain: bool = False

    @property
    def pooled(self) -> bool:
        """Whether trials draw from a pool, whose first are those of a warm-up."""
        return self.student or self.teacher


@dataclass
class Phase:
    """A study and the weights of its trials.

    Args:
        study: scores are larger for better trials.
        weights: of its trials, by content.
    """

    study: Study
    weights: WeightStore

    def completed(self) -> list[Finished]:
        """The trials with a score, in the order of their numbers."""
        return [trial for trial in self.study.finished() if trial.state == "complete"]


@dataclass
class TrialTraining:
    """Trains a trial: the objective of a study; can be sent to other processes.

    Args:
        options, seed, settings: of the labs that train. All trials have the same seed: they differ in what is proposed alone.
        data: whose validation images score.
        plan: what is not proposed.
        student: the network's specification.
        way: what of earlier trials is used.
        keep: how many of the best trials' weights are kept; K, where they are drawn from.
        phase: the study and where its weights go.
        before: the warm-up's, where there was one.
    """

    options: LabOptions
    seed: int
    settings: dict[str, Any]
    data: ImageData
    plan: Training
    student: str
    way: Way
    keep: int
    phase: Phase
    before: Phase | None = None

    def __call__(self, trial: Trial) -> float:
        """The score of its best epoch, whose weights are kept.

        Raises:
            InputError: fewer than two completed trials to draw from.
        """
        primary = self.data.evaluator().primary
        lab = Lab(
            self.options,
            self.seed,
            self.settings,
            quiet=True,
            after_epoch=lambda line: trial.report(line[f"val/{primary}"], int(line["epoch"])),
        )
        network, teacher = self._network(), self._network() if self.way.teacher or self.way.chain else None
        with self.phase.weights.locked():  # in which nobody throws away what is drawn here
            self.tidy()
            taught = self._prepare(trial, network, teacher)
        alpha = trial.params.get("alpha", ALPHA)
        frozen = Teacher(teacher, precision=self.options.torch_precision) if teacher is not None and taught else None
        taught = frozen is not None and alpha < 1
        distiller = self._distiller(trial, network, frozen, alpha)
        data = self.data.in_batches_of(trial.params.get("batch_size", self.data.batch_size))
        if "augment_strength" in trial.params:
            data = strengthened(data, trial.params["augment_strength"])
        data = distiller.training_data(data)
        stage = f"trials/{self.phase.study.name}-{trial.number}"
        trained = lab.fit(distiller, data, plan_of(self.plan, trial.params), name=stage)
        curve = [row[f"val/{primary}"] for row in trained.result.history]
        score, epoch, _ = best_epoch(curve)
        images = len(curve) * len(data.train_loader(seed=self.seed)) * min(data.batch_size, data.train_size)
        weights = self.phase.weights.put(load_file(trained.folder / "best.safetensors"))
        trial.note(weights=weights, epoch=epoch + 1, curve=curve, images=images, teacher_images=images if taught else 0)
        lab.drop(stage)
        return score

    def _distiller(self, trial: Trial, network: nn.Module, teacher: Teacher | None, alpha: float) -> Distiller:
        """What trains: by labels or, where most images have none, by FixMatch; with a teacher beside it, if there is one."""
        if self.data.unlabelled:
            proposed = {name: trial.params[name] for name in ("unlabelled_weight", "threshold") if name in trial.params}
            return SemiSupervised(network, teacher, alpha=1.0 if teacher is None else alpha, **proposed)
        if teacher is not None:
            return BOSS(network, teacher, alpha=alpha)
        supervised: Distiller = self.data.task.supervised(network)
        return supervised

    def _network(self) -> nn.Module:
        task = self.data.task
        made = task.build(self.student, self.data, task.networks, trust_pickle=self.options.trust_pickle, argument="student")
        network: nn.Module = made.network
        return network

    def _prepare(self, trial: Trial, network: nn.Module, teacher: nn.Module | None) -> bool:
        """Gives student and teacher the weights of the trials that are drawn for them; answers whether there is a teacher."""
        if not self.way.pooled and not self.way.chain:
            return False
        candidates = self._candidates()
        drawn = self._drawn(candidates, trial.number)
        for role, place, module in (("student", drawn.student, network), ("teacher", drawn.teacher, teacher)):
            if place is not None and module is not None:
                phase, source = candidates[place]
                phase.weights.load(source.told["weights"], module)
                trial.note(**{role: f"{phase.study.name}, trial {source.number}"})
        return drawn.teacher is not None

    def _drawn(self, candidates: Sequence[tuple[Phase, Finished]], number: int) -> Drawn:
        """Whose weights a trial gets, as places among the candidates."""
        if self.way.chain:
            return Drawn(None, len(candidates) - 1 if candidates else None)
        best = self._best(candidates)
        present = [int(place) for place in best if candidates[place][0].weights.has(candidates[place][1].told["weights"])]
        if len(present) < len(best):
            console.print(f"WARNING: weights of {len(best) - len(present)} trials are missing: they are not drawn from", markup=False)
        if self.way.student and self.way.teacher:
            return draw(present, number)
        only = draw_teacher(present, number)
        return only if self.way.teacher else Drawn(only.teacher, None)

    def _candidates(self) -> list[tuple[Phase, Finished]]:
        """The warm-up's completed trials, then this study's."""
        phases = [phase for phase in (self.before, self.phase) if phase is not None]
        return [(phase, trial) for phase in phases for trial in phase.completed()]

    def _best(self, candidates: Sequence[tuple[Phase, Finished]]) -> np.ndarray:
        return ranked([trial.score or 0.0 for _, trial in candidates], self.keep)

    def tidy(self, *, all_done: bool = False) -> None:
        """Throws away weights of this study's trials that are not among the best, and so never will be again; inside the lock.

        Args:
            all_done: no trial of it runs any more: what workers left that were killed goes, too.
        """
        candidates = self._candidates()
        kept = set(self._best(candidates).tolist()) | ({len(candidates) - 1} if self.way.chain else set())
        mine = {place: trial.told["weights"] for place, (phase, trial) in enumerate(candidates) if phase is self.phase}
        needed = {weights for place, weights in mine.items() if place in kept}
        store = self.phase.weights
        store.throw_away((store.names() if all_done else set(mine.values())) - needed)
