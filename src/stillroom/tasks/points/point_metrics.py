"""How well labels and flow of points fit the truth, as torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from stillroom.errors import InputError


class SegmentationMetric(Metric):
    """Accuracies and intersection over union of labels, from a confusion matrix that is added up over batches and processes.

    Args:
        num_classes: C; a true label outside [0, C) is not scored.
        matched: labels are numbers of clusters: each is taken for the class that Hungarian matching gives it.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, *, matched: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes, self.matched = num_classes, matched
        self.add_state("confusion", default=torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Adds labels int64 [N] in [0, C) and the true ones int64 [N].

        Raises:
            InputError: a label that was found lies outside.
        """
        scored = (truth >= 0) & (truth < self.num_classes)
        found, truth = found[scored], truth[scored]
        if len(found) and (int(found.min()) < 0 or int(found.max()) >= self.num_classes):
            raise InputError("found", f"labels from {int(found.min())} to {int(found.max())}", f"labels in [0, {self.num_classes})")
        pairs = torch.bincount(truth * self.num_classes + found, minlength=self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """`oAcc`, `mAcc` and `mIoU` in [0, 1], `iou` [C], and `assignment` int64 [C]: the class that each label is taken for.

        A class without a true point counts as IoU 0 in `mIoU`, as in PointDC's code, and does not count in `mAcc`.
        """
        confusion = self.confusion.cpu()
        assignment = torch.arange(self.num_classes)
        if self.matched:
            from scipy.optimize import linear_sum_assignment

            rows, columns = linear_sum_assignment(-confusion.numpy())
            assignment[torch.from_numpy(columns)] = torch.from_numpy(rows)
            confusion = confusion[:, torch.from_numpy(columns)]
        right, true, said = confusion.diagonal().double(), confusion.sum(1).double(), confusion.sum(0).double()
        iou = right / (true + said - right).clamp_min(1)
        means = {"oAcc": right.sum() / true.sum().clamp_min(1), "mAcc": (right / true).nanmean().nan_to_num(0), "mIoU": iou.mean()}
        return {**means, "iou": iou, "assignment": assignment}


class FlowMetric(Metric):
    """End-point error of scene flow in metres, and the shares of points within 5 cm or 5 % ("strict") and 10 cm or 10 % ("relaxed")."""

    full_state_update = False
    sums: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", default=torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Adds flow [N, 3] and true flow [N, 3], metres; points whose truth is no number are not scored."""
        known = truth.isfinite().all(-1)
        found, truth = found[known].double(), truth[known].double()
        error = (found - truth).norm(dim=-1)
        relative = error / truth.norm(dim=-1).clamp_min(1e-12)
        within = [((error < limit) | (relative < limit)).sum() for limit in (0.05, 0.1)]
        self.sums += torch.stack((error.sum(), *within, known.sum())).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """`EPE` in metres, `strict` and `relaxed` in [0, 1]."""
        total, strict, relaxed, count = self.sums
        count = count.clamp_min(1)
        return {"EPE": total / count, "strict": strict / count, "relaxed": relaxed / count}
