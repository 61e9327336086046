"""Writes `results/METHOD.json` from a finished run:  python experiments/from_run.py runs/dkd results/dkd.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from record import write


def main(run: Path, out: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    arms: dict[str, dict[str, dict[int, float]]] = {}
    for arm, stages in found["stages"].items():
        for stage in stages:
            numbers = {**stage["metrics"], "best top1": stage["best"].get("top1", stage["metrics"]["top1"]), "seconds": stage["seconds"]}
            for metric, value in numbers.items():
                arms.setdefault(arm, {}).setdefault(metric, {})[stage["seed"]] = value
    seeds = sorted({stage["seed"] for stages in found["stages"].values() for stage in stages})
    write(out, found["method"], found["command"], seeds, arms, found["headline"], found["settings"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
