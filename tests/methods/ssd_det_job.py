"""Trains SSD-Det with nothing left to chance: all anchors and proposals are sampled, negatives are each image's own."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.ssd_det.distiller import SSDDet
from stillroom.methods.ssd_det.refiner import Refined
from stillroom.tasks.detection import DetectionBatch, DetectionData
from stillroom.tasks.detection.two_stage import TwoStageOutputs
from tests.tasks.detection.ranks_job import network

NEGATIVES = 12


class Certain(SSDDet):
    """Notes how many objects each step of this process has."""

    def __init__(self) -> None:
        super().__init__(network("faster-rcnn"), ratios=(1.0, 0.8), negative_boxes=NEGATIVES)
        self._objects: list[int] = []

    def refine(self, outputs: TwoStageOutputs, batch: DetectionBatch) -> Refined:
        boxes, labels = batch.objects()
        self._objects.append(sum(map(len, labels)))
        uniforms = [torch.rand(4, NEGATIVES, generator=torch.Generator().manual_seed(image)) for image in batch.ids.tolist()]
        features, strides = [outputs.features[level] for level in self.levels], [outputs.strides[level] for level in self.levels]
        refined: Refined = self.refiner(features, strides, boxes, labels, batch.sizes, uniforms_B4Q=torch.stack(uniforms))
        return refined


def train(data: str, out: Path, devices: int) -> list[int]:
    shown = DetectionData(data, batch_size=2, augment="none")
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    distiller = Certain()
    Lab(options).fit(distiller, shown, Training(epochs=2, lr=0.01, clip_norm=1.0), name="ssd-det")
    return distiller._objects
