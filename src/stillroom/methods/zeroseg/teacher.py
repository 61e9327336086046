"""What teaches: an image-text model whose image tower answers to all views of an image; and a small one that is trained here.

The small one is a classifier of pictures that answers with embeddings and is trained against a table of embeddings, one for each class
name: cross-entropy over scaled cosines. The table is its text tower, and knows these names alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from stillroom.engine import Lab, Teacher, Training
from stillroom.engine.cache import CachedTeacher, Storage, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.console import StageDisplay
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError
from stillroom.methods.zeroseg.views import boxes, views
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.clips import ImageText, class_embeddings, open_clip
from stillroom.tasks.segmentation import SegmentationData
from stillroom.tasks.segmentation.objects import CLASSES, SIDE, draw

SINGLE = "stillroom.methods.zeroseg.teacher:single_objects"
STAND_IN = Training(epochs=8, optimizer="adamw", lr=4e-3, weight_decay=0.01, schedule="onecycle")
_DIM = 64  # of the stand-in's embeddings
_STATISTICS = (0.5,) * 3, (0.25,) * 3
_TEACHER_SIDE = 32  # pixels that drawn pictures are given to the stand-in with
_TOGETHER = 256  # views that go through the teacher at a time
_SECONDS = 1.0


class ViewTeacher(nn.Module):
    """All views of each image through an image tower: images in [0, 1] -> embeddings [B, views, D].

    Args:
        clip: whose image tower, statistics and size are used.
        scales: of the grids.
    """

    def __init__(self, clip: ImageText, scales: Sequence[int]) -> None:
        super().__init__()
        self.image, self.scales, self.size = clip.image, tuple(scales), clip.image_size
        self.register_buffer("mean", torch.tensor(clip.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(-1, 1, 1))
        self.register_buffer("told", torch.tensor([*self.scales, self.size]))  # so that a fingerprint of the weights tells them apart

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Float32 at least; see `views` for their order."""
        shown = (views(images_B3HW, self.scales, self.size) - self.mean) / self.std
        parts = [self.image(part) for part in shown.flatten(0, 1).split(_TOGETHER)]
        return torch.cat(parts).unflatten(0, shown.shape[:2])


class Cells(nn.Module):
    """The floor: each cell of a grid is of the class that the teacher gives its view to, without anything learnt.

    Args:
        clip: the teacher.
        text_CD: embeddings of the classes.
        grid: cells down and across.
    """

    def __init__(self, clip: ImageText, text_CD: Tensor, grid: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.teacher, self.grid, self.scale = ViewTeacher(clip, (grid,)), grid, clip.scale
        self.pixels = Renormalise(tuple(mean), tuple(std), (0.0,) * 3, (1.0,) * 3)
        self.register_buffer("text", text_CD)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Probabilities [B, C, H, W]."""
        embeddings_BJD = normalize(self.teacher(self.pixels(images_B3HW)), dim=-1)
        scores_BCJ = (self.scale * embeddings_BJD @ self.text.T).softmax(-1).mT
        height, width = (int(side) for side in images_B3HW.shape[2:])
        rows, columns = torch.arange(height) * self.grid // height, torch.arange(width) * self.grid // width
        return scores_BCJ[:, :, (rows[:, None] * self.grid + columns).to(scores_BCJ.device)]
