"""Sound: depth, classes and voxels of all that is around, from the echoes of a sound."""

from stillroom.tasks.sound.batches import Batch
from stillroom.tasks.sound.data import SoundData
from stillroom.tasks.sound.loaded import LoadedListener, load
from stillroom.tasks.sound.models import build_sound
from stillroom.tasks.sound.networks import Answers, DenseNetwork, Interpolated, Shape
from stillroom.tasks.sound.spectrogram import FrontEnd, binaural_spectrogram
from stillroom.tasks.sound.supervised import Supervised, answers_of, as_wanted, distance
from stillroom.tasks.sound.task import DAPS, SMALL, TASK

__all__ = [
    "DAPS",
    "SMALL",
    "TASK",
    "Answers",
    "Batch",
    "DenseNetwork",
    "FrontEnd",
    "Interpolated",
    "LoadedListener",
    "Shape",
    "SoundData",
    "Supervised",
    "answers_of",
    "as_wanted",
    "binaural_spectrogram",
    "build_sound",
    "distance",
    "load",
]
