"""What a trained stage must bear: a kill in the middle, and a second process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.engine import Distiller, Trained
from stillroom.engine.weights import read_weights
from tests.processes import Processes


class Killed(Exception):
    """Stands for a kill."""


def killed_and_continued(kind: type[Distiller], train: Callable[[Path], Trained], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Trains without and with a kill before the fourth step; both end with the same weights."""
    losses, count = kind.losses, {"steps": 0}

    def falling(self: Any, given: Any) -> Any:
        count["steps"] += 1
        if count["steps"] == 4:
            raise Killed
        return losses(self, given)

    whole = read_weights(train(folder / "whole").folder)
    patch.setattr(kind, "losses", falling)
    with pytest.raises(Killed):
        train(folder / "killed")
    continued = read_weights(train(folder / "killed").folder)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def killed_at(
    kind: type[Distiller], steps: Sequence[int], fit: Callable[[Path], dict[str, Tensor]], folder: Path, patch: pytest.MonkeyPatch
) -> None:
    """Trains without and with kills before each of some steps in turn; both end with the same weights, which `fit` gives."""
    losses, whole = kind.losses, fit(folder / "whole")
    for step in steps:

        def falling(self: Any, given: Any, step: int = step) -> Any:
            if self.training and self.progress.step == step:
                raise Killed
            return losses(self, given)

        patch.setattr(kind, "losses", falling)
        with pytest.raises(Killed):
            fit(folder / "killed")
    patch.setattr(kind, "losses", losses)
    continued = fit(folder / "killed")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def two_processes_as_one(processes: Processes, train: Callable[..., Any], folder: Path, stage: str) -> None:
    """Trains in two processes and in one; both end with nearly the same weights."""
    processes.on_two_ranks(train, folder / "two", 2)
    train(folder / "one", 1)
    alone, shared = (read_weights(folder / name / "seed0" / stage) for name in ("one", "two"))
    for name, value in alone.items():
        if "running_var" not in name:  # half as many rows are made unbiased by another factor
            torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4, msg=name)
