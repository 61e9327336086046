"""Trains one small student without batch norm, for test_memkd.py."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.memkd import MemKD
from stillroom.methods.memkd.networks import build
from stillroom.tasks.anomaly import AnomalyData

LEVELS = ((4, 4), (6, 8), (8, 16), (10, 32))  # channels and strides


class Levels(nn.Module):
    """A teacher of four maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        channels = (3, *(channels for channels, _ in LEVELS))
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1) for a, b in pairwise(channels))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            images = stage(images).relu() + 0.1  # no position is zero
            maps.append(images)
        return tuple(maps)


def main(out: Path, devices: int) -> None:
    data = AnomalyData("textures:category=wood,train=20,test=4", batch_size=4)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", checkpoint_steps=1)
    torch.manual_seed(2)
    student = build({"variant": "forward", "levels": LEVELS[:3], "family": "small", "between": "memory", "slots": 5, "temperature": 1.0})
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            student.set_submodule(name, nn.Identity())
    distiller = MemKD(student, Teacher(Levels(), precision="fp32"), exemplars=4)
    # SGD: Adam's step forgets the size of the gradient, which is what is to be compared.
    plan = Training(epochs=2, lr=0.01, schedule="constant")
    Lab(options).fit(distiller, distiller.training_data(data.of_category(0)), plan, name="memkd")
