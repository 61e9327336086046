"""A few steps of ZeroSeg without chance, for test_zeroseg.py."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.zeroseg import ZeroSeg, ZeroSegNetwork, ZeroSegSpec
from stillroom.methods.zeroseg.teacher import ViewTeacher
from stillroom.tasks.images.clips import ImageText
from stillroom.tasks.segmentation import SegmentationData, Vocabulary

SPEC = ZeroSegSpec("vit16_1_16", (4, 2), (1, 1, 1), 8, 8, "none")


class AnyTower(nn.Module):
    """An image tower of random numbers: mean colours of a few places to embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, dim))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        found: Tensor = self.layers(images)
        return found


def train(out: Path, devices: int) -> None:
    torch.manual_seed(3)
    data = SegmentationData("objects:train=24,val=5", batch_size=8)
    clip = ImageText(AnyTower(8), lambda texts: torch.empty(0), 8, (0.5,) * 3, (0.5,) * 3, 1.0, "here")
    teacher = Teacher(ViewTeacher(clip, (1, 2)), precision="fp32", channels_last=False)
    student = ZeroSegNetwork(SPEC)
    student.vocabulary = Vocabulary(data.classes, torch.eye(9)[:, :8], "", 5.0, data.classes)
    distiller = ZeroSeg(student, teacher, scales=(1, 2), reconstruction="vit16_1")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    seen = torch.arange(16) * 7 % 16 / 16  # the same patches of every image, and no noise: else each process draws its own
    with (
        patch("stillroom.methods.zeroseg.distiller.patch_noise", lambda batch, patches, device: seen.expand(batch, -1)),
        patch("stillroom.methods.zeroseg.grouping.gumbel_noise", torch.zeros_like),
        patch("stillroom.methods.zeroseg.grouping.Block._dropped", lambda block, branch: branch),
    ):
        Lab(options).fit(distiller, data, Training(epochs=2, lr=0.05, milestones=(0.5,), clip_norm=1.0), name="both")
