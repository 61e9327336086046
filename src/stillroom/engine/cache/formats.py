"""How answers are written down: at full or reduced precision, or of logits only the largest.

A format turns answers [B, ...] into one or more arrays of B rows and back. What comes back is float32.

Top-k keeps of each row of logits the k largest, z_1 >= ... >= z_k with their classes, and r = log sum exp of the others. Read again, the k
are as they were; each of the other C - k classes has, by `rest`,

- ``spread``: r - log(C - k), which is the probability that is left, spread evenly: (1 - sum_k p_k) / (C - k) each;
- ``drop``: no probability, so that the k are renormalised by the softmax.

The k largest probabilities and the sum of the others are then exact (``spread``, up to the precision of the numbers) at temperature 1, the
temperature at which r was taken. At others the k keep their ratios to each other, and their sum is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError, one_of

Dtype = Literal["fp32", "fp16", "bf16"]
Rest = Literal["spread", "drop"]

_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DROPPED = 1e4  # below the largest logit: no probability at any temperature up to 90, and finite, so that 0 * log 0 is 0


@dataclass(frozen=True)
class Storage:
    """How a cache stores its answers.

    Args:
        dtype: of the numbers: fp32, fp16 (three digits, up to 65504) or bf16 (two digits, any size).
        top: of the logits keep the `top` largest only; by default all. As many as there are classes, or more, is all.
        rest: what the classes that were not kept are given when the cache is read.

    Raises:
        InputError: an unknown word, or `top` below 1.
    """

    dtype: Dtype = "fp16"
    top: int | None = None
    rest: Rest = "spread"

    def __post_init__(self) -> None:
        for name, known in (("dtype", get_args(Dtype)), ("rest", get_args(Rest))):
            one_of(name, getattr(self, name), known)
        if self.top is not None and self.top < 1:
            raise InputError("top", self.top, "a number of at least 1, or none for all classes")


@dataclass(frozen=True)
class Format:
    """How one output of the teacher is stored.

    Args:
        shape: of one answer.
        dtype: of its numbers.
        top: how many logits are kept; None for all, and for what is no logits.
        rest: see the module.
    """

    shape: tuple[int, ...]
    dtype: Dtype
    top: int | None = None
    rest: Rest = "spread"

    @classmethod
    def of_logits(cls, shape: Sequence[int], storage: Storage) -> Format:
        """The format of logits.

        Raises:
            InputError: top-k of answers that are not [B, C].
        """
        if storage.top is None or (len(shape) == 1 and storage.top >= shape[0]):
            return cls(tuple(shape), storage.dtype)
        if len(shape) != 1:
            raise InputError("top", f"{storage.top} for answers of shape {['B', *shape]}", "a teacher that answers with logits [B, C]")
        return cls(tuple(shape), storage.dtype, storage.top, storage.rest)

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Format:
        """The inverse of `to_json`."""
        return cls(tuple(described["shape"]), described["dtype"], described["top"], described["rest"])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "shape": list(self.shape)}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of a row and type of each array by its suffix; bfloat16, which NumPy does not have, as int16 of the same bits."""
        numbers = np.dtype({"fp32": np.float32, "fp16": np.float16, "bf16": np.int16}[self.dtype])
        if self.top is None:
            return {"": (self.shape, numbers)}
        classes = np.dtype(np.int16 if self.shape[0] <= 2**15 else np.int32)
        return {".top": ((self.top,), numbers), ".classes": ((self.top,), classes), ".rest": ((), np.dtype(np.float32))}

    def encode(self, answers: Tensor) -> dict[str, Tensor]:
        """Answers [B, ...] as arrays of `arrays`' types, on their device."""
        if self.top is None:
            return {"": self._stored(answers)}
        # Stable: of equal logits the lower class comes first, on every device.
        sorted_BC, classes_BC = answers.float().sort(dim=1, descending=True, stable=True)
        return {
            ".top": self._stored(sorted_BC[:, : self.top]),
            ".classes": classes_BC[:, : self.top].to(torch.int16 if self.shape[0] <= 2**15 else torch.int32),
            ".rest": sorted_BC[:, self.top :].logsumexp(1),
        }

    def finite(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Which of the encoded answers are finite numbers throughout, bool [B]."""
        return self._numbers(arrays["" if self.top is None else ".top"]).flatten(1).isfinite().all(1)

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Float32 answers [B, ...] from rows of the arrays."""
        if self.top is None:
            return self._numbers(arrays[""])
        top_BK = self._numbers(arrays[".top"])
        others = self.shape[0] - self.top
        rest_B1 = (arrays[".rest"] - math.log(others) if self.rest == "spread" else top_BK[:, 0] - _DROPPED)[:, None]
        # A remainder that rounding made larger than what was kept: the last kept is an upper bound of every other.
        rest_B1 = torch.minimum(rest_B1, top_BK[:, -1:])
        return rest_B1.expand(-1, self.shape[0]).scatter(1, arrays[".classes"].long(), top_BK)

    def _stored(self, answers: Tensor) -> Tensor:
        cast = answers.to(_TORCH[self.dtype])
        return cast.view(torch.int16) if self.dtype == "bf16" else cast

    def _numbers(self, stored: Tensor) -> Tensor:
        return (stored.view(torch.bfloat16) if self.dtype == "bf16" else stored).float()
