"""Training images of another kind in the place of a set's own, everything else being the set's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stillroom.engine.loading import Loader
from stillroom.engine.run.recorder import Evaluator
from stillroom.engine.task import Task
from stillroom.engine.teacher import Renormalise
from stillroom.tasks.classification.data import ImageData


class WithOtherTrainingImages:
    """Base of data that train on other images, or on the same in another way, and are measured as `data` are.

    Attributes:
        data: whose validation images, metrics and report these are.
    """

    data: ImageData

    @property
    def task(self) -> Task:
        """That of `data`."""
        return self.data.task

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images of `data`."""
        return self.data.eval_loader(rank=rank, world=world)

    def evaluator(self) -> Evaluator:
        """What measures a network on the classes of `data`."""
        return self.data.evaluator()

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation image."""
        return self.data.example_inputs()

    def for_teacher(self) -> ImageData:
        """Teachers are trained on the images of `data`."""
        return self.data

    def describe(self) -> dict[str, Any]:
        """As `data`."""
        return self.data.describe()

    @property
    def renormalise(self) -> Renormalise | None:
        """As `data`."""
        return self.data.renormalise
