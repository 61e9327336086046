"""The searches: by the tree, and at random, of equally many candidates (sections 3 to 5 of Auto-KD's specification)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from stillroom.engine import Lab, Teacher, Trained, Training
from stillroom.engine.cache import Views
from stillroom.engine.study.searches import SearchResult
from stillroom.engine.study.space import Choice
from stillroom.engine.study.study import Study
from stillroom.engine.study.tree import EXPLORE, Leaf, Tree
from stillroom.engine.study.trial import Finished
from stillroom.errors import InputError, StillroomError, at_least, one_of, share
from stillroom.methods.auto_kd.candidate import CandidateTraining, Shortened
from stillroom.methods.auto_kd.distiller import LayerWeights, find_layer, teacher_layer_of
from stillroom.methods.auto_kd.offline import ScoreEvaluator, cached, held_out_grams
from stillroom.methods.auto_kd.reward import OMEGA, TAU, reward_of
from stillroom.methods.auto_kd.space import Levels, can_be_trained, composition_of
from stillroom.tasks.images.stores import stratified

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from stillroom.tasks.classification import ImageData

WAYS = {"random": "random search that tries nothing twice", "auto-kd": "Monte Carlo tree search"}
PRUNERS = ("median", "none")
FIRST_LOOK = 2  # epochs after which a candidate may be given up first


@dataclass(frozen=True)
class Proxy:
    """What makes a candidate cheap; each can be switched off.

    Args:
        share: of the training images that candidates see at all, drawn evenly from the classes.
        held_out: share of these that scores them.
        plan: their schedule.
        offline: ask the teachers once, before the search.
        views: random versions of each image that they are asked about then; 1 for the image without random changes.
        density: share of the weights that are trained.
        death_rate: share of these that is exchanged after the first epoch; 0 for fixed ones.
        pruner: what gives a candidate up early: median, or none.

    Raises:
        InputError: a number out of its range, or an unknown word.
    """

    plan: Training
    share: float = 0.2
    held_out: float = 0.2
    offline: bool = True
    views: int = 1
    density: float = 0.5
    death_rate: float = 0.0
    pruner: str = "median"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError("proxy_share", self.share, "a share of the training images, above 0 and up to 1")
        if not 0 < self.density <= 1:
            raise InputError("density", self.density, "a share of the weights, above 0 and up to 1")
        share("death_rate", self.death_rate)
        at_least("views", self.views, 1)
        one_of("pruner", self.pruner, PRUNERS)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Epochs after which a candidate may be given up: the second, and those before the rate falls."""
        drops = [round(at * self.plan.epochs) if at < 1 else int(at) for at in self.plan.milestones]
        return tuple(sorted({FIRST_LOOK, *drops} - {self.plan.epochs}))

    def images(self, data: ImageData) -> ImageData:
        """The images that candidates are trained on and, as the validation set, those that score them; the data's own are in neither."""
        count = max(round(self.share * data.train_size), data.num_classes)
        kept = data if self.share == 1 else data.restricted(train=stratified(data.train_labels.numpy(), count, seed=data.subset_seed))
        held = kept.holding_out(self.held_out)
        return held if self.views > 1 or not self.offline else held.without_augmentation()


@dataclass(frozen=True)
class Search:
    """How a search is made.

    Args:
        levels: the tree.
        trials: distinct candidates.
        proxy: how they are trained.
        explore: the constant c of UCT.
        omega, tau: see `reward`.
        finalists: how many of the best are trained once more, densely and to the end, to choose among them; 1 for none.
        jobs: candidates at a time.
        storage, study: where the studies are, and what their names begin with.

    Raises:
        InputError: a number out of its range.
    """

    levels: Levels
    trials: int
    proxy: Proxy
    explore: float = EXPLORE
    omega: float = OMEGA
    tau: float = TAU
    finalists: int = 3
    jobs: int = 1
    storage: str | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "jobs"):
            at_least(name, getattr(self, name), 1)
        share("omega", self.omega)

    def candidates(self, batch_size: int) -> int:
        """How many are tried: no more than there are that can be trained."""
        return min(self.trials, sum(1 for _ in self.tree(batch_size).leaves()))

    def tree(self, batch_size: int) -> Tree:
        """The empty tree."""
        names, options = list(self.levels), list(self.levels.values())

        def allowed(path: Leaf) -> bool:
            return can_be_trained(batch_size, {name: options[level][path[level]] for level, name in enumerate(names[: len(path)])})

        return Tree([len(one) for one in options], self.explore, allowed)


@dataclass(frozen=True)
class Found(SearchResult):
    """What a search found.

    Attributes:
        distiller: the best.
        finals: by distiller the scores of the finalists.
        study: where the trials are.
    """

    distiller: str
    finals: dict[str, float] = field(default_factory=dict)
    study: Study | None = None


@dataclass(frozen=True)
class Ground:
    """What all searches of a run have in common.

    Attributes:
        training: the objective, before it has a search's name.
        baseline: s_0, the score without a distiller.
        asked: images that teachers were asked about beforehand.
        trained_parameters: of a candidate, and of the whole student.
    """

    training: CandidateTraining
    baseline: float
    asked: int
    trained_parameters: tuple[int, int]


def prepare(
    lab: Lab,
    data: ImageData,
    search: Search,
    student: str,
    taught: list[Trained],
    student_layer: str | None,
    teacher_layer: str | None,
    layer_weights: LayerWeights,
    batch_size: int | None = None,
) -> Ground:
    """Asks the teachers, and trains the student once without a distiller, which is what rewards are measured by."""
    proxy, task = search.proxy, data.task
    held = proxy.images(data)
    held = held if batch_size is None else held.in_batches_of(batch_size)
    network = task.build(student, held, task.networks, trust_pickle=lab.options.trust_pickle, argument="student").network
    student_layer = student_layer or find_layer(network, held, "student_layer")
    teachers: list[Teacher] = [lab.teach(one) for one in taught]
    layers = [(teacher_layer or teacher_layer_of(teacher, held)).split("+") for teacher in teachers]
    grams = held_out_grams(lab, list(zip(teachers, layers, strict=True)), held)
    asked = len(teachers) * len(held.val_labels)
    shown = held
    if proxy.offline:
        views = Views(proxy.views, lab.seed)
        teachers = [cached(lab, *asking, held, views) for asking in zip(teachers, taught, layers, strict=True)]
        asked += len(teachers) * held.train_size * proxy.views
        shown = held.replaying(views)
    scored = shown.derive(("scored", search.omega), evaluator=partial(ScoreEvaluator, grams, len(held.val_labels), search.omega))
    training = CandidateTraining(
        replace(lab.options, overwrite=False),
        lab.seed,
        lab.settings,
        scored,
        student,
        teachers,
        student_layer,
        teacher_layer,
        layer_weights,
        Shortened(proxy.plan, proxy.density, proxy.death_rate, proxy.checkpoints if proxy.pruner == "median" else ()),
    )

    def without() -> dict[str, Any]:
        metrics, parameters = training.train("without", None)
        return {"score": torch.tensor(metrics["score"], dtype=torch.float64), "parameters": torch.tensor(parameters)}

    kept = lab.remember("without", repr((scored.fingerprint, student, training.how, len(teachers))), without)
    whole = sum(weight.numel() for weight in network.parameters())
    return Ground(training, float(kept["score"]), asked, (int(kept["parameters"]), whole))


def run_search(way: str, search: Search, lab: Lab, ground: Ground) -> Found:
    """Runs a search, or what is left of it.

    Args:
        way: a name of `WAYS`.
        search: how long it is, and what is searched.
        lab: where it is kept.
        ground: of `prepare`.

    Raises:
        InputError: as `Study.run`.
        StillroomError: no candidate has a score.
    """
    one_of("searches", way, WAYS)
    training = ground.training
    name = f"{search.study or lab.folder.name}-seed{lab.seed}-{way}"
    study = Study(
        lab.folder,
        name,
        {level: Choice(options) for level, options in search.levels.items()},
        partial(sampler_of, search, way, ground.baseline, training.data.batch_size),
        trials=search.candidates(training.data.batch_size),
        storage=search.storage,
        seed=lab.seed,
        pruner=median_so_far if search.proxy.pruner == "median" else None,
        maximise=False,
        described={
            "data": training.data.fingerprint,
            "student": training.student,
            "teachers": [teacher.fingerprint() for teacher in training.teachers],
            "how": repr(training.how),
            "layers": f"{training.student_layer}, {training.teacher_layer}, {training.layer_weights}",
            "search": f"{way}, {search.explore}, {search.tau}",
        },
    )
    trials = study.run(replace(training, name=name), jobs=search.jobs, metric="score")
    scored = sorted((trial for trial in trials if trial.state == "complete"), key=study.order, reverse=True)
    if not scored:
        return Found(way, study.best, trials, "")  # says that there is none
    finals: dict[str, float] = {}
    best = scored[0]
    if search.finalists > 1:
        whole = replace(training, how=Shortened(search.proxy.plan))
        for trial in scored[: search.finalists]:
            finals[distiller_of(trial)] = _final_score(lab, whole, distiller_of(trial))
        best = min(scored[: search.finalists], key=lambda trial: finals[distiller_of(trial)])
    return Found(way, best, trials, distiller_of(best), finals, study)


def _final_score(lab: Lab, training: CandidateTraining, distiller: str) -> float:
    """Of a finalist; kept, so that it is trained once."""

    def train() -> dict[str, Any]:
        try:
            score = training.train("finalist", distiller)[0]["score"]
        except StillroomError:  # what went well sparsely may diverge densely
            score = math.inf
        return {"score": torch.tensor(score, dtype=torch.float64)}

    file = "".join(letter if letter.isalnum() else "-" for letter in distiller)
    return float(lab.remember(f"finalists/{file}", repr((training.data.fingerprint, training.student, training.how)), train)["score"])


def distiller_of(trial: Finished) -> str:
    """What a trial tried."""
    return str(composition_of(trial.params))


def sampler_of(search: Search, way: str, baseline: float, batch_size: int, seed: int) -> BaseSampler:
    """What proposes a trial's candidate."""
    from stillroom.engine.study.tree_sampler import TreeSampler  # which imports Optuna

    return TreeSampler(
        search.levels,
        seed=seed,
        explore=search.explore,
        reward=partial(reward_of, baseline=baseline, tau=search.tau),
        allowed=partial(can_be_trained, batch_size),
        paths=10 if way == "auto-kd" else 0,
    )


def median_so_far() -> BasePruner:
    """What gives a candidate up."""
    from stillroom.engine.study.median_pruner import MedianSoFar  # which imports Optuna

    return MedianSoFar()
