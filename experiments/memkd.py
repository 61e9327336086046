"""MemKD beside the same student without memories: drawn textures, and pictures of products.

    python experiments/memkd.py --data tiles=mvtec:tiles.zip --weights efficientnet-lite0-57934424.pth

Runs `stillroom run memkd` on each, and writes `results/memkd.json` from the runs' own `metrics.json`. On the textures the teacher is
trained on drawn shapes, and `dup` is the control of capacity; on real pictures it is EfficientNet-lite0 with ImageNet's weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from record import Numbers, paired, write

NETWORK = "experiments/efficientnet_lite0.py:build"  # from the repository's root
SIZE = "64"  # pixels
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
TEXTURES = (
    *("--data", "textures:category=wood+stone", "--teacher", "stillroom/resnet8_stride8"),
    *("--teacher-data-size", "32", "--teacher-epochs", "6", "--arms", "plain+dup+memkd"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=SPEC", help="besides the textures")
    parser.add_argument("--weights", help="ImageNet weights of EfficientNet-lite0, the teacher of these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", default="12", help="of at most 8 steps of 16 pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/memkd"))
    asked = parser.parse_args()
    half = "[0.5,0.5,0.5]"
    real = ("--teacher", f"{NETWORK}@{asked.weights}", "--teacher-mean", half, "--teacher-std", half, "--arms", "plain+memkd")
    jobs: dict[str, tuple[str, ...]] = {"textures": TEXTURES}
    for one in asked.data:
        name, _, spec = one.partition("=")
        jobs[name] = ("--data", spec, "--image-size", SIZE, *real)
    arms: dict[str, Numbers] = {}
    said = []
    for name, words in jobs.items():
        out = asked.out / name
        common = ("--seeds", str(asked.seeds), "--epochs", asked.epochs, "--out", str(out))
        subprocess.run(["stillroom", "run", "memkd", *words, *common], check=True)
        stages = json.loads((out / "metrics.json").read_text())["stages"]
        for arm, results in stages.items():
            arms[f"{name}: {arm}"] = {
                **{f"{figure}, %": {result["seed"]: result["metrics"][figure] for result in results} for figure in FIGURES},
                "seconds": {result["seed"]: result["seconds"] for result in results},
            }
        first, *others = stages
        for other in others:
            mean, spread = paired(*(arms[f"{name}: {arm}"]["image_auroc, %"] for arm in (other, first)))
            said.append(f"on {name} {other} {mean:+.1f} +- {spread:.1f} points of image AUROC over {first}")
    setting = {
        "data": list(jobs),
        "students": f"forward, small; {asked.epochs} epochs of at most 8 steps of 16 pictures, Adam, one cycle to 5e-3",
        "pixels": f"{SIZE} x {SIZE}",
        "teachers": "textures: stillroom/resnet8_stride8, 6 epochs of drawn shapes; others: EfficientNet-lite0, ImageNet's weights",
    }
    command = " ".join(["python experiments/memkd.py", *(f"--data {one}" for one in asked.data)])
    write(Path("results/memkd.json"), "memkd", command, range(asked.seeds), arms, "; ".join(said) + ".", setting)


if __name__ == "__main__":
    main()
