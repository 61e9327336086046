"""Views: a fixed number of random versions of every sample, drawn once, so that what was answered to them can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.engine.loading import Draw, SeekableBatches, sample_seeds
from stillroom.errors import at_least


@dataclass(frozen=True)
class Views:
    """Which random versions of its samples a training set is reduced to.

    View v of a sample is what training with this seed shows of it in epoch v. So a training of at most `count` epochs with that seed sees
    the very same images with the views as without them, and a longer one sees them again in the same order.

    Args:
        count: V, views of each sample.
        seed: of their randomness.

    Raises:
        InputError: a count below 1 or a seed below 0.
    """

    count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("views", self.count, 1)
        at_least("seed", self.seed, 0)

    def draws(self, ids: np.ndarray, views: np.ndarray) -> list[Draw]:
        """The given view of each of the samples; both int [B]."""
        seeds = sample_seeds(self.seed, views, ids)
        return [Draw(*each) for each in zip(ids.tolist(), seeds.tolist(), views.tolist(), strict=True)]


class ReplayedBatches(SeekableBatches):
    """The batches of a training that shows view ``epoch % V`` of every sample; orders and shares are those of `SeekableBatches`."""

    def __init__(self, size: int, batch_size: int, *, views: Views, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(size, batch_size, seed=seed, rank=rank, world=world)
        self.views = views

    def _draws(self, epoch: int, ids: np.ndarray) -> list[Draw]:
        return self.views.draws(ids, np.full_like(ids, epoch % self.views.count))


class EveryView(SeekableBatches):
    """All views of all samples once, sample by sample: row r is view ``r % V`` of sample ``r // V``."""

    def __init__(self, size: int, batch_size: int, *, views: Views) -> None:
        super().__init__(size * views.count, batch_size, shuffle=False, drop_last=False)
        self.views = views

    def _draws(self, epoch: int, ids: np.ndarray) -> list[Draw]:
        samples, views = np.divmod(ids, self.views.count)
        return self.views.draws(samples, views)
