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
    parser = Parser("stillroom predict", "The classes that a run's student gives to images.")
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

    from stillroom.tasks.classification.loaded import load
    from stillroom.tasks.classification.predict import find_images, predict_files

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

    predictions = predict_files(student, files, top=given.top, unreadable=unreadable)
    if given.json:
        _print_lines(predictions)
    else:
        _print_table(predictions, given.top)
    if problems:
        raise NotAllAnswered(f"{len(problems)} of {len(files) + len(empty)} could not be read")


def _print_lines(predictions: Iterable[Prediction]) -> None:
    for prediction in predictions:
        top = [{"class": name, "confidence": probability} for name, probability in prediction.ranking]
        print(json.dumps({"file": str(prediction.file), **top[0], "top": top}), flush=True)


def _print_table(predictions: Iterable[Prediction], top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("confidence", justify="right")
    if top > 1:
        table.add_column("runner-up" if top == 2 else "runners-up", overflow="fold")
    for prediction in predictions:
        (name, probability), *others = prediction.ranking
        cells = [str(prediction.file), name, f"{probability:.1%}"]
        if top > 1:
            cells.append(", ".join(f"{other} {value:.1%}" for other, value in others))
        table.add_row(*map(Text, cells))  # as Text: brackets in a name are no markup
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # in a file or a pipe no name is folded
