"""Checksums of a cache's rows, so that what somebody or some disk altered teaches nobody.

Each array NAME of a folder has an array ``sum.NAME`` beside it, 4 bytes for each row: whoever reads of a block of rows the first time
compares. A row's
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
_BLOCK = 2**17  # bytes that are looked at at a time: about what a system reads ahead of who maps a file


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
    """The sums of one array, compared a block of rows at a time, when the first of them is read.

    Args:
        kept_N: as they were written, uint32.
        rows: the array [N, ...], mapped.
    """

    def __init__(self, kept_N: np.ndarray, rows: np.ndarray) -> None:
        self._kept_N, self._rows = kept_N, rows
        self._step = max(1, _BLOCK // max(1, rows[:1].nbytes))
        self._sound = np.zeros(-(-len(rows) // self._step), bool)

    def altered(self, numbers_B: np.ndarray | None = None) -> np.ndarray:
        """The numbers of rows that are not as they were written, among those in the blocks of these, integers; by default of all."""
        asked = np.arange(len(self._sound)) if numbers_B is None else numbers_B // self._step
        if self._sound[asked].all():
            return np.zeros(0, int)
        found = []
        for block in np.unique(asked[~self._sound[asked]]).tolist():
            numbers = np.arange(block * self._step, min((block + 1) * self._step, len(self._rows)))
            wrong = numbers[sums_of(self._rows[numbers[0] : numbers[-1] + 1], numbers) != self._kept_N[numbers[0] : numbers[-1] + 1]]
            self._sound[block] = not len(wrong)
            found.append(wrong)
        return np.concatenate(found)


@lru_cache(maxsize=64)
def _weights(count: int) -> np.ndarray:
    """Fixed odd numbers, uint64 [count]: a step of splitmix64 for each."""
    x = np.arange(1, count + 1, dtype=np.uint64) * _NUMBERED
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
