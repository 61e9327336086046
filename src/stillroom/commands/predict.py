"""`stillroom predict RUN images...`: what a run's student says about images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stillroom.commands.parser import Parser
from stillroom.errors import InputError, StillroomError

if TYPE_CHECKING:
    from stillroom.tasks.classification.predict import Prediction


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
    parser = Parser("stillroom predict", "The classes, or labels, that a run's student gives to images.")
    parser.add_argument("run", metavar="RUN", help="the folder that `stillroom run` wrote")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, folders (with all images below them) or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line instead of a table")
    parser.add_argument("--top", type=int, default=2, metavar="K", help="how many classes to name, the most probable first (default: 2)")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="run the Python file inside RUN that the network is built by, if there is one"
    )
    given = parser.parse_args(arguments)
    if given.top < 1:
        raise InputError("--top", given.top, "a whole number of at least 1")

    from stillroom.tasks.classification.predict import find_images, predict_files
    from stillroom.tasks.students import load

    student = load(given.run, trust_pickle=given.trust_pickle)
    files, empty = find_images(given.images)
    if not files:
        raise InputError("IMAGE", ", ".join(given.images), "image files, folders with images in them or patterns that match some")
    problems = [f"{place}: there is no image" for place in empty]
    for problem in problems:
        print(f"stillroom: {problem}", file=sys.stderr)

    def unreadable(error: StillroomError) -> None:
        problems.append(" ".join(str(error).split()))
        print(f"stillroom: {problems[-1]}", file=sys.stderr)

    top = given.top if student.exclusive else len(student.classes)
    predictions = predict_files(student, files, top=top, unreadable=unreadable)
    if given.json:
        _print_lines(predictions, given.top, exclusive=student.exclusive)
    elif student.exclusive:
        _print_table(predictions, given.top)
    else:
        _print_labels(predictions, given.top)
    if problems:
        raise NotAllAnswered(f"{len(problems)} of {len(files) + len(empty)} could not be read")


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
        table.add_column(column, overflow="fold", justify="right" if column == "confidence" else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: brackets in a name are no markup
    if rows:
        Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # in a file or a pipe no name is folded
