"""Editing of pictures by a diffusion model: data, teachers, the feed-forward student, samplers, metrics and pages."""

from stillroom.tasks.editing.data import EditingData
from stillroom.tasks.editing.denoiser import Denoiser, Denoising, PixelTeacher
from stillroom.tasks.editing.diffusion import DiffusionTeacher
from stillroom.tasks.editing.editor import Editor
from stillroom.tasks.editing.loaded import LoadedEditor, load
from stillroom.tasks.editing.pipeline import PipelineTeacher
from stillroom.tasks.editing.sampling import SDEdit
from stillroom.tasks.editing.task import DENOISER, EDITOR, TASK, EditingNetworks

__all__ = [
    "DENOISER",
    "EDITOR",
    "TASK",
    "Denoiser",
    "Denoising",
    "DiffusionTeacher",
    "EditingData",
    "EditingNetworks",
    "Editor",
    "LoadedEditor",
    "PipelineTeacher",
    "PixelTeacher",
    "SDEdit",
    "load",
]
