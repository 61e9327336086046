"""Scores a discovery network: the novel training images among themselves, and the validation images of all classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric
from stillroom.methods.crkd.distiller import Answers
from stillroom.methods.crkd.metrics import Clustering, Matching, SplitClustering, clustering, match, split_clustering

_AGNOSTIC = {"all": "all classes", "known": "known classes", "novel": "novel classes"}
_SHOWN = {"aware": "novel accuracy, task-aware", "aware_nmi": "novel NMI", "aware_ari": "novel ARI"}
_SHOWN |= {f"{protocol}_{split}": f"{words}, task-agnostic {protocol}" for protocol in ("v2", "v3") for split, words in _AGNOSTIC.items()}
# How a report writes the figures.
SHOWN = {
    f"{name}{suffix}": Metric(f"{words}{said}", "%", 1, True)
    for name, words in _SHOWN.items()
    for suffix, said in (("", ""), ("_best", ", best head"))
}


class DiscoveryEvaluator:
    """Collects every head's answers on two sets of images, which their ids tell apart.

    Figures, in %; each is the mean over the heads, and under the name with `_best` that of the head with the smallest training loss:

    - `aware`, the headline: task-aware accuracy on the unlabelled training images, argmax among the novel classes, with `aware_nmi` and
      `aware_ari`;
    - `v2_all`, `v2_known`, `v2_novel`: task-agnostic accuracy on the validation images, argmax among all classes, one matching of all
      classes (the released code's default); `v3_...`: known classes stand for themselves and the novel ones alone are matched.

    Args:
        known_classes: L.
        validation: images of the validation set, whose ids are below this number; larger ones are unlabelled training images.
    """

    primary = "aware"
    higher_is_better = True

    def __init__(self, known_classes: int, validation: int) -> None:
        self.known_classes, self.validation = known_classes, validation
        self._rows: list[tuple[Tensor, ...]] = []
        self._head_losses = torch.zeros(1)

    def reset(self) -> None:
        """Forgets everything, for the next pass."""
        self._rows = []

    def to(self, device: torch.device | str) -> DiscoveryEvaluator:
        """Nothing to move: answers stay where they are given."""
        return self

    def update(self, answers: Answers, batch: Any) -> None:
        """Takes in a batch with its `labels` and `ids`."""
        logits_HBK = answers.logits.detach().float()
        confidence_HB, joint_HB = logits_HBK.softmax(-1).max(-1)
        novel_HB = logits_HBK[..., self.known_classes :].argmax(-1)
        self._rows.append((batch.ids, batch.labels, joint_HB.T, novel_HB.T, confidence_HB.T))
        self._head_losses = answers.head_losses

    def compute(self) -> dict[str, float]:
        """The figures, over all processes; all of them must call."""
        ids, labels, joint, novel, _ = gather_samples(self._rows)
        shown, best = ids < self.validation, self._best()
        heads = range(joint.shape[1])
        aware = [clustering(novel[~shown, h], labels[~shown]) for h in heads]
        figures = _figures("aware", aware, best, {"": "accuracy", "_nmi": "nmi", "_ari": "ari"})
        matchings: dict[str, Matching] = {"v2": "all", "v3": "novel"}
        for name, matching in matchings.items():
            split = [split_clustering(joint[shown, h], labels[shown], self.known_classes, matching) for h in heads]
            figures |= _figures(name, split, best, {"_all": "all", "_known": "known", "_novel": "novel"})
        return figures

    def details(self) -> dict[str, np.ndarray]:
        """The best head on every validation image: `ids`, `labels`, `predicted` (the class that its answer is matched with, as in v2)
        int64 [N] and `confidence` float32 [N]."""
        ids, labels, joint, _, confidence = gather_samples(self._rows)
        shown, best = ids < self.validation, self._best()
        predicted = match(joint[shown, best], labels[shown])[joint[shown, best]]
        return {"ids": ids[shown], "labels": labels[shown], "predicted": predicted, "confidence": confidence[shown, best]}

    def _best(self) -> int:
        return int(self._head_losses.argmin())


def _figures(prefix: str, heads: list[Clustering] | list[SplitClustering], best: int, names: dict[str, str]) -> dict[str, float]:
    """Mean over the heads, and the best head's number, in %."""
    found: dict[str, float] = {}
    for suffix, attribute in names.items():
        values = [100 * getattr(head, attribute) for head in heads]
        found |= {f"{prefix}{suffix}": float(np.mean(values)), f"{prefix}{suffix}_best": values[best]}
    return found
