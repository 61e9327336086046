"""A Lab that trains nothing: it runs a few steps of each stage and says what the whole would take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from stillroom.engine.distiller import Distiller
from stillroom.engine.lab import Lab
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.engine.run.options import LabOptions
from stillroom.engine.run.recorder import Recorder, evaluating
from stillroom.engine.run.stage import StageFolder
from stillroom.engine.task import TaskData
from stillroom.engine.training import Training

_WARM, _TIMED, _SCORED = 2, 6, 3  # steps, steps, batches
_STATES = (
    3  # copies of the weights that are written of a training: the last, the best, and a checkpoint's own with its optimiser's (1 to 2)
)


@dataclass(frozen=True)
class Planned:
    """A stage that would run.

    Attributes:
        name: of the stage; without a seed where all seeds share it.
        shared: whether they do.
        epochs, steps: epochs, and steps of each; 0 of a stage that is only scored.
        step: seconds of a step.
        scoring: seconds of one pass over the validation set.
        parameters: of the student.
        done: whether the run's folder holds it already.
    """

    name: str
    shared: bool
    epochs: int
    steps: int
    step: float
    scoring: float
    parameters: int
    done: bool = False

    @property
    def seconds(self) -> float:
        """Of the whole: its steps, scores after every epoch and once more at the end."""
        return 0.0 if self.done else self.epochs * (self.steps * self.step + self.scoring) + self.scoring

    @property
    def bytes(self) -> int:
        """On disk at most."""
        return 0 if self.done or not self.epochs else 4 * self.parameters * (_STATES + 1)


class Enough(Exception):
    """As many steps were run as were to be timed."""


class _Stopwatch(Callback):
    """Ends a training after a few steps, which it timed."""

    def __init__(self) -> None:
        self.steps = 0
        self.marks: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """How many steps an epoch has."""
        self.steps = int(trainer.num_training_batches)
        self.marks.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Raises Enough."""
        self.marks.append(time.perf_counter())
        if len(self.marks) > 1 + _WARM + _TIMED or batch_idx + 1 >= self.steps:
            raise Enough

    @property
    def seconds(self) -> float:
        """Of a step: the median of those behind the first ones, or the only one there is; loading and the wait for it included."""
        timed = self.marks[min(1 + _WARM, max(len(self.marks) - 2, 0)) :]
        between = sorted(after - before for before, after in pairwise(timed))
        return between[len(between) // 2] if between else math.nan


class PlanningLab(Lab):
    """Runs a recipe with stages of a few steps each, in a folder that is thrown away; what it learns is worth nothing.

    Args:
        options: of the run; `out` is where it would be.
        scratch: the folder for what is written meanwhile.

    Attributes:
        planned: the stages, in their order.
    """

    def __init__(self, options: LabOptions, scratch: Path) -> None:
        super().__init__(replace(options, out=scratch, overwrite=False, continue_from=None), quiet=True)
        self.out = Path(str(options.out))
        self.planned: list[Planned] = []

    def begin(self) -> None:
        """Makes the folder; the data's own lines are for the command to say."""
        self._opening = ()
        super().begin()

    def _train(self, distiller: Distiller, data: TaskData, plan: Training, folder: StageFolder, name: str) -> Recorder:
        watch = _Stopwatch()
        self._callbacks = [watch]
        with suppress(Enough):
            super()._train(distiller, data, plan, folder, name)
        self._note(name, distiller, epochs=plan.epochs, steps=watch.steps, step=watch.seconds)
        return None  # type: ignore[return-value]  # nothing was recorded

    def _measured(
        self,
        distiller: Distiller,
        data: TaskData,
        name: str,
        model: str,
        parts: dict[str, Any],
        recorder: Recorder | None,
        origin: str,
        renormalise: Any = None,
        looked_at: Callable[[StageResult], None] = lambda result: None,
    ) -> dict[str, Any]:
        """A record whose numbers are those of a few batches, or not numbers."""
        evaluator, loader = data.evaluator(), data.eval_loader()
        metrics: Mapping[str, float] = {evaluator.primary: math.nan}
        started, seen = time.perf_counter(), 0
        distiller.to(self.device)
        evaluator.reset()
        evaluator.to(self.device)
        with evaluating(distiller):
            for batch in islice(loader, _SCORED):
                moved = move_data_to_device(batch, self.device)
                evaluator.update(distiller.predict(moved), moved)
                seen += 1
        scoring = (time.perf_counter() - started) / max(seen, 1) * len(loader)
        distiller.cpu()
        details: dict[str, Any] = {}
        with suppress(Exception):  # some metrics are not defined on a few samples
            metrics, details = evaluator.compute(), evaluator.details()
        if self.planned and self.planned[-1].name == name and math.isnan(self.planned[-1].scoring):
            self.planned[-1] = replace(self.planned[-1], scoring=scoring)
        else:
            self._note(name, distiller, epochs=0, steps=0, step=0.0, scoring=scoring)
        size = sum(parameter.numel() for parameter in distiller.student.parameters())
        found = {evaluator.primary: math.nan, **metrics}
        result = StageResult(name, self.seed, found, {}, [], Footprint(size, None, 0.0, 4 * size), 0.0, 0, model, origin=origin)
        result.details = details
        looked_at(result)
        return {"fingerprint": parts, "finished": True, "result": result.to_json(), "details": details}

    def remember(self, name: str, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Computes it; how long that takes is in no stage."""
        return dict(compute())

    def footprint(self, network: nn.Module, example: Any) -> Footprint:
        """Its parameters alone."""
        size = sum(parameter.numel() for parameter in network.parameters())
        return Footprint(size, None, 0.0, 4 * size)

    def _note(self, name: str, distiller: Distiller, *, epochs: int, steps: int, step: float, scoring: float = math.nan) -> None:
        size = sum(parameter.numel() for parameter in distiller.student.parameters())
        there = StageFolder(self.out / f"{self._prefix}{name}")
        done = bool((there.read() or {}).get("finished"))
        self.planned.append(Planned(name, not self._prefix, epochs, steps, step, scoring, size, done))
