"""Discovers in two processes, for test_crkd.py, and gives what each process ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.losses.assignment import sinkhorn
from stillroom.methods.crkd import Discovery, NovelClassData
from stillroom.methods.crkd.networks import DiscoveryNetwork
from stillroom.methods.crkd.novel import KnownClassifier, Prototypes
from stillroom.methods.crkd.views import crops


def network() -> KnownClassifier:
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return KnownClassifier(backbone, Prototypes(6, 36))


class Checking(Discovery):
    """Compares, while the processes are there, pseudo-labels of shares of uneven length with those of all samples at once."""

    found: dict[str, torch.Tensor]

    def on_train_end(self) -> None:
        scores = torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(0))
        mine = (slice(0, 8), slice(8, 11))[self.global_rank]
        self.found = {
            "at once": sinkhorn(scores),
            "shares": sinkhorn(scores[:, mine], over_processes=True),
            "alone": sinkhorn(scores[:, mine]),
        }


def main(out: Path) -> dict[str, Any]:
    data = NovelClassData("shapes,train=2,val=1", known_classes=36, batch_size=40)
    shown = data.in_views(*crops("small", 16, data.mean, data.std, large=2, small=0), said="two")
    distiller = Checking(DiscoveryNetwork(network(), 24, novel_heads=2, hidden=8, projection=5), network())
    lab = Lab(LabOptions(out=out, accelerator="cpu", devices=2, strategy="ddp"))
    lab.fit(distiller, shown, Training(epochs=2, lr=0.1, schedule="constant"), name="crkd")
    return {"student": distiller.student.state_dict(), **distiller.found}
