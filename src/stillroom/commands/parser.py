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


@contextmanager
def named_as_typed(*options: str) -> Iterator[None]:
    """Input errors about these parameters name them as people type them: `tolerance` becomes `--tolerance`."""
    try:
        yield
    except InputError as error:
        if error.argument not in options:
            raise
        raise InputError(f"--{error.argument.replace('_', '-')}", error.got, error.expected) from error
