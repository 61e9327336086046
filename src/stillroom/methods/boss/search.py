"""BOSS's outer loop, and the searches that it is compared with (section 1 of its specification)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.engine import Lab, Training
from stillroom.engine.study.samplers import SAMPLERS, make_sampler
from stillroom.engine.study.searches import SearchResult
from stillroom.engine.study.space import Range
from stillroom.engine.study.study import Study
from stillroom.engine.study.weights import WeightStore
from stillroom.errors import StillroomError, at_least, one_of
from stillroom.methods.boss.selection import ENOUGH
from stillroom.methods.boss.space import check_for, check_space
from stillroom.methods.boss.trial import Phase, TrialTraining, Way

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from stillroom.tasks.classification import ImageData

PARZEN = "parzen"

WAYS = {
    "alone": Way("one training with the default hyper-parameters", searched=False),
    "random": Way("random search", random=True),
    "bo": Way("Bayesian optimisation"),
    "sd": Way("a chain of self-distillation with the default hyper-parameters", searched=False, chain=True),
    "warm-start": Way("Bayesian optimisation that starts from earlier trials' weights, without a teacher", student=True),
    "teacher": Way("Bayesian optimisation with earlier trials as teachers, from random weights", teacher=True),
    "boss": Way("BOSS: Bayesian optimisation with earlier trials as teachers and as starts", student=True, teacher=True),
}
COMPARED = tuple(way for way in WAYS if way != "alone")


@dataclass(frozen=True)
class Search:
    """How a search is made, whatever its trials have of earlier ones.

    Args:
        space: what is searched.
        trials: N, in all.
        warmup_trials: N_w, the first of them in a search with a pool.
        pool: K, how many of the best trials are drawn from.
        sampler: parzen (the paper's), or tpe, gp and random, which are Optuna's.
        startup: trials of each study that are drawn uniformly.
        jobs: trainings at a time.
        storage, weights, study: where the studies and the trials' weights are, and what the studies' names begin with; by default the run's
            folder, and its name.

    Raises:
        InputError: a number that leaves too little to draw from, an unknown dimension or sampler.
    """

    space: dict[str, Range]
    trials: int
    warmup_trials: int
    pool: int
    sampler: str = PARZEN
    startup: int = 10
    jobs: int = 1
    storage: str | None = None
    weights: Path | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("warmup_trials", ENOUGH), ("pool", ENOUGH), ("startup", 0), ("jobs", 1)):
            at_least(name, getattr(self, name), least)
        one_of("sampler", self.sampler, (PARZEN, *SAMPLERS))
        check_space(self.space)


@dataclass(frozen=True)
class Found(SearchResult):
    """What a search found. Its best trial is, of equal ones, the earlier; its trials are the warm-up's first.

    Attributes:
        weights: where those of the best trial are.
        warmup: how many of the trials are the warm-up's.
    """

    weights: WeightStore
    warmup: int = 0


def run_search(way: str, search: Search, lab: Lab, data: ImageData, plan: Training, student: str) -> Found:
    """Runs a search, or what is left of it.

    Args:
        way: a name of `WAYS`.
        search: how long it is, and what is searched.
        lab: where and how to train.
        data: whose validation images score: never those that the result is judged by.
        plan: how to train, but for what is proposed; its values are the default hyper-parameters.
        student: the network.

    Raises:
        InputError: as `Study.run`, or a dimension that says nothing about such data.
        StillroomError: no trial has a score, or fewer than two of the warm-up's have.
    """
    chosen = WAYS[one_of("searches", way, WAYS)]
    check_for(search.space, unlabelled=bool(data.unlabelled))
    primary = data.evaluator().primary
    before: Phase | None = None

    def phase(name: str, proposed: dict[str, Range], trials: int, sampler: str, **described: Any) -> Phase:
        full = f"{search.study or lab.folder.name}-seed{lab.seed}-{name}"
        study = Study(
            lab.folder,
            full,
            proposed,
            partial(sampler_of, sampler, search.startup, search.jobs > 1),
            trials=trials,
            storage=search.storage,
            seed=2 * lab.seed + (before is not None),  # the main study's proposals are not those of the warm-up once more
            described={
                "data": data.fingerprint,
                "student": student,
                "plan": repr(plan),
                "sampler": f"{sampler}, {search.startup}",
                **described,
            },
        )
        return Phase(study, WeightStore((search.weights or lab.folder / "weights") / full))

    def run(training: TrialTraining) -> None:
        training.phase.study.run(training, jobs=1 if training.way.chain else search.jobs, metric=primary)
        with training.phase.weights.locked():
            training.tidy(all_done=True)

    options = replace(lab.options, overwrite=False)
    common: dict[str, Any] = {
        "options": options,
        "seed": lab.seed,
        "settings": lab.settings,
        "data": data,
        "plan": plan,
        "student": student,
    }
    without_alpha = {name: one for name, one in search.space.items() if name != "alpha"} if chosen.searched else {}
    if chosen.pooled:
        before = phase("warm-up", without_alpha, min(search.warmup_trials, search.trials), search.sampler)
        run(TrialTraining(**common, way=Way("warm-up"), keep=search.pool, phase=before))
    left = 1 if way == "alone" else search.trials - (search.warmup_trials if chosen.pooled else 0)
    phases = [before] if before is not None else []
    if before is not None and left > 0 and len(first := before.completed()) < ENOUGH:
        reasons = "; ".join(trial.reason for trial in before.study.finished() if trial.reason)
        raise StillroomError(
            f"{before.study.name}: {len(first)} trials have a score, and to be taught needs two completed trials ({reasons})"
        )
    if left > 0:
        proposed = dict(search.space) if chosen.teacher else without_alpha
        sampler = "random" if chosen.random else search.sampler
        main = phase(way, proposed, left, sampler, **({"pool": search.pool, "warmup": search.warmup_trials} if chosen.pooled else {}))
        run(TrialTraining(**common, way=chosen, keep=search.pool if chosen.pooled else 1, phase=main, before=before))
        phases.append(main)
    scored = [(one, trial) for one in phases for trial in one.completed()]
    if not scored:
        return Found(way, phases[-1].study.best, [], phases[-1].weights)  # says that there is none
    of, best = max(scored, key=lambda pair: pair[1].score or 0.0)
    trials = [trial for one in phases for trial in one.study.finished()]
    return Found(way, best, trials, of.weights, 0 if before is None else len(before.study.finished()))


def sampler_of(name: str, startup: int, parallel: bool, seed: int) -> BaseSampler:
    """The surrogate of that name for a trial."""
    if name == PARZEN:
        from stillroom.methods.boss.sampler import ParzenSampler  # which imports Optuna

        return ParzenSampler(seed, startup=startup)
    return make_sampler(name, seed, startup=startup, parallel=parallel)
