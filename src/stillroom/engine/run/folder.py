"""The folder of a run: whose it is, which arguments it was started with, and that nothing in it is lost by mistake."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from stillroom.engine.run.stage import StageFolder, write_atomic
from stillroom.errors import InputError

# What may change between a run and its continuation without changing its numbers.
_FREE_TO_CHANGE = {
    *("accelerator", "checkpoint_seconds", "checkpoint_steps", "devices", "num_nodes"),
    *("out", "overwrite", "seeds", "strategy", "strict", "trust_pickle", "workers"),
    # of a comparison: each method with its options has a stage of its own
    *("jobs", "methods", "options"),
}

_WRITTEN = ("config.yaml", "metrics.json", "report.html", "student.json", "student.safetensors", "student", "logs")


class RunFolder:
    """Looked at when a run is prepared, written to only once its first stage begins: wrong input leaves nothing behind.

    Args:
        path: the folder.
        settings: every argument of the run; empty for one that was put together in Python.
        overwrite: discard what an earlier run left.

    Raises:
        InputError: there is a run with other arguments (the message says which); or `overwrite`, and it is no run's folder; or it
            cannot be a folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.settings = {name: _plain(value) for name, value in settings.items() if name != "overwrite"}
        self.config = path / "config.yaml"
        self._begun = False
        self._check()

    def begin(self) -> None:
        """Makes the folder, clears it of an earlier run if that was asked for, and writes `config.yaml`. Does nothing the second time."""
        if self._begun:
            return
        try:
            if self.overwrite and self.path.exists():
                self._discard()
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.settings, sort_keys=False)
            # Trainings of one run that go on side by side find it as it should be, and leave it alone.
            if self.settings and not (self.config.exists() and self.config.read_text() == text):
                write_atomic(self.config, text)
        except OSError as error:
            raise InputError("--out", str(self.path), f"a folder that can be written ({error.strerror})") from None
        self._begun = True

    def _discard(self) -> None:
        """Removes what runs write, and nothing else that may lie in the folder."""
        for record in list(self.path.glob("**/stage.json")):
            stage = StageFolder(record.parent)
            with stage.taken():
                stage.clear()
        for name in _WRITTEN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for folder in self.path.glob("seed*"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _check(self) -> None:
        for parent in (self.path, *self.path.parents):
            if parent.exists():
                if not parent.is_dir():
                    raise InputError("--out", str(self.path), f"a folder ({parent} is a file)")
                break
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if self.overwrite:
            if not self.config.exists() and not any(self.path.glob("**/stage.json")):
                raise InputError("--out", str(self.path), "a folder that Stillroom wrote, or a new one: --overwrite discards nothing else")
            return
        if self.settings and self.config.exists():
            self._check_settings()

    def _check_settings(self) -> None:
        try:
            before = yaml.safe_load(self.config.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            before = None
        if not isinstance(before, dict):
            raise InputError("--out", f"{self.path}, whose config.yaml cannot be read", "another folder, or --overwrite")
        changed = [
            f"--{name.replace('_', '-')} was {before.get(name)!r}, now {self.settings.get(name)!r}"
            for name in {**before, **self.settings}
            if name not in _FREE_TO_CHANGE and before.get(name) != self.settings.get(name)
        ]
        if changed:
            got = f"{self.path}, which holds a run with other arguments ({'; '.join(changed)})"
            raise InputError("--out", got, "another folder, or --overwrite")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)
