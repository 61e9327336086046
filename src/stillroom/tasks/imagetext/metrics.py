"""How well images and texts find each other: retrieval both ways, and classes that are named by words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric

RANKS = (1, 5, 10)
METRICS = {
    **{f"I2T@{k}": Metric(f"image → text R@{k}", "%", 1, True) for k in RANKS},
    **{f"T2I@{k}": Metric(f"text → image R@{k}", "%", 1, True) for k in RANKS},
    "zero-shot": Metric("zero-shot top-1", "%", 1, True),
    "zero-shot@5": Metric("zero-shot top-5", "%", 1, True),
}
_ROWS = 1024  # of the similarities that are in memory together


@dataclass(frozen=True)
class Classes:
    """What a zero-shot score needs to know.

    Attributes:
        labels_N: of the classified images, whose ids go on behind the images with captions.
        prompts_CP: ids of each class's texts.
    """

    labels_N: np.ndarray
    prompts_CP: np.ndarray


def retrieval_ranks(images_ND: Tensor, texts_MD: Tensor, own: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """For each image, how many of the other texts are at least as near as the nearest of its own; for each text, likewise among images.

    A rank below K is a hit of R@K: any of an image's captions will do, and an image whose caption has the same text is as good as the very
    one. What is as near as its own counts against it, so that a model for which all is alike finds nothing. What is no number is nowhere.

    Args:
        images_ND, texts_MD: embeddings of unit length; the texts are all different.
        own: of each image, which texts are its captions.

    Returns:
        Ranks int64 [N] and [M], and the nearest text of each image int64 [N].
    """
    mine_NM = torch.zeros(len(images_ND), len(texts_MD), dtype=torch.bool)
    for row, texts in zip(mine_NM, own, strict=True):
        row[torch.from_numpy(texts)] = True
    mine_NM = mine_NM.to(images_ND.device)

    def similar(first: int) -> Tensor:
        found = images_ND[first : first + _ROWS] @ texts_MD.T
        return found.masked_fill(found.isnan(), -torch.inf)

    starts = range(0, len(images_ND), _ROWS)
    best_M = torch.full((len(texts_MD),), -torch.inf, device=images_ND.device)
    ranks, nearest = [], []
    for first in starts:
        near, mine = similar(first), mine_NM[first : first + _ROWS]
        own_near = near.masked_fill(~mine, -torch.inf)
        ranks.append(((near >= own_near.amax(1, keepdim=True)) & ~mine).sum(1))
        nearest.append(near.argmax(1))
        best_M = torch.maximum(best_M, own_near.amax(0))
    counts_M = torch.stack([((similar(first) >= best_M) & ~mine_NM[first : first + _ROWS]).sum(0) for first in starts]).sum(0)
    return torch.cat(ranks), counts_M, torch.cat(nearest)


class PairEvaluator:
    """Collects embeddings over a validation set, in one process or many, each image and each text once.

    Figures, in %: ``I2T@K`` and ``T2I@K``, K of 1, 5 and 10 (see `retrieval_ranks`; means over the images, and over the different texts);
    ``zero-shot`` and ``zero-shot@5`` where there are classes: the class whose prompts' mean embedding is nearest.

    Args:
        own: of each image with captions, which texts they are.
        texts: how many different texts these are; prompts have the ids behind.
        classes: for zero-shot scores.
    """

    primary = "I2T@1"
    higher_is_better = True

    def __init__(self, own: Sequence[np.ndarray], texts: int, classes: Classes | None = None) -> None:
        self.own, self.texts, self.classes = own, texts, classes
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._images: list[tuple[Tensor, Tensor]] = []
        self._texts: list[tuple[Tensor, Tensor]] = []
        self._found: dict[str, np.ndarray] | None = None

    def to(self, device: torch.device | str) -> PairEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: tuple[Tensor, Tensor], batch: Any) -> None:
        """Takes in the embeddings [B, D] and [M, D] of a batch's images and texts."""
        images_BD, texts_MD = (found.detach().float().cpu() for found in answers)
        self._images.append((batch.ids.cpu(), images_BD))
        if len(texts_MD):
            self._texts.append((batch.text_ids.cpu(), texts_MD))

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        found = self.details()
        figures = {f"I2T@{k}": 100 * float((found["ranks"] < k).mean()) for k in RANKS}
        figures |= {f"T2I@{k}": 100 * float((found["text_ranks"] < k).mean()) for k in RANKS}
        if self.classes is not None:
            right = found["zero_top"] == self.classes.labels_N[:, None]
            figures |= {"zero-shot": 100 * float(right[:, 0].mean()), "zero-shot@5": 100 * float(right.any(1).mean())}
        return figures

    def details(self) -> dict[str, np.ndarray]:
        """Of each image, in the order of ids: `ids`, `ranks`, `predicted` (the nearest text), `outcome` (100 where that is its own).

        Of each text `text_ranks`; of each classified image `zero_top`, its five nearest classes.

        With several processes all of them must call it.
        """
        if self._found is None:
            (ids, images), (_, texts) = (gather_samples(rows) for rows in (self._images, self._texts))
            count = len(self.own)
            images_ND, texts_MD = torch.from_numpy(images), torch.from_numpy(texts)
            ranks, text_ranks, nearest = (part.numpy() for part in retrieval_ranks(images_ND[:count], texts_MD[: self.texts], self.own))
            self._found = {"ids": ids[:count], "ranks": ranks, "predicted": nearest, "text_ranks": text_ranks}
            self._found["outcome"] = 100.0 * (ranks == 0)
            if self.classes is not None:
                classes_CD = normalize(texts_MD[torch.from_numpy(self.classes.prompts_CP)].mean(1), dim=-1)
                near_NC = images_ND[count:] @ classes_CD.T
                self._found["zero_top"] = near_NC.topk(min(5, len(classes_CD))).indices.numpy()
        return self._found
