"""A few steps of GiftNet without batch norms, for test_giftnet.py."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.giftnet import Gifted, GiftNet
from stillroom.tasks.harmonization import HarmonizationUNet, HarmonyData
from tests.two_processes_job import unnormalised


def train(out: Path, devices: int) -> None:
    torch.manual_seed(3)
    distiller = GiftNet(Gifted(HarmonizationUNet(4, 3)), relation_weight=10.0, grid=4)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    data = HarmonyData("patches,train=32,val=5", batch_size=8)
    with patch.object(nn.BatchNorm2d, "forward", unnormalised):  # their statistics would be those of one process
        Lab(options).fit(distiller, data, Training(epochs=2, lr=0.01, milestones=(0.5,), clip_norm=1.0), name="distilled")
