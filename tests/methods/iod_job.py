"""Trains a small Deformable DETR without batch norm that learns further classes, for test_iod.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.methods.iod.data import IncrementalData
from stillroom.methods.iod.distiller import IOD, Answers
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.detr import grow_classes
from stillroom.tasks.detection.queries import QueryDetector
from stillroom.tasks.detection.small import small_deformable_detr, small_rt_detr

OLD = 3
SURE = 0.02  # a score that untrained detectors reach


def network(seed: int = 3, queries: int = 6) -> QueryDetector:
    torch.manual_seed(seed)
    made = _normalised(small_deformable_detr(OLD, stem=8, stages=(8, 8, 8), queries=queries))
    nn.init.normal_(made.model.model.query_position_embeddings.weight)  # else all look at the same place
    return made


def rt_network(seed: int = 3) -> QueryDetector:
    torch.manual_seed(seed)
    return _normalised(small_rt_detr(OLD, stages=(8, 8, 16), width=16, queries=6))


def _normalised(made: Any) -> QueryDetector:
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):  # its statistics are those of one process
                setattr(parent, name, nn.GroupNorm(1, child.num_features))
    assert isinstance(made, QueryDetector)
    for layer in made.class_layers():  # else no score differs from another, and what is sure is a matter of rounding
        nn.init.normal_(layer.weight, std=0.3)
    return made


def grown(detector: QueryDetector, classes: int = 6) -> QueryDetector:
    made = copy.deepcopy(detector)
    torch.manual_seed(5)
    grow_classes(made, classes)
    return made


class Noting(IOD):
    """Notes the terms of every step, and how many pseudo objects this process has."""

    def __init__(self, *both: Any, **options: Any) -> None:
        super().__init__(*both, **options)
        self._noted: list[dict[str, float]] = []

    def losses(self, batch: DetectionBatch) -> Losses:
        found = super().losses(batch)
        assert self.teacher is not None
        told: Any = self.teacher((batch.images, batch.sizes))
        pseudo = len(self.pseudo(batch, told).queries)
        self._noted.append({"pseudo": pseudo, **{name: float(term.detach()) for name, term in found.terms.items()}})
        return found


def train(out: Path, devices: int) -> list[dict[str, float]]:
    data = IncrementalData("scenes:train=48,val=24,teacher=48", batch_size=4, augment="none").step(1)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    teacher = network()
    student = grown(teacher)
    with torch.no_grad():
        for parameter in student.parameters():  # a copy has nothing to be held back from
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    told = Teacher(Answers(teacher), precision="fp32")
    distiller = Noting(student, told, score_threshold=SURE, across_processes=True, dmd_weight=5.0, ifd_weight=5.0)
    Lab(options).fit(distiller, data, Training(epochs=2, lr=0.01, clip_norm=1.0), name="distilled")
    return distiller._noted
