"""The folder of a run: whose it is, which arguments it was started with, and that nothing in it is lost by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from stillroom.engine.plain import read_yaml
from stillroom.engine.run.stage import StageFolder
from stillroom.engine.run.written import RECORD, Record, remove, write_atomic
from stillroom.errors import InputError

# What may change between a run and its continuation without changing its numbers.
_FREE_TO_CHANGE = {
    *("accelerator", "accept_teacher", "checkpoint_seconds", "checkpoint_steps", "devices", "lost_seconds", "num_nodes"),
    *("out", "overwrite", "seeds", "strategy", "strict", "trust_code", "trust_pickle", "workers"),
    # of a comparison: each method with its options has a stage of its own
    *("jobs", "methods", "options"),
    # of a search: one that is asked for more trials goes on
    *("budget", "storage", "trials"),
    "export",  # of a bank of labels: it is no part of what it is, and may be asked for once it is finished
}


class RunFolder:
    """Looked at when a run is prepared, written to only once its first stage begins: wrong input leaves nothing behind.

    Args:
        path: the folder.
        settings: every argument of the run; empty for one that was put together in Python.
        overwrite: discard what an earlier run left.
        main: whether this process is the one that writes: of several, the others may come when it has begun.

    Raises:
        InputError: there is a run with other arguments (the message says which); or `overwrite`, and it is no run's folder; or a file
            that Stillroom did not write is in the way; or it cannot be a folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool, main: bool = True) -> None:
        self.path, self.overwrite = path, overwrite
        self.settings = {name: _plain(value) for name, value in settings.items() if name != "overwrite"}
        self.config = path / "config.yaml"
        self._begun = False
        if main:
            self._check()

    @property
    def discards(self) -> bool:
        """Whether what lies in it is an earlier run's, which will be cleared away when this one begins."""
        return self.overwrite and not self._begun

    def begin(self) -> None:
        """Makes the folder, clears it of an earlier run if that was asked for, and writes `config.yaml`. Does nothing the second time."""
        if self._begun:
            return
        try:
            if self.overwrite and self.path.exists():
                self._discard()
            self.path.mkdir(parents=True, exist_ok=True)
            (Record.of(self.path) or Record(self.path)).begin()
            text = yaml.safe_dump(self.settings, sort_keys=False)
            # Trainings of one run that go on side by side find it as it should be, and leave it alone.
            if self.settings and not (self.config.exists() and self.config.read_text() == text):
                write_atomic(self.config, text)
        except OSError as error:
            raise InputError("--out", str(self.path), f"a folder that can be written ({error.strerror})") from None
        self._begun = True

    def _discard(self) -> None:
        """Removes what the record lists, and nothing else that may lie in the folder; nothing at all where a stage is at work."""
        record = Record.of(self.path)
        if record is None:
            return
        with ExitStack() as stages:
            for name in record.marks:
                if name.endswith("/stage.json") and (self.path / name).exists():
                    stages.enter_context(StageFolder((self.path / name).parent).taken())
            files = record.present()
            record.refuse_in_the_way()
            remove([*files, self.path / RECORD], self.path)

    def _check(self) -> None:
        for parent in (self.path, *self.path.parents):
            if parent.exists():
                if not parent.is_dir():
                    raise InputError("--out", str(self.path), f"a folder ({parent} is a file)")
                break
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        record = Record.of(self.path)
        if self.overwrite:
            if record is None:
                raise InputError("--out", str(self.path), "a folder that Stillroom wrote, or a new one: --overwrite discards nothing else")
            record.present()
        if self.overwrite or record is None:
            (record or Record(self.path)).refuse_in_the_way()
        elif self.settings and self.config.exists():
            self._check_settings()

    def _check_settings(self) -> None:
        if (before := read_settings(self.config)) is None:
            raise InputError("--out", f"{self.path}, whose config.yaml cannot be read", "another folder, or --overwrite")
        if changed := _changed(before, self.settings):
            got = f"{self.path}, which holds a run with other arguments ({'; '.join(changed)})"
            raise InputError("--out", got, "another folder, or --overwrite")


def numbered(out: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of a command that was given none: `out`, or with a number behind it, `out-2`, where `out` holds something else.

    Args:
        out: the usual one.
        settings: every argument of the run. The folder of a run that was started with them is found again.
    """
    mine = {name: _plain(value) for name, value in settings.items()}
    for number in count(1):
        path = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return path
        if (path / "config.yaml").exists():
            before = read_settings(path / "config.yaml")
            if before is not None and not _changed(before, mine):
                return path
        elif (path / RECORD).exists():  # another process of this run has just begun it
            return path
    raise AssertionError("there is always a next number")


def read_settings(config: Path) -> dict[str, Any] | None:
    """What a `config.yaml` says; None where it cannot be read."""
    try:
        before = read_yaml(config)
    except (OSError, ValueError):
        return None
    return before if isinstance(before, dict) else None


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in {**before, **now}
        if name not in _FREE_TO_CHANGE and before.get(name) != now.get(name)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)
