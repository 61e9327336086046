"""The student of a finished run, whatever its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.engine.card import task_of
from stillroom.engine.run.shipped import place_of_student
from stillroom.engine.task import TASKS, task_named
from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine.export import Exported
    from stillroom.engine.task import Student

__all__ = ["export_files", "export_student", "load", "task_of"]


def load(
    run: str | Path,
    *,
    arm: str | None = None,
    seed: int | None = None,
    best: bool = False,
    trust_code: bool = False,
    trust_pickle: bool = False,
) -> Student:
    """The student that a run shipped, or the network of any of its stages.

    Args:
        run: the folder of a run, or of one of its stages.
        arm: of the run: teacher, alone, distilled, ...; by default what the run is about.
        seed: of the arm; by default the first of what the run is about.
        best: the weights of the best epoch, instead of the last one's.
        trust_code: also run the code that its `student.json` names, and read weights that are pickles: both can do anything.
        trust_pickle: the old name of `trust_code`.

    Raises:
        InputError: the folder holds no finished run, a damaged one, one of a task that this version does not know, or one that names code
            and is not trusted; or which of its stages is meant is not clear.
    """
    return _load(place_of_student(run, arm, seed, best=best), trust_code or trust_pickle)


def _load(place: str, trust_code: bool) -> Student:
    if (task := task_of(place)) not in TASKS:
        raise InputError("run", f"{place}, a student of the task {task}", f"one of {', '.join(TASKS)}")
    return task_named(task).load(Path(place), trust_pickle=trust_code)


def export_student(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    tolerance: float = 1e-4,
    arm: str | None = None,
    seed: int | None = None,
    best: bool = False,
    trust_code: bool = False,
    trust_pickle: bool = False,
) -> Exported:
    """Write a run's student to one file and check that the file answers as the student does.

    What the file reads and answers is said by the `export_spec` of each task's student.

    Args:
        run: the folder of a run, or of one of its stages.
        format: ``onnx``, ``torch`` (a program of `torch.export`) or ``safetensors`` (weights alone).
        out: the file, or a folder for it; by default the run's, or the stage's.
        tolerance: the largest allowed absolute difference between the answers of the file and of the student, in units of the answers.
        arm, seed, best, trust_code, trust_pickle: see `load`.

    Raises:
        InputError: not a finished run, a student of a kind that cannot be exported, or an argument that cannot be used.
        ExportFailed: the student cannot be written in this format, or the file answers differently; nothing is left behind.
    """
    trust = trust_code or trust_pickle
    files = export_files(run, format=format, out=out, tolerance=tolerance, arm=arm, seed=seed, best=best, trust_code=trust)
    if len(files) > 1:
        raise InputError("run", str(run), "a student of one network; `export_files` writes those of several")
    return files[0]


def export_files(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    tolerance: float = 1e-4,
    arm: str | None = None,
    seed: int | None = None,
    best: bool = False,
    trust_code: bool = False,
    trust_pickle: bool = False,
) -> list[Exported]:
    """As `export_student`, of any student: one that is several networks has a file for each, with the word for it behind its name.

    Raises:
        InputError, ExportFailed: as `export_student`; files that were written before stay.
    """
    from stillroom.engine.export import check_format, export, place_of

    check_format(format)
    place = place_of_student(run, arm, seed, best=best)
    specs, folder = _load(place, trust_code or trust_pickle).export_spec(), Path(place.removesuffix("@best"))
    named = specs if isinstance(specs, Mapping) else {"": specs}
    files = {part: place_of(folder, out, format, part=part) for part in named}
    return [export(spec, files[part], format=format, tolerance=tolerance) for part, spec in named.items()]
