"""AdaSim: what a self-distiller is given so that the second view may come from another image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.engine.loading import uniforms
from stillroom.errors import InputError, at_least_zero, positive
from stillroom.methods.adasim.arms import Rule
from stillroom.methods.adasim.memory import NeighbourMemory, Representation
from stillroom.methods.adasim.selection import Vote, drawn, nearest_other, vote
from stillroom.methods.adasim.window import Window

_SHOWN = 8  # images whose choice the report shows


class AdaSim(nn.Module):
    """The memory, the window and the choice of the second image; any self-distiller over two views may be given it.

    Per step `take_in` notes the teacher's features; per batch `others` says which image the second view shows. Whatever was found in an
    epoch enters the window before the first batch of the next one.

    Args:
        images: N, to train on.
        width: D of the teacher's features.
        rule: how the other image is chosen.
        window: V, epochs whose neighbours vote; also the first epoch (from 0) with another image.
        topk: k, nearest images kept of each image and epoch.
        sampling_temperature: T_p of the draw.
        representation: what of an image's two views is remembered; see `NeighbourMemory`.
        skip_first_epoch: whether the neighbours of the first epoch, most of them noise, have no vote.
        window_memory: bytes that the window may take of the memory, in 10^9; a larger one lies in files.
        labels: the class of each image, int [N], -1 for none, to say how many choices are right; never learnt from.

    Raises:
        InputError: a number out of its range.

    Source: specification, "AdaSim"; the paper's Algorithm 1 and its window distribution p_win.
    """

    def __init__(
        self,
        images: int,
        width: int,
        *,
        rule: Rule,
        window: int = 50,
        topk: int = 10,
        sampling_temperature: float = 0.001,
        representation: Representation = "first",
        skip_first_epoch: bool = False,
        window_memory: float = 2.0,
        labels: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.rule = rule
        self.memory = NeighbourMemory(images, width, topk=topk, representation=representation)
        self.window = Window(images, topk, window if self.rule.window is None else self.rule.window)
        self.begin = self.window.size if self.rule.begin is None else self.rule.begin
        self.temperature = positive("sampling_temperature", sampling_temperature)
        self.skipped = 0 if skip_first_epoch else None
        self.budget = at_least_zero("window_memory", window_memory) * 1e9
        self.labels = labels if labels is not None and (labels >= 0).any() else None
        self.examples = Examples()
        self._noted: list[list[float]] = []

    def keep_in(self, folder: Path) -> None:
        """Where the window's files go, if it is too large for the memory; before anything is pushed or restored."""
        self.window.folder = folder if self.window.bytes > self.budget else None

    def others(self, epoch: int, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Which image the second view of each image shows, int64 [B]; a pure function of the window and the seeds.

        Args:
            epoch: counted from 0.
            ids: int64 [B], each once.
            seeds: int64 [B], of each image's randomness in this epoch.

        Raises:
            InputError: an id that is none of an image, or one twice.
        """
        if len(np.unique(ids)) < len(ids) or (len(ids) and not 0 <= ids.min() <= ids.max() < self.window.images):
            raise InputError("ids", ids.tolist(), f"numbers from 0 to {self.window.images - 1}, each once in a batch")
        if epoch and (not self.window.slots or self.window.slots[-1].epoch < epoch - 1):
            self.window.push(epoch - 1, self.memory.ids, self.memory.similarities)
            self._noted = []
        return ids if epoch < self.begin else self._choice(ids, seeds)

    def _choice(self, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(ids)
        voters, similarities = self.window.rows(ids, without=self.skipped)
        found = vote(voters, similarities, images)
        if self.rule.nearest:
            chosen = nearest_other(voters[:, -1], images)
        else:
            probabilities = found.probabilities(self.window.size, self.temperature)
            chosen = drawn(found.candidates, probabilities, torch.from_numpy(uniforms(seeds, 1)[:, 0]))
        chosen = torch.where(found.gate if self.rule.gate else found.seen, chosen, images)
        self._note(found, images, chosen)
        return chosen.numpy()

    def take_in(self, batch: Any, features: Tensor) -> dict[str, Tensor]:
        """Notes the teacher's features [2 B, D] of a batch, and answers with what the record keeps, scalars all.

        Of the batch: ``bootstrap/share``, of images whose second view shows another one; ``bootstrap/right``, of images whose second view
        shows another one of their class (right / share is the precision). Of what the memory found for it: ``retrieval/self``, images that
        found themselves first; ``retrieval/top2``, neighbours among the first two that have the image's class.

        Args:
            batch: its ``ids`` [B], and ``others`` [B], the images of the second view.
        """
        found = self.memory.update(batch.ids, features)
        another = batch.others != batch.ids
        figures = {"bootstrap/share": another.float().mean(), "retrieval/self": (found[:, 0] == batch.ids).float().mean()}
        if self.labels is not None:
            labels = torch.from_numpy(self.labels).to(batch.ids.device)
            own = labels[batch.ids]
            figures["bootstrap/right"] = (another & (labels[batch.others] == own)).float().mean()
            figures["retrieval/top2"] = (labels[found[:, :2]] == own[:, None]).float().mean()
        return figures

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the buffers: the window, and what was noted in this epoch."""
        return {"window": self.window.state_dict(), "noted": self._noted}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes it up again; of a longer window its newest slots."""
        self.window.load_state_dict(state["window"])
        self._noted = list(state["noted"])

    def companions(self) -> dict[str, nn.Module]:
        """What is kept when the training has ended: the last epoch's `Examples`."""
        if self._noted:
            self.examples.fill(self._noted)
        return {"neighbours": self.examples}

    def _note(self, found: Vote, images: Tensor, chosen: Tensor) -> None:
        """Keeps some of this epoch's choices, as many with another image as without, for the report."""
        another = chosen != images
        for kind in (True, False):
            free = _SHOWN // 2 - sum((row[0] != row[2]) == kind for row in self._noted)
            for row in torch.nonzero(another == kind)[: max(free, 0), 0].tolist():
                rivals = torch.nonzero(found.candidates[row] != images[row])[:1, 0].tolist()
                if not rivals:
                    continue  # nothing but the image itself was ever found
                mean = float(found.sums[row, rivals[0]]) / self.window.size
                noted = [int(images[row]), int(found.candidates[row, rivals[0]]), int(chosen[row]), mean, float(found.gate[row])]
                self._noted.append(noted)

    def extra_repr(self) -> str:
        """For people, and for the fingerprint of a stage."""
        skipped = ", the first epoch has no vote" if self.skipped is not None else ""
        return f"{self.rule.said}; window={self.window.size}, from epoch {self.begin}, temperature={self.temperature:g}{skipped}"


class Examples(nn.Module):
    """Some choices of an epoch, beside the student on disk.

    Attributes:
        rows: float64 [P, 5]: the image; the other image with the most votes; the image that its second view showed; that other image's
            similarity, mean over the window; whether the gate was open. Rows of -1 are empty.
    """

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.full((_SHOWN, 5), -1.0, dtype=torch.float64), persistent=True)

    def fill(self, rows: list[list[float]]) -> None:
        """Takes up to P rows."""
        self.rows.fill_(-1.0)[: len(rows)] = torch.tensor(rows[: len(self.rows)], dtype=torch.float64)
