"""A few steps of UP-VL's detector, for test_upvl.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stillroom.engine import Lab, LabOptions, Trained, Training
from stillroom.methods.upvl.detector import parse
from stillroom.methods.upvl.distiller import UPVL
from stillroom.methods.upvl.recipe import _frames, _shown
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.networks import LidarDetector
from stillroom.tasks.points.frames import Frame

TINY = "streets:train=4,val=2,azimuths=90,beams=8,reach=12"
REACH = (-12.8, -12.8, -1.0, 12.8, 12.8, 5.0)
STUDENT = "stillroom/pillar-small-w0.25,cell=0.8"
C = 6


def objects(augment: str = "none", batch_size: int = 2) -> Detection3dData:
    """Training frames of one class, each point's own number being the row of its feature."""
    data = Detection3dData(TINY, batch_size=batch_size, reach=REACH, augment=augment)
    frames = _frames(data, "train")

    def numbered(index: int) -> Frame:
        frame = frames.read(index)
        rows = np.arange(len(frame.points)) % 50
        return replace(frame, labels=np.zeros_like(frame.labels), about={}, point_labels=rows, instances=None, flow=None)

    return _shown(data, _frames(data, "val"), "above").derive("numbered", train=replace(frames, read=numbered))


def detector(data: Detection3dData, seed: int = 0) -> LidarDetector:
    torch.manual_seed(seed)
    made = build_detector(str(parse(f"upvl:{STUDENT},features={C},language=own", "student")), Wanted.of(data.describe())).network
    assert isinstance(made, LidarDetector)
    return made


def table() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 50 rows, and texts: three classes and the background."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, C, generator=generator), torch.randn(3 + 11, C, generator=generator)


def train(out: Path, devices: int = 1) -> Trained:
    """All frames are one and the same, so that each of two processes sees what one sees."""
    data = objects()
    same = data.derive("one frame", train=data._shown[0].take(np.zeros(4, np.int64)))
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", checkpoint_steps=1)
    made = UPVL(detector(data), *table())
    return Lab(options).fit(made, same, Training(epochs=2, optimizer="adamw", lr=1e-3), name="upvl")
