"""Writes what comparisons of KD with the student alone measured to `results/kd.json`, each as a group of arms:

    python experiments/kd.py "flowers=runs/flowers" "flowers, 25 labels of each=runs/few-labels" "CIFAR-10=runs/cifar"

The runs are those of `experiments/flowers.py` and `experiments/cifar10.py`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import from_run
from record import write

_FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s\"',:]+/)+")  # of this machine, before names of files


def main(named: list[str]) -> None:
    runs = {name: Path(folder) for name, _, folder in (one.partition("=") for one in named)}
    found = {name: json.loads(_FOLDERS.sub("", (run / "metrics.json").read_text())) for name, run in runs.items()}
    arms = {arm: numbers for name, one in found.items() for arm, numbers in from_run.arms_of(one, name).items()}
    last = list(found.values())[-1]
    write(
        Path("results/kd.json"),
        "kd",
        "\n".join(one["command"] for one in found.values()),
        sorted({stage["seed"] for one in found.values() for stages in one["stages"].values() for stage in stages}),
        arms,
        "; ".join(f"{name}: {one['headline'].rstrip('.')}" for name, one in found.items()) + ".",
        {name: one["settings"] for name, one in found.items()},
        measured_on=f"{last['versions']['machine']}; torch {last['versions']['torch']}",
        day=last["finished"][:10],
        notes=["Taught students saw the crops of each image whose answers were stored, the student alone ever new ones."],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
