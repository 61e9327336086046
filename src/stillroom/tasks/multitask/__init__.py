"""Several dense targets of one picture, each its own kind of map: classes, depth, normals, edges, what stands out."""

from stillroom.tasks.multitask.batches import DenseBatch, WholeBatch
from stillroom.tasks.multitask.data import MultiTaskData
from stillroom.tasks.multitask.loaded import LoadedMultiTask, load
from stillroom.tasks.multitask.metrics import DELTA, MultiTaskEvaluator, relative
from stillroom.tasks.multitask.models import build_multitask
from stillroom.tasks.multitask.networks import MultiTaskNetwork, SideBySide
from stillroom.tasks.multitask.supervised import MultiTaskDistiller, Supervised, answers_to
from stillroom.tasks.multitask.targets import Target
from stillroom.tasks.multitask.task import SMALL, TASK

__all__ = [
    "DELTA",
    "SMALL",
    "TASK",
    "DenseBatch",
    "LoadedMultiTask",
    "MultiTaskData",
    "MultiTaskDistiller",
    "MultiTaskEvaluator",
    "MultiTaskNetwork",
    "SideBySide",
    "Supervised",
    "Target",
    "WholeBatch",
    "answers_to",
    "build_multitask",
    "load",
    "relative",
]
