"""Trains one small student without batch norm from a bank, for test_ferkd.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.ferkd import FerKD
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.tasks.classification import ImageData

PLAN = Training(epochs=6, lr=0.05, schedule="cosine")


def main(bank: Path, out: Path, devices: int) -> None:
    torch.manual_seed(3)
    student = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    distiller = FerKD(student, LabelBank(bank), num_crops=2, mix="none")
    distiller.plan = PLAN
    data = ImageData("digits", batch_size=32, subset=160, val_subset=75, augment="none")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    Lab(options).fit(distiller, distiller.training_data(data), PLAN, name="ferkd")
