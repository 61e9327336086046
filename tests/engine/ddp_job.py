"""Trains one small student without batch norm, for test_distributed.py; as a script: OUT DEVICES, with KD."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Distiller, Lab, LabOptions, Teacher, Training
from stillroom.methods.dkd import DKD
from stillroom.methods.dot import DOT
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 10))


def distiller(method: str) -> Distiller:
    torch.manual_seed(3)
    student, teacher = network(6), Teacher(network(12), precision="fp32")
    if method == "dkd":
        return DKD(student, teacher)
    kd = KD(student, teacher)
    return DOT(kd, delta=0.05) if method == "dot" else kd


def main(method: str, out: Path, devices: int, accumulate: int = 1) -> None:
    data = ImageData("digits", batch_size=32, subset=160, val_subset=75)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    Lab(options).fit(distiller(method), data, Training(epochs=3, clip_norm=0.5, accumulate=accumulate), name="distilled")


if __name__ == "__main__":
    main("kd", Path(sys.argv[1]), int(sys.argv[2]))
