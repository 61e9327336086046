"""The neighbours and similarities of the last V epochs: in memory, or in files that are mapped where they would be too large for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import rank, world_size
from stillroom.engine.run.written import replacing
from stillroom.errors import InputError, at_least

_BYTES = 8  # of a neighbour: an int32 id and a float32 similarity


class Slot(NamedTuple):
    """What was found in one epoch; never changed afterwards.

    Attributes:
        epoch: which, from 0.
        ids: int32 [N, k].
        similarities: float32 [N, k].
    """

    epoch: int
    ids: np.ndarray
    similarities: np.ndarray


class Window:
    """W_A and W_S: one slot for each of the last V epochs, the newest last; before there were so many, slots of zeros in front.

    In memory a window is in the checkpoint. In files it is N k 8 bytes an epoch, written once and mapped by every process; the checkpoint
    says which epochs, and their files stay until a later checkpoint needs them no longer.

    Args:
        images: N.
        neighbours: k.
        slots: V.
        folder: where slots are kept in files; None keeps them in memory.

    Raises:
        InputError: V below 1.

    Source: specification, "Window push".
    """

    def __init__(self, images: int, neighbours: int, slots: int, *, folder: Path | None = None) -> None:
        self.images, self.neighbours, self.size, self.folder = images, neighbours, at_least("window", slots, 1), folder
        self.slots: list[Slot] = []
        self._saved: set[int] = set()  # epochs that the last checkpoint refers to

    @property
    def bytes(self) -> int:
        """Of a full window."""
        return _BYTES * self.images * self.neighbours * self.size

    def push(self, epoch: int, ids: Tensor, similarities: Tensor) -> None:
        """Appends what was found in an epoch, [N, k] both, and drops the slot that is too much. Every process calls it."""
        arrays = ids.cpu().numpy().astype(np.int32), similarities.cpu().numpy().astype(np.float32)
        if self.folder is None:
            slot = Slot(epoch, *arrays)
        else:
            if rank() == 0:
                for path, values in zip(self._files(epoch), arrays, strict=True):
                    with replacing(path) as file:
                        np.save(file, values)
            if world_size() > 1:
                torch.distributed.barrier()
            slot = self._mapped(epoch)
        self.slots = [*self.slots, slot][-self.size :]

    def rows(self, images: np.ndarray, *, without: int | None = None) -> tuple[Tensor, Tensor]:
        """W_A, int32, and W_S, float32, of some images: [R, V, k] both.

        Args:
            images: their ids, integers [R].
            without: an epoch whose slot is read as zeros.
        """
        ids = np.zeros((len(images), self.size, self.neighbours), np.int32)
        similarities = np.zeros(ids.shape, np.float32)
        for place, slot in enumerate(self.slots, self.size - len(self.slots)):
            if slot.epoch != without:
                ids[:, place], similarities[:, place] = slot.ids[images], slot.similarities[images]
        return torch.from_numpy(ids), torch.from_numpy(similarities)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the slots themselves, or which epochs' files they are. Files that no checkpoint needs any more are removed."""
        epochs = [slot.epoch for slot in self.slots]
        if self.folder is None:
            return {"epochs": epochs, "slots": [(torch.from_numpy(slot.ids), torch.from_numpy(slot.similarities)) for slot in self.slots]}
        if rank() == 0:
            for path in self.folder.glob("*.npy"):
                number = path.name.partition("-")[0]
                if number.isdecimal() and int(number) not in {*epochs, *self._saved} and path in self._files(int(number)):
                    path.unlink()
        self._saved = set(epochs)  # the checkpoint before this one is still what a kill now would go on from
        return {"epochs": epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the slots of a checkpoint, the newest V of them where it has more.

        Raises:
            InputError: the slots are of other images or another number of neighbours; or their files are gone.
        """
        if "slots" in state:
            found = [Slot(epoch, *(part.numpy() for part in parts)) for epoch, parts in zip(state["epochs"], state["slots"], strict=True)]
        else:
            found = [self._mapped(epoch) for epoch in state["epochs"]]
        self._saved = set(state["epochs"])
        self.slots = []
        for slot in found[-self.size :]:
            if slot.ids.shape != (self.images, self.neighbours):
                raise InputError("window", f"a checkpoint's slot of shape {list(slot.ids.shape)}", f"[{self.images}, {self.neighbours}]")
            if "slots" in state and self.folder is not None:
                self.push(slot.epoch, torch.from_numpy(slot.ids), torch.from_numpy(slot.similarities))
            else:
                self.slots.append(slot)

    def _files(self, epoch: int) -> tuple[Path, Path]:
        assert self.folder is not None
        return self.folder / f"{epoch:05d}-ids.npy", self.folder / f"{epoch:05d}-similarities.npy"

    def _mapped(self, epoch: int) -> Slot:
        if self.folder is None:
            raise InputError("window_memory", "a checkpoint whose window lies in files", "the budget that it was begun with")
        ids, similarities = self._files(epoch)
        try:
            return Slot(epoch, np.load(ids, mmap_mode="r"), np.load(similarities, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise InputError(
                "out", f"{ids}, which cannot be read ({error})", "the files of the window that a checkpoint refers to"
            ) from error
