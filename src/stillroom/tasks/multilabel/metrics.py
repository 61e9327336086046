"""How well labels are found: average precision, F1 with known and with unknown numbers of labels, and what was said of every image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric
from stillroom.errors import InputError

Details = dict[str, np.ndarray]

METRICS = {
    "mAP": Metric("mAP", "%", 1, True),
    "OF1": Metric("OF1, number of labels known", "%", 1, True),
    "CF1": Metric("CF1, number of labels known", "%", 1, True),
    "OF1@0.5": Metric("OF1 at 0.5", "%", 1, True),
    "CF1@0.5": Metric("CF1 at 0.5", "%", 1, True),
}


def as_many_as_true(scores_BK: Tensor, labels_BK: Tensor) -> Tensor:
    """The predictions that F1 is published with: each image with k true labels is given those above its (k+1)-th largest score.

    All labels where all are true, none where none is; of scores that are equal to the (k+1)-th, none.

    Args:
        scores_BK: larger means more probable.
        labels_BK: 0 or 1.

    Returns:
        int64 [B, K], 0 or 1.
    """
    count_B1 = labels_BK.long().sum(1, keepdim=True)
    lowest = torch.full_like(scores_BK[:, :1], -torch.inf)
    ordered_BJ = torch.cat((scores_BK.sort(1, descending=True).values, lowest), 1)
    above_BK = scores_BK > ordered_BJ.gather(1, count_B1)
    return (above_BK & (count_B1 > 0)).long()


class MultiLabelEvaluator:
    """Collects logits over a validation set, in one process or many.

    Figures, in %: `mAP`, the mean over labels of the area under the step-wise precision-recall curve (a label that no image has counts as
    0); `OF1`, F1 of all decisions together, and `CF1`, the mean of each label's F1 (0 where undefined), as published: with each image's
    number of labels known (`as_many_as_true`); `OF1@0.5` and `CF1@0.5` without that help, at a probability of 1/2.

    An image with a logit that is no number counts as wrong in everything: a score of 0 for its labels, of 1 for all others.

    Args:
        num_classes: K >= 2.
    """

    primary = "mAP"
    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.precision = MultilabelAveragePrecision(num_classes, average="none")
        self.known, self.half = (
            MetricCollection(
                {"OF1": MultilabelF1Score(num_classes, average="micro"), "CF1": MultilabelF1Score(num_classes, average="macro")},
                compute_groups=False,
            )
            for _ in range(2)
        )
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def to(self, device: torch.device | str) -> MultiLabelEvaluator:
        """Move to where the logits will be."""
        for metric in (self.precision, self.known, self.half):
            metric.to(device)
        return self

    def update(self, logits: Tensor, batch: Any) -> None:
        """Add a batch: logits [B, K] and its `labels` [B, K] and `ids` [B], on one device."""
        labels_BK = batch.labels.long()
        scores_BK = logits.detach().float().sigmoid()
        broken_B1 = scores_BK.isnan().any(1, keepdim=True)
        scores_BK = torch.where(broken_B1, 1.0 - labels_BK, scores_BK)
        self.precision.update(scores_BK, labels_BK)
        self.known.update(as_many_as_true(scores_BK, labels_BK), labels_BK)
        self.half.update((scores_BK > 0.5).long(), labels_BK)
        self._rows.append((batch.ids, labels_BK, scores_BK))

    def precisions(self) -> Tensor:
        """Average precision of each label, [K] in [0, 1], over all processes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No positive samples")
            found_K: Tensor = self.precision.compute()
        return found_K.nan_to_num(0.0).clamp_min(0.0)

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        halves = {f"{name}@0.5": value for name, value in self.half.compute().items()}
        values = {"mAP": self.precisions().mean(), **self.known.compute(), **halves}
        return {name: 100 * float(value) for name, value in values.items()}

    def details(self) -> Details:
        """Every image's `ids` int64 [N], `labels` int64 and `scores` float32 [N, K], in the order of ids, of all processes.

        With several processes all of them must call it.
        """
        shapes = (0,), (0, self.num_classes), (0, self.num_classes)
        columns = gather_samples(self._rows) or [np.empty(s, np.int64) for s in shapes]
        return dict(zip(("ids", "labels", "scores"), columns, strict=True))

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        for metric in (self.precision, self.known, self.half):
            metric.reset()
        self._rows = []


def agreement(details_a: Mapping[str, np.ndarray], details_b: Mapping[str, np.ndarray]) -> float:
    """How many of all decisions (an image and a label, at a probability of 1/2) two networks make alike, in %.

    Raises:
        InputError: the details are of different images.
    """
    if not np.array_equal(details_a["ids"], details_b["ids"]):
        raise InputError("details_b", f"{len(details_b['ids'])} images", f"those of details_a ({len(details_a['ids'])})")
    return 100 * float(np.mean((details_a["scores"] > 0.5) == (details_b["scores"] > 0.5)))
