"""Writes what a finished run measured to `results/`:  python experiments/from_run.py runs/dkd results/dkd.json [NOTE ...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from record import write

Arms = dict[str, dict[str, dict[int, float]]]  # arm -> metric -> seed -> value


def arms_of(found: dict[str, Any], group: str = "") -> Arms:
    """Every number of a run's `metrics.json`; the arms' names begin with the group, if there is one."""
    primary, arms = found["primary"], Arms()
    for arm, stages in found["stages"].items():
        for stage in stages:
            best = stage["best"].get(primary, stage["metrics"][primary])
            numbers = {**stage["metrics"], f"best {primary}": best, "seconds": stage["seconds"]}
            for metric, value in numbers.items():
                arms.setdefault(f"{group}: {arm}" if group else arm, {}).setdefault(metric, {})[stage["seed"]] = value
    return arms


def main(run: Path, out: Path, notes: list[str]) -> None:
    """Writes `out`."""
    found = json.loads((run / "metrics.json").read_text())
    arms = arms_of(found)
    seeds = sorted({stage["seed"] for stages in found["stages"].values() for stage in stages})
    versions = found["versions"]
    write(
        out,
        found["method"],
        found["command"],
        seeds,
        arms,
        found["headline"],
        found["settings"],
        measured_on=f"{versions['machine']}; torch {versions['torch']}",  # the run's, not this process's
        day=found["finished"][:10],
        notes=notes,
        comparison={name: found[name] for name in ("primary", "teacher", "baseline")},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
