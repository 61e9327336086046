"""A few steps of PointDC's stages without chance, for test_pointdc.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.pointdc import CMD, Clusters, IterativeClustering
from stillroom.tasks.points.frames import FrameInputs
from stillroom.tasks.segmentation3d import Segmentation3dData
from stillroom.tasks.segmentation3d.segmenter import SceneSegmenter

DATA = "rooms:train=4,val=3,views=2"


class Pointwise(nn.Module):
    """Features of each point by itself: without batch norms two processes compute what one does."""

    out_channels = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 12))

    def forward(self, inputs: FrameInputs) -> Tensor:
        """[M, 6] -> [M, 12]."""
        found: Tensor = self.layers(inputs.points)
        return found


def train(out: Path, devices: int) -> Any:
    torch.manual_seed(3)
    data = Segmentation3dData(DATA, batch_size=2, augment="none")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    plan = Training(epochs=2, optimizer="sgd", lr=0.05, schedule="constant")
    frames = {index: data.train_frame(index) for index in range(data.train_size)}
    counts = {index: int(frame.meta["regions"].max()) + 1 for index, frame in frames.items()}
    targets = {index: torch.randn(count, 5, generator=torch.Generator().manual_seed(index)) for index, count in counts.items()}
    taught = Lab(options).fit(CMD(SceneSegmenter(Pointwise(), 8, 5), targets), data, plan, name="cmd")
    student = SceneSegmenter(Pointwise(), 8)
    student.backbone.load_state_dict(taught.network.backbone.state_dict())
    sizes = {index: len(frame.points) for index, frame in frames.items()}
    made = IterativeClustering(student, sizes, Clusters(data, seed=0), every=1)
    with patch("stillroom.tasks.segmentation3d.data.Segmentation3dData.changed", lambda data, frame, random: frame):
        return Lab(options).fit(made, data, plan, name="svc").result.metrics
