"""A few steps of DAPS-SAM without batch norms, for test_daps_sam.py."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.daps_sam import DAPS, Aligned
from stillroom.methods.daps_sam.network import AlignedSpec
from stillroom.tasks.sound import SoundData, build_sound


def unnormalised(norm: nn.BatchNorm1d, inputs: Tensor) -> Tensor:
    """The affine map alone: statistics would be those of one process."""
    shape = 1, -1, *(1,) * (inputs.ndim - 2)
    return inputs * norm.weight.view(shape) + norm.bias.view(shape)


def train(out: Path, devices: int) -> None:
    torch.manual_seed(3)
    data = SoundData("rooms:train=16,val=3", image_size=8, batch_size=8)
    teacher = build_sound("stillroom/panorama4_2", data.shape()).network
    student = Aligned(build_sound("stillroom/echo4_2", data.shape()).network, AlignedSpec("", "sam", (1, 2), 4, 2, 2))
    distiller = DAPS(student, teacher, alignment_weight=1.0, triplet_negatives="all")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    plan = Training(epochs=2, optimizer="sgd", lr=0.01, schedule="constant", warmup_epochs=0)
    with patch.object(nn.BatchNorm1d, "forward", unnormalised), patch.object(nn.BatchNorm2d, "forward", unnormalised):
        Lab(options).fit(distiller, data, plan, name="distilled")
