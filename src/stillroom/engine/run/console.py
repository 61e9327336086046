"""What a run says on the terminal: a progress bar where there is one, plain lines where there is not. Nothing else speaks."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stillroom.errors import explained, printable

_LIGHTNING = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


class EscapingConsole(Console):
    """Shows what steers a terminal escaped, whoever called a class or a file so; and goes on without one that is gone."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of a text that came from anywhere."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more what is said; what is worked on is not lost for that, as it would be by rich's exit."""
        self.quiet = True
        say_nothing()


console = EscapingConsole(highlight=False, soft_wrap=True)


def say_nothing() -> None:
    """From here on what goes to stdout goes nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or none
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def tell(line: str) -> None:
    """A line on stdout; of no consequence where nobody reads it any more."""
    try:
        print(line, flush=True)
    except (BrokenPipeError, ValueError):  # gone, or closed
        say_nothing()


@contextmanager
def quiet_loggers(names: Iterable[str], level: int) -> Iterator[None]:
    """Inside, these loggers say nothing below a level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps Lightning's banners and tips, and warnings that a user cannot act on, off the terminal."""
    hook = threading.excepthook
    # TensorBoard's thread meets a full disk first; the main thread will meet it too, and say so in one line.
    threading.excepthook = lambda failed: None if failed.exc_value is not None and explained(failed.exc_value) else hook(failed)
    try:
        with quiet_loggers(_LIGHTNING, logging.ERROR), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torch\.utils\.data\..*")
            warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec|LeafSpec|pin_memory|num_workers|barrier\(\)).*")
            yield
    finally:
        threading.excepthook = hook


class StageDisplay:
    """One stage on the terminal.

    Args:
        title: e.g. "distilled, seed 0".
        silent: for every process but the first.
    """

    def __init__(self, title: str, *, silent: bool = False) -> None:
        self.title, self.silent = title, silent
        self._bar: Progress | None = None
        self._task: Any = None
        self._epochs = 0
        self._done = 0
        self._length = 0

    def say(self, text: str) -> None:
        """One line."""
        if not self.silent:
            console.print(f"{self.title}: {text}", markup=False)

    def start(self, epochs: int, length: int, history: list[dict[str, float]], continued: int) -> None:
        """The stage begins, or goes on after `len(history)` epochs."""
        self._epochs, self._length, self._done = epochs, length, len(history)
        if continued:
            self.say(f"goes on in epoch {min(len(history) + 1, epochs)} of {epochs}")
        if console.is_terminal and not self.silent:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self.title, total=epochs * length, completed=len(history) * length)
            self._bar.start()

    @contextmanager
    def counting(self, total: int) -> Iterator[Callable[[int, int], None]]:
        """The stage is no training: inside, what this gives is to be told how much of `total` is done."""
        self.start(1, total, [], 0)
        try:
            yield lambda done, _: self.step(done)
        finally:
            self.stop()

    def step(self, done: int) -> None:
        """`done` batches of the current epoch are through."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done * self._length + done)

    def epoch(self, line: dict[str, float], primary: str) -> None:
        """An epoch is through."""
        epoch = self._done = int(line["epoch"])
        losses = "  ".join(f"{name[6:]} {value:.4f}" for name, value in line.items() if name.startswith("train/"))
        text = f"epoch {epoch}/{self._epochs}  {losses}  {primary} {line[f'val/{primary}']:.2f}  {line['seconds']:.1f} s"
        every = max(1, self._epochs // 10)
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.title}: {primary} {line[f'val/{primary}']:.2f}")
        if (self._bar is None and (epoch % every == 0 or epoch in (1, self._epochs))) or epoch == self._epochs:
            self.say(text)

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
