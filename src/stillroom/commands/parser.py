"""What the commands' argument parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from stillroom.errors import InputError, StillroomError


class UsageError(StillroomError):
    """What the argument parser says about the command line, in one line."""

    exit_code = 2


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and says what is wrong in one line, without the usage before it."""

    def __init__(self, prog: str, description: str | None = None, **options: Any) -> None:
        super().__init__(prog=prog, description=description, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")


STUDENT = ("arm", "seed", "best", "trust_code")  # what `student_parser` takes besides the folder


def student_parser(prog: str, description: str) -> Parser:
    """Of a command that uses the network of a run's stage: takes RUN, and the options of `STUDENT`."""
    parser = Parser(prog, description)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or of one of its stages (RUN/seed0/alone)")
    parser.add_argument("--arm", help="which of the run's networks: teacher, alone, distilled, ... (default: what the run is about)")
    parser.add_argument("--seed", type=int, help="of the arm (default: the first)")
    parser.add_argument("--best", action="store_true", help="the weights of the best epoch instead of those of the last")
    parser.add_argument(
        "--trust-code",
        "--trust-pickle",  # its old name
        action="store_true",
        help="run the code that RUN's student.json names, and read weights that are pickles",
    )
    return parser


@contextmanager
def named_as_typed(*options: str) -> Iterator[None]:
    """Input errors about these parameters name them as people type them: `tolerance` becomes `--tolerance`."""
    try:
        yield
    except InputError as error:
        if error.argument not in options:
            raise
        raise InputError(f"--{error.argument.rstrip('_').replace('_', '-')}", error.got, error.expected) from error


def size_text(count: int) -> str:
    """So many bytes."""
    unit, size = next((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= size or unit == "kB")
    return f"{count / size:.{2 if unit == 'GB' else 1}f} {unit}"
