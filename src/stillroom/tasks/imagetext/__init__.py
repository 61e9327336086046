"""Images and texts in one space: pairs to learn from, retrieval, and classes that are named by words."""

from stillroom.tasks.imagetext.batches import Batch
from stillroom.tasks.imagetext.contrast import contrastive_loss
from stillroom.tasks.imagetext.data import ImageTextData
from stillroom.tasks.imagetext.loaded import LoadedClip, load
from stillroom.tasks.imagetext.models import build_clip
from stillroom.tasks.imagetext.supervised import Supervised
from stillroom.tasks.imagetext.task import LAION, SMALL, TASK

__all__ = ["LAION", "SMALL", "TASK", "Batch", "ImageTextData", "LoadedClip", "Supervised", "build_clip", "contrastive_loss", "load"]
