"""Kills runs for real, at random moments, and compares what they end with with runs that were left alone.

    python tests/torture/kill.py [--kills 20] [--seed 0]

Three recipes: KD, DOT with CRD's losses, and DKD from a teacher's cache that is built first. After each kill every file must be readable
and whatever was finished untouched; what was killed is then started again by the same command. At the end metrics, weights and stored
answers must equal those of an uninterrupted run. Prints a table; leaves with 1 when anything was violated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from stillroom.engine.weights import read_weights

if TYPE_CHECKING:
    from tests.processes import Process

    Running = subprocess.Popen[str] | Process

# Twelve steps make an epoch, with a checkpoint after the third, sixth, ninth and last.
JOB = ["--data", "digits", "--subset", "200", "--val-subset", "60", "--batch-size", "16", "--epochs", "8"]
JOB += ["--checkpoint-steps", "3", "--accelerator", "cpu"]
CRD_DOT = ["--host", "crd", "--host-options", '{"negatives": 32}']
DIFFERENT = {"seconds", "samples_per_second", "latency_ms", "started", "finished", "resumed", "out", "command"}
PATIENCE = 120


@dataclass(frozen=True)
class Recipe:
    """Commands that are run one after the other in a folder of their own; the last one leaves its run in `run` there."""

    name: str
    commands: tuple[tuple[str, ...], ...]


RECIPES = (
    Recipe("kd", (("run", "kd", *JOB, "--out", "run"),)),
    Recipe("dot:crd", (("run", "dot", *JOB, *CRD_DOT, "--out", "run"),)),
    Recipe("cache, dkd", (("cache", *JOB, "--out", "cache"), ("run", "dkd", *JOB, "--teacher", "cache:cache", "--out", "run"))),
)


def start(arguments: list[str] | tuple[str, ...], folder: Path | None = None) -> subprocess.Popen[str]:
    """`stillroom` in a process of its own, in `folder`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    command = [sys.executable, "-m", "stillroom.cli", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**kept, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=-1
    )


def kill(running: Running) -> None:
    """SIGKILL, and wait for the end."""
    running.kill()
    running.communicate(timeout=60)


def wait_for(running: Running, what: Callable[[], Any], still: Any = None) -> Any:
    """What `what` answers once that is true and not `still`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = what()
        if answer and answer != still:
            return answer
        if running.poll() is not None:
            raise AssertionError(f"the run ended before it could be killed: {running.communicate()[0][-2000:]}")
        time.sleep(0.002)
    kill(running)
    raise AssertionError("the run never came to where it was to be killed")


def changed(path: Path) -> int:
    """When a file was last written; 0 before it is there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # renamed or removed by the run meanwhile
        return 0


def kill_in(running: Running, stage: Path, checkpoints: int, delay: float) -> None:
    """Kills a run that has just been started, in `stage`, some moments after a number of its checkpoints were seen."""
    try:
        wait_for(running, (stage / "stage.json").exists)
        seen = changed(stage / "last.ckpt")
        for _ in range(checkpoints):
            seen = wait_for(running, lambda: changed(stage / "last.ckpt"), still=seen)
        time.sleep(delay)
    finally:
        kill(running)
    assert not json.loads((stage / "stage.json").read_text())["finished"], "the kill came too late to test anything"


def comparable(metrics: Any) -> Any:
    """`metrics` without times, dates and the run's own place."""
    if isinstance(metrics, dict):
        return {name: comparable(value) for name, value in metrics.items() if name not in DIFFERENT}
    return [comparable(value) for value in metrics] if isinstance(metrics, list) else metrics


def differences(whole: Path, killed: Path) -> list[str]:
    """What a run that was killed ended with and one that was left alone did not; `whole` and `killed` are the runs' folders."""
    found = []
    expected, metrics = (json.loads((out / "metrics.json").read_text()) for out in (whole, killed))
    if comparable(metrics) != comparable(expected):
        found.append("metrics.json differs")
    weights, others = read_weights(whole / "student.safetensors"), read_weights(killed / "student.safetensors")
    if weights.keys() != others.keys() or not all(value.equal(others[name]) for name, value in weights.items()):
        found.append("student.safetensors differs")
    return found


def unreadable(folder: Path) -> list[str]:
    """The files below `folder`, temporary ones aside, that cannot be read."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".safetensors": read_weights,
        ".ckpt": lambda path: torch.load(path, map_location="cpu", weights_only=False),  # our own
        ".npz": lambda path: dict(np.load(path)),
        ".npy": lambda path: np.load(path, mmap_mode="r"),
    }
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in readers and path.is_file() and not path.name.startswith("."):
            try:
                readers[path.suffix](path)
            except Exception as error:  # whatever a reader says about a damaged file
                found.append(f"{path.relative_to(folder)} cannot be read ({error})")
    return found


class Progress:
    """What was done in a folder: finished stages, and the answers that a cache holds."""

    def __init__(self, folder: Path) -> None:
        self.stages: dict[str, int] = {}
        self.current = ""
        self.answers = 0
        for path in sorted(folder.rglob("stage.json"), key=changed):
            name = path.parent.relative_to(folder).as_posix()
            if json.loads(path.read_text())["finished"]:
                self.stages[name] = changed(path)
            else:
                self.current = name
        if (folder / "cache/cache.json").exists():
            self.answers = json.loads((folder / "cache/cache.json").read_text())["done"]

    def lost(self, later: Progress) -> list[str]:
        """What was done and, in `later`, was done again or is no more."""
        found = [f"{stage} was finished and redone" for stage, when in self.stages.items() if later.stages.get(stage) != when]
        return found + [f"{self.answers - later.answers} stored answers were lost"] * (later.answers < self.answers)


class Victim:
    """A recipe in a folder, started, killed and started again."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        folder.mkdir()
        self.worked = 0.0  # seconds, without what passes before something is written

    def run(self, seconds: float | None = None, *, from_start: bool = False) -> bool:
        """Runs the commands; kills the one that runs after so many seconds of work. Answers whether it was killed.

        Args:
            seconds: None to leave it alone.
            from_start: the seconds begin with the first process, not with what it first writes.
        """
        left = seconds
        for command in self.recipe.commands:
            running = start(command, self.folder)
            begun, before = time.monotonic(), self._state()
            while running.poll() is None:
                if not from_start and self._state() == before:
                    begun = time.monotonic()  # still importing, or reading what is done
                elif left is not None and time.monotonic() - begun > left:
                    kill(running)
                    return True
                time.sleep(0.005)
            output, _ = running.communicate()
            if running.returncode:
                raise AssertionError(f"stillroom {' '.join(command)}: exit code {running.returncode}: {output[-2000:]}")
            self.worked += time.monotonic() - begun
            if left is not None:
                left -= time.monotonic() - begun
        return False

    def _state(self) -> int:
        """Changes when something is written."""
        return max((changed(path) for path in self.folder.glob("**/*")), default=0)


def torture(recipe: Recipe, kills: int, chance: random.Random, root: Path) -> list[tuple[str, ...]]:
    """Kills a recipe that often. A row for each kill: moment, where it was, what was done, and what was violated."""
    whole = Victim(recipe, root / "whole")
    whole.run()
    rows: list[tuple[str, ...]] = []
    victim, before = Victim(recipe, root / "killed0"), None

    def conclude() -> list[str]:
        wrong = differences(whole.folder / "run", victim.folder / "run") + unreadable(victim.folder)
        for rows_file in sorted((whole.folder / "cache").glob("rows/*.npy")):
            if rows_file.read_bytes() != (victim.folder / rows_file.relative_to(whole.folder)).read_bytes():
                wrong.append(f"{rows_file.name} differs")
        return wrong

    number = 0
    while number < kills:
        from_start = chance.random() < 0.15
        seconds = chance.random() * (8 if from_start else 2 * whole.worked / kills)
        killed = victim.run(seconds, from_start=from_start)
        wrong = unreadable(victim.folder)
        now = Progress(victim.folder)
        wrong += before.lost(now) if before else []
        before = now
        if not killed:  # it came to its end first: compared, and begun anew
            rows.append((recipe.name, "-", "", "ran to its end", str(len(now.stages)), "; ".join(wrong + conclude()) or "equal"))
            victim, before = Victim(recipe, root / f"killed{len(rows)}"), None
            continue
        number += 1
        moment = f"{seconds:.2f} s after {'its start' if from_start else 'its first write'}"
        rows.append((recipe.name, str(number), moment, now.current or "between stages", str(len(now.stages)), "; ".join(wrong) or "fine"))
    victim.run()
    wrong = conclude() + (before.lost(Progress(victim.folder)) if before else [])
    stages = str(len(Progress(victim.folder).stages))
    rows.append((recipe.name, "-", "", "ran to its end", stages, "; ".join(wrong) or "equal"))
    return rows


def main() -> int:
    """Prints a table; answers 1 when something was violated."""
    parser = argparse.ArgumentParser(description="SIGKILL at random moments, then compare with uninterrupted runs.")
    parser.add_argument("--kills", type=int, default=20, help="in all, spread over three recipes (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    asked = parser.parse_args()
    chance, violated = random.Random(asked.seed), False
    line = "{:<11} {:>4}  {:<27} {:<24} {:>6}  {}"
    print(line.format("recipe", "kill", "moment", "in", "stages", "verdict"))
    for i, recipe in enumerate(RECIPES):
        share = (asked.kills * (i + 1)) // len(RECIPES) - (asked.kills * i) // len(RECIPES)
        with tempfile.TemporaryDirectory() as root:
            for row in torture(recipe, share, chance, Path(root)):
                violated |= row[-1] not in ("fine", "equal")
                print(line.format(*row), flush=True)
    print("violated" if violated else f"{asked.kills} kills: nothing lost, nothing redone, nothing differs")
    return int(violated)


if __name__ == "__main__":
    sys.exit(main())
