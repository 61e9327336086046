"""Checkpoints that survive a kill: written whole or not at all, on the clock, at the end of training, and when asked to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from stillroom.engine.distiller import Distiller
from stillroom.engine.run.signals import handling
from stillroom.engine.run.watch import watch
from stillroom.engine.run.written import replacing
from stillroom.errors import InputError, Interrupted

_ASK_EVERY = 10  # steps after which several processes agree on whether to save or to stop, where steps are quick
_ASK_SECONDS = 3.0  # after which they do, where steps are slow


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files under a temporary name first, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes `checkpoint` to `path`, which holds either the old or the new one at any moment."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """What `save_checkpoint` wrote: tensors and plain values, whoever put the file there.

        Raises:
            InputError: it is something else, or damaged.
        """
        try:
            found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # depending on where a file is damaged, reading it raises nearly anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            expected = "the checkpoint of a run that was ended; without that file its stage begins anew"
            raise InputError("out", f"{path}, which cannot be read ({reason[:100]})", expected) from error
        if not isinstance(found, dict) or not {"state_dict", "loops", "callbacks", "optimizer_states"} <= found.keys():
            raise InputError("out", f"{path}, which Stillroom did not write", "the checkpoint of a run that was ended")
        return found


class Checkpoints(Callback):
    """Saves `last.ckpt` every `seconds` seconds, after the last epoch, and before ending on Ctrl-C or SIGTERM.

    A killed run so does at most `seconds` of its work again, however short or long its epochs are. It is the last callback of its trainer,
    so that the others' records of the epoch are in what it saves.

    Args:
        path: the file.
        seconds: time between two checkpoints; 0 for one after every step.
        steps: if given, a checkpoint also after every so many batches and after every epoch.
    """

    def __init__(self, path: Path, seconds: float, steps: int | None = None) -> None:
        self.path, self.seconds, self.steps = path, seconds, steps
        self.stop = False
        self._last = self._asked = time.monotonic()
        self._ask_every = _ASK_EVERY

    @contextmanager
    def listening(self, *, together: bool = False) -> Iterator[None]:
        """While open, the first Ctrl-C or SIGTERM asks for a clean end; a second Ctrl-C ends at once.

        Args:
            together: with other processes, for which this one may be waiting when the signal comes: see `watch.answering`.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop = True

        with handling(ask, signal.SIGINT, signal.SIGTERM), watch.answering() if together else nullcontext():
            yield

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """In the middle of an epoch, between two optimiser steps."""
        assert isinstance(pl_module, Distiller)
        done = batch_idx + 1
        if done % pl_module.plan.accumulate or done >= trainer.num_training_batches:
            return  # half an optimiser step, or the epoch's end, which saves after its evaluation
        if trainer.world_size > 1 and done % self._ask_every and not self.steps:
            return  # all processes must agree; asking them at every step would cost
        due = self._overdue or bool(self.steps and done % self.steps == 0)
        due, stop = self._agreed(trainer, due)
        if due or stop:
            self._save(trainer, pl_module)
        if stop:
            raise Interrupted(f"stopped in epoch {pl_module.progress.epoch}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of an epoch."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due, stop = self._agreed(trainer, last or bool(self.steps) or self._overdue)
        if due or stop:
            self._save(trainer, pl_module)
        if stop:
            raise Interrupted(f"stopped after epoch {trainer.current_epoch + 1}")

    def _agreed(self, trainer: Trainer, due: bool) -> tuple[bool, bool]:
        """Whether to save, as the first process says, and whether to stop, if any of them was asked to. How soon they ask one another again
        depends on how long a step takes."""
        if trainer.world_size == 1:
            return due, self.stop
        first = trainer.global_rank == 0
        seconds, self._asked = time.monotonic() - self._asked, time.monotonic()
        often = max(1, min(_ASK_EVERY, round(_ASK_SECONDS * self._ask_every / max(seconds, 1e-3))))
        asked = torch.tensor([due and first, self.stop, often if first else 0], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        save, stop, self._ask_every = (int(value) for value in asked.tolist())
        return bool(save), bool(stop)

    @property
    def _overdue(self) -> bool:
        return time.monotonic() - self._last > self.seconds

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Distiller)
        pl_module.guard.look()
        pl_module.guard.look_at_weights(pl_module.student, pl_module.progress.step)
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()
