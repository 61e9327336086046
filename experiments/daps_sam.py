"""DAPS-SAM in rooms that are made up: do blocks that match maps to sounds help, and does the features' loss add to it?

    python experiments/daps_sam.py                                     # some ten minutes on a quiet core, and more for the voxels
    python experiments/daps_sam.py --rooms 1500 --epochs 15 --image_size 32      # the specification's size
    python experiments/daps_sam.py --rooms 240 --name short      # beside what the file holds, under names of their own

Runs `stillroom run daps-sam` for depth (arms a to f of the specification, and the control of as many parameters), for segmentation and
for voxels; writes `results/daps_sam.json` from the runs' own `metrics.json`. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, side, write

DEPTH = "interpolation+interpolation-mse+control+no-feature-loss+one-embedding+non-spatial+sam"
FIGURES = {
    "depth": ("MAE", "RMSE", "d1", "d2", "d3"),
    "segmentation": ("mIoU", "pixel accuracy", "class accuracy", "3IoU"),
    "occupancy": ("IoU", "IoU at 0.2", "Chamfer-L1", "normal consistency", "F-score"),
}
UNITS = {"MAE": "cm", "RMSE": "cm", "Chamfer-L1": "cubes"}
SCALES = {"MAE": 100, "RMSE": 100}


def named(figure: str) -> str:
    """With its unit."""
    return f"{figure}, {UNITS.get(figure, '%')}"


def measured(out: Path, target: str, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run."""
    command = ["stillroom", "run", "daps-sam", "--answer", target, *words, "--accelerator", "cpu", "--out", str(out)]
    subprocess.run(command, check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    return {
        arm: {
            **{
                named(figure): {one["seed"]: SCALES.get(figure, 1) * one["metrics"][figure] for one in results}
                for figure in FIGURES[target]
            },
            "parameters": {one["seed"]: one["footprint"]["parameters"] for one in results},
            "seconds": {one["seed"]: one["seconds"] for one in results},
        }
        for arm, results in stages.items()
    }


def over(found: Mapping[str, Numbers], figure: str, arm: str, other: str) -> str:
    """How far two arms of a group are apart, in words made from the numbers."""
    numbers, theirs = (found[name][figure] for name in (arm, other))
    if len(numbers) < 2:
        change = numbers[0] - theirs[0]
        return f"{arm} has {change:+.2f} {figure} over {other} in one seed"
    word, change, spread = side(numbers, theirs, "not to be told from")
    return f"{arm} is {word} {other} ({change:+.1f} +- {spread:.1f} {figure})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default="depth+segmentation+occupancy")
    parser.add_argument("--arms", default=DEPTH, help="of depth")
    parser.add_argument("--rooms", type=int, default=600, help="to train on")
    parser.add_argument("--measured", type=int, help="rooms to measure with; by default a third as many")
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=16, help="height of a panorama")
    parser.add_argument("--name", help="what the groups are called besides; the results of others stay")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/daps_sam"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/daps_sam.json"))
    asked = parser.parse_args()
    count = asked.measured or asked.rooms // 3
    length = ["--epochs", str(asked.epochs), "--batch-size", str(asked.batch_size), "--schedule", asked.schedule]
    rooms = ["--data", f"rooms:train={asked.rooms},val={count}", "--image-size", str(asked.image_size)]
    voxels = ["--data", f"rooms:train={asked.rooms // 2},val=32", "--query-points", "256"]
    found: dict[str, Numbers] = {}
    said: list[str] = []
    beside = f", {asked.name}" if asked.name else ""
    for target in asked.targets.split("+"):
        arms = {"depth": asked.arms, "segmentation": "interpolation+control+sam", "occupancy": "interpolation+sam"}[target]
        words = [*(voxels if target == "occupancy" else rooms), *length, "--seeds", str(asked.seeds)]
        group = f"{target}{beside}"
        numbers = measured(asked.runs / target, target, [*words, "--arms", arms])
        found |= {f"{group}: {arm}": one for arm, one in numbers.items()}
        first, *others = arms.split("+")
        pairs = [(arm, first) for arm in (*others, "alone")] + [("sam", arm) for arm in others if arm != "sam" and "sam" in others]
        said.append(f"{group}: {'; '.join(over(numbers, named(FIGURES[target][0]), *pair) for pair in pairs)}")
    setting: dict[str, object] = {
        f"rooms{beside}": f"{asked.rooms} to train on, {count} others to measure; "
        f"panoramas {asked.image_size} x {2 * asked.image_size}; "
        f"16 kHz, 2 x 33 x 121; {asked.epochs} epochs of batches of {asked.batch_size}, AdamW 3e-3, {asked.schedule}",
        "networks": "panorama16_3 and echo16_3; blocks at levels 2 and 3, K = 16 and 64; lambda 0.002 (all), 0.05 (adjacent)",
    }
    if "occupancy" in asked.targets:
        setting[f"occupancy{beside}"] = f"{asked.rooms // 2} rooms, 32 others to measure; 256 points of each"
    command = f"python experiments/daps_sam.py --seeds {asked.seeds} --targets {asked.targets} --arms {asked.arms} --rooms {asked.rooms}"
    command += f" --epochs {asked.epochs} --batch_size {asked.batch_size} --image_size {asked.image_size}"
    command += f" --measured {count}" * bool(asked.measured) + f" --schedule {asked.schedule}" * (asked.schedule != "cosine")
    command += f" --name '{asked.name}'" * bool(asked.name)
    write(asked.out, "daps-sam", command, list(range(asked.seeds)), found, f"{'. '.join(said)}.", setting, only=bool(asked.name))
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
