"""A few steps of RDD, for test_rdd.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stillroom.engine import Lab, LabOptions, Teacher, Trained, Training
from stillroom.methods.rdd import RDD, Selection
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.networks import LidarDetector

TINY = "streets:train=6,val=3,azimuths=60,beams=8,reach=12"
REACH = (-12.8, -12.8, -1.0, 12.8, 12.8, 5.0)
SMALL, LARGE = "stillroom/pillar-small-w0.25,cell=0.8", "stillroom/pillar-small-w0.5"


def tiny(batch_size: int = 2, **options: object) -> Detection3dData:
    return Detection3dData(TINY, batch_size=batch_size, reach=REACH, **options)  # type: ignore[arg-type]


def detector(spec: str, data: Detection3dData, seed: int = 0) -> LidarDetector:
    torch.manual_seed(seed)
    network = build_detector(spec, Wanted.of(data.describe())).network
    assert isinstance(network, LidarDetector)
    return network


def train(out: Path, devices: int = 1) -> Trained:
    """All frames are one and the same, so that each of two processes sees what one sees, and as many pairs of each proposal."""
    data = tiny(augment="none")
    same = data.derive("one frame", train=data.source.train.take(np.zeros(4, np.int64)))
    student, teacher = detector(SMALL, data, 1), Teacher(detector(LARGE, data, 2), precision="fp32", channels_last=False)
    torch.manual_seed(3)
    distiller = RDD(student, teacher, selection=Selection("ratio"), proposals=10, proposal_threshold=0.05, feature_weight=1.0)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", checkpoint_steps=1)
    return Lab(options).fit(distiller, same, Training(epochs=2, optimizer="adamw", lr=1e-3), name="rdd")
