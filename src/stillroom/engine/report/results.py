"""What an experiment found: the results of its stages and the comparison between them.

`files.write_report` puts two files in the run's folder: `report.html`, for people, and `metrics.json`, for programs, which holds

    schema            "stillroom.report/1"
    method, title     which method, and the page's title
    headline          the result in a sentence or two, as on the page
    primary           name of the metric that decides, with higher_is_better (true or false)
    teacher, baseline names of those arms, or null
    summary           {arm: {"model", "seeds": [int], "metrics": {name: spread}, "best": spread of the best epoch's primary metric,
                      "best_epoch": spread, "seconds": spread of the training time}}
    gains             {arm: {"metric", "over", "per_seed": {seed: arm - over}, "mean", "std", "interval": [low, high] or null,
                      "clear": true, false or null, "verdict": "clear", "clear for this seed" or "cannot tell",
                      "images": count or null, "image_error", "images_interval": [low, high] or null}}
                      for each arm that is neither teacher nor baseline
    reference         of a comparison: the arm that the other distilled ones are compared with besides the baseline, or null
    differences       {arm: as in gains, over the reference} for those; empty without a reference
    failed            {arm: the reason} of each arm that has no result, or not with every seed
    stages            {arm: [one object per seed: "name", "seed", "model", "epochs" (count), "seconds", "resumed" (count), "folder",
                      "metrics": {name: number} of the final model on the validation set, "best": the same of the best epoch and "epoch",
                      "history": [{"epoch", "seconds", "samples_per_second", "lr", "train/<term>", "val/<metric>"}], "footprint":
                      {"parameters", "macs" (multiply-adds per sample, or null), "latency_ms" (batch 1), "bytes"}]}
    command, settings, versions, notes
    started, finished ISO 8601 times

A spread is {"mean", "std", "n"}, std being the sample's (n - 1), null for one seed. "interval" is the 95 % interval of the mean paired
difference, in which the seeds' spread and the validation images' sampling error are joined (see `gains`), and "clear" whether it leaves
out 0; both are null for one seed. "images" counts the validation images, "image_error" is the standard error that they leave in the mean,
and "images_interval" the 95 % interval of these very seeds over other images: what one seed can tell. Metrics are in the task's units
(classification: "top1", "top5", "ece", "agreement" in %, "nll" in nats); "seconds" of an epoch count from the start of training. A number
that is not finite, as after a run that diverged, is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.engine.report.gains import Gain, Spread, image_error
from stillroom.engine.run.measure import Footprint, now, versions
from stillroom.errors import InputError, near, one_of

if TYPE_CHECKING:
    from stillroom.engine.task import TaskData

SCHEMA = "stillroom.report/1"


@dataclass(frozen=True)
class Metric:
    """How a metric is written.

    Attributes:
        label: for people.
        unit: "%" or another, or none.
        decimals: how many; None for four significant digits.
        higher_is_better: None where neither direction is.
    """

    label: str
    unit: str = ""
    decimals: int | None = None
    higher_is_better: bool | None = None

    def number(self, value: float, sign: str = "-") -> str:
        """The value without its unit; `sign` "+" puts one before positive values, too."""
        if not math.isfinite(value):
            return "n/a"
        text = format(value, f"{sign}.{self.decimals}f" if self.decimals is not None else f"{sign}.4g")
        return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")

    def spread(self, spread: Spread, sign: str = "-") -> str:
        """Mean ± standard deviation, or the mean alone for one seed."""
        mean = self.number(spread.mean, sign)
        return mean if spread.std is None or not math.isfinite(spread.std) else f"{mean} ± {self.number(spread.std)}"

    @property
    def difference_unit(self) -> str:
        """What a difference is counted in, with a space before it."""
        return " points" if self.unit == "%" else f" {self.unit}" if self.unit else ""


COMMON_METRICS = {
    "top1": Metric("top-1", "%", 1, True),
    "top5": Metric("top-5", "%", 1, True),
    "nll": Metric("NLL", "nats", 3, False),
    "ece": Metric("calibration error", "%", 1, False),
    "AP": Metric("AP", "%", 1, True),
    "AP50": Metric("AP50", "%", 1, True),
    "AP75": Metric("AP75", "%", 1, True),
    "vocAP50": Metric("VOC AP50", "%", 1, True),
    "vocAP50-11": Metric("VOC AP50, 11 points", "%", 1, True),
    "agreement": Metric("agreement with teacher", "%", 1),
}


@dataclass
class StageResult:
    """What training one arm with one seed gave.

    Attributes:
        name: the arm, e.g. "alone".
        seed: the run's seed.
        metrics: final model on the validation set, in the task's units.
        best: metrics of the epoch with the best primary metric, and "epoch" (from 1).
        history: one row per epoch: "epoch", "seconds", "lr", "train/<term>", "val/<metric>".
        footprint: what the model costs at inference.
        seconds: training time, over all continuations.
        epochs: how many were trained.
        model: its specification, e.g. "timm/resnet18".
        resumed: how often training was continued from a checkpoint.
        origin: what its weights started from, in words, where it was not random numbers.
        details: per-sample arrays of equal length N of the final model on the validation set (classification: ids, labels, predicted,
            confidence). They stay on disk beside the result and are no part of its JSON. Where the primary metric is a mean over the
            samples, `outcome` (or `labels` and `predicted`) tells what each contributes: see `gains.outcomes`.
        folder: of the stage, within the run's; empty where it is none of this run's.
    """

    name: str
    seed: int
    metrics: dict[str, float]
    best: dict[str, float]
    history: list[dict[str, float]]
    footprint: Footprint
    seconds: float
    epochs: int
    model: str
    resumed: int = 0
    details: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    origin: str = ""
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data without `details`; numbers that are not finite become None."""
        return {key: plain(value) for key, value in vars(self).items() if key != "details"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageResult:
        """The inverse of `to_json`; `details` come back empty."""
        return cls(
            **{
                **data,
                "metrics": _numbers(data["metrics"]),
                "best": _numbers(data["best"]),
                "history": [_numbers(row) for row in data["history"]],
                "footprint": Footprint(**data["footprint"]),
            }
        )


@dataclass(frozen=True)
class Section:
    """A part of the page that the task or the method contributes.

    Attributes:
        title: plain text.
        html: goes into the page as it is, so whoever makes it escapes what is not theirs.
    """

    title: str
    html: str


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds: final metrics, the primary metric of the best epochs and which they were, training seconds."""

    model: str
    seeds: list[int]
    metrics: dict[str, Spread]
    best: Spread | None
    best_epoch: Spread | None
    seconds: Spread


@dataclass
class Report:
    """Results of an experiment's arms and how they compare.

    Attributes:
        method, title: of the experiment.
        arms: name -> one result per seed, in the order in which they are shown.
        primary: the metric that decides.
        higher_is_better: its direction.
        baseline: the arm that distilled ones are compared to, usually the student trained alone.
        sections: of the page: the method's, then those that the task contributes.
        method_sections: contributed by the recipe, such as the curve of a search that its stages stand on.
        command: what to type to get this result again.
        settings, versions: of the experiment and of the software.
        started, finished: ISO 8601 times.
        notes: what a reader should know besides.
        teacher: the teacher's arm; need not be among `arms`.
        subject: the arm that the experiment is about; None in a comparison of equals, where the best one leads.
        metric_formats: how metrics are written, where that differs from `COMMON_METRICS` or they are not in it.
        reference: in a comparison of equals, the arm that the other distilled ones are compared with besides the baseline.
        failed: arm -> why it has no result, or not with every seed.

    Raises:
        InputError: no arms, an arm without results, two results of one seed in an arm, an unknown baseline, or a primary metric that
            a result lacks.
    """

    method: str
    title: str
    arms: dict[str, list[StageResult]]
    primary: str = "top1"
    higher_is_better: bool = True
    baseline: str | None = None
    sections: list[Section] = field(default_factory=list)
    method_sections: list[Section] = field(default_factory=list)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    notes: list[str] = field(default_factory=list)
    teacher: str | None = "teacher"
    metric_formats: dict[str, Metric] = field(default_factory=dict)
    subject: str | None = None
    reference: str | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms or not all(self.arms.values()):
            raise InputError("arms", {arm: len(results) for arm, results in self.arms.items()}, "at least one arm, each with a result")
        for arm, results in self.arms.items():
            seeds = [result.seed for result in results]
            if len(set(seeds)) < len(seeds):
                raise InputError("arms", f"seeds {seeds} in {arm!r}", "one result per seed")
            for result in results:
                if self.primary not in result.metrics:
                    raise InputError("primary", self.primary, f"a metric of arm {arm!r}: {near(self.primary, result.metrics)}")
        for role, named in (("baseline", self.baseline), ("subject", self.subject), ("reference", self.reference)):
            if named is not None:
                one_of(role, named, self.arms)

    @property
    def distilled(self) -> list[str]:
        """Names of the arms that are neither the teacher nor the baseline."""
        return [arm for arm in self.arms if arm not in (self.teacher, self.baseline)]

    @property
    def leading(self) -> str | None:
        """The subject; without one the distilled arm with the best mean primary metric; None without distilled arms."""
        if self.subject is not None:
            return self.subject
        means = {arm: fmean(result.metrics[self.primary] for result in self.arms[arm]) for arm in self.distilled}
        finite = {arm: mean if self.higher_is_better else -mean for arm, mean in means.items() if math.isfinite(mean)}
        return max(finite, key=finite.__getitem__) if finite else next(iter(means), None)

    def metric(self, name: str) -> Metric:
        """How a metric is written."""
        return self.metric_formats.get(name) or COMMON_METRICS.get(name) or Metric(name)

    def summary(self) -> dict[str, ArmSummary]:
        """Each arm over its seeds; a metric that only some seeds have counts those (see its `n`)."""
        return {arm: self._summarise(results) for arm, results in self.arms.items()}

    def _summarise(self, results: list[StageResult]) -> ArmSummary:
        names = dict.fromkeys(name for result in results for name in result.metrics)
        best = [result.best for result in results if self.primary in result.best]
        epochs = [row["epoch"] for row in best if "epoch" in row]
        return ArmSummary(
            model=results[0].model,
            seeds=[result.seed for result in results],
            metrics={name: Spread.of(r.metrics[name] for r in results if name in r.metrics) for name in names},
            best=Spread.of(row[self.primary] for row in best) if best else None,
            best_epoch=Spread.of(epochs) if epochs else None,
            seconds=Spread.of(result.seconds for result in results),
        )

    def gain(self, arm: str | None = None, over: str | None = None) -> Gain | None:
        """What `arm` (the leading distilled one) has over `over` (the baseline) on the primary metric, over the seeds that both ran.

        None without a baseline, without a distilled arm, or without a common seed.

        Raises:
            InputError: no such arm.
        """
        if arm is not None:
            one_of("arm", arm, self.arms)
        arm, over = arm or self.leading, over or self.baseline
        if over is None or arm is None:
            return None
        theirs = {result.seed: result for result in self.arms[over]}
        pairs = [(mine, theirs[mine.seed]) for mine in self.arms[arm] if mine.seed in theirs]
        if not pairs:
            return None
        values = [(mine.metrics[self.primary], other.metrics[self.primary]) for mine, other in pairs]
        per_seed = {mine.seed: a - b for (mine, _), (a, b) in zip(pairs, values, strict=True)}
        one_image = 100.0 if self.metric(self.primary).unit == "%" else 0.0
        images, error = image_error([(mine.details, other.details) for mine, other in pairs], values, one_image)
        return Gain(arm, over, self.primary, per_seed, images, error)

    def gains(self, over: str | None) -> dict[str, Gain]:
        """What each distilled arm has over `over`, itself left out; nothing over None."""
        others = [arm for arm in self.distilled if arm != over] if over is not None else []
        return {arm: gain for arm in others if (gain := self.gain(arm, over))}

    @staticmethod
    def on(data: TaskData, arms: Mapping[str, Sequence[StageResult]], **more: Any) -> Report:
        """A report of results on these data, finished now, with what the task says of the arms beside the one called `teacher`.

        Args:
            data: whose task and metrics these are.
            arms: the results by the arms' names; those of the stages may be others.
            more: the report's other attributes.
        """
        teacher = arms["teacher"][0].details if "teacher" in arms else None

        def named(arm: str, result: StageResult) -> StageResult:
            beside = {} if teacher is None or arm == "teacher" else data.task.compare(result.details, teacher)
            return replace(result, name=arm, metrics={**result.metrics, **beside})

        scores = data.evaluator()
        return Report(
            arms={arm: [named(arm, result) for result in results] for arm, results in arms.items()},
            primary=scores.primary,
            higher_is_better=scores.higher_is_better,
            metric_formats={**data.task.metric_formats, **getattr(scores, "metric_formats", {})},
            versions=versions(),
            finished=now(),
            **more,
        )

    @staticmethod
    def merge(reports: Sequence[Report]) -> Report:
        """One report of several of the same experiment, each with other seeds.

        A result that several hold, such as a teacher that they share, appears once, and so does a section of the method. The other sections
        describe the seeds of one report, so that of several the merged one has none: let the task make them again from its `arms`. Settings
        and versions that differ become lists.

        Raises:
            InputError: no reports, reports that cannot be compared, or two different results of one arm and seed.
        """
        if not reports:
            raise InputError("reports", [], "at least one report")
        first = reports[0]
        if len(reports) == 1:
            return first
        for name in ("method", "primary", "higher_is_better", "baseline", "teacher", "subject", "reference"):
            values = [getattr(report, name) for report in reports]
            if any(value != values[0] for value in values):
                raise InputError("reports", f"{name} {values}", f"reports of one experiment, equal in {name}")
        arms: dict[str, dict[int, StageResult]] = {}
        for report in reports:
            for arm, results in report.arms.items():
                for result in results:
                    known = arms.setdefault(arm, {}).setdefault(result.seed, result)
                    if known.to_json() != result.to_json():
                        raise InputError("reports", f"two results of {arm!r} with seed {result.seed}", "one result per arm and seed")
        return replace(
            first,
            arms={arm: [by_seed[seed] for seed in sorted(by_seed)] for arm, by_seed in arms.items()},
            sections=[],
            method_sections=list({section: None for report in reports for section in report.method_sections}),
            command="\n".join(dict.fromkeys(report.command for report in reports if report.command)),
            settings=_joined([report.settings for report in reports]),
            versions=_joined([report.versions for report in reports]),
            started=min((report.started for report in reports if report.started), key=datetime.fromisoformat, default=""),
            finished=max((report.finished for report in reports if report.finished), key=datetime.fromisoformat, default=""),
            notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
            metric_formats={name: metric for report in reports for name, metric in report.metric_formats.items()},
            failed={arm: reason for report in reports for arm, reason in report.failed.items()},
        )


def _joined(several: list[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary of several; a key whose values differ gets the list of those that are distinct, in order."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in several for key in one):
        distinct: list[Any] = []
        for one in several:
            if key in one and one[key] not in distinct:
                distinct.append(one[key])
        joined[key] = distinct[0] if len(distinct) == 1 else distinct
    return joined


def plain(value: Any) -> Any:
    """What JSON can hold: tuples as lists, numpy's numbers as Python's, not finite numbers as None, anything else as its text."""
    if isinstance(value, Footprint):
        return asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _numbers(row: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in row.items()}
