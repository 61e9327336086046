"""UP-VL on made-up streets: what motion, geometry and a vision-language stand-in label, and what detectors learn from it.

    python experiments/upvl.py                                # about 20 minutes of one quiet core

Runs `stillroom run upvl` with every arm and writes `results/upvl.json` from the run's `metrics.json`. Labels are made once, by one
stand-in; seeds differ in the detectors alone, so that the arms of labels have one number. Thresholds were looked at on streets of another
seed. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, apart, write

from stillroom.cli import main as stillroom

FIGURES = {
    "AP": "AP, %",
    "APmoving": "AP of what moves, %",
    "APstanding": "AP of what stands, %",
    "mAPwords": "mAP by words, %",
    **{f"AP {name}": f"AP of {name}, %" for name in ("car", "pedestrian", "cyclist")},
    "size": "size error, m",
    "visible": "size error of single frames, m",
}
LABELS, DETECTORS = ("clusters", "motion", "unfiltered", "labels"), ("detector-motion", "detector", "lifted", "upvl")
GROUP = "streets"


def measured(out: Path) -> dict[str, Numbers]:
    """By arm and figure: the numbers of every seed of a run; of labels those of the first."""
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    found: dict[str, Numbers] = {}
    for arm, results in stages.items():
        chosen = results[:1] if arm in LABELS else results
        metrics = [name for name in FIGURES if all(name in one["metrics"] for one in chosen)]
        numbers = {FIGURES[name]: {one["seed"]: one["metrics"][name] for one in chosen} for name in metrics}
        seconds = {"seconds": {one["seed"]: one["seconds"] for one in chosen}} if chosen[0]["seconds"] else {}
        found[f"{GROUP}: {arm}"] = {**numbers, **seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16, help="to train on; half as many are measured with")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/upvl"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/upvl.json"))
    asked = parser.parse_args()
    out, val = asked.runs / GROUP, asked.sequences // 2
    data = f"streets:train={asked.sequences},val={val},frames=8,cameras=4,beams=32,azimuths=360,reach=14,seed=1"
    words = ["run", "upvl", "--data", data, "--reach", "[-16,-16,-1,16,16,5]", "--student", "stillroom/pillar-small-w0.5"]
    words += ["--arms", "+".join((*LABELS, *DETECTORS)), "--batch-size", "4", "--epochs", str(asked.epochs)]
    if stillroom([*words, "--seeds", str(asked.seeds), "--accelerator", "cpu", "--out", str(out)]):
        raise SystemExit("the run did not end")
    found = measured(out)
    alone = ", ".join(f"{name} {found[f'{GROUP}: {name}']['AP, %'][0]:.1f}" for name in LABELS)
    said = f"labels, one stand-in and one set of streets, AP in %: {alone}"
    pairs = [("upvl", "detector-motion", "AP, %"), ("upvl", "detector", "AP, %"), ("upvl", "lifted", "mAP by words, %")]
    said = "; ".join((said, *(apart(found, GROUP, *pair) for pair in pairs)))
    setting: dict[str, object] = {
        GROUP: f"{asked.sequences} made-up sequences of 8 frames at 0.2 s to train on, {val} others measured, 28 x 28 m, 32 beams x 360 "
        "azimuths, 4 cameras of 48 x 96 pixels; matched by an overlap from above of 0.4",
        "language": "a stand-in of two small towers, 200 steps of InfoNCE on pictures of 30 other streets in other colours, with captions; "
        "points are background where a background prompt is nearer than object and thing, clusters from a share of 0.8 on",
        "detectors": f"CenterPoint on pillars of 0.4 m, half the widths of pillar-small; {asked.epochs} epochs of batches of 4, AdamW, one "
        "cycle of 3e-3; lambda 1, 1024 features a frame",
    }
    command = f"python experiments/upvl.py --seeds {asked.seeds} --sequences {asked.sequences} --epochs {asked.epochs}"
    write(asked.out, "upvl", command, list(range(asked.seeds)), found, f"{GROUP}: {said}.", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
