"""MemKD beside the plain student, the control of capacity and reverse distillation: drawn textures, circuit boards, magnetic tiles.

    python experiments/memkd.py --data boards=mvtec:boards.zip --data tiles=mvtec:tiles.zip --weights efficientnet-lite0-57934424.pth

Runs `stillroom run memkd` on each with three seeds, and writes `results/memkd.json` from the runs' own `metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from record import Numbers, paired, write

NETWORK = Path(__file__).with_name("efficientnet_lite0.py")
FIGURES = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=SPEC", help="besides the textures")
    parser.add_argument("--weights", help="ImageNet weights of EfficientNet-lite0, the teacher of these")
    parser.add_argument("--arms", default="plain+dup+memkd")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", default="128", help="of these")
    parser.add_argument("--epochs", default="20")
    parser.add_argument("--out", type=Path, default=Path("runs/memkd-experiment"))
    asked = parser.parse_args()
    real = ("--teacher", f"{NETWORK}:build@{asked.weights}", "--teacher-mean", "[0.5,0.5,0.5]", "--teacher-std", "[0.5,0.5,0.5]")
    jobs: dict[str, tuple[str, ...]] = {
        "textures": ("--data", "textures", "--teacher", "stillroom/resnet8_stride8", "--teacher-data-size", "32")
    }
    for one in asked.data:
        name, _, spec = one.partition("=")
        jobs[name] = ("--data", spec, "--image-size", asked.image_size, *real)
    arms: dict[str, Numbers] = {}
    said = []
    for name, words in jobs.items():
        out = asked.out / name
        common = ("--arms", asked.arms, "--seeds", str(asked.seeds), "--epochs", asked.epochs, "--out", str(out))
        subprocess.run(["stillroom", "run", "memkd", *words, *common], check=True)
        stages = json.loads((out / "metrics.json").read_text())["stages"]
        for arm, results in stages.items():
            arms[f"{name}: {arm}"] = {
                **{f"{figure}, %": {result["seed"]: result["metrics"][figure] for result in results} for figure in FIGURES},
                "seconds": {result["seed"]: result["seconds"] for result in results},
            }
        first, *others = (f"{name}: {arm}" for arm in stages)
        for other in others:
            mean, spread = paired(arms[other]["image_auroc, %"], arms[first]["image_auroc, %"])
            said.append(f"{other} {mean:+.1f} +- {spread:.1f} points of image AUROC over {first.partition(': ')[2]}")
    setting = {
        "data": list(jobs),
        "arms": asked.arms,
        "steps": f"{asked.epochs} epochs of at most 8 steps of 16 pictures",
        "image size": asked.image_size,
    }
    command = "python experiments/memkd.py " + " ".join(f"--data {one.partition('=')[0]}=..." for one in asked.data)
    write(Path("results/memkd.json"), "memkd", command.strip(), range(asked.seeds), arms, "; ".join(said) + ".", setting)


if __name__ == "__main__":
    main()
