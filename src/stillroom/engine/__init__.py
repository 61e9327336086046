"""The engine: what turns a distiller into a trained student. It knows no task."""

from stillroom.engine import light as light  # before Lightning is imported

# isort: split

from stillroom.engine.distiller import Batch, Distiller, Losses
from stillroom.engine.experiment import Experiment, Networks
from stillroom.engine.lab import Lab, Trained
from stillroom.engine.report.files import write_report
from stillroom.engine.report.results import Report
from stillroom.engine.room import Room
from stillroom.engine.run.options import LabOptions
from stillroom.engine.run.seeds import run_seeds
from stillroom.engine.tap import Tap, tap
from stillroom.engine.task import TaskData
from stillroom.engine.teacher import Teacher
from stillroom.engine.training import Progress, Training

__all__ = [
    "Batch",
    "Distiller",
    "Experiment",
    "Lab",
    "LabOptions",
    "Losses",
    "Networks",
    "Progress",
    "Report",
    "Room",
    "Tap",
    "TaskData",
    "Teacher",
    "Trained",
    "Training",
    "run_seeds",
    "tap",
    "write_report",
]
