"""`stillroom predict RUN images...`: what a run's student says about images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stillroom.commands.parser import STUDENT, named_as_typed, student_parser
from stillroom.errors import InputError, StillroomError, printable

_OPTIONS = ("top", "threshold", "masks", "out", "category", "classes", "query")  # of `Student.options`
_NUMBERS = ("confidence", "score")  # columns


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
    parser = student_parser(
        "stillroom predict",
        "The classes or labels that a run's student gives to images, the objects that it finds in them, or what it makes of them.",
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files, folders (with all images below them) or patterns such as 'photos/**/*.jpg'; or sounds, videos, scans",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line instead of a table")
    parser.add_argument("--top", type=int, metavar="K", help="how many classes to name, the most probable first (default: 2)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="of a detector: the least score of an object (default: 0.3); of open-vocabulary segmentation: of what is no background",
    )
    parser.add_argument("--masks", metavar="FOLDER", help="of harmonization and editing: what may be changed, photo.png for photo.jpg")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where pictures are written, if the student answers with some, or embeddings (then also FILE.npz or FILE.csv) (default: RUN)",
    )
    parser.add_argument("--category", help="of a detector of anomalies in several categories: which one (default: named in the path)")
    parser.add_argument("--classes", metavar="NAMES", help='of a student that knows classes by words: which there are, "cat,dog"')
    parser.add_argument(
        "--query", action="append", metavar="WORDS", help="of a 3D detector that reads words: what to look for; may be repeated"
    )
    given = parser.parse_args(arguments)
    if given.top is not None and given.top < 1:
        raise InputError("--top", given.top, "a whole number of at least 1")
    if given.threshold is not None and not 0 <= given.threshold <= 1:
        raise InputError("--threshold", given.threshold, "a number from 0 to 1")

    from stillroom.engine.run.console import tell
    from stillroom.tasks.images.folders import find_images, passed_over
    from stillroom.tasks.students import load

    with named_as_typed(*STUDENT):
        student = load(given.run, **{name: getattr(given, name) for name in STUDENT})
    options = {name: value for name in _OPTIONS if (value := getattr(given, name)) is not None}
    for name, value in options.items():
        if name not in student.options:
            raise InputError(f"--{name}", value, f"none, since this run's student is {student.kind}")
    if given.out is not None:
        _check_folder(Path(given.out).expanduser())
    find: Any = getattr(student, "find", None)  # a student of something else than images says what its files are
    files, empty, *passed = (find or find_images)(given.images)
    for said in passed_over([str(file) for others in passed for file in others]):
        print(f"stillroom: {printable(said)}", file=sys.stderr)
    if not files:
        raise InputError("IMAGE", ", ".join(given.images), "image files, folders with images in them or patterns that match some")
    problems = [f"{place}: there is no {'file that it reads' if find else 'image'}" for place in empty]
    for problem in problems:
        print(f"stillroom: {printable(problem)}", file=sys.stderr)

    def unreadable(error: Exception) -> None:
        problems.append(printable(" ".join(str(error).split())))
        print(f"stillroom: {problems[-1]}", file=sys.stderr)

    answers = student.predict(files, unreadable=unreadable, **options)
    if given.json:
        for answer in answers:
            tell(json.dumps({"file": str(answer.file), **answer.to_json()}))
    else:
        _show(["file", *student.columns(**options)], [[str(answer.file), *row] for answer in answers for row in answer.rows()])
    if problems:
        raise NotAllAnswered(f"{len(problems)} of {len(files) + len(empty)} could not be read")


def _check_folder(out: Path) -> None:
    """Raises InputError where a file is in the way of a folder of answers, or of a file of embeddings."""
    for place in (out, *out.parents):
        if place.is_file() and not (place == out and out.suffix.lower() in (".npz", ".csv")):
            raise InputError("--out", str(out), f"a folder, or a name in one; {place} is a file")


def _show(columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from stillroom.engine.run.console import EscapingConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*map(Text, map(printable, row)))  # as Text: brackets in a name are no markup
    if rows:
        EscapingConsole(width=None if sys.stdout.isatty() else 10_000).print(table)  # in a file or a pipe no name is folded
