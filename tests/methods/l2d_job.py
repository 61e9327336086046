"""Trains one small student without batch norm or dropout, for test_l2d.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.l2d import L2D
from stillroom.tasks.multilabel import HeadOptions, MLDecoder, MultiLabelData, MultiLabelNetwork


def network(width: int, embed_dim: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(width)
    backbone = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU())
    return MultiLabelNetwork(backbone, MLDecoder(width, 10, HeadOptions(embed_dim, attention_heads=2, feedforward=16, dropout=dropout)))


def main(out: Path, devices: int) -> None:
    data = MultiLabelData("mosaics,train=48,val=30", batch_size=16)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    # SGD: Adam's step forgets the size of the gradient, which is what is to be compared.
    distiller = L2D(network(6, 8), Teacher(network(12, 16), precision="fp32"), class_aware_weight=10, instance_aware_weight=20)
    Lab(options).fit(distiller, data, Training(epochs=2, lr=1e-4, schedule="constant"), name="distilled")
