"""Five kinds of flowers: an ImageNet network fine-tuned on them, its answers stored, a small student alone and taught.

    python experiments/flowers.py --photos flowers5.zip --weights efficientnet-lite0-57934424.pth

Runs the commands of docs/photos.md and writes `results/flowers.json` from the comparison's own `metrics.json`.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import from_run

NETWORK = Path(__file__).with_name("efficientnet_lite0.py")
TRAINED = ("--optimizer", "adamw", "--lr", "0.002", "--weight-decay", "0.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="an image folder or a zip of one")
    parser.add_argument("--weights", required=True, help="ImageNet weights of the teacher")
    parser.add_argument("--jobs", default="2")
    asked = parser.parse_args()
    data = ("--data", f"imagefolder:{asked.photos}", "--image-size", "96", "--batch-size", "32")
    teacher = ("--teacher", f"{NETWORK}:build@{asked.weights}", "--teacher-epochs", "8", "--teacher-lr", "0.003")
    stored, run = "runs/flowers-cache", "runs/flowers"
    subprocess.run(["stillroom", "cache", *data, *teacher, *TRAINED, "--views", "12", "--taps", "pooled", "--out", stored], check=True)
    student = ("--student", "timm/mobilenetv3_small_050", "--epochs", "60", "--schedule", "cosine", "--warmup-epochs", "3", "--seeds", "3")
    taught = ("--teacher", f"cache:{stored}", "--jobs", asked.jobs, "--out", run)
    subprocess.run(["stillroom", "compare", "kd", *data, *taught, *student, *TRAINED], check=True)
    note = "The taught students saw the twelve crops of each photo whose answers were stored, the student alone ever new ones."
    from_run.main(Path(run), Path("results/flowers.json"), [note], method="kd")


if __name__ == "__main__":
    main()
