"""The command line. Thin: picks the command, prints what went wrong. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from stillroom import catalog
from stillroom._version import __version__
from stillroom.commands.parser import Parser
from stillroom.errors import InputError, Interrupted, Lost, StillroomError, explained, printable

# Each is a module of `stillroom.commands`, underscores for dashes, with a function `run(arguments, command)`; it is imported when it is
# asked for.
COMMANDS = {
    "run": "a method's whole experiment: teacher, student alone, student distilled, report",
    "plan": "what a run would do, how long it would take, and what it needs; nothing is written",
    "compare": "several methods on equal terms: one teacher, the same students, data and budget",
    "tune": "search a method's options; the winner as a configuration, and its score on data that the search never saw",
    "cache": "store a teacher's answers, to train from without the teacher",
    "cache-labels": "store a teacher's soft labels of many crops of each image",
    "students": "networks that could be the student of your data, and what each costs on this machine",
    "report": "one page of several runs: a table, gains, and what accuracy costs",
    "export": "a run's student as ONNX, torch.export or described safetensors, checked",
    "predict": "what a run's student says about images",
    "refine-boxes": "the inaccurate boxes of a set made better, without a true one",
    "noise-boxes": "a file of boxes made inaccurate on purpose",
    "shrink-clip": "a smaller CLIP from yours, by pairs of images and texts",
    "label-3d": "boxes, tracks and names in lidar sequences that nobody labelled",
    "make-composites": "photos whose foreground has other colours, to train harmonization on",
}


_WIDEST = 100  # columns of the list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for wrong input, 3 for a loss that is not finite, 130 when interrupted."""
    arguments = [_HOME.sub(lambda found: found[1] + os.path.expanduser("~"), word) for word in (sys.argv[1:] if argv is None else argv)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where it knows fewer letters than a name has, these are escaped
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Escaping())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data, palettes and the like that do not hinder reading
        alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if alone:
            signal.signal(signal.SIGTERM, _stop)
        try:
            code = _run(arguments)
        finally:
            if alone:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):  # nobody reads it any more: what was to be done is done
        from stillroom.engine.run.console import say_nothing

        say_nothing()
    return code


_HOME = re.compile(r"^(--[\w-]+=|)~(?=/|$)")  # which a shell leaves as it is behind =


class _Escaping(logging.Formatter):
    """Warnings, with names as they can be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return printable(super().format(record))


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] and arguments[0] in COMMANDS:
            command = importlib.import_module(f"stillroom.commands.{arguments[0].replace('-', '_')}")
            command.run(arguments[1:], f"stillroom {shlex.join(arguments)}")
        else:
            _parser().parse_args(arguments)
            _list()
    except Exception as error:
        told = error if isinstance(error, StillroomError) else explained(error) or _lost(error) or _blamed(error, arguments)
        _leave_others(stopped=isinstance(told, Interrupted))
        if told is None:
            raise
        if _speaks() or not isinstance(told, Interrupted):
            print(f"stillroom: {printable(' '.join(str(told).split()))}", file=sys.stderr)
        return told.exit_code
    except KeyboardInterrupt:
        _leave_others(stopped=True)
        if _speaks():
            print("stillroom: stopped", file=sys.stderr)
        return 130
    return 0


def _speaks() -> bool:
    """Whether this process says what was asked of all those on its machine that train together: that they end."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def _lost(error: Exception) -> Lost | None:
    """Who of those that train together with this process is gone, where a call among them failed for that."""
    watching = sys.modules.get("stillroom.engine.run.watch")
    found: Lost | None = None if watching is None else watching.watch.who_is_gone(error)
    if watching is not None and found is not None:
        watching.watch.leave(found.exit_code, str(found))  # not by the way out, which may wait for the one that is gone
    return found


def _leave_others(*, stopped: bool) -> None:
    """Tells those that train together with this process that it ends."""
    if (watching := sys.modules.get("stillroom.engine.run.watch")) is not None:
        watching.watch.leave_others(stopped=stopped)


def _stop(number: int, frame: object) -> None:
    """SIGTERM is answered as Ctrl-C is."""
    raise KeyboardInterrupt


def _blamed(error: Exception, arguments: Sequence[str]) -> InputError | None:
    """What a user is told of an error whose cause is a file of a run's or a cache's folder that somebody or some disk altered."""
    from stillroom.engine.run.written import altered_below

    words = [part for word in arguments for part in re.split("[=:@]", word)]
    for place in (Path(word) for word in dict.fromkeys(words) if word and not word.startswith("-")):
        for folder in (place, *place.parents)[:4]:
            if (file := altered_below(folder)) is not None:
                reason = " ".join(str(error).split())[:100]
                return InputError(
                    str(folder), f"{file}, which is not as Stillroom wrote it ({type(error).__name__}: {reason})", "it unaltered"
                )
    return None


def _parser() -> Parser:
    parser = Parser(prog="stillroom", description="Knowledge distillation on PyTorch, paper by paper.")
    parser.add_argument("--version", action="version", version=f"stillroom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("list", help="the methods: paper, task, what was verified")
    for name, says in COMMANDS.items():
        commands.add_parser(name, help=says, add_help=False)
    return parser


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=5)
    table.add_column(overflow="fold", ratio=3)
    usable = [method for method in catalog.METHODS if method.room]
    for task in dict.fromkeys(method.task for method in usable):
        table.add_row(f"[bold]{task}[/bold]", "", "[dim]verified against[/dim]")
        for method in usable:
            if method.task == task:
                table.add_row(f"  {method.name}", method.paper, method.verified)
    planned = [method for method in catalog.METHODS if not method.room]
    if planned:
        table.add_row("[bold]planned[/bold]", "", "[dim]task[/dim]")
    for method in planned:
        table.add_row(f"  {method.name}", method.paper, method.task, style="dim")
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST) if console.is_terminal else _WIDEST
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
