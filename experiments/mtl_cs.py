"""MTL-CS on drawn solids and on NYU Depth V2.

    python experiments/mtl_cs.py --nyud nyuv2_mtl.zip            # a quarter of an hour on a quiet core

Runs `stillroom run mtl-cs` on the solids (the student alone, by KL, by rows alone, by columns alone, by both), again with a fifth of the
teacher's numbers flipped in sign, and on NYU Depth V2 if given; writes `results/mtl_cs.json` from the runs' own numbers, beside what it
holds of a group that is not measured now. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, side, write

from stillroom.tasks.multitask.measures import delta_m

FIGURES = {  # of a run: what results call them, and whether lower is better where they decide in Delta_m
    "delta_m": ("Delta_m over single students, %", None),
    "semseg mIoU": ("mIoU, %", False),
    "depth RMSE": ("RMSE, m", True),
    "normals mean angle": ("mean angle, degrees", True),
    "edges odsF": ("odsF, %", False),
    "score": ("score, %", None),
}
OVER = "Delta_m over alone, %"
SOLIDS = ("--schedule", "onecycle", "--warmup-epochs", "0", "--batch-size", "16", "--student", "stillroom/pyramid6")
NYUD = (
    *("--image-size", "48", "--val-subset", "100", "--augment", "mirror", "--batch-size", "16", "--student", "stillroom/pyramid6"),
    *("--teacher", "stillroom/pyramid12", "--schedule", "onecycle", "--warmup-epochs", "0", "--arms", "kl+kdam"),
)
FLIPPED = 0.2


def measured(out: Path, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run; of each arm that was trained with every seed also Delta_m over `alone`."""
    subprocess.run(["stillroom", "run", "mtl-cs", *words, "--accelerator", "cpu", "--out", str(out)], check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    found = {
        arm: {
            name: {one["seed"]: one["metrics"][figure] for one in results}
            for figure, (name, _) in FIGURES.items()
            if figure in results[0]["metrics"]
        }
        for arm, results in stages.items()
    }
    deciding = [(name, lower) for name, lower in FIGURES.values() if lower is not None]
    for arm, results in stages.items():
        if len(results) == len(stages["alone"]):
            ours, theirs = (
                {seed: [by[name][seed] for name, _ in deciding] for seed in by["score, %"]} for by in (found[arm], found["alone"])
            )
            lower = [one for _, one in deciding]
            found[arm][OVER] = {seed: delta_m(theirs[seed], values, lower) for seed, values in ours.items()}
            found[arm]["seconds"] = {one["seed"]: one["seconds"] for one in results}
    return found


def said(found: Mapping[str, Numbers], group: str, arm: str, other: str, metric: str, unit: str) -> str:
    """How far two arms are apart, in words made from the numbers."""
    numbers = found[f"{group}: {arm}"][metric]
    word, change, spread = side(numbers, found[f"{group}: {other}"][metric], "not to be told from")
    return f"{arm} is {word} {other} ({change:+.1f} +- {spread:.1f} {unit})"


def held(path: Path, group: str) -> dict[str, Numbers]:
    """What results that were written before hold of a group."""
    arms = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    return {
        arm: {name: {int(seed): value for seed, value in one["seeds"].items()} for name, one in numbers.items()}
        for arm, numbers in arms.items()
        if arm.startswith(f"{group}: ")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nyud", help="NYU Depth V2, see `stillroom run mtl-cs --help`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=14, help="of the students on the solids")
    parser.add_argument("--size", type=int, default=32, help="pixels of the solids")
    parser.add_argument("--teacher-epochs", type=int, default=7, help="on 1000 solids")
    parser.add_argument("--arms", default="kl+inter+intra+kdam", help="on the solids; kl and kdam among them")
    parser.add_argument("--no-flipped", action="store_true", help="leave out the runs with flipped signs")
    parser.add_argument("--nyud-epochs", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/mtl_cs"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/mtl_cs.json"))
    asked = parser.parse_args()
    seeds = ["--seeds", str(asked.seeds)]
    solids = ["--data", f"solids:train=150,val=60,teacher=1000,size={asked.size}", *SOLIDS, *seeds, "--epochs", str(asked.epochs)]
    first = [*solids, "--teacher", "stillroom/pyramid12", "--teacher-epochs", str(asked.teacher_epochs), "--arms", asked.arms]
    found: dict[str, Numbers] = {f"solids: {arm}": numbers for arm, numbers in measured(asked.runs / "solids", first).items()}
    verdict = [said(found, "solids", arm, "alone", OVER, "% of Delta_m") for arm in reversed(asked.arms.split("+"))]
    verdict += [
        said(found, "solids", "kdam", "kl", OVER, "% of Delta_m"),
        said(found, "solids", "kdam", "alone", "mIoU, %", "points of mIoU"),
    ]
    sentences = [f"solids: {'; '.join(verdict)}"]
    if not asked.no_flipped:
        flipped = [*solids, "--teacher", str(asked.runs / "solids" / "teacher"), "--flipped", str(FLIPPED), "--arms", "kl+kdam"]
        again = measured(asked.runs / "flipped", [*flipped, "--single-students", "false"])
        found |= {f"flipped: {arm}": again[arm] for arm in ("alone", "kl", "kdam")}
        changes: dict[str, dict[int, float]] = {}
        told = [said(found, "flipped", "kdam", other, OVER, "% of Delta_m") for other in ("alone", "kl")]
        for arm in ("kdam", "kl"):
            ours, theirs = (found[f"{group}: {arm}"]["score, %"] for group in ("flipped", "solids"))
            changes[arm] = {seed: value - theirs[seed] for seed, value in ours.items()}
            word, change, spread = side(ours, theirs, "not to be told from")
            told.append(f"{arm} is {word} itself without ({change:+.1f} +- {spread:.1f} points of score)")
        word, change, spread = side(changes["kdam"], changes["kl"], "not to be told from")
        told.append(f"the change of kdam is {word} that of kl ({change:+.1f} +- {spread:.1f} points)")
        sentences.append(f"flipped: {'; '.join(told)}")
    setting: dict[str, object] = {
        "solids": f"150 drawn scenes of {asked.size} x {asked.size} pixels, 60 measured, 1000 for the teacher; weights of the targets "
        f"1, 1, 2, 10; AdamW one-cycle, batches of 16; student pyramid6, {asked.epochs} epochs; teacher pyramid12, "
        f"{asked.teacher_epochs} epochs; T 8, beta 0.5",
    }
    if not asked.no_flipped:
        setting["flipped"] = f"the same, {FLIPPED:.0%} of the teacher's numbers with the other sign, drawn anew in every step"
    if asked.nyud:
        words = [
            "--data",
            f"nyud:{asked.nyud}",
            *NYUD,
            *seeds,
            "--epochs",
            str(asked.nyud_epochs),
            "--teacher-epochs",
            str(2 * asked.nyud_epochs),
        ]
        found |= {f"NYUv2: {arm}": numbers for arm, numbers in measured(asked.runs / "nyud", words).items()}
        setting["NYUv2"] = f"390 frames to train on, 100 of 220 measured, at 48 x 64 pixels; {asked.nyud_epochs} epochs; {' '.join(NYUD)}"
    photographs = held(asked.out, "NYUv2") | found
    if "NYUv2: alone" in photographs:
        told = [said(photographs, "NYUv2", arm, "alone", OVER, "% of Delta_m") for arm in ("kdam", "kl")]
        sentences.append(f"NYUv2: {'; '.join(told)}")
    command = f"python experiments/mtl_cs.py --seeds {asked.seeds} --epochs {asked.epochs} --size {asked.size}"
    command += f" --teacher-epochs {asked.teacher_epochs} --arms {asked.arms}" + " --no-flipped" * asked.no_flipped
    command += f" --nyud nyuv2_mtl.zip --nyud-epochs {asked.nyud_epochs}" * bool(asked.nyud)
    write(asked.out, "mtl-cs", command, list(range(asked.seeds)), found, f"{'. '.join(sentences)}.", setting, only=True)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
