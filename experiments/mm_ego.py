"""Multimodal distillation on drawn actions: students on RGB alone, by labels and by ensembles; and on real clips with depth beside RGB.

    python experiments/mm_ego.py --clips ego_motion_clips.zip       # minutes on a quiet core, an hour on a busy one

Runs `stillroom run mm-ego` and writes `results/mm_ego.json` from the runs' own `metrics.json`. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, apart, write

SUFFIX = ", %"
DRAWN = "rgb,rgb+flow+boxes:uniform,rgb+flow+boxes,rgb+flow+boxes+audio:uniform,rgb+flow+boxes+audio"
REAL = "rgb,rgb+depth:uniform,rgb+depth"
SMALL = ("--image-size", "16", "--student", "stillroom/cnn3d8", "--teacher", "stillroom/cnn3d8", "--lr", "8e-3", "--batch-size", "16")
SEEN = ("--image-size", "32", "--frames", "8", "--sampling", "dense", "--frame-stride", "1", "--augment", "crop", *SMALL[2:])


def measured(out: Path, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run."""
    subprocess.run(["stillroom", "run", "mm-ego", *words, "--accelerator", "cpu", "--out", str(out)], check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    found = {}
    for arm, results in stages.items():
        names = [name for name in results[0]["metrics"] if "top5" not in name and name != "agreement"]
        figures = {f"{name}{SUFFIX}": {one["seed"]: one["metrics"][name] for one in results} for name in names}
        found[arm] = {**figures, **({"seconds": {one["seed"]: one["seconds"] for one in results}} if results[0]["seconds"] else {})}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", help="real clips with depth beside RGB, as `clips:` reads them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=480, help="drawn clips to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--clip-epochs", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/mm_ego"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/mm_ego.json"))
    asked = parser.parse_args()
    shared = ["--seeds", str(asked.seeds), "--test-views", "[3x1]"]
    words = ["--data", f"actions:train={asked.train},val=240", *SMALL, "--epochs", str(asked.epochs), "--arms", DRAWN]
    words += ["--teacher-views", str(asked.epochs)]
    found: dict[str, Numbers] = {f"actions: {arm}": numbers for arm, numbers in measured(asked.runs / "actions", words + shared).items()}
    three, four = "rgb+flow+boxes", "rgb+flow+boxes+audio"
    pairs = [(f"{three}, held-out", "alone"), (f"{three}, held-out", "rgb"), (f"{three}, held-out", f"{three}, uniform")]
    pairs += [(f"{four}, held-out", f"{four}, uniform"), ("rgb", "alone")]
    said = [apart(found, "actions", arm, other, f"verb top1{SUFFIX}") for arm, other in pairs]
    said += [apart(found, "actions", f"{three}, held-out", "alone", f"{metric}{SUFFIX}") for metric in ("top1", "ece", "ece scaled")]
    verdict = f"Drawn actions: {'; '.join(said)}."
    setting: dict[str, object] = {
        "actions": f"{asked.train} drawn clips to train on, 240 to measure with, 8 frames of 16 x 16 pixels; {asked.epochs} epochs of "
        "batches of 16, AdamW at 8e-3; cnn3d8 as student and for rgb and flow, stlt32_1_1 for boxes, spectrum8 for audio; tau 3, gamma 1; "
        "a fifth of the training clips held out from the teachers, which all seeds share",
    }
    command = f"python experiments/mm_ego.py --seeds {asked.seeds} --train {asked.train} --epochs {asked.epochs}"
    if asked.clips:
        words = [
            "--data",
            f"clips:{asked.clips}",
            *SEEN,
            "--epochs",
            str(asked.clip_epochs),
            "--arms",
            REAL,
            "--teacher-views",
            str(asked.clip_epochs),
        ]
        found |= {f"camera motion: {arm}": numbers for arm, numbers in measured(asked.runs / "clips", words + shared).items()}
        last = "rgb+depth, held-out"
        metrics = ("rotation top1", "translation top1", "ece")
        said = [apart(found, "camera motion", last, other, f"{metric}{SUFFIX}") for other in ("alone", "rgb") for metric in metrics]
        verdict += f" Camera motion: {'; '.join(said)}."
        setting["camera motion"] = (
            f"92 clips of a hand-held camera to train on, 28 to measure with, depth as the second modality; {asked.clip_epochs} epochs; "
            f"{' '.join(SEEN)}; rotation and translation are the heads"
        )
        command += f" --clip-epochs {asked.clip_epochs} --clips ego_motion_clips.zip"
    write(asked.out, "mm-ego", command, list(range(asked.seeds)), found, verdict, setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
