"""Trains one small editor for test_sdd.py: no noise and one time step, so that nothing is drawn by a process for itself."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.sdd import SDD
from stillroom.tasks.editing import Denoiser, EditingData, Editor, PixelTeacher
from stillroom.tasks.editing.shapes import COLOURS


def teacher() -> PixelTeacher:
    """A denoiser that has learnt nothing, but answers."""
    torch.manual_seed(1)
    network = Denoiser(len(COLOURS), 16, 8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return PixelTeacher(network, COLOURS, 16, "fp32")


def main(out: Path, devices: int) -> None:
    """Two epochs on one process or two."""
    data, taught = EditingData("colours:train=48,val=24", batch_size=16).for_edit("red"), teacher()
    torch.manual_seed(0)
    options = LabOptions(out=out, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    # SGD: Adam's step forgets the size of the gradient, which is what is to be compared.
    distiller = SDD(Editor(8), taught, taught.condition("red"), timesteps=[100], guidance=3.0, l2_weight=50.0, noise="zeros")
    Lab(options).fit(distiller, data, Training(epochs=2, lr=1e-4, momentum=0.0, schedule="constant"), name="distilled")
