"""Trains small extractors and a small student with them, for test_unikd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.unikd.attention import Adapter
from stillroom.methods.unikd.distillers import Absorb, UniKD
from stillroom.methods.unikd.extractors import Extractors, Sizes
from stillroom.methods.unikd.teaching import Answers, MapsOf
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.scenes import CLASSES
from tests.methods.bckd_job import network

STRIDES = (4, 8)
SIZES = Sizes(STRIDES, 8, CLASSES, queries=8, width=8, heads=2, points=2)


def extractors(seed: int = 1, sizes: Sizes = SIZES) -> Extractors:
    torch.manual_seed(seed)
    return Extractors(sizes)


def maps() -> Teacher:
    return Teacher(MapsOf(network(12, 4), STRIDES), precision="fp32", fold=False)


def adapter(layers: int = 0) -> Adapter:
    torch.manual_seed(7)
    return Adapter(8, 8, len(STRIDES), layers, heads=2, points=2)


def answers(read: Extractors | None = None) -> Answers:
    return Answers(maps(), read or extractors())


def student(read: Extractors | None = None, **options: Any) -> UniKD:
    read = read or extractors()
    return UniKD(network(8, 3), answers(read), read, adapter(), **options)


def train(out: Path, devices: int) -> None:
    """Both stages; of the second the position part, as the roles of content queries are averaged over each process's own images."""
    data = DetectionData("scenes:train=32,val=8,teacher=32", batch_size=8)
    lab = Lab(LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto"))
    plan = Training(epochs=2, lr=0.01, clip_norm=1.0, milestones=(0.5,))
    made = Absorb(extractors(), maps())
    lab.fit(made, data, plan, name="extractors")
    lab.fit(student(made.student.extractors, content_weight=0.0), data, plan, name="unikd")
