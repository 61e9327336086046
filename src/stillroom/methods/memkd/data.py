"""What a student is shown: normal pictures, and beside each batch of them exemplars for its memories."""

from __future__ import annotations

import logging

from stillroom.engine.loading import Cycled, sample_order
from stillroom.errors import InputError, at_least, at_least_zero
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.images.other_training import OtherTraining

logger = logging.getLogger(__name__)
NORMAL, EXEMPLARS = "normal", "exemplars"
_STREAM = 1_000_003  # added to the seed: the exemplars are shuffled independently


class Shown(OtherTraining[AnomalyData]):
    """A category's data in epochs of so many steps, each gone through at its own pace.

    Args:
        data: the category's.
        iterations: steps of an epoch, at most; by default as many as there are batches.
        exemplars: N, normal pictures beside those of a step, of all processes together, drawn from the same ones in an order of their own;
            all of them where there are fewer. 0 for none.
        fixed: the same exemplars in every step.
    """

    def __init__(self, data: AnomalyData, iterations: int | None, exemplars: int, *, fixed: bool) -> None:
        self.data, self.fixed = data, fixed
        self.iterations = None if iterations is None else at_least("iterations", iterations, 1)
        self.count = min(int(at_least_zero("exemplars", exemplars)), data.train_size)
        if self.count < exemplars:
            logger.warning("%d normal pictures: all of them are the exemplars, %d were asked for", data.train_size, exemplars)
        self.exemplars = data.derive((EXEMPLARS, iterations, self.count, fixed), batch_size=max(self.count, 1))
        self.fingerprint, self.indices = self.exemplars.fingerprint, data.indices
        self.batch_size, self.train_size = data.batch_size, data.train_size
        self.train_name = data.train_name

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Cycled:
        """Batches of normal pictures, and of exemplars if there are any; a short last batch of a pass is kept."""
        if 0 < self.count < world:
            raise InputError("exemplars", self.count, f"at least one for each of the {world} processes")
        loaders = {NORMAL: self.data.train_loader(seed=seed, rank=rank, world=world, drop_last=False)}
        if self.count:
            loaders[EXEMPLARS] = self.exemplars.train_loader(seed=seed + _STREAM, rank=rank, world=world)
            if self.fixed:
                loaders[EXEMPLARS].choose(sample_order(seed + _STREAM, 0, self.train_size)[: self.count])
        steps = len(loaders[NORMAL])
        return Cycled(loaders, steps if self.iterations is None else min(steps, self.iterations))
