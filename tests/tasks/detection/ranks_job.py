"""Trains small detectors of several kinds, for test_ranks.py.

Of random there is nothing left: all anchors and proposals are sampled, nothing is dropped or noised, and what a batch's statistics would
change is normalised within a sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from stillroom.engine import Lab, LabOptions, Training
from stillroom.tasks.detection.backbones import PyramidMaps, SmallBackbone
from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.small import faster_rcnn, small_deformable_detr, small_rt_detr
from stillroom.tasks.detection.supervised import DetectionDistiller
from stillroom.tasks.detection.wrapped import FCOSDetector

KINDS = ("fcos", "faster-rcnn", "deformable-detr", "rt-detr")
CLASSES = 2


def network(kind: str) -> Detector[Any, Any]:
    torch.manual_seed(3)
    if kind == "faster-rcnn":
        made: Detector[Any, Any] = faster_rcnn(CLASSES, stem=8, stages=(8, 8), width=8, extra=0, hidden=16)
        for sampler in (made.model.rpn.fg_bg_sampler, made.model.roi_heads.fg_bg_sampler):
            sampler.batch_size_per_image = 10**6
    elif kind == "fcos":
        strides = AnchorGenerator(((4,), (8,)), ((1.0,), (1.0,)))
        made = FCOSDetector(FCOS(PyramidMaps(SmallBackbone(8, (8, 8)), 32), CLASSES, anchor_generator=strides))
    elif kind == "deformable-detr":
        made = small_deformable_detr(CLASSES, stem=8, stages=(8, 8, 8), queries=5)
    else:
        made = small_rt_detr(CLASSES, stages=(8, 8, 16), width=16, queries=5)
        if kind == "rt-detr":
            made.model.config.num_denoising = 0
            del made.model.model.denoising_class_embed
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, child.num_features))
    return made


class Noting(DetectionDistiller):
    """Notes how many objects each step of this process has."""

    def __init__(self, student: Detector[Any, Any]) -> None:
        super().__init__(student)
        self._objects: list[int] = []

    def prepare_targets(self, batch: DetectionBatch, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
        boxes, labels = super().prepare_targets(batch, outputs)
        self._objects.append(sum(map(len, labels)))
        return boxes, labels


def train(data: str, out: Path, devices: int, kinds: tuple[str, ...]) -> dict[str, list[int]]:
    shown = DetectionData(data, batch_size=2, augment="none")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    lab, objects = Lab(options), {}
    for kind in kinds:
        distiller = Noting(network(kind))
        lab.fit(distiller, shown, Training(epochs=2, lr=0.01, clip_norm=1.0), name=kind)
        objects[kind] = distiller._objects
    return objects
