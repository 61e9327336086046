"""How well a classifier does: accuracy, likelihood, calibration, and what it said about every sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassStatScores
from torchmetrics.functional.classification import multiclass_accuracy

from stillroom.engine.distributed import gather_samples
from stillroom.errors import InputError

Details = dict[str, np.ndarray]
_PERCENT = ("top1", "top5", "ece")
_HELD = 2**22  # logits: 16 MiB, and as much for their probabilities


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
        self.within_class = MulticlassStatScores(num_classes, average=None)
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._held: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

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
        answered_B = torch.where(confidence_B.isnan(), -1, predicted_B)
        self.likelihood.update(logits_BC, labels_B)
        self._rows.append((batch.ids, labels_B, answered_B, confidence_B))
        self._held.append((logits_BC, probabilities_BC, answered_B, labels_B))
        if sum(logits_BC.numel() for logits_BC, *_ in self._held) > _HELD:
            self._hand_over()

    def _hand_over(self) -> None:
        """Gives what is held to the metrics, at once: each of their updates costs more than a small network's answer."""
        if not self._held:
            return
        logits_NC, probabilities_NC, answered_N, labels_N = (torch.cat(column) for column in zip(*self._held, strict=True))
        self._held = []
        broken_N = answered_N < 0
        worst_NC = -F.one_hot(labels_N, self.num_classes).to(logits_NC.dtype)  # the label last: wrong, for any k
        self.accuracy.update(torch.where(broken_N[:, None], worst_NC, logits_NC), labels_N)
        self.calibration.update(torch.where(broken_N[:, None], 1 / self.num_classes, probabilities_NC), labels_N)
        if self.groups:
            self.within_class.update(torch.where(broken_N, (labels_N + 1) % self.num_classes, answered_N), labels_N)

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        self._hand_over()
        values = {**self.accuracy.compute(), "nll": self.likelihood.compute(), "ece": self.calibration.compute()}
        figures = {name: float(value) * (100 if name in _PERCENT else 1) for name, value in values.items()}
        if np.isnan(figures["nll"]):
            figures["ece"] = float("nan")
        if self.groups:
            scores_C5 = self.within_class.compute().cpu()  # right, and samples, are the first and the last
            accuracy_C = (scores_C5[:, 0] / scores_C5[:, 4]).double()
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
        self._rows, self._held = [], []

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
