"""RDD on made-up streets: the compact detector alone, with hints on the whole map, and with RDD.

    python experiments/rdd.py                # about 5 minutes of one quiet core

Runs `stillroom run rdd` and writes `results/rdd.json` from the run's own `metrics.json` and its students. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from record import Numbers, apart, write

FIGURES = {"mAP": "mAP, %", "AP1m": "AP at 1 m, %", "translation": "translation error, m"}
REACH = "[-12.8,-12.8,-1,12.8,12.8,5]"


def measured(out: Path, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run."""
    subprocess.run(["stillroom", "run", *words, "--accelerator", "cpu", "--out", str(out)], check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for arm, results in stages.items():
        found[arm] = {name: {one["seed"]: one["metrics"][figure] for one in results} for figure, name in FIGURES.items()}
        if results[0]["seconds"]:
            found[arm]["seconds"] = {one["seed"]: one["seconds"] for one in results}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--arms", default="rdd")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/rdd"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/rdd.json"))
    asked = parser.parse_args()
    words = [
        "rdd",
        *("--data", "streets:train=200,val=100,reach=12", "--reach", REACH, "--seeds", str(asked.seeds), "--arms", asked.arms),
        *("--epochs", str(asked.epochs), "--teacher-epochs", str(asked.epochs), "--mode", "ratio", "--proposals", "8"),
        *("--student", "stillroom/pillar-small-w0.25", "--feature-weight", "1", "--logit-weight", "1"),
    ]
    found: dict[str, Numbers] = {f"streets: {arm}": numbers for arm, numbers in measured(asked.runs / "streets", words).items()}
    arms = ["alone", *asked.arms.split("+")]
    said = [apart(found, "streets", "rdd", arm, "mAP, %") for arm in arms if arm != "rdd"]
    said += [apart(found, "streets", arm, "alone", "mAP, %") for arm in arms[1:] if arm != "rdd"]
    gap = np.mean(list(found["streets: teacher"]["mAP, %"].values())) - np.mean(list(found["streets: alone"]["mAP, %"].values()))
    said.append(f"the teacher is {gap:.1f} points above the student alone")
    setting = {
        "streets": f"200 made-up streets to train on and 100 to measure, 16 beams x 180 azimuths, 25.6 x 25.6 m, 3 classes; {asked.epochs} "
        "epochs of batches of 8, AdamW, one cycle of 3e-3",
        "networks": "CenterPoint on pillars of 0.4 m, 208 k parameters, teaches one of a quarter of the width",
        "RDD": "pairs by ratio 0.6, alpha 1 and 1, 8 proposals of each; hint: mean squared difference, weight 1",
    }
    command = f"python experiments/rdd.py --seeds {asked.seeds} --epochs {asked.epochs} --arms {asked.arms}"
    write(asked.out, "rdd", command, list(range(asked.seeds)), found, f"streets: {'; '.join(said)}.", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
