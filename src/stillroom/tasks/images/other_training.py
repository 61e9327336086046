"""Data that train on other images than a set's own, or on the same in another way, everything else being the set's."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor

from stillroom.engine.loading import Loader
from stillroom.engine.run.recorder import Evaluator
from stillroom.engine.task import Task
from stillroom.engine.teacher import Renormalise
from stillroom.tasks.images.data import ImageSetData

Whole = TypeVar("Whole", bound=ImageSetData)


class OtherTraining(Generic[Whole]):
    """Base of such data: what `engine.task.TaskData` asks for beside `train_loader`, `train_size`, `fingerprint`, `indices` and
    `batch_size`, which they have themselves.

    Attributes:
        data: whose validation images, metrics and report these are.
    """

    data: Whole

    @property
    def task(self) -> Task:
        """That of `data`."""
        return self.data.task

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images of `data`."""
        return self.data.eval_loader(rank=rank, world=world)

    def evaluator(self) -> Evaluator:
        """What measures a network on `data`."""
        return self.data.evaluator()

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation image."""
        return self.data.example_inputs()

    def for_teacher(self) -> Whole:
        """Teachers are trained on the images of `data`."""
        return self.data

    def describe(self) -> dict[str, Any]:
        """As `data`."""
        return self.data.describe()

    @property
    def renormalise(self) -> Renormalise | None:
        """As `data`."""
        return self.data.renormalise
