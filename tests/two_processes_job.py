"""Runs whole commands, for test_two_processes.py."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from torch import Tensor, nn

from stillroom.cli import main

# SGD where it can be: Adam's step forgets the size of the gradient, which is what is to be compared.
COMMANDS = {
    "classification": "run kd --data digits --subset 60 --val-subset 41 --batch-size 20 --epochs 2 --lr 0.01 --optimizer sgd",
    "multilabel": "run l2d --data mosaics,train=32,val=21 --batch-size 16 --epochs 2 --optimizer sgd --lr 0.0001 --dropout 0",
    "detection": "run bckd --data scenes:train=16,val=5,teacher=16 --batch-size 8 --epochs 3 --optimizer sgd --lr 0.02",
    "harmonization": "run giftnet --data patches,train=16,val=5 --batch-size 8 --epochs 2 --optimizer sgd --lr 0.001 "
    "--student stillroom/harmony4_3",
    "imagetext": "run tinyclip --data compositions,train=1,val=1 --subset 64 --val-subset 21 --batch-size 16 --epochs 2 --teacher-epochs 1 "
    "--optimizer sgd --lr 0.01 --arms alone+manual --teacher stillroom/clip_16x1p8_16x1_d8_h8 --student stillroom/clip_8x1p8_8x1_d8_h8",
    "segmentation": "run supervised --task segmentation --data objects:train=16,val=5 --batch-size 8 --epochs 2 --warmup-epochs 0 "
    "--optimizer sgd --lr 0.01 --student stillroom/unet2_2",
    "nuclei": "run otd --target drawn:domain=target,train=16,val=5 --source drawn:domain=source,train=8,val=1 --few 4 --batch-size 4 "
    "--epochs 3 --optimizer sgd --lr 0.0005 --student stillroom/nuclei2_2 --arms otd --refresh-capacities 1 --history-capacity 2 "
    "--domain-weight 1e5 --class-weight 1e5",
    "video": "run mm-ego --data actions:train=16,val=5 --batch-size 8 --epochs 2 --warmup-epochs 0 --optimizer sgd --lr 0.01 "
    "--arms rgb+flow --teachers-held-out 0.25 --student stillroom/cnn3d2 --teacher stillroom/cnn3d2 --test-views [2x1]",
    "features": "run features --data digits --subset 60 --val-subset 41 --batch-size 20 --epochs 2 --lr 0.01 --optimizer sgd --views 2 "
    "--teacher-epochs 1 --accept-teacher --student stillroom/convnet4 --feature-loss queue --queue-size 30 --dense-weight 1",
    "unused": "run supervised --data digits --subset 60 --val-subset 41 --batch-size 20 --epochs 1 --lr 0.01 --optimizer sgd "
    f"--student {__name__}:with_a_spare_layer",
    "engine": "run kd --data digits --subset 60 --val-subset 41 --batch-size 20 --epochs 2 --lr 0.01 --optimizer sgd "
    "--teacher-engine onnxruntime",
    "comparison": "compare kd dkd --data digits --subset 60 --val-subset 41 --batch-size 20 --epochs 1 --lr 0.01 --optimizer sgd",
}


def run(out: Path, devices: int) -> None:
    """Every command, in a folder of its name."""
    several = ["--devices", str(devices), "--strategy", "ddp"] if devices > 1 else []
    for name, command in COMMANDS.items():
        words = [*command.split(), "--accelerator", "cpu", "--teacher-precision", "fp32", "--out", str(out / name), *several]
        kept = patch.dict(os.environ, XDG_CACHE_HOME=str(out / "kept"))
        with kept, patch.object(nn.BatchNorm2d, "forward", unnormalised), patch.object(nn.BatchNorm3d, "forward", unnormalised):
            code = main(words)
        assert code == 0, f"{name}: exit code {code}"


class WithASpareLayer(nn.Module):
    """A classifier with parameters that take no part in its answers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))
        self.spare = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits_BC: Tensor = self.network(images)
        return logits_BC


def with_a_spare_layer(num_classes: int) -> nn.Module:
    """As the command line names it."""
    return WithASpareLayer(num_classes)


def unnormalised(norm: nn.BatchNorm2d | nn.BatchNorm3d, inputs: Tensor) -> Tensor:
    """In place of a batch norm's forward: scale and shift alone, since its statistics would be those of one process."""
    weight, bias = (value.view(-1, *[1] * (inputs.ndim - 2)) for value in (norm.weight, norm.bias))
    return inputs * weight + bias
