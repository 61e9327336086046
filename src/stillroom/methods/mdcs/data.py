"""Classified images whose classes have from many to few training images, and accuracies by that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.metrics import ClassificationEvaluator


def shot_groups(class_counts: Tensor | Sequence[int], *, few_below: int = 20, many_above: int = 100) -> dict[str, Tensor]:
    """Many-, medium- and few-shot classes by their training images; groups without a class are left out.

    Args:
        class_counts: [C] training images of each class.
        few_below: a class with fewer images is few-shot.
        many_above: one with more is many-shot; the others are medium-shot.

    Returns:
        ``many``, ``medium``, ``few``: bool [C] each.

    Raises:
        InputError: the two limits overlap.
    """
    if not 0 <= few_below <= many_above + 1:
        raise InputError("few_below", few_below, f"a number from 0 to {many_above + 1}, so that no class is few- and many-shot")
    counts_C = torch.as_tensor(class_counts)
    few_C, many_C = counts_C < few_below, counts_C > many_above
    groups = {"many": many_C, "medium": ~(few_C | many_C), "few": few_C}
    return {name: mask_C for name, mask_C in groups.items() if mask_C.any()}


class LongTailedImages(ImageData):
    """Images as in `ImageData`, which reports the accuracy of many-, medium- and few-shot classes besides.

    Args:
        data: where the images are: see `ImageData`; your own unbalanced images as they are, e.g. ``imagefolder:photos``, or a balanced set
            made unbalanced, e.g. ``cifar100:PATH,imbalance=exp:100``.
        few_below: classes with fewer training images are few-shot.
        many_above: classes with more training images are many-shot.
        options: those of `ImageData`.
    """

    def __init__(self, data: str = "digits,imbalance=exp:30", *, few_below: int = 20, many_above: int = 100, **options: Any) -> None:
        super().__init__(data, **options)
        self.few_below, self.many_above = few_below, many_above
        shot_groups([1], few_below=few_below, many_above=many_above)  # refuses limits that overlap
        self._mark("shots", f"{few_below} {many_above}")

    @property
    def groups(self) -> dict[str, Tensor]:
        """See `shot_groups`."""
        return shot_groups(self.class_counts, few_below=self.few_below, many_above=self.many_above)

    def evaluator(self) -> ClassificationEvaluator:
        """What measures a network on these classes, and on each group of them."""
        return ClassificationEvaluator(self.num_classes, self.groups)
