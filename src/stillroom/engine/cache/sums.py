"""Checksums of a cache's rows, so that what somebody or some disk altered teaches nobody.

Each array NAME of a folder has an array ``sum.NAME`` beside it, 4 bytes for each row: whoever reads rows the first time compares. A row's
sum is the upper half of sum_i w_i x_i + w (n + 1) modulo 2^64 over its 8-byte words x, with fixed odd weights w_i and its own number n: it
changes when a bit does, when words change places, and when rows do. It is no signature: who wants to deceive can write sums as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

PREFIX = "sum."
_NUMBERED = np.uint64(0x9E3779B97F4A7C15)  # odd: what a row's number is multiplied by
_BLOCK = 2**24  # bytes that are looked at at a time


def with_sums(arrays: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Shape of a row and type of each array, and of the sums besides."""
    return {**arrays, **{PREFIX + name: ((), np.dtype(np.uint32)) for name in arrays}}


def sums_of(rows: np.ndarray, numbers_B: np.ndarray) -> np.ndarray:
    """The sums of rows, uint32 [B].

    Args:
        rows: [B, ...], of any type without objects.
        numbers_B: which they are in their file, integers.
    """
    bytes_BX = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    lacking = -bytes_BX.shape[1] % 8
    if lacking:
        bytes_BX = np.pad(bytes_BX, ((0, 0), (0, lacking)))
    words_BX = bytes_BX.view("<u8")
    totals_B = words_BX @ _weights(words_BX.shape[1]) + (numbers_B.astype(np.uint64) + np.uint64(1)) * _NUMBERED
    return (totals_B >> np.uint64(32)).astype(np.uint32)


class Sums:
    """The sums of one array, and which rows were found to be as they say.

    Args:
        kept_N: as they were written, uint32.
    """

    def __init__(self, kept_N: np.ndarray) -> None:
        self._kept_N, self._seen_N = kept_N, np.zeros(len(kept_N), bool)

    def altered(self, numbers_B: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The numbers of the rows that are not as they were written.

        Args:
            numbers_B: integers.
            rows: [B, ...]; those that were looked at before are not again.
        """
        if self._seen_N[numbers_B].all():
            return numbers_B[:0]
        wrong_B = sums_of(rows, numbers_B) != self._kept_N[numbers_B]
        self._seen_N[numbers_B[~wrong_B]] = True
        return numbers_B[wrong_B]

    def all_altered(self, rows: np.ndarray) -> np.ndarray:
        """The same of all rows [N, ...]."""
        step = max(1, _BLOCK // max(1, rows[:1].nbytes))
        found = [self.altered(np.arange(i, min(i + step, len(rows))), rows[i : i + step]) for i in range(0, len(rows), step)]
        return np.concatenate(found) if found else np.zeros(0, int)


@lru_cache(maxsize=64)
def _weights(count: int) -> np.ndarray:
    """Fixed odd numbers, uint64 [count]: a step of splitmix64 for each."""
    x = np.arange(1, count + 1, dtype=np.uint64) * _NUMBERED
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
