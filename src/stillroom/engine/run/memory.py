"""What a recipe computes between its stages, kept on disk: a whole set scored by a network, who was chosen by the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import world_size
from stillroom.engine.run.written import read_arrays, write_arrays

_KEY = "key"


def remembered(path: Path, key: str, compute: Callable[[], Mapping[str, Tensor]], *, is_main: bool) -> dict[str, Tensor]:
    """What was computed under this key: read where it lies on disk, else computed and written; the same in every process.

    Args:
        path: an .npz file; what it holds under another key is written over.
        key: what the answer depends on.
        compute: answers with tensors by name, none of them called ``key``. In a run of several processes the main one computes.
        is_main: whether this process writes.
    """
    together = world_size() > 1
    found = _read(path, key)
    if found is None and (is_main or not together):
        found = {name: value.numpy() for name, value in compute().items()}
        if is_main:
            write_arrays(path, {**found, _KEY: np.array(key)})
    if together:
        shared = [found]
        torch.distributed.broadcast_object_list(shared, src=0)
        found = shared[0]
    assert found is not None
    return {name: torch.from_numpy(value) for name, value in found.items()}


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    found = read_arrays(path, "out")
    return found if str(found.pop(_KEY, "")) == key else None
