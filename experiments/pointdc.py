"""PointDC on made-up rooms: what clustering needs - 2D features, super-voxels, iterations - on rooms that training never saw.

    python experiments/pointdc.py                                # a quarter of an hour of one quiet core

Runs `stillroom run pointdc` with every arm on the same rooms, seed by seed: k-means on height, colour and slope of super-voxels; on the
features of the 2D teacher, a small stand-in that learned from the training rooms' pictures without labels; on the distilled features;
without super-voxels; without distillation; and the whole method. Writes `results/pointdc.json` from the run's own `metrics.json`. A run
that was killed goes on; further arms are added by naming them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, apart, write

from stillroom.cli import main as stillroom

FIGURES = ("mIoU", "oAcc", "mAcc")
GROUP = "rooms"


def measured(out: Path) -> dict[str, Numbers]:
    """By arm and figure: the numbers of every seed of a run."""
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    found: dict[str, Numbers] = {}
    for arm, results in stages.items():
        numbers = {f"{figure}, %": {one["seed"]: one["metrics"][figure] for one in results} for figure in FIGURES}
        seconds = {"seconds": {one["seed"]: one["seconds"] for one in results}} if results[0]["seconds"] else {}
        found[f"{GROUP}: {arm}"] = {**numbers, **seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rooms", type=int, default=24, help="to train on; half as many are measured with")
    parser.add_argument("--epochs", type=int, nargs=3, default=[12, 4, 6], help="of stages A, B and C")
    parser.add_argument("--arms", default="colour+lifted+cmd+points+scratch+svc")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/pointdc"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/pointdc.json"))
    asked = parser.parse_args()
    out = asked.runs / GROUP
    words = ["run", "pointdc", "--data", f"rooms:train={asked.rooms},val={asked.rooms // 2}", "--arms", asked.arms]
    first, second, third = map(str, asked.epochs)
    words += ["--epochs", first, "--warm-epochs", second, "--svc-epochs", third]
    words += ["--seeds", str(asked.seeds), "--accelerator", "cpu", "--out", str(out)]
    if stillroom(words):
        raise SystemExit("the run did not end")
    found = measured(out)
    names = asked.arms.split("+")
    pairs = [("svc", "cmd"), ("svc", "colour"), ("svc", "points"), ("svc", "scratch"), ("cmd", "points"), ("cmd", "lifted")]
    said = "; ".join(apart(found, GROUP, arm, other, "mIoU, %") for arm, other in pairs if arm in names and other in names)
    setting: dict[str, object] = {
        GROUP: f"{asked.rooms} made-up rooms to train on, {asked.rooms // 2} others measured, 8 classes, 6 posed pictures of 96 x 128; "
        f"voxels of 8 cm, super-voxels by VCCS and region growing; {first} epochs of stage A (Adam, 0.001), {second} of B, {third} of C "
        "with new clusters every 3 (SGD, 0.03), batches of 4; pyramid of widths 16, 32, 48, 64 to 48; the 2D teacher a stand-in of 4 "
        "convolutions, trained once for all seeds on the training rooms' pictures by VICReg"
    }
    command = f"python experiments/pointdc.py --seeds {asked.seeds} --rooms {asked.rooms} --epochs {' '.join(map(str, asked.epochs))}"
    command += f" --arms {asked.arms}"
    write(asked.out, "pointdc", command, list(range(asked.seeds)), found, f"rooms: {said}.", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
