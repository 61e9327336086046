"""DistillBEV on made-up streets: a camera detector alone, with the plain distance of the last maps, and with DistillBEV.

    python experiments/distillbev.py

Runs `stillroom run distillbev` and writes `results/distillbev.json` from the run's `metrics.json`. `distill_scale` is 0.3, the value of the
specification's own trial, not chosen on these streets. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, side, write

FIGURES = {"mAP": "mAP, %", "AP1m": "AP at 1 m, %", "translation": "translation error, m"}
REACH = "[-16,-16,-1,16,16,5]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--train", type=int, default=160, help="streets to train on")
    parser.add_argument("--arms", default="mse+distillbev")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/distillbev"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/distillbev.json"))
    asked = parser.parse_args()
    words = ["--data", f"streets:train={asked.train},val=80,cameras=4,reach=14", "--reach", REACH, "--seeds", str(asked.seeds)]
    words += [
        "--epochs",
        str(asked.epochs),
        "--teacher-epochs",
        "12",
        "--arms",
        asked.arms,
        "--distill-scale",
        "0.3",
        "--accelerator",
        "cpu",
    ]
    subprocess.run(["stillroom", "run", "distillbev", *words, "--accelerator", "cpu", "--out", str(asked.runs)], check=True)
    stages: Mapping[str, Any] = json.loads((asked.runs / "metrics.json").read_text())["stages"]
    found: dict[str, Numbers] = {}
    for arm, results in stages.items():
        numbers = {name: {one["seed"]: one["metrics"][figure] for one in results} for figure, name in FIGURES.items()}
        found[f"streets: {arm}"] = {**numbers, "seconds": {one["seed"]: one["seconds"] for one in results}}
    said = []
    for over in ("alone", *(arm for arm in asked.arms.split("+") if arm != "distillbev")):
        word, change, spread = side(found["streets: distillbev"]["mAP, %"], found[f"streets: {over}"]["mAP, %"], "not to be told from")
        said.append(f"distillbev is {word} {over} ({change:+.1f} +- {spread:.1f} points of mAP)")
    setting = {
        "streets": f"{asked.train} made-up streets with 4 cameras of 48 x 96 pixels to train on and 80 to measure, 32 x 32 m, 3 classes; "
        f"{asked.epochs} epochs of batches of 8, AdamW, one cycle of 2e-3",
        "networks": "CenterPoint on pillars of 0.5 m teaches a small BEVDet; the paper's weights times 0.3",
    }
    command = f"python experiments/distillbev.py --seeds {asked.seeds} --epochs {asked.epochs} --train {asked.train} --arms {asked.arms}"
    write(asked.out, "distillbev", command, list(range(asked.seeds)), found, f"streets: {'; '.join(said)}.", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
