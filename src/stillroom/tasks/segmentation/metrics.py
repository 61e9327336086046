"""How well pixels are classified: IoU of each class, pooled over the set, and their mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.images.pixel_classes import confusion, hits_and_unions, ious, mean_iou
from stillroom.tasks.segmentation.masked import WholeBatch

WITHOUT = "mIoU without background"
METRICS = {
    "mIoU": Metric("mIoU", "%", 1, True),
    WITHOUT: Metric("mIoU, no background", "%", 1, True),
    "pixel accuracy": Metric("pixel accuracy", "%", 1, True),
}
_SHOWN = 8  # pictures whose answers are kept: those with the least IoU
_LONGEST = 192  # pixels of their longer side then


class SegmentationEvaluator:
    """Collects the predicted class of every pixel over a validation set, in one process or many.

    Figures, in %: ``mIoU``, the mean IoU of the classes that occur in truth or prediction, of one confusion matrix pooled over the set;
    ``mIoU without background``, where there is such a class; ``pixel accuracy``. Pixels of the class `IGNORE` count nowhere.

    Args:
        num_classes: C.
        background: which of them is the background; None for none.
    """

    primary = "mIoU"
    higher_is_better = True

    def __init__(self, num_classes: int, background: int | None) -> None:
        self.num_classes, self.background = num_classes, background
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._worst: list[tuple[float, int, np.ndarray]] = []

    def to(self, device: torch.device | str) -> SegmentationEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Sequence[Tensor], batch: WholeBatch) -> None:
        """Takes in a batch: of each picture the predicted class of each pixel, int64 [H, W], in the mask's size."""
        for number, answer_HW, mask_HW in zip(batch.ids.tolist(), answers, batch.masks, strict=True):
            counts = confusion(answer_HW, mask_HW.long(), self.num_classes).cpu()
            self._rows.append((torch.tensor([number]), *(one[None] for one in hits_and_unions(counts)), counts.sum()[None]))
            self._worst.append((mean_iou(counts), number, _small(answer_HW)))
        self._worst = sorted((row for row in self._worst if row[0] == row[0]), key=lambda row: row[:2])[:_SHOWN]

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        _, hits_NC, unions_NC, labelled_N = gather_samples(self._rows)
        hits_C, unions_C = hits_NC.sum(0), unions_NC.sum(0)
        iou_C = ious(hits_C, unions_C)
        figures = {"mIoU": 100 * _mean(iou_C)}
        if self.background is not None:
            figures[WITHOUT] = 100 * _mean(np.delete(iou_C, self.background))
        return {**figures, "pixel accuracy": float(100 * hits_C.sum() / max(labelled_N.sum(), 1))}

    def details(self) -> dict[str, np.ndarray]:
        """Of each picture, in the order of ids: `ids`, pixels of each class in both and in either, `hits` and `unions` [N, C], and
        `outcome`: what it contributes to mIoU in %, linearised, of which mIoU is the mean; and of the pictures with the least IoU `worst`,
        their ids, with the answers in small: `maps` [all their pixels], of the shapes `map_shapes` [K, 2].

        With several processes all of them must call it.
        """
        ids_N, hits_NC, unions_NC, _ = gather_samples(self._rows)
        unions_C = unions_NC.sum(0)
        iou_C = ious(hits_NC.sum(0), unions_C)
        known_C = np.isfinite(iou_C)
        # d IoU_c = (d hits - IoU d union) / union, so that these sum to 0 over the pictures
        slope_NC = (hits_NC - np.nan_to_num(iou_C) * unions_NC)[:, known_C] / unions_C[known_C]
        outcome_N = 100 * (_mean(iou_C) + len(ids_N) * slope_NC.mean(1)) if known_C.any() else np.full(len(ids_N), np.nan)
        worst = sorted((row for part in gathered(self._worst) for row in part), key=lambda row: row[:2])[:_SHOWN]
        maps = {
            "worst": np.array([number for _, number, _ in worst], np.int64),
            "map_shapes": np.array([one.shape for _, _, one in worst], np.int64).reshape(-1, 2),
            "maps": np.concatenate([one.reshape(-1) for _, _, one in worst]) if worst else np.empty(0, np.uint8),
        }
        return {"ids": ids_N, "outcome": outcome_N, "hits": hits_NC, "unions": unions_NC, **maps}


def _mean(iou_C: np.ndarray) -> float:
    known_C = iou_C[np.isfinite(iou_C)]
    return float(known_C.mean()) if len(known_C) else float("nan")


def _small(answer_HW: Tensor) -> np.ndarray:
    """Every so manieth pixel of an answer, so that its longer side is short, uint8."""
    step = -(-max(answer_HW.shape) // _LONGEST)
    return answer_HW[::step, ::step].to(torch.uint8).cpu().numpy()
