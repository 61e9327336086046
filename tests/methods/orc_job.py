"""Trains two ORC groups without batch norm, for test_orc.py, and gives their states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.orc import ORC
from stillroom.tasks.classification import ImageData


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 10))


def main(out: Path, devices: int) -> dict[str, dict[str, torch.Tensor]]:
    data = ImageData("digits", batch_size=32, subset=160, val_subset=75)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    states = {}
    for name, intensive in (("frozen pivot", False), ("refined pivot", True)):
        torch.manual_seed(3)
        distiller = ORC(network(4), network(10), [network(8), network(6)], intensive=intensive, pivot_lr_factor=0.5)
        Lab(options).fit(distiller, data, Training(epochs=3, clip_norm=0.5), name=name)
        states[name] = distiller.state_dict()
    return states
