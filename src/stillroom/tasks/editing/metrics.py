"""How edits are scored, and the two networks that edits stand on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric
from stillroom.tasks.editing.judges import Judge

METRICS = {
    "edited": Metric("edited as asked", "%", 1, True),
    "background": Metric("error outside the object × 1000", "", 1, False),
    "change": Metric("mean squared change × 1000", "", 1, False),
    "iou": Metric("IoU of the object before and after", "%", 1, True),
    "denoising": Metric("denoising error × 1000", "", 1, False),
    "judge": Metric("accuracy of the judge", "%", 1, True),
}
_FACTOR = {"edited": 100.0, "iou": 100.0, "judge": 100.0}  # to percent; all others to thousandths
_THUMBNAIL = 64  # pixels of the pictures that are kept for the report


class EditingEvaluator:
    """Scores edited pictures [B, 3, H, W] against the unedited ones, in one process or many.

    Figures: ``edited``, the share that the judge takes for edited, where there is one; what else it sees; and ``change``, the mean squared
    change of all pixels. The primary figure is ``edited``; without a judge, ``change``, which says nothing of the edit.

    Args:
        judge: see `judges.Judge`; None where nothing can tell.
    """

    def __init__(self, judge: Judge | None) -> None:
        self.judge = judge
        self.primary = "change" if judge is None else "edited"
        self.higher_is_better = judge is not None
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._names: tuple[str, ...] = ()
        self._kept: list[tuple[Tensor, ...]] = []

    def to(self, device: torch.device) -> EditingEvaluator:
        """Moves the judge."""
        if self.judge is not None:
            self.judge.to(device)
        return self

    def update(self, answers: Tensor, batch: Any) -> None:
        """Takes in a batch of edited pictures."""
        edited, source = answers.detach().float(), batch.images.float()
        figures = {} if self.judge is None else self.judge(edited, source, batch.ids)
        figures["change"] = (edited - source).square().mean((1, 2, 3))
        self._names = tuple(figures)
        self._kept.append((batch.ids, _thumbnails(edited), _thumbnails(source), *figures.values()))

    def details(self) -> dict[str, np.ndarray]:
        """Of each picture, in the order of ids: `ids`, `picture` and `source`, before, uint8 [N, 3, h, w], small, the figures, and
        `outcome`, the primary one in its metric's unit. With several processes all of them must call it."""
        found = dict(zip(("ids", "picture", "source", *self._names), gather_samples(self._kept), strict=False))
        found["outcome"] = found[self.primary].astype(np.float64) * _FACTOR.get(self.primary, 1000.0)
        return found

    def compute(self) -> dict[str, float]:
        """The figures' means, over all processes."""
        found = self.details()
        names = [name for name in METRICS if name in found]
        return {name: float(found[name].astype(np.float64).mean()) * _FACTOR.get(name, 1000.0) for name in names}


def _thumbnails(images: Tensor) -> Tensor:
    small = images if max(images.shape[-2:]) <= _THUMBNAIL else interpolate(images, (_THUMBNAIL, _THUMBNAIL), mode="area")
    return ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class MeanEvaluator:
    """The mean of what a distiller's `predict` says of each picture: the denoiser's error, the judge's hits.

    Args:
        name: of the figure, in `METRICS`.
    """

    def __init__(self, name: str) -> None:
        self.primary, self.higher_is_better = name, bool(METRICS[name].higher_is_better)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._kept: list[tuple[Tensor, Tensor]] = []

    def to(self, device: torch.device) -> MeanEvaluator:
        """Nothing to move."""
        return self

    def update(self, answers: Tensor, batch: Any) -> None:
        """Takes in numbers [B]."""
        self._kept.append((batch.ids, answers.detach().float()))

    def details(self) -> dict[str, np.ndarray]:
        """`ids` and `outcome`, in the figure's unit."""
        ids, values = gather_samples(self._kept)
        return {"ids": ids, "outcome": values.astype(np.float64) * _FACTOR.get(self.primary, 1000.0)}

    def compute(self) -> dict[str, float]:
        """The mean, over all processes."""
        return {self.primary: float(self.details()["outcome"].mean())}
