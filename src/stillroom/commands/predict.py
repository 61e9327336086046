"""`stillroom predict RUN images...`: what a run's student says about images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stillroom.commands.parser import Parser
from stillroom.errors import InputError, StillroomError

if TYPE_CHECKING:
    from stillroom.tasks.classification.loaded import Loaded
    from stillroom.tasks.classification.predict import Prediction
    from stillroom.tasks.detection.loaded import LoadedDetector


class NotAllAnswered(StillroomError):
    """Some images could not be read; all others were answered."""


def run(arguments: list[str], command: str) -> None:
    """Prints a table, or lines of JSON; what cannot be read gets a line on the error stream.

    Args:
        arguments: what follows `stillroom predict`.
        command: the whole line that was typed.

    Raises:
        NotAllAnswered: at the end, when something could not be read.
    """
    parser = Parser(
        "stillroom predict", "The classes or labels that a run's student gives to images, or the objects that it finds in them."
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `stillroom run` wrote")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, folders (with all images below them) or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line instead of a table")
    parser.add_argument("--top", type=int, metavar="K", help="how many classes to name, the most probable first (default: 2)")
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="of a detector: the least score of an object (default: 0.3)")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="run the Python file inside RUN that the network is built by, if there is one"
    )
    given = parser.parse_args(arguments)
    if given.top is not None and given.top < 1:
        raise InputError("--top", given.top, "a whole number of at least 1")
    if given.threshold is not None and not 0 <= given.threshold <= 1:
        raise InputError("--threshold", given.threshold, "a number from 0 to 1")

    from stillroom.tasks.classification.predict import find_images
    from stillroom.tasks.students import load, task_of

    student = load(given.run, trust_pickle=given.trust_pickle)
    detects = task_of(given.run) == "detection"
    for option, value, fits in (("--top", given.top, not detects), ("--threshold", given.threshold, detects)):
        if value is not None and not fits:
            raise InputError(option, value, f"none, since this run's student is {'a detector' if detects else 'no detector'}")
    files, empty = find_images(given.images)
    if not files:
        raise InputError("IMAGE", ", ".join(given.images), "image files, folders with images in them or patterns that match some")
    problems = [f"{place}: there is no image" for place in empty]
    for problem in problems:
        print(f"stillroom: {problem}", file=sys.stderr)

    def unreadable(error: StillroomError) -> None:
        problems.append(" ".join(str(error).split()))
        print(f"stillroom: {problems[-1]}", file=sys.stderr)

    if detects:
        _detect(cast("LoadedDetector", student), files, given.threshold, as_json=given.json, unreadable=unreadable)
    else:
        _classify(cast("Loaded", student), files, given.top or 2, as_json=given.json, unreadable=unreadable)
    if problems:
        raise NotAllAnswered(f"{len(problems)} of {len(files) + len(empty)} could not be read")


def _classify(student: Loaded, files: list[Path], top: int, *, as_json: bool, unreadable: Callable[[StillroomError], None]) -> None:
    from stillroom.tasks.classification.predict import predict_files

    predictions = predict_files(student, files, top=top if student.exclusive else len(student.classes), unreadable=unreadable)
    if as_json:
        _print_lines(predictions, top, exclusive=student.exclusive)
    elif student.exclusive:
        _print_table(predictions, top)
    else:
        _print_labels(predictions, top)


def _detect(
    student: LoadedDetector, files: list[Path], threshold: float | None, *, as_json: bool, unreadable: Callable[[StillroomError], None]
) -> None:
    """A row for each object; boxes are x1, y1, x2, y2 in pixels of the upright image."""
    from stillroom.tasks.detection.loaded import THRESHOLD
    from stillroom.tasks.detection.predict import detect_files

    rows = []
    for image in detect_files(student, files, threshold=THRESHOLD if threshold is None else threshold, unreadable=unreadable):
        if as_json:
            found = [{"class": one.label, "score": one.score, "box": list(one.box)} for one in image.objects]
            print(json.dumps({"file": str(image.file), "objects": found}), flush=True)
            continue
        rows += [[str(image.file), one.label, f"{one.score:.2f}", ", ".join(f"{side:.1f}" for side in one.box)] for one in image.objects]
        rows += [] if image.objects else [[str(image.file), "nothing", "", ""]]
    _show(["file", "class", "score", "box (x1, y1, x2, y2)"], rows)


def _print_lines(predictions: Iterable[Prediction], count: int, *, exclusive: bool) -> None:
    for prediction in predictions:
        top = [{"class": name, "confidence": probability} for name, probability in prediction.ranking[:count]]
        said = top[0] if exclusive else {"labels": [name for name, probability in prediction.ranking if probability > 0.5]}
        print(json.dumps({"file": str(prediction.file), **said, "top": top}), flush=True)


def _print_labels(predictions: Iterable[Prediction], top: int) -> None:
    """Labels above one half, and the `top` most probable of the others."""
    rows = []
    for prediction in predictions:
        said = [f"{name} {probability:.1%}" for name, probability in prediction.ranking]
        count = sum(probability > 0.5 for _, probability in prediction.ranking)
        rows.append([str(prediction.file), ", ".join(said[:count]) or "none", ", ".join(said[count : count + top])])
    _show(["file", "labels", "next"], rows)


def _print_table(predictions: Iterable[Prediction], top: int) -> None:
    rows = []
    for prediction in predictions:
        (name, probability), *others = prediction.ranking
        cells = [str(prediction.file), name, f"{probability:.1%}"]
        if top > 1:
            cells.append(", ".join(f"{other} {value:.1%}" for other, value in others))
        rows.append(cells)
    _show(["file", "class", "confidence", *(["runner-up" if top == 2 else "runners-up"] if top > 1 else [])], rows)


def _show(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("confidence", "score") else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: brackets in a name are no markup
    if rows:
        Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # in a file or a pipe no name is folded
