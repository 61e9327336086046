"""What happens around the steps of a stage: its place, its randomness, its record, its evaluation."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from stillroom.engine.distiller import Distiller
from stillroom.engine.distributed import averaged, world_size
from stillroom.engine.loading import Cycled, Loader
from stillroom.engine.run.console import StageDisplay
from stillroom.engine.training import Progress
from stillroom.engine.weights import save_weights

LOG_EVERY = 50


class Evaluator(Protocol):
    """Scores a student's answers; made by a task's data.

    One whose metrics are named by the data has `metric_formats` besides: how these are written (see `Task.metric_formats`).
    """

    primary: str
    higher_is_better: bool

    def reset(self) -> None:
        """Forgets everything."""

    def to(self, device: torch.device) -> Any:
        """Moves its sums."""

    def update(self, answers: Any, batch: Any) -> None:
        """Takes in a batch."""

    def compute(self) -> dict[str, float]:
        """The metrics, over all processes."""

    def details(self) -> dict[str, np.ndarray]:
        """Per-sample results in the order of their ids, over all processes."""


def seed_everything(*numbers: int) -> None:
    """Seeds Python, NumPy and torch (every device) from one or more numbers."""
    state = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 - users' transforms draw from it
    torch.default_generator.manual_seed(int(state[1]))
    if _cuda():  # torch.manual_seed would queue a call, with a formatted traceback, at every step of a CPU run
        torch.cuda.manual_seed_all(int(state[1]))


@functools.cache
def _cuda() -> bool:
    return torch.cuda.is_available()  # asks the driver each time


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode and no gradients; every part's mode is put back."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def evaluate(
    predict: Callable[[Any], Any],
    module: nn.Module,
    loader: Loader,
    evaluator: Evaluator,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
    to_device: Callable[[Any], Any],
) -> dict[str, float]:
    """Scores `predict` over a loader with `module` in eval mode and without gradients; the module's mode is put back."""
    evaluator.reset()
    evaluator.to(device)
    with evaluating(module), context():
        for batch in loader:
            if len(batch.ids):  # the last batch may leave a process of many without a share
                moved = to_device(batch)
                evaluator.update(predict(moved), moved)
    return evaluator.compute()


class Recorder(Callback):
    """Keeps the place, seeds every step, sums the terms, evaluates after every epoch, remembers the best, and tells the console.

    Every step's randomness is a function of (seed, step, rank): a run that goes on after a kill draws what it would have drawn,
    with no generator's state to save.

    Args:
        seed: the stage's seed.
        loader: the validation loader, made for this process.
        evaluator: the task's.
        best_path: where the weights of the best epoch go.
        display: the console's view of this stage.
        after_epoch: called with the epoch's line of the record; what it raises ends the stage.
    """

    def __init__(
        self,
        seed: int,
        loader: Callable[[int, int], Loader],
        evaluator: Evaluator,
        best_path: Path,
        display: StageDisplay,
        after_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.seed, self.loader, self.evaluator, self.best_path, self.display = seed, loader, evaluator, best_path, display
        self.after_epoch = after_epoch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.samples = 0
        self.continued = 0
        self.weights: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._figures: set[str] = set()  # which of them are no losses, and in no total
        self._count = 0
        self._mark = 0.0
        self._eval_loader: Loader | None = None

    def state_dict(self) -> dict[str, Any]:
        """The record so far, as plain numbers."""
        self._tick()
        if self._sums and world_size() > 1:  # the saved sums serve every process that goes on from them
            self._sums = dict(zip(self._sums, averaged(torch.stack(list(self._sums.values()))), strict=True))
        return {
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "samples": self.samples,
            "continued": self.continued,
            "sums": {name: float(value) for name, value in self._sums.items()},
            "count": self._count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the record up again."""
        self.history, self.best = state_dict["history"], state_dict["best"]
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]
        self.continued = state_dict["continued"] + 1
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state_dict["sums"].items()}
        self._count = state_dict["count"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the validation loader and the console's line."""
        self._eval_loader = self.loader(trainer.global_rank, trainer.world_size)
        self._sums = {name: value.to(pl_module.device) for name, value in self._sums.items()}
        self._mark = time.perf_counter()
        self.display.start(int(trainer.max_epochs or 0), int(trainer.num_training_batches), self.history, self.continued)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets the place and the seeds before anything of the step is computed."""
        assert isinstance(pl_module, Distiller)
        loader: Loader | Cycled = trainer.train_dataloader  # type: ignore[assignment]
        if loader.place != (trainer.current_epoch, batch_idx + 1):
            raise RuntimeError(f"the loader is at {loader.place}, the loop at {(trainer.current_epoch, batch_idx + 1)} (epoch, batch)")
        # Counted as if every epoch showed every sample: an epoch of chosen ones leaves steps out.
        length = loader.whole
        step = trainer.current_epoch * length + batch_idx
        pl_module.progress = Progress(trainer.current_epoch + 1, int(trainer.max_epochs or 1), step, length)
        seed_everything(self.seed, step, trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Adds the step's terms to the epoch's sums, on the device; and its `figures`, where a method has some that are no losses:
        their names are of two parts, as in ``accuracy/pivot``."""
        assert isinstance(pl_module, Distiller)
        self._figures |= outputs.get("figures", {}).keys()
        recorded = {**outputs["terms"], **outputs.get("figures", {})}
        for name, term in recorded.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), dtype=torch.float64, device=term.device)) + term.reshape(()).double()
        self._count += 1
        self.samples += len(batch.ids) * trainer.world_size
        if self._count % LOG_EVERY == 0 and trainer.logger is not None:
            figures = {f"train/{name}": float(term) for name, term in recorded.items()}
            figures |= {"lr": _learning_rate(trainer), "samples_per_second": self.samples / self._tick()}
            trainer.logger.log_metrics(figures, pl_module.progress.step)
        self.display.step(batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates, and writes the epoch's line of the record."""
        assert isinstance(pl_module, Distiller)
        pl_module.guard.look()
        pl_module.guard.look_at_weights(pl_module.student, pl_module.progress.step)
        means = torch.stack(list(self._sums.values())) / self._count
        means = trainer.strategy.reduce(means, reduce_op="mean")
        figures = {f"train/{name}": value for name, value in zip(self._sums, means.tolist(), strict=True)}
        terms = [value for name, value in zip(self._sums, means, strict=True) if name not in self._figures]
        if len(terms) > 1:
            figures["train/total"] = float(torch.stack(terms).sum())
        self._sums, self._count = {}, 0
        scores = self.score(trainer, pl_module)
        epoch = trainer.current_epoch + 1
        line = {"epoch": float(epoch), "lr": _learning_rate(trainer), **figures, **{f"val/{name}": value for name, value in scores.items()}}
        line["seconds"] = self._tick()
        line["samples_per_second"] = self.samples / max(self.seconds, 1e-9)
        self.history.append(line)
        if self._improves(scores):
            self.best = {"epoch": float(epoch), **scores}
            weights = student_weights(trainer)
            if trainer.is_global_zero:
                save_weights(weights, self.best_path)
        if trainer.logger is not None:
            trainer.logger.log_metrics({k: v for k, v in line.items() if k != "epoch"}, pl_module.progress.step)
        self.display.epoch(line, self.evaluator.primary)
        if self.after_epoch is not None:
            self.after_epoch(line)

    def score(self, trainer: Trainer, distiller: Distiller) -> dict[str, float]:
        """The student's metrics on the validation set, over all processes."""
        assert self._eval_loader is not None
        strategy = trainer.strategy
        if trainer.world_size > 1:
            for buffer in distiller.buffers():  # statistics that each process counted for itself: the first one's are what is saved
                torch.distributed.broadcast(buffer, 0)
        sharded = isinstance(strategy, FSDPStrategy)
        return evaluate(
            (lambda batch: strategy.validation_step(batch, 0)) if sharded else distiller.predict,
            distiller,
            self._eval_loader,
            self.evaluator,
            distiller.device,
            trainer.precision_plugin.val_step_context,
            lambda batch: strategy.batch_to_device(batch, distiller.device),
        )

    def _improves(self, scores: dict[str, float]) -> bool:
        key = self.evaluator.primary
        if not self.best or math.isnan(self.best[key]):
            return True
        return scores[key] > self.best[key] if self.evaluator.higher_is_better else scores[key] < self.best[key]

    def _tick(self) -> float:
        now = time.perf_counter()
        if self._mark:
            self.seconds += now - self._mark
        self._mark = now
        return self.seconds

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the terminal as it was."""
        self.display.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the console's line, and keeps the student's weights: a sharded module does not hold them once its strategy is gone."""
        self._tick()
        weights = {name: value.detach().cpu().clone() for name, value in student_weights(trainer).items()}
        self.weights = trainer.strategy.broadcast(weights)
        self.display.stop()


def student_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The student's whole state dict, also of a sharded module (there in the first process only; every process must ask)."""
    state = trainer.strategy.lightning_module_state_dict()
    return {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}


def _learning_rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])
