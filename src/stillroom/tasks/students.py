"""The student of a finished run, whatever its task."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine.export import Exported
    from stillroom.tasks.classification.loaded import Loaded
    from stillroom.tasks.detection.loaded import LoadedDetector

_ROOMS = ("classification", "multilabel", "detection")


def load(run: str | Path, *, trust_pickle: bool = False) -> Loaded | LoadedDetector:
    """The student that a run shipped.

    Args:
        run: the folder that `stillroom run` wrote.
        trust_pickle: also run the Python file inside the folder that the network is built by, if there is one.

    Raises:
        InputError: the folder holds no finished run, a damaged one, or one of a task that this version does not know.
    """
    task = task_of(run)
    if task not in _ROOMS:
        raise InputError("run", f"{run}, a student of the task {task}", f"one of {', '.join(_ROOMS)}")
    loaded: Loaded | LoadedDetector = importlib.import_module(f"stillroom.tasks.{task}.loaded").load(run, trust_pickle=trust_pickle)
    return loaded


def export_student(run: str | Path, *, format: str, out: str | Path | None, tolerance: float, trust_pickle: bool) -> Exported:
    """Write a run's student, whatever its task, to one file; see `classification.export.export_student` and `detection.export`."""
    if task_of(run) == "detection":
        from stillroom.tasks.detection.export import export_detector

        return export_detector(run, format=format, out=out, tolerance=tolerance, trust_pickle=trust_pickle)
    from stillroom.tasks.classification.export import export_student

    return export_student(run, format=format, out=out, tolerance=tolerance, trust_pickle=trust_pickle)


def task_of(run: str | Path) -> str:
    """The task that a run's `student.json` names; where there is none to read, the loader will say so."""
    try:
        card = json.loads((Path(run) / "student.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "classification"
    return str(card.get("task", "classification")) if isinstance(card, dict) else "classification"
