"""IOD's small-scale experiment: what is left of old classes when new ones are learnt from images in which they alone have boxes.

    python experiments/iod.py                                  # drawn scenes: solid shapes, then hollow ones that look alike
    python experiments/iod.py --bccd bccd_voc.zip --only bccd  # blood cells at 120 pixels: WBC and platelets, then RBC

Runs `stillroom run iod`, for the first seed with every arm (fine-tuning, pseudo objects, those with DMD, with IFD, with both, joint
training) and for the others with three of them, and writes `results/iod.json` from the runs' own `metrics.json` and `steps.json`. All arms
of a seed start from the same detector and see the same batches. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from record import Numbers, side, write

EVERY, FEW = "fine-tuning+pseudo+dmd+ifd+iod+joint", "fine-tuning+pseudo+iod"
SETS = {
    "scenes": ("--data", "scenes:plain=1,train=2400,val=200,teacher=2400", "--groups", "3+3", "--epochs", "5", "--step-epochs", "2"),
    "BCCD": ("--groups", "WBC,Platelets|RBC", "--image-size", "120", "--batch-size", "8", "--epochs", "8", "--step-epochs", "4"),
}
METRICS = ("AP", "AP50", "old", "new", "harmonic", "forgetting", "gap", "relative_gap", "omega")


def measured(found: dict[str, dict[str, dict[int, float]]], name: str, run: Path, seeds: range) -> None:
    """Adds every arm's figures; of AP50 those of old and new classes, and as an arm of its own the detector after the first step."""
    stages = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["stages"]
    for arm, results in stages.items():
        for result in results:
            for metric in (*METRICS, "seconds"):
                value = result["seconds"] if metric == "seconds" else result["metrics"].get(metric)
                if value is not None:
                    found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[result["seed"]] = value
    for seed in seeds:
        steps: dict[str, Any] = json.loads((run / f"seed{seed}/steps.json").read_text(encoding="utf-8"))
        for arm, matrices in steps["arms"].items():
            for metric, group in (("old AP50", 0), ("new AP50", 1)):
                found[f"{name}: {arm}"].setdefault(metric, {})[seed] = matrices["AP50"][-1][group]
        first = next(iter(steps["arms"].values()))
        for metric, matrix in (("AP", "AP"), ("AP50", "AP50")):
            found.setdefault(f"{name}: after step 1", {}).setdefault(metric, {})[seed] = first[matrix][0][0]


def verdict(name: str, found: dict[str, Numbers]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""
    start = found[f"{name}: after step 1"]["AP50"]
    lines = [f"the detector that is to be kept has an AP50 of {sum(start.values()) / len(start):.1f} after step 1"]
    for metric in ("old", "new", "harmonic"):
        for over in ("fine-tuning", "pseudo"):
            word, change, spread = side(found[f"{name}: iod"][metric], found[f"{name}: {over}"][metric], "level within noise with")
            lines.append(f"{metric}: IOD is {word} {over} ({change:+.1f} +- {spread:.1f} AP)")
    return f"{name}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", help="BCCD in Pascal VOC's layout, in a folder or a zip")
    parser.add_argument("--only", choices=("scenes", "bccd"), help="run one of the two; the other's numbers stay as they are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/iod"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/iod.json"))
    asked = parser.parse_args()
    wanted = [name for name in SETS if asked.only in (None, name.lower()) and (name == "scenes" or asked.bccd)]
    found: dict[str, Numbers] = {}
    said, setting = [], {}
    for name in wanted:
        words = [*SETS[name], *(("--data", f"voc:{asked.bccd}") if name == "BCCD" else ()), "--accelerator", "cpu"]
        numbers: dict[str, dict[str, dict[int, float]]] = {}
        for folder, arms, seeds in ((name, EVERY, range(1)), (f"{name}-few", FEW, range(1, asked.seeds))):
            if seeds:
                run = asked.runs / folder
                several = ["--seed", str(seeds[0]), "--seeds", str(len(seeds)), "--out", str(run)]
                subprocess.run(["stillroom", "run", "iod", *words, "--arms", arms, *several], check=True)
                measured(numbers, name, run, seeds)
        found |= numbers
        said.append(verdict(name, numbers))
        setting[name] = f"stillroom run iod {' '.join(SETS[name])}; the first seed with every arm, the others with {FEW}"
    command = "python experiments/iod.py" + " --bccd bccd_voc.zip" * bool(asked.bccd) + f" --only {asked.only}" * bool(asked.only)
    write(asked.out, "iod", command, range(asked.seeds), found, ". ".join(said) + ".", setting, only=bool(asked.only))
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
