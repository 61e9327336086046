"""The training loader as Lightning asks for it, at the place where a checkpoint left it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from stillroom.engine.distiller import Distiller
from stillroom.engine.loading import Cycled, Loader
from stillroom.engine.run.recorder import evaluating, seed_everything
from stillroom.engine.task import TaskData
from stillroom.engine.training import Progress


class Feed(LightningDataModule):
    """The training loader, made once the processes know their ranks, at the place where a checkpoint left it.

    Lightning restores a loader's place too, but not from a checkpoint of an epoch's end. Before each epoch the distiller is asked for the
    samples that it shows.
    """

    def __init__(self, data: TaskData, seed: int) -> None:
        super().__init__()
        self.data, self.seed = data, seed
        self._loader: Loader | Cycled | None = None
        self._place: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The loader's place."""
        return self._loader.state_dict() if self._loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the place for the loader to come."""
        self._place = state_dict or None

    def train_dataloader(self) -> Loader | Cycled:
        """The loader of this process, for the coming epoch."""
        assert self.trainer is not None
        distiller = self.trainer.lightning_module
        assert isinstance(distiller, Distiller)
        if self._loader is None:
            self._loader = self.data.train_loader(seed=self.seed, rank=self.trainer.global_rank, world=self.trainer.world_size)
            if self._place is not None:
                self._loader.load_state_dict(self._place)
        epoch, batch = self._loader.place
        if selects(distiller) and batch in (0, len(self._loader)):
            epoch = self.trainer.current_epoch
            distiller.progress = Progress(epoch + 1, int(self.trainer.max_epochs or 1), epoch * self._loader.whole, self._loader.whole)
            assert isinstance(self._loader, Loader)
            seed_everything(self.seed, epoch)
            with evaluating(distiller):
                chosen = distiller.select()
            self._loader.choose(None if chosen is None else chosen.cpu().numpy())
        return self._loader


def selects(distiller: Distiller) -> bool:
    """Whether the method chooses the samples of its epochs."""
    return type(distiller).select is not Distiller.select
