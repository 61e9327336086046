"""BOSS's experiment: a training with the default hyper-parameters, and searches of equal length that share nothing but data and space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from stillroom.engine import Lab, Report, Room, Trained, Training
from stillroom.engine.report.results import Metric
from stillroom.engine.study.page import search_section, trials_section
from stillroom.engine.study.searches import read_searches
from stillroom.engine.study.space import read_space
from stillroom.engine.study.storage import check_installed, open_storage
from stillroom.errors import InputError
from stillroom.methods.boss.search import COMPARED, PARZEN, WAYS, Found, Search, run_search
from stillroom.methods.boss.space import SPACES, check_for, check_space
from stillroom.tasks.classification import ImageData

PLAN = Training(epochs=10, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine", step_per="epoch")


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = PLAN,
    student: str = "stillroom/convnet12",
    searches: list[str] | str = "bo,boss",
    trials: int = 40,
    warmup_trials: int = 12,
    pool: int = 4,
    space: dict[str, Any] | str | None = None,
    held_out: float = 0.2,
    sampler: str = PARZEN,
    startup: int = 4,
    jobs: int = 1,
    storage: str | None = None,
    weights: Path | None = None,
    study: str | None = None,
) -> Report:
    """Search for a network's hyper-parameters by Bayesian optimisation that hands the weights of good trials on, and compare.

    Args:
        lab: where and how to run.
        data: the images; the validation set judges what the searches find, and takes no part in them.
        plan: how networks are trained; its values are the default hyper-parameters, and what is not searched.
        student: network, optionally with weights after ``@``; all trials have this architecture.
        searches: which are compared, of equal numbers of trials: boss, bo (Bayesian optimisation alone), random, teacher (no weights are
            handed on as a start), warm-start (no teacher), sd (a chain of self-distillation with the default hyper-parameters).
        trials: finished trials in all, of each search.
        warmup_trials: how many of them are ordinary trainings before earlier trials teach and are started from; at least 2.
        pool: how many of the best trials are drawn from; at least 2.
        space: what is searched: small (the default), cifar, medical, semi (the default where the data have images without labels), a YAML
            file, or a mapping such as ``{lr: {low: 0.01, high: 0.5, log: true}}``; m is 1 - momentum, alpha the weight of the labels beside
            the teacher.
        held_out: share of the training set that scores the trials.
        sampler: what proposes: parzen (the paper's), or tpe, gp, random, which are Optuna's.
        startup: trials of each study that are drawn uniformly before anything is learnt from them.
        jobs: trainings at a time, each in a process of its own; they share the cores, and take turns on the GPUs.
        storage: where the study is kept: ``sqlite:///FILE``, another database's URL, or ``journal:FILE``; by default in the run's folder.
        weights: folder of the trials' weights, shared by all machines that work on the studies; by default in the run's folder.
        study: what the study is called in the storage; by default as the run's folder.
    """
    check_installed()
    if lab.options.devices * lab.options.num_nodes > 1:
        raise InputError("devices", lab.options.devices, "1: a search has --jobs, each of which trains on one device")
    names = read_searches(searches, COMPARED)
    search = Search(
        _space_of(space or ("semi" if data.unlabelled else "small")),
        trials,
        warmup_trials,
        pool,
        sampler,
        startup,
        jobs,
        storage,
        weights,
        study,
    )
    check_for(search.space, unlabelled=bool(data.unlabelled))
    held = data.holding_out(held_out)
    data.task.supervised(
        data.task.build(student, data, data.task.networks, trust_pickle=lab.options.trust_pickle, argument="student").network
    )
    if storage is not None:
        open_storage(storage, "boss")  # said before anything is written
    lab.begin()
    found = {way: run_search(way, search, lab, held, plan, student) for way in ("alone", *names)}
    stages = {way: _judged(lab, data, one, student) for way, one in found.items()}
    report = lab.report("boss", data, stages, ship=names[-1])
    return _told(report, lab, data, found, search)


def _space_of(space: dict[str, Any] | str) -> dict[str, Any]:
    found = dict(SPACES[space]) if isinstance(space, str) and space in SPACES else read_space(space)
    check_space(found)
    return found


def _judged(lab: Lab, data: ImageData, found: Found, student: str) -> Trained:
    """The best trial's network, scored on the validation set for the first time."""
    built = data.task.build(student, data, data.task.networks, trust_pickle=lab.options.trust_pickle, argument="student")
    name = found.best.told["weights"]
    found.weights.load(name, built.network)
    proposed = ", ".join(f"{option} {value:.3g}" for option, value in found.best.params.items())
    origin = f"trial {found.best.number} of {found.weights.folder.name}, {found.best.score:.2f} on held-out images"
    trained = lab.evaluate(
        built.network,
        data,
        name=f"{found.way}-{name[:6]}",  # a search that goes on may find another one
        model=built.spec,
        around=data.task.supervised,
        origin=f"{origin}: {proposed}" if proposed else origin,
    )
    late = [trial.score for trial in found.trials[found.warmup :] if trial.state == "complete" and trial.score is not None]
    result = replace(trained.result, seconds=found.seconds)
    result.metrics |= {"held out": found.best.score or 0.0, "trials": len(found.trials), "images": found.noted("images")}
    result.metrics |= {"teacher images": found.noted("teacher_images"), **({"mean trial": fmean(late)} if late else {})}
    return replace(trained, result=result)


_FORMATS = {
    "held out": Metric("best trial on held-out images", "%", 1, True),
    "mean trial": Metric("mean trial after the warm-up", "%", 1, True),
    "trials": Metric("trials", "", 0),
    "images": Metric("images trained on, in all", "", 0),
    "teacher images": Metric("images a teacher was asked about", "", 0),
}


def _told(report: Report, lab: Lab, data: ImageData, found: Mapping[str, Found], search: Search) -> Report:
    """The report with the searches' histories, and with what a reader must know to compare them."""
    report.metric_formats |= _FORMATS
    made = {way: one for way, one in found.items() if way != "alone"}
    metric = report.metric(data.evaluator().primary)
    of_seed = f", seed {lab.seed}" if lab.options.seeds > 1 else ""
    history = search_section({way: one.trials for way, one in made.items()}, metric, warmup={way: one.warmup for way, one in made.items()})
    report.method_sections.append(replace(history, title=f"{history.title}{of_seed}"))
    report.method_sections += [
        trials_section(f"Best trials of {way}{of_seed}", one.trials, metric) for way, one in made.items() if WAYS[way].searched
    ]
    report.notes += [
        f"Seed {lab.seed}: {way} ({WAYS[way].told}): {len(one.trials)} trials in {one.seconds:.0f} s, {one.noted('images')} images trained "
        f"on, {one.noted('teacher_images')} asked of a teacher."
        for way, one in found.items()
    ]
    if data.unlabelled:
        report.notes.append(
            f"Of the {data.train_size + data.unlabelled} training images {data.unlabelled} have no label: every arm learns from them by "
            "FixMatch, whose weak and strong views take the place of --augment."
        )
    report.notes.append(
        f"Each search has {search.trials} trials of equal length, scored by their best epoch on held-out training images, which flatters a "
        "search; the validation set judges the one winner of each. A trial that starts from another's weights has seen more images in all "
        "than its own epochs show: the arm warm-start tells what that alone does."
    )
    return report


_CIFAR: dict[str, Any] = {
    "student": "stillroom/vgg16_five_pools",
    "trials": 128,
    "warmup_trials": 32,
    "pool": 8,
    "space": "cifar",
    "startup": 10,
    "held_out": 0.1,
    "seed": 888,
    "epochs": 164,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "schedule": "cosine",
    "step_per": "epoch",
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2023, 0.1994, 0.2010],
    "augment": "cifar",
}
PRESETS = {
    "paper": {"data": "cifar100:data/cifar100", **_CIFAR},
    "paper:cifar10": {"data": "cifar10:data/cifar10", **_CIFAR},
    "paper:noisy": {"data": "imagefolder:data/cifar10,labels=data/cifar10n_train.csv:worse", **_CIFAR},
    # 4 000 labels; all training images count as images without any, as in FixMatch. The setting's code was not released
    "paper:semi": {**_CIFAR, "data": "cifar10:data/cifar10,unlabelled=cifar10:data/cifar10", "subset": 4000, "space": "semi"},
    # X-rays of 28 pixels; spaces and losses of these tasks are not in the released code
    "paper:medical": {
        **_CIFAR,
        "data": "imagefolder:data/pneumoniamnist",
        "student": "stillroom/resnet20",
        "space": "medical",
        "lr": 0.01,
        "batch_size": 32,
        "epochs": 50,
        "augment": "none",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    expect="On digits with wrong labels and a small network BOSS's winner was +2.0 +- 2.2 points above the default hyper-parameters, and "
    "+0.6 +- 1.9 above that of Bayesian optimisation alone, which tells nothing; its trials reach more on held-out images (+4.9 +- 1.6 on "
    "average, 8 studies).",
    default={"data": "digits,noise=0.2", "subset": 700, "held_out": 0.57, "batch_size": 32},
    unlabelled=True,
    reason="is a search over many trainings of one network, without a teacher of its own",
)
