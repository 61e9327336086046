"""Trains one small detector without batch norm, for test_bckd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.bckd import BCKD
from stillroom.tasks.detection.backbones import SmallBackbone
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets
from stillroom.tasks.detection.gfl import GFL


def network(width: int, seed: int) -> GFL:
    torch.manual_seed(seed)
    made = GFL(SmallBackbone(width, (width, width)), 6, width=8, extra=0, reg_max=8, convs=1, groups=8, anchor_scale=4)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):  # its statistics are those of one process
                setattr(parent, name, nn.Identity())
    return made


class Noting(BCKD):
    """Notes the normalisers of every step, and what this process would divide by if it were alone."""

    def __init__(self, *both: Any) -> None:
        super().__init__(*both)
        self._noted: list[dict[str, Any]] = []

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        counts = sum((labels < 6).sum(1) for labels in targets.labels)
        own = float(torch.as_tensor(counts).clamp_min(1).sum())
        self._noted.append({"own": own, "positives": float(targets.positives), "present": targets.present.tolist()})
        return super().distillation(student, teacher, targets)


def train(out: Path, devices: int) -> list[dict[str, Any]]:
    data = DetectionData("scenes:train=32,val=8,teacher=32", batch_size=8)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    distiller = Noting(network(8, 3), Teacher(network(12, 4), precision="fp32"))
    Lab(options).fit(distiller, data, Training(epochs=2, lr=0.01, clip_norm=1.0, milestones=(0.5,)), name="distilled")
    return distiller._noted
