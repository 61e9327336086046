"""Trains one small student with KD^3, for test_kd3.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.methods.kd3 import KD3
from stillroom.methods.kd3.shared_classifier import share_classifier
from stillroom.methods.kd3.web import WebData
from stillroom.tasks.classification import ImageData, build_classifier
from stillroom.tasks.images.stores import MemoryImages


def pile(count: int = 83) -> MemoryImages:
    """Noise of several strengths, which networks are more and less sure of."""
    generator = torch.Generator().manual_seed(2)
    strength = torch.rand(count, 3, 1, 1, generator=generator)
    pixels = (torch.rand(count, 3, 8, 8, generator=generator) * strength * 255).to(torch.uint8)
    return MemoryImages(pixels, np.zeros(count, np.int64), [str(number) for number in range(count)])


def small_data() -> ImageData:
    return ImageData("digits", batch_size=16, subset=60, val_subset=50)


def made(data: ImageData, *, steady: bool = False, web: MemoryImages | None = None, kind: type[KD3] = KD3, **options: object) -> KD3:
    """KD^3 of two random networks and a pile of noise; the teacher's random logits are raised, so that it is sure of some."""
    torch.manual_seed(3)
    student = build_classifier("stillroom/convnet4", num_classes=10).network
    teacher = build_classifier("stillroom/convnet24", num_classes=10).network.eval()
    with torch.no_grad():
        for _ in range(20):  # statistics like those of a trained one
            teacher.train()(torch.randn(64, 3, 8, 8))
        teacher.eval().fc.weight.mul_(8)
    shared = share_classifier(student, teacher, data.example_inputs(), student_layer="layer4", teacher_layer="layer4")
    collection = WebData(data, web or pile(), augment="digits", steady=steady)
    given = {"cutoff": 0.8, "contrast_weight": 0.1, "embed_dim": 8, **options}
    return kind(shared, Teacher(teacher, precision="fp32"), collection, teacher_layer="layer4", **given)  # type: ignore[arg-type]


def main(out: Path, devices: int) -> None:
    data = small_data()
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    distiller = made(data, cutoff=0.5, switch_off=3.0, offset=200.0)
    Lab(options).fit(distiller, distiller.training_data(data), Training(epochs=2), name="distilled")
