"""What a MemKD student is shown: normal pictures, and beside each batch of them exemplars for its memories."""

from __future__ import annotations

import logging
from stillroom.engine.loading import Cycled, sample_order
from stillroom.errors import InputError, at_least
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.images.other_training import OtherTraining

logger = logging.getLogger(__name__)
NORMAL, EXEMPLARS = "normal", "exemplars"
_STREAM = 1_000_003  # added to the seed: the exemplars are shuffled independently


class WithExemplars(OtherTraining[AnomalyData]):
    """A category's data whose training batches hold exemplars too, drawn from the same pictures by an order of their own.

    Args:
        data: the category's.
        count: N, exemplars in a step, of all processes together; all pictures where there are fewer.
        fixed: the same ones in every step.
    """

    def __init__(self, data: AnomalyData, count: int, *, fixed: bool) -> None:
        self.data, self.fixed = data, fixed
        self.count = min(at_least("exemplars", count, 1), data.train_size)
        if self.count < count:
            logger.warning("%d normal pictures: all of them are the exemplars, %d were asked for", data.train_size, count)
        self.exemplars = data.derive((EXEMPLARS, self.count, fixed), batch_size=self.count)
        self.fingerprint, self.indices = self.exemplars.fingerprint, data.indices
        self.batch_size, self.train_size = data.batch_size, data.train_size

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Cycled:
        """As many steps as there are batches of normal pictures."""
        if self.count < world:
            raise InputError("exemplars", self.count, f"at least one for each of the {world} processes")
        place = {"rank": rank, "world": world}
        normal = self.data.train_loader(seed=seed, **place)
        exemplars = self.exemplars.train_loader(seed=seed + _STREAM, **place)
        if self.fixed:
            exemplars.choose(sample_order(seed + _STREAM, 0, self.train_size)[: self.count])
        return Cycled({NORMAL: normal, EXEMPLARS: exemplars}, len(normal))
