"""A few steps of MTL-CS, for test_mtl_cs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.mtl_cs import MTLCS, Match
from stillroom.tasks.multitask import MultiTaskData, build_multitask

PLAN = Training(epochs=2, lr=0.02, milestones=(0.5,), clip_norm=1.0)


def data() -> MultiTaskData:
    return MultiTaskData("solids:train=16,val=5,teacher=1,size=16", batch_size=8)


def network(width: int, data: MultiTaskData, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_multitask(f"stillroom/pyramid{width}", data.targets).network


def without_statistics(made: nn.Module) -> nn.Module:
    """Batch norm by its running statistics: each process has its own batch."""
    for name, child in made.named_children():
        setattr(made, name, nn.GroupNorm(1, child.num_features) if isinstance(child, nn.BatchNorm2d) else without_statistics(child))
    return made


def train(out: Path, devices: int) -> None:
    """Rows alone: columns are each process's own."""
    shown = data()
    teacher = Teacher(network(6, shown, 1), precision="fp32")
    distiller = MTLCS(without_statistics(network(4, shown)), teacher, Match(intra=False))
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    Lab(options).fit(distiller, shown, PLAN, name="kdam")
