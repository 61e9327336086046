"""What is measured of answers to clips, in one process or many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric
from stillroom.tasks.video.batches import VideoBatch
from stillroom.tasks.video.scores import accuracy, all_right, calibration_error, with_temperature

SCALED = "ece scaled"
METRICS = {SCALED: Metric("calibration error, scaled", "%", 1, False)}


class VideoEvaluator:
    """Collects the answers to every clip, each the mean of the logits over the clip's views.

    Figures, in %: ``top1``: of several heads, how often all are right at once (an action is its verb and its noun); ``top5`` (the first
    min(5, C)), of one head, else ``HEAD top1`` and ``HEAD top5`` of each; ``ece``, the expected calibration error in 15 bins, and
    ``ece scaled``, that after temperature scaling (fitted on one half, measured on the other), both means over the heads.

    Args:
        heads: classes by head.
    """

    primary = "top1"
    higher_is_better = True

    def __init__(self, heads: Mapping[str, int]) -> None:
        self.heads = dict(heads)
        self.metric_formats = {
            f"{head} top{first}": Metric(f"{head} top-{first}", "%", 1, True) for head in heads if len(heads) > 1 for first in (1, 5)
        }
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []

    def to(self, device: torch.device | str) -> VideoEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Mapping[str, Tensor], batch: VideoBatch) -> None:
        """Takes in a batch: logits [B, C_a] by head. A head that a network does not answer for is never right."""
        columns = []
        for head, classes in self.heads.items():
            logits = answers.get(head)
            columns.append(torch.full((len(batch.ids), classes), torch.nan) if logits is None else logits.detach().float().cpu())
        self._rows.append((batch.ids.cpu(), *columns, *(batch.labels[head].cpu() for head in self.heads)))

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        _, logits, labels = self._gathered()
        figures = {"top1": 100 * float(_all_right(logits, labels).float().mean())}
        errors, scaled_errors = [], []
        for head, known in logits.items():
            if not known.isfinite().all():
                continue
            found = accuracy(known, labels[head])
            if len(self.heads) > 1:
                figures |= {f"{head} top1": found.top1, f"{head} top5": found.top5}
            else:
                figures["top5"] = found.top5
            errors.append(100 * calibration_error(known, labels[head]))
            scaled_errors.append(
                100 * calibration_error(with_temperature(known, labels[head])[0], labels[head]) if len(known) > 1 else np.nan
            )
        nothing = float("nan")
        return {
            **figures,
            "ece": float(np.mean(errors)) if errors else nothing,
            SCALED: float(np.mean(scaled_errors)) if errors else nothing,
        }

    def details(self) -> dict[str, np.ndarray]:
        """Of each clip, in the order of ids: `ids`; `outcome`, 100 where all heads are right; `right`, `predicted` and `labels` [N, A] of
        the heads; `confidence` [N, A], the probability of what was predicted.

        With several processes all of them must call it.
        """
        ids, logits, labels = self._gathered()
        known = [values.nan_to_num(-torch.inf) if values.isnan().all() else values for values in logits.values()]
        predicted = np.stack([values.argmax(1).numpy() for values in known], 1)
        truth = np.stack([labels[head].numpy() for head in self.heads], 1)
        answered = np.array([bool(values.isfinite().all()) for values in logits.values()])
        confidence = np.stack([values.softmax(1).max(1).values.numpy() for values in logits.values()], 1)
        right = (predicted == truth) & answered
        details = {"ids": ids, "outcome": 100.0 * right.all(1), "right": right, "predicted": predicted, "labels": truth}
        return {**details, "confidence": confidence.astype(np.float32)}

    def _gathered(self) -> tuple[np.ndarray, dict[str, Tensor], dict[str, Tensor]]:
        """Ids, and by head the logits and labels."""
        ids, *columns = gather_samples(self._rows)
        count = len(self.heads)
        logits = dict(zip(self.heads, map(torch.from_numpy, columns[:count]), strict=True))
        return ids, logits, dict(zip(self.heads, map(torch.from_numpy, columns[count:]), strict=True))


def _all_right(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    finite = torch.stack([values.isfinite().all(1) for values in logits.values()]).all(0)
    return all_right({head: values.nan_to_num(0) for head, values in logits.items()}, labels) & finite
