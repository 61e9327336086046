"""Image harmonization: a foreground that was cut from another photo gets the light of the photo that it was pasted into."""

from stillroom.tasks.harmonization.batches import Batch, joined
from stillroom.tasks.harmonization.data import HarmonyData
from stillroom.tasks.harmonization.loaded import LoadedHarmonizer, load
from stillroom.tasks.harmonization.models import build_harmonizer
from stillroom.tasks.harmonization.supervised import Supervised, foreground_mse
from stillroom.tasks.harmonization.task import IHARMONY4, SMALL, TASK
from stillroom.tasks.harmonization.unet import HarmonizationUNet

__all__ = [
    "IHARMONY4",
    "SMALL",
    "TASK",
    "Batch",
    "HarmonizationUNet",
    "HarmonyData",
    "LoadedHarmonizer",
    "Supervised",
    "build_harmonizer",
    "foreground_mse",
    "joined",
    "load",
]
