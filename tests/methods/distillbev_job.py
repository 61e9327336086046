"""A few steps of DistillBEV, for test_distillbev.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stillroom.engine import Lab, LabOptions, Teacher, Trained, Training
from stillroom.methods.distillbev import DistillBEV
from stillroom.methods.distillbev.recipe import build
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.networks import MapDetector

TINY = "streets:train=6,val=3,azimuths=60,beams=8,reach=12,cameras=2"
REACH = (-16.0, -16.0, -1.0, 16.0, 16.0, 5.0)
LIDAR, CAMERA = "stillroom/pillar-small,cell=1", "stillroom/bevdet-small,cell=2"


def tiny(batch_size: int = 2, spec: str = TINY, **options: object) -> Detection3dData:
    return Detection3dData(spec, batch_size=batch_size, reach=REACH, **options)  # type: ignore[arg-type]


def detector(spec: str, data: Detection3dData, seed: int = 0) -> MapDetector:
    torch.manual_seed(seed)
    network: MapDetector = build_detector(spec, Wanted.of(data.describe())).network
    return network


def made(data: Detection3dData, student: str = CAMERA, **options: object) -> DistillBEV:
    torch.manual_seed(3)
    teacher = Teacher(detector(LIDAR, data, 2), precision="fp32", channels_last=False)
    return build(detector(student, data, 1), teacher, data, **options)


def train(out: Path, devices: int = 1) -> Trained:
    """All frames are one and the same, so that each of two processes sees what one sees.

    The first gradient's norm is 160: with large steps the rounding of kernels, which is another for two frames than for one, becomes
    another training. One of the neck's 6 144 values before a ReLU lies within that rounding of 0: with channels last on a CPU that has
    AVX2 alone its sign changes with the number of frames, and the gradient below by a hundredth; so the layout is the contiguous one.
    """
    data = tiny(augment="none")
    same = data.derive("one frame", train=data.source.train.take(np.zeros(4, np.int64)))
    strategy = "ddp" if devices > 1 else "auto"
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy=strategy, checkpoint_steps=1, layout="contiguous")
    return Lab(options).fit(made(data, distill_scale=0.3), same, Training(epochs=2, optimizer="sgd", lr=0.001), name="distillbev")
