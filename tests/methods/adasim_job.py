"""A few epochs of AdaSim on small digits, for test_adasim.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.engine import Lab, LabOptions, Losses, Training
from stillroom.methods.adasim.arms import RULES
from stillroom.methods.adasim.bootstrap import AdaSim
from stillroom.methods.dino import DINO
from stillroom.tasks.images.networks.mlp import MLP
from stillroom.tasks.representation import RepresentationData

WIDTH = 12
PLAN = Training(epochs=5, optimizer="sgd", lr=0.003, weight_decay=1e-3, schedule="cosine", warmup_epochs=1)


class Killed(Exception):
    """Stands for a kill."""


class Falling(DINO):
    """DINO that is killed before a step of the test's choosing."""

    fall_at: int | None = None

    def _losses(self, batch: Any) -> tuple[Losses, Tensor, Tensor]:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super()._losses(batch)


def digits() -> RepresentationData:
    return RepresentationData("digits", subset=64, val_subset=20, batch_size=16, bank=32)


def train(out: Path, devices: int = 1, window_memory: float = 1.0) -> dict[str, Tensor]:
    """What is left of a training with the second views of neighbours: state, window, and how many neighbours were shown in each epoch."""
    torch.manual_seed(3)
    data = digits()
    backbone: Any = MLP(16, WIDTH, num_classes=2)
    backbone.fc = torch.nn.Identity()
    distiller = Falling(backbone, width=WIDTH, prototypes=8, hidden=16, bottleneck=8, ema_momentum=0.9, freeze_last_layer=0)
    rule = RULES["ungated"]  # of which hardly an image is shown itself
    assert rule is not None
    options: dict[str, Any] = {"window": 2, "topk": 4, "sampling_temperature": 0.1, "window_memory": window_memory}
    block = distiller.neighbours = AdaSim(data.train_size, WIDTH, rule=rule, labels=data.train_labels, **options)
    several: dict[str, Any] = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1, **several))
    stage = lab.fit(distiller, distiller.training_data(data), PLAN, name="adasim")
    ids, similarities = block.window.rows(np.arange(data.train_size))
    figures = ("train/dino", "train/bootstrap/share", "train/bootstrap/right")
    history = torch.tensor([[row[figure] for figure in figures] for row in stage.result.history])
    found = {**distiller.state_dict(), "window ids": ids, "window similarities": similarities, "history": history}
    return {name: value.clone() for name, value in found.items()}
