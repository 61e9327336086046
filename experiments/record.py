"""Writes what an experiment measured: every seed's numbers, their mean and spread, on which machine, and the verdict."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t

from stillroom.engine.run.written import write_atomic

Numbers = Mapping[str, Mapping[int, float]]  # metric -> seed -> value


def hardware() -> str:
    """The machine in one line."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    device = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used{device}; torch {torch.__version__}"


def summary(values: Mapping[int, float]) -> dict[str, object]:
    """Every seed's number with mean and sample standard deviation."""
    numbers = list(values.values())
    spread = stdev(numbers) if len(numbers) > 1 else None
    return {"seeds": {str(seed): value for seed, value in values.items()}, "mean": mean(numbers), "std": spread}


def paired(arm: Mapping[int, float], over: Mapping[int, float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the difference `arm - over`, seed by seed."""
    differences = [value - over[seed] for seed, value in arm.items()]
    return mean(differences), stdev(differences)


def is_clear(change: float, spread: float, count: int) -> bool:
    """Whether the 95 % interval of the mean of so many paired differences leaves out 0, by Student's t; never with fewer than two."""
    return count > 1 and abs(change) > t.ppf(0.975, count - 1) * spread / count**0.5


def side(arm: Mapping[int, float], over: Mapping[int, float], level: str) -> tuple[str, float, float]:
    """Where an arm lies against another: "above", "below", or `level` where the seeds cannot tell; and what `paired` says."""
    change, spread = paired(arm, over)
    return ("above" if change > 0 else "below") if is_clear(change, spread, len(arm)) else level, change, spread


def apart(found: Mapping[str, Numbers], group: str, arm: str, other: str, metric: str) -> str:
    """How far two arms of a group are apart, in words made from the numbers. One that has a single seed is compared by it with all."""
    numbers, theirs = (found[f"{group}: {name}"][metric] for name in (arm, other))
    theirs = {seed: theirs.get(seed, next(iter(theirs.values()))) for seed in numbers}
    points = f"points of {metric.removesuffix(', %')}"
    if len(numbers) == 1:
        ((seed, value),) = numbers.items()
        return f"{arm} has {value - theirs[seed]:+.1f} {points} over {other}, one seed"
    word, change, spread = side(numbers, theirs, "not to be told from")
    return f"{arm} is {word} {other} ({change:+.1f} +- {spread:.1f} {points})"


def write(
    path: Path,
    method: str,
    command: str,
    seeds: Sequence[int],
    arms: Mapping[str, Numbers],
    verdict: str,
    setting: Mapping[str, object],
    *,
    measured_on: str | None = None,
    day: str | None = None,
    notes: Sequence[str] = (),
    comparison: Mapping[str, object] | None = None,
    only: bool = False,
) -> None:
    """Writes `results/METHOD.json`.

    Args:
        measured_on, day: where the numbers were not measured by this process, today.
        notes: what is to be known besides.
        comparison: what a run compares: its primary metric, teacher and baseline.
        only: some of the groups were measured now, named "group: arm"; what the file holds of others stays, and their sentences of the
            verdict, which begin with the group's name.
    """
    content: dict[str, Any] = {
        "method": method,
        "command": command,
        "seeds": list(seeds),
        "setting": dict(setting),
        "arms": {arm: {metric: summary(values) for metric, values in numbers.items()} for arm, numbers in arms.items()},
        "hardware": measured_on or hardware(),
        "date": day or date.today().isoformat(),
        "notes": list(notes),
        "verdict": verdict,
        **({} if comparison is None else {"comparison": dict(comparison)}),
    }
    if only and path.exists():
        content = _joined(json.loads(path.read_text(encoding="utf-8")), content)
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Results of other groups, and new ones in the place of those that were measured again."""
    measured = {arm.partition(":")[0] for arm in new["arms"]}
    arms = {arm: numbers for arm, numbers in old["arms"].items() if arm.partition(":")[0] not in measured}
    sentences = [text for text in re.split(r"(?<=\.) (?=\w[^:.]*: )", old["verdict"]) if text.partition(":")[0] not in measured]
    commands = dict.fromkeys([*old["command"].splitlines(), *new["command"].splitlines()])
    return {
        **old,
        **new,
        "command": "\n".join(commands),
        "hardware": "\n".join(dict.fromkeys([*old["hardware"].splitlines(), new["hardware"]])),
        "seeds": sorted({*old["seeds"], *new["seeds"]}),
        "setting": {**old["setting"], **new["setting"]},
        "arms": {**arms, **new["arms"]},
        "notes": list(dict.fromkeys([*old["notes"], *new["notes"]])),
        "verdict": " ".join([*sentences, new["verdict"]]),
    }
