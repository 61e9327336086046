"""Trains experts without batch norm, for test_mdcs.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.mdcs import LongTailedImages, build
from stillroom.tasks.images.networks import ExpertNetwork


def network() -> nn.Module:
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    return ExpertNetwork(trunk, [nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten()) for _ in range(3)], 64, 10)


def main(out: Path, devices: int) -> None:
    data = LongTailedImages("digits,imbalance=exp:8", subset=300, val_subset=60, batch_size=24)
    distiller = build(network(), None, data, ramp_epochs=2, confident_only=False)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    Lab(options).fit(distiller, distiller.training_data(data), Training(epochs=3, lr=0.02, clip_norm=0.5), name="distilled")
