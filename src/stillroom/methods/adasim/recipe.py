"""AdaSim's experiment: the same self-distiller with second views of the image itself, and of neighbours chosen in one way or another."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from torch import nn

from stillroom import catalog
from stillroom.engine import Experiment, Lab, Networks, Report, Room, Trained, Training
from stillroom.engine.report.results import Section
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, near
from stillroom.methods.adasim.arms import ADASIM, BASELINE, Rule, named_rules
from stillroom.methods.adasim.bootstrap import AdaSim
from stillroom.methods.adasim.memory import Representation
from stillroom.modules.projectors import probing
from stillroom.tasks.images.page_parts import heads, note, row, table
from stillroom.tasks.representation import BACKBONE, DIGITS, IMAGENET, TASK, Pair, RepresentationData, pairs_section
from stillroom.tasks.representation.references import PIXELS, references

HOST = "dino"
Make = Callable[..., Any]


def recipe(
    lab: Lab,
    data: RepresentationData,
    plan: Training = TASK.plan,
    networks: Networks = BACKBONE,
    arms: str = "baseline+adasim",
    window: int = 50,
    topk: int = 10,
    sampling_temperature: float = 0.001,
    representation: Representation = "first",
    skip_first_epoch: bool = False,
    window_memory: float = 2.0,
    host_options: dict[str, Any] | None = None,
) -> Report:
    """Train a backbone by self-distillation without labels, with and without views of neighbours; compare their features.

    Args:
        lab: where and how to run.
        data: what is learnt from.
        plan: how each arm is trained.
        networks: which backbone.
        arms: of the experiment, joined by ``+``, the last is shipped: ``baseline`` (every view shows the image itself: DINO), ``naive``
            (the second view always shows the nearest other image), ``gated-naive`` (only where an image recognises itself), ``ungated``
            (drawn by the window's vote for every image), ``window1`` (AdaSim with a window of one epoch), ``adasim``.
        window: V, epochs whose neighbours vote; also how many pass before another image is shown.
        topk: k, nearest images kept of each image and epoch.
        sampling_temperature: T_p; the lower, the more seldom another image is drawn.
        representation: what of an image's two views is remembered: the ``first``, which always shows the image itself, the ``second``, or
            their ``mean``.
        skip_first_epoch: the neighbours of the first epoch, most of them noise, have no vote.
        window_memory: 10^9 bytes of neighbours that are kept in memory; a larger window lies in files, in the run's folder.
        host_options: arguments of the host that differ from its defaults, e.g. ``{"prototypes": 4096}``; the host is dino.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """
    rules = named_rules(arms)
    host = catalog.load(HOST, argument="host")
    options = dict(host_options or {})
    for name in options:
        if name not in host.options:
            raise InputError("host_options", name, f"an option of {HOST}, such as {near(name, host.options)}")

    def block(rule: Rule, width: int) -> AdaSim:
        kept: dict[str, Any] = {"window": window, "topk": topk, "sampling_temperature": sampling_temperature}
        kept |= {"representation": representation, "skip_first_epoch": skip_first_epoch, "window_memory": window_memory}
        return AdaSim(data.train_size, width, rule=rule, labels=data.train_labels if data.labelled else None, **kept)

    made: dict[str, AdaSim] = {}

    def arm(name: str, rule: Rule | None) -> Make:
        def make(student: nn.Module, teacher: Any = None) -> Any:
            assert host.build is not None
            distiller: Any = host.build(student, teacher, data, **options)
            if rule is not None:
                example = data.example_inputs()
                with probing(student, example):
                    distiller.neighbours = made[name] = block(rule, student(example).shape[1])
            return distiller

        return make

    experiment = Experiment(lab, data, plan, networks)
    makes = {name: arm(name, rule) for name, rule in rules.items()}
    experiment.rehearse(*makes.values())
    notes = [late for name, one in made.items() if (late := _late(name, one, plan.epochs))]
    for late in notes:
        lab.say(ADASIM, late)
    stages = references(experiment)
    trained = {name: experiment.trained(name, make) for name, make in makes.items()}
    report = lab.report(ADASIM, data, stages | trained, baseline=BASELINE if BASELINE in rules else PIXELS, ship=list(rules)[-1])
    report.notes += notes
    if lab.seed == lab.options.seed:
        report.method_sections = [_shares(trained, made, data), *(_choices(name, one, data) for name, one in made.items())]
    return report


def _late(name: str, made: AdaSim, epochs: int) -> str:
    """A warning, where another image is never shown."""
    if made.begin < epochs:
        return ""
    return f"{WARNING}{name} shows no other image before epoch {made.begin + 1}, and there are {epochs}: it is the baseline (--window)"


def _shares(trained: dict[str, Trained], made: dict[str, AdaSim], data: RepresentationData) -> Section:
    """How many second views showed another image, how many of these were right, and how well images find themselves."""
    rows = []
    for name, stage in trained.items():
        history = stage.result.history
        begun = [epoch for epoch in history if name in made and epoch["epoch"] > made[name].begin]
        shares = [epoch["train/bootstrap/share"] for epoch in begun]
        cells = [_percent(sum(shares) / len(shares) if shares else 0.0), _percent(shares[-1] if shares else 0.0)]
        if data.labelled:
            right = sum(epoch["train/bootstrap/right"] for epoch in begun)
            cells.append(_percent(right / sum(shares)) if sum(shares) else "–")
        if name in made:
            cells.append(_percent(history[-1]["train/retrieval/self"]))
            cells += [_percent(history[-1]["train/retrieval/top2"])] if data.labelled else []
        else:
            cells += ["–"] * (1 + data.labelled)
        rows.append(row(escape(name), "".join(f"<td>{cell}</td>" for cell in cells)))
    labelled = (["right"], ["two nearest of its class"]) if data.labelled else ([], [])
    columns = heads(["", "another image shown", "in the last epoch", *labelled[0], "found itself first", *labelled[1]])
    said = [
        "Of the first seed, in %: second views that showed another image, over the epochs that may show one and in the last of them"
        + ("; how many of those were of the image's class" if data.labelled else "")
        + "; and in the last epoch, how many images had their own past feature as the nearest"
        + (", and how many of the two nearest have the image's class." if data.labelled else "."),
        "Where hardly another image is shown, an arm is the baseline.",
    ]
    return Section("Views of other images", f"{table('Views of other images', columns, rows)}{note(said)}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _choices(name: str, made: AdaSim, data: RepresentationData) -> Section:
    """Some images of the last epoch, the other image that had the most votes, and whether the second view showed it."""
    pairs = []
    for image, other, shown, similarity, gate in made.examples.rows.tolist():
        if image < 0:
            continue
        found, said = int(other), f"similarity {similarity:.3f} over the window, gate {'open' if gate else 'shut'}"
        if shown not in (image, other):  # another candidate was drawn
            found, said = int(shown), f"drawn among the candidates, gate {'open' if gate else 'shut'}"
        pairs.append(Pair(int(image), found, shown != image, said))
    return pairs_section(f"Neighbours of the last epoch: {name}", data, pairs)


SMALL = {
    "window": 8,
    "topk": 5,
    "arms": "baseline+naive+adasim",
    "host_options": {"prototypes": 256, "hidden": 256, "bottleneck": 64, "ema_momentum": 0.99, "final_weight_decay": 0.04},
}

PRESETS = {
    "paper": {
        **IMAGENET,
        "arms": "baseline+adasim",
        "window": 50,
        "topk": 10,
        "sampling_temperature": 0.001,
        "host_options": {"prototypes": 65536, "hidden": 2048, "global_scale": [0.4, 1.0]},
    },
}

ROOM = Room(
    recipe,
    tasks=("representation",),
    presets=PRESETS,
    default={**DIGITS, **SMALL},
    expect="Nothing above the baseline: AdaSim is at +0.0 +- 0.0 points of few-label k-NN against DINO here, and naive neighbours are at "
    "-0.0 +- 0.5 (3 seeds). Digits are easy, their neighbours right, and hardly one is shown; the paper sees its gains on ImageNet.",
    reason="chooses the images of another method's views: its own experiment compares it with that method, dino",
)
