"""A run's student as an 8-bit ONNX file, and what that costs on the validation set of its run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.engine.export import ExportSpec, check_format, export, place_of
from stillroom.engine.quantize import OnnxNetwork, quantized
from stillroom.engine.report.results import COMMON_METRICS, Metric
from stillroom.engine.room import options_of
from stillroom.engine.run.folder import read_settings
from stillroom.engine.run.recorder import evaluating
from stillroom.engine.run.shipped import place_of_student
from stillroom.engine.specification import refuse_code
from stillroom.engine.task import Task, task_named
from stillroom.errors import InputError, at_least
from stillroom.tasks.images.classified import KINDS
from stillroom.tasks.students import load, task_of


@dataclass(frozen=True)
class Quantized:
    """An 8-bit file beside the student.

    Attributes:
        path, bytes: the file, and its size.
        float_bytes: of the same file in float32.
        metric: the one that decides.
        before, after: it, of the student and of the file, on the same samples.
        agreement: share of the samples, in %, of which both say the same class; None where the answers are no classes.
        samples: of the validation set.
        calibration: training samples that the ranges were measured on.
    """

    path: Path
    bytes: int
    float_bytes: int
    metric: Metric
    before: float
    after: float
    agreement: float | None
    samples: int
    calibration: int

    @property
    def said(self) -> str:
        """In a sentence."""
        metric, unit = self.metric, f" {self.metric.unit}" if self.metric.unit else ""
        change = f"{metric.number(self.after - self.before, '+')}{metric.difference_unit}"
        same = "" if self.agreement is None else f"; the same class for {self.agreement:.1f} % of them"
        return (
            f"{metric.label} {metric.number(self.after)}{unit}, {change} from the student's {metric.number(self.before)}{unit} "
            f"on {self.samples} validation samples{same}; ranges measured on {self.calibration} training samples"
        )


def quantize_student(
    run: str | Path,
    *,
    out: str | Path | None = None,
    calibration: int = 256,
    data: str | None = None,
    arm: str | None = None,
    seed: int | None = None,
    best: bool = False,
    trust_code: bool = False,
) -> Quantized:
    """Writes a run's student as an 8-bit ONNX file, and scores both on the run's own validation set.

    Args:
        run: the folder of a run, or of one of its stages.
        out: the file, or a folder for it; by default ``student_int8.onnx`` in the run's folder, or the stage's.
        calibration: samples of the training set, on which the ranges of activations are measured.
        data: where the data of the run lie now, if not where they lay.
        arm, seed, best, trust_code: see `students.load`.

    Raises:
        InputError: no finished run, a student that does not answer with one tensor, or data that are not there.
        ExportFailed, QuantizationFailed: the student cannot be written so.
    """
    check_format("onnx")
    at_least("calibration", calibration, 1)
    place = place_of_student(run, arm, seed, best=best)
    task = task_named(task_of(place))
    spec = load(run, arm=arm, seed=seed, best=best, trust_code=trust_code).export_spec()
    if not hasattr(task, "supervised") or not isinstance(spec, ExportSpec) or len(spec.names) != 2 or spec.ask is not None:
        raise InputError("quantize", f"a student of the task {task.name}", "one that answers with a single tensor, such as a classifier")
    shown = _data_of(Path(run), task, data, trust_code=trust_code)
    path = place_of(Path(place.removesuffix("@best")), out, "onnx", part="int8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        exact, small = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(spec, exact, format="onnx")
        quantized(exact, small, _inputs(shown, calibration))
        scores = [_scored(task, shown, OnnxNetwork(file)) for file in (exact, small)]
        sizes = exact.stat().st_size, small.stat().st_size
        small.replace(path)
    primary = shown.evaluator().primary
    metric = task.metric_formats.get(primary) or COMMON_METRICS.get(primary) or Metric(primary)
    (before, ours), (after, theirs) = scores
    same = None if ours.ndim != 1 else 100 * float((ours == theirs).double().mean())
    count = min(calibration, shown.train_size)
    return Quantized(path, sizes[1], sizes[0], metric, before[primary], after[primary], same, len(ours), count)


def _data_of(run: Path, task: Task, moved: str | None, *, trust_code: bool) -> Any:
    """The data of a run, as its arguments say."""
    config = next((folder / "config.yaml" for folder in (run, *run.parents[:2]) if (folder / "config.yaml").is_file()), None)
    if config is None:
        raise InputError("run", str(run), "the folder of a run, whose config.yaml says what its data are")
    if (settings := read_settings(config)) is None:
        raise InputError("run", str(config), "the options of a finished run, in YAML")
    known = {name: value for name, value in settings.items() if name in options_of(task.data) and (name != "data" or not moved)}
    if not trust_code:
        refuse_code(known, config, {*task.kinds, *(kind.name for kind in KINDS)}, argument="run")
    return task.data(**known, **({"data": moved} if moved else {}))


def _inputs(data: Any, count: int) -> Iterator[Tensor]:
    left = count
    for batch in data.train_loader(seed=0):
        inputs = batch.inputs[:left]
        left -= len(inputs)
        yield inputs
        if not left:
            return


def _scored(task: Task, data: Any, network: OnnxNetwork) -> tuple[dict[str, float], Tensor]:
    """The metrics, and for each sample the class of the largest answer, or of each position."""
    distiller, evaluator, said = task.supervised(network), data.evaluator(), []
    evaluator.reset()
    with evaluating(distiller):
        for batch in data.eval_loader():
            answers = distiller.predict(batch)
            evaluator.update(answers, batch)
            said.append(answers.argmax(1) if isinstance(answers, Tensor) and answers.ndim == 2 else torch.zeros(len(batch.ids), 1))
    return evaluator.compute(), torch.cat(said)
