"""How well a classifier does: accuracy, likelihood, calibration, and what it said about every sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.functional.classification import multiclass_accuracy

from stillroom.engine.distributed import gather_samples
from stillroom.errors import InputError

Details = dict[str, np.ndarray]
_PERCENT = ("top1", "top5", "ece")


class NegativeLogLikelihood(Metric):
    """Mean cross-entropy of logits [B, C] and labels [B], in nats."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""
        self.total += F.cross_entropy(logits_BC, labels_B, reduction="sum").to(self.total.dtype)
        self.count += len(labels_B)

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.count


class ClassAccuracy(Metric):
    """The share of right answers within each class, from predicted classes [B] (-1: none) and labels [B]."""

    full_state_update = False
    higher_is_better = True
    right: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("right", "count"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted_B: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""
        self.count.index_add_(0, labels_B, torch.ones_like(labels_B))
        self.right.index_add_(0, labels_B, (predicted_B == labels_B).to(labels_B.dtype))

    def compute(self) -> Tensor:
        """[C]; NaN for a class without samples."""
        return self.right / self.count


class ClassificationEvaluator:
    """Collects logits over a validation set, in one process or many.

    Figures: `top1`, `top5` (with more than 5 classes) and `ece` (expected calibration error, 15 bins) in %, `nll` in nats; and for each
    group of classes, by the group's name, the mean over its classes of the accuracy within the class, in %. A class without samples
    does not count; a group of such classes is NaN.

    A sample whose logits give no probabilities (NaN, +inf) counts as wrong, its predicted class is -1 and its confidence NaN; `nll` and
    `ece` of a set with such a sample are NaN.

    Args:
        num_classes: C >= 2.
        groups: name -> bool [C], which classes it has; they may overlap.

    Raises:
        InputError: a group without a class or of another length than C, or named like another figure.
    """

    primary = "top1"
    higher_is_better = True

    def __init__(self, num_classes: int, groups: Mapping[str, Tensor] | None = None) -> None:
        self.num_classes = num_classes
        self.groups = {name: mask_C.detach().cpu() for name, mask_C in (groups or {}).items()}
        for name, mask_C in self.groups.items():
            if name in (*_PERCENT, "nll"):
                raise InputError("groups", f"a group named {name}", "another name: that is a figure of the whole set")
            if mask_C.dtype != torch.bool or mask_C.shape != (num_classes,) or not mask_C.any():
                got = f"{name}: {mask_C.dtype} of shape {list(mask_C.shape)} with {int(mask_C.sum())} classes"
                raise InputError("groups", got, f"at least one class, as bool of shape [{num_classes}]")
        # Groups would share one state between top1 and top5 whenever they agree on the first batch.
        self.accuracy = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k == 1 or num_classes > 5},
            compute_groups=False,
        )
        self.likelihood = NegativeLogLikelihood()
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
        self.within_class = ClassAccuracy(num_classes)
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def to(self, device: torch.device | str) -> ClassificationEvaluator:
        """Move to where the logits will be."""
        for metric in self._metrics:
            metric.to(device)
        return self

    def update(self, logits: Tensor, batch: Any) -> None:
        """Add a batch: logits [B, C] and its `labels` [B] and `ids` [B], on one device."""
        logits_BC, labels_B = logits.detach().float(), batch.labels
        probabilities_BC = logits_BC.softmax(-1)
        confidence_B, predicted_B = probabilities_BC.max(-1)
        broken_B = confidence_B.isnan()
        worst_BC = -F.one_hot(labels_B, self.num_classes).to(logits_BC.dtype)  # the label last: wrong, for any k
        self.accuracy.update(torch.where(broken_B[:, None], worst_BC, logits_BC), labels_B)
        self.likelihood.update(logits_BC, labels_B)
        self.calibration.update(torch.where(broken_B[:, None], 1 / self.num_classes, probabilities_BC), labels_B)
        answered_B = torch.where(broken_B, -1, predicted_B)
        if self.groups:
            self.within_class.update(answered_B, labels_B)
        self._rows.append((batch.ids, labels_B, answered_B, confidence_B))

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        values = {**self.accuracy.compute(), "nll": self.likelihood.compute(), "ece": self.calibration.compute()}
        figures = {name: float(value) * (100 if name in _PERCENT else 1) for name, value in values.items()}
        if np.isnan(figures["nll"]):
            figures["ece"] = float("nan")
        if self.groups:
            accuracy_C = self.within_class.compute().cpu().double()
            figures |= {name: 100 * float(accuracy_C[mask_C].nanmean()) for name, mask_C in self.groups.items()}
        return figures

    def details(self) -> Details:
        """Every sample's `ids`, `labels`, `predicted` int64 [N] and `confidence` float32 [N], in the order of ids, of all processes.

        With several processes all of them must call it.
        """
        columns = gather_samples(self._rows) or [np.empty(0, np.int64)] * 4
        return dict(zip(("ids", "labels", "predicted", "confidence"), columns, strict=True))

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        for metric in self._metrics:
            metric.reset()
        self._rows = []

    @property
    def _metrics(self) -> tuple[Metric | MetricCollection, ...]:
        groups = (self.within_class,) if self.groups else ()
        return (self.accuracy, self.likelihood, self.calibration, *groups)


def agreement(details_a: Mapping[str, np.ndarray], details_b: Mapping[str, np.ndarray]) -> float:
    """On how many of the same samples two networks predict the same class, in %; a broken prediction agrees with nothing.

    Raises:
        InputError: the details are of different samples.
    """
    if not np.array_equal(details_a["ids"], details_b["ids"]):
        raise InputError("details_b", f"{len(details_b['ids'])} samples", f"those of details_a ({len(details_a['ids'])})")
    a, b = (torch.from_numpy(np.asarray(details["predicted"])) for details in (details_a, details_b))
    classes = int(max(a.max(), b.max())) + 1
    a, b = torch.where(a < 0, classes, a), torch.where(b < 0, classes + 1, b)
    return 100 * float(multiclass_accuracy(a, b, num_classes=classes + 2, average="micro"))
