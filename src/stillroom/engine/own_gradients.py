"""Base of methods that are not one loss, one backward pass, one step."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stillroom.engine.distiller import Distiller
from stillroom.engine.teacher import Teacher
from stillroom.errors import InputError


class OwnGradients(Distiller):
    """A distiller that asks for its gradients itself: several over one forward pass, or one for each of several networks.

    Its `training_step` averages them over the processes (`distributed.average_gradients`) before they enter an optimiser; DDP's own
    averaging, which knows one backward pass per forward pass, is switched off.

    Args:
        student, teacher: see `Distiller`.

    Raises:
        InputError: in training, under FSDP.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module | None = None) -> None:
        super().__init__(student, teacher)
        self.automatic_optimization = False

    def on_train_start(self) -> None:
        """Takes the averaging of gradients over from the strategy."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            asks = f"{type(self).__name__} asks for its gradients itself, which sharded parameters do not give"
            raise InputError("strategy", "fsdp", f"ddp or one device: {asks}")
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.require_backward_grad_sync = False

    def gradient_scaler(self) -> torch.amp.GradScaler | None:
        """What scales losses in mixed precision with float16; None where nothing does."""
        if self._trainer is None:
            return None
        scaler: torch.amp.GradScaler | None = getattr(self._trainer.precision_plugin, "scaler", None)
        return scaler
