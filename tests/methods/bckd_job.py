"""Trains one small detector without batch norm, for test_bckd.py: OUT DEVICES."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.bckd import BCKD
from stillroom.tasks.detection.backbones import SmallBackbone
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.gfl import GFL


def network(width: int, seed: int) -> GFL:
    torch.manual_seed(seed)
    made = GFL(SmallBackbone(width, (width, width)), 6, width=8, extra=0, reg_max=8, convs=1, groups=8, anchor_scale=4)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):  # its statistics are those of one process
                setattr(parent, name, nn.Identity())
    return made


def main(out: str, devices: int) -> None:
    torch.set_num_threads(1)
    data = DetectionData("scenes:train=32,val=8,teacher=32", batch_size=8)
    options = LabOptions(out=Path(out), accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    distiller = BCKD(network(8, 3), Teacher(network(12, 4), precision="fp32"))
    Lab(options).fit(distiller, data, Training(epochs=2, lr=0.01, clip_norm=1.0, milestones=(0.5,)), name="distilled")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
