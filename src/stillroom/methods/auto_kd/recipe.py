"""Auto-KD's experiment: a teacher, the student alone, and the same student with the best distiller of each search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.engine.cache import CACHE
from stillroom.engine.report.results import Metric
from stillroom.engine.study.page import importance_section, search_section, trials_section
from stillroom.engine.study.searches import read_searches
from stillroom.engine.study.storage import check_installed, open_storage
from stillroom.errors import InputError
from stillroom.methods.auto_kd.distiller import LayerWeights, make_searched
from stillroom.methods.auto_kd.page import tree_section
from stillroom.methods.auto_kd.reward import reward_of
from stillroom.methods.auto_kd.search import WAYS, Found, Ground, Proxy, Search, prepare, run_search
from stillroom.methods.auto_kd.searched import further_teacher, scored_teacher, teacher_specs
from stillroom.methods.auto_kd.space import read_levels
from stillroom.tasks.classification import CIFAR100, CONVNETS, DIGITS, IMAGENET, SHAPES, ImageData

_DROPS = (10 / 24, 20 / 24)  # of the proxy schedule


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = DIGITS,
    networks: Networks = CONVNETS,
    searches: list[str] | str = "random,auto-kd",
    trials: int = 100,
    space: dict[str, Any] | str | None = None,
    explore: float = 0.3,
    omega: float = 0.5,
    proxy_share: float = 0.2,
    proxy_epochs: int = 24,
    proxy_lr: float | None = None,
    proxy_batch_size: int | None = None,
    held_out: float = 0.2,
    offline: bool = True,
    views: int = 1,
    density: float = 0.5,
    death_rate: float = 0.0,
    pruner: str = "median",
    finalists: int = 3,
    jobs: int = 1,
    storage: str | None = None,
    study: str | None = None,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    layer_weights: LayerWeights = "training-free",
    more_teachers: list[str] | str = "",
) -> Report:
    """Search for a distiller by Monte Carlo tree search over transformations, distances and weights, and train the student with it.

    Args:
        lab, data, plan, networks: where to run, on what, how to train at the end, and which networks; see `Room`.
        searches: which are compared, of equal numbers of trials: auto-kd (tree search), random.
        trials: finished trials in all, of each search.
        space: what is searched: full (2520 distillers, the default), small (576), a YAML file, or a mapping of levels to options such as
            ``{distance: [kl4, gl2], weight: [1, 10]}``.
        explore: constant c of the tree search's bound: larger ones try more of what was tried little.
        omega: weight of the cross-entropy in a candidate's score; the rest is that of the features' distance from the teacher's.
        proxy_share: share of the training images that candidates are trained and scored on.
        proxy_epochs: epochs of a candidate; its learning rate falls to a tenth after 10 and after 20 of 24.
        proxy_lr: learning rate of candidates; by default the student's.
        proxy_batch_size: images in a batch of candidates; by default as at the end.
        held_out: share of the training set that scores the trials; of what candidates see.
        offline: ask the teachers once before the search; else in every step of every candidate.
        views: random versions of each image that are stored, which training then shows in turn; with 1, candidates see images without
            random changes.
        density: share of the weights that candidates train: all convolutions and linear layers but the first and the last.
        death_rate: share of these that is exchanged for others after the first epoch, falling to none; 0 for fixed ones.
        pruner: what gives a trial up early: ``median``, worse than half of the earlier ones after 2, 10 or 20 of 24 epochs; or ``none``.
        finalists: how many of the best candidates are trained once more, with all weights and to the end, to choose among them.
        jobs: trainings at a time, each in a process of its own; they share the cores, and take turns on the GPUs.
        storage: where the study is kept: ``sqlite:///FILE``, another database's URL, or ``journal:FILE``; by default in the run's folder.
        study: what the study is called in the storage; by default as the run's folder.
        student_layer: module path in the student; of its last features by default, or several with + between.
        teacher_layer: module path in the teacher; likewise, as many.
        layer_weights: how several layers and teachers are weighed: ``training-free``, by their similarity to the untrained student, or
            ``equal``.
        more_teachers: further teachers, networks with their weights or folders of runs, with commas between.
    """
    check_installed()
    if lab.options.devices * lab.options.num_nodes > 1:
        raise InputError("devices", lab.options.devices, "1: a search has --jobs; `run searched` trains its result on several devices")
    if networks.teacher.startswith(CACHE):
        raise InputError("teacher", networks.teacher, "a network: the search asks it about images of its own")
    names = read_searches(searches, WAYS)
    short = replace(
        plan, epochs=proxy_epochs, lr=plan.lr if proxy_lr is None else proxy_lr, schedule="multistep", milestones=_DROPS, warmup_epochs=0.0
    )
    proxy = Proxy(short, proxy_share, held_out, offline, views, density, death_rate, pruner)
    search = Search(read_levels(space), trials, proxy, explore, omega, finalists=finalists, jobs=jobs, storage=storage, study=study)
    proxy.images(data)
    experiment = Experiment(lab, data, plan, networks)
    others = {f"teacher {i}": spec for i, spec in enumerate(teacher_specs(more_teachers), 2)}
    further = [further_teacher(experiment, spec) for spec in others.values()]

    def distilled(distiller: str, student: nn.Module, taught: Teacher) -> Distiller:
        return make_searched(student, [taught, *further], data, distiller, student_layer, teacher_layer, layer_weights)

    experiment.rehearse(partial(distilled, "position>l2"))
    if storage is not None:
        open_storage(storage, "auto-kd")  # said before anything is written
    stages = {"teacher": experiment.teacher()}
    stages |= {name: scored_teacher(experiment, name, spec) for name, spec in others.items()}
    taught = list(stages.values())
    stages["alone"] = experiment.alone()
    stages["teacher"] = experiment.beaten(stages["teacher"], stages["alone"])
    ground = prepare(lab, data, search, networks.student, taught, student_layer, teacher_layer, layer_weights, proxy_batch_size)
    found = {way: run_search(way, search, lab, ground) for way in names}
    for way, one in found.items():
        trained = experiment.distilled(f"{way}-{one.best.number}", partial(distilled, one.distiller))
        trained.result.metrics |= {"trials": len(one.trials), "search seconds": one.seconds}
        stages[way] = trained
    report = lab.report("auto-kd", data, stages, ship=names[-1])
    return _told(report, lab, found, ground, search)


_FORMATS = {"trials": Metric("candidates", "", 0), "search seconds": Metric("search", "s", 0)}
_SCORE = Metric("score", "", 3, False)


def _told(report: Report, lab: Lab, found: Mapping[str, Found], ground: Ground, search: Search) -> Report:
    """The report with the searches' histories, the tree, and what they cost."""
    report.metric_formats |= _FORMATS
    of_seed = f", seed {lab.seed}" if lab.options.seeds > 1 else ""
    history = search_section({way: one.trials for way, one in found.items()}, _SCORE, higher_is_better=False)
    report.method_sections.append(replace(history, title=f"{history.title}{of_seed}"))
    for way, one in found.items():
        report.method_sections.append(trials_section(f"Best candidates of {way}{of_seed}", one.trials, _SCORE, higher_is_better=False))
        if way == "auto-kd" and one.study is not None:
            report.method_sections.append(tree_section(f"The tree{of_seed}", one.study))
            report.method_sections += [section for section in (importance_section(one.study),) if section is not None]
    trained, whole = ground.trained_parameters
    report.notes.append(
        f"Seed {lab.seed}: without a distiller a candidate scores {ground.baseline:.3f} (lower is better), the reward 0.5. Each trains "
        f"{trained} of the student's {whole} parameters. Before the search teachers were asked about {ground.asked} images."
    )
    report.notes += [f"Seed {lab.seed}: {way} ({WAYS[way]}): {_cost(one, ground, search)}" for way, one in found.items()]
    report.notes.append(
        f"Each search has {search.candidates(ground.training.data.batch_size)} distinct candidates, scored on held-out training images; "
        "the validation set judges the one winner of each, which `stillroom run searched --distiller` trains by itself."
    )
    return report


def _cost(found: Found, ground: Ground, search: Search) -> str:
    """What was found, and what that took."""
    rewards = [reward_of(math.nan if trial.score is None else trial.score, ground.baseline, search.tau) for trial in found.trials]
    states = [trial.state for trial in found.trials]
    return (
        f"{found.distiller}, the best of {len(states)} candidates in {found.seconds:.0f} s ({states.count('pruned')} given up, "
        f"{states.count('failed')} failed), {found.noted('images')} images trained on, {found.noted('teacher_images')} asked of teachers "
        f"meanwhile; mean reward of the second half {fmean(rewards[len(rewards) // 2 :]):.2f}."
    )


_PROXY: dict[str, Any] = {
    "trials": 100,
    "space": "full",
    "proxy_share": 0.2,
    "proxy_epochs": 24,
    "proxy_lr": 0.05,
    "proxy_batch_size": 128,
    "density": 0.5,
}
PRESETS = {
    "paper": {**CIFAR100, **_PROXY, "teacher": "stillroom/resnet56", "student": "stillroom/resnet20"},
    "paper:vit": {**CIFAR100, **_PROXY, "teacher": "stillroom/resnet56", "student": "timm/deit_tiny_patch16_224", "image_size": 224},
    "paper:imagenet": {**IMAGENET, **_PROXY, "lr": 0.1, "batch_size": 256, "teacher": "torchvision/resnet34@pretrained"},
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "trials": 24, "space": "small", "proxy_share": 0.5, "proxy_epochs": 6, "proxy_lr": 0.1},
    expect="Tree search and random search of 16 candidates were level (+1.0 +- 9.7 points, 3 seeds); the found distiller was at "
    "+7.5 +- 3.8 over the student alone, which three seeds do not tell from chance, and no better than one written by hand.",
    reason="is a search over distillers; `searched` trains with what it finds",
)
