"""Two of WAD's rounds with a student without batch norm, for test_wad.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions
from stillroom.methods.wad.networks import Encoder
from stillroom.methods.wad.pool import benchmark
from stillroom.methods.wad.recipe import ROUND
from stillroom.methods.wad.rounds import Rounds, train_in_rounds
from stillroom.methods.wad.views import ScanViews
from stillroom.tasks.classification import ImageData


def main(out: Path, devices: int) -> None:
    data = ImageData("digits", batch_size=16, subset=160, val_subset=75)
    pool = benchmark(data, ["0", "1", "2", "3"], 16, 0.5, even=True)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    torch.manual_seed(3)
    student = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 16)), data.mean, data.std, hidden=16, dim=8)
    how = Rounds(iterations=6, rounds=2, promote=0.6)
    plan = replace(ROUND, optimizer="sgd", lr=0.05)  # Adam magnifies what rounding leaves of a gradient of zero
    train_in_rounds(Lab(options), pool, encoder, ScanViews(), student, plan, how)
