"""Training images of another kind in the place of a set's own; everything else is the set's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from stillroom.engine.loading import Loader
from stillroom.engine.report.results import Report, Section
from stillroom.engine.run.recorder import Evaluator
from stillroom.tasks.classification.data import ImageData


class WithOtherTrainingImages:
    """Base of data that train on other images, or on the same in another way, and are measured as `data` are.

    Attributes:
        data: whose validation images, metrics and report these are.
    """

    data: ImageData

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images of `data`."""
        return self.data.eval_loader(rank=rank, world=world)

    def evaluator(self) -> Evaluator:
        """What measures a network on the classes of `data`."""
        return self.data.evaluator()

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation image."""
        return self.data.example_inputs()

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """As `data`."""
        return self.data.compare(details, reference)

    def sections(self, report: Report) -> list[Section]:
        """As `data`."""
        return self.data.sections(report)

    def ship(self, folder: Path, network: nn.Module, model: str) -> None:
        """As `data`."""
        self.data.ship(folder, network, model)
