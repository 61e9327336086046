"""Five kinds of flowers: an ImageNet network fine-tuned on them, its answers stored, a small student alone and taught.

    python experiments/flowers.py --photos flowers5.zip --weights efficientnet-lite0-57934424.pth
    python experiments/flowers.py --photos flowers5.zip --weights efficientnet-lite0-57934424.pth --labels 25
    python experiments/flowers.py --photos flowers5.zip --weights efficientnet-lite0-57934424.pth --cut

Runs the commands of docs/photos.md, into `runs/flowers`. With `--labels 25`, into `runs/few-labels`, only 25 photos of each kind keep their
labels; the others of the training part are photos without labels. With `--cut` the student is the first half of the teacher's own network:
from scratch into `runs/flowers-scratch`, from the teacher's weights, alone and taught, into `runs/flowers-cut`; answers that
`runs/flowers-cache` holds are used again. `experiments/kd.py` writes what was measured to `results/kd.json`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

NETWORK = Path(__file__).with_name("efficientnet_lite0.py")
TRAINED = ("--optimizer", "adamw", "--lr", "0.002", "--weight-decay", "0.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="a zip of folders train/KIND and val/KIND")
    parser.add_argument("--weights", required=True, help="ImageNet weights of the teacher")
    parser.add_argument("--labels", type=int, help="labelled photos of each kind; by default all")
    parser.add_argument("--cut", action="store_true", help="the student is the first half of the teacher's network")
    parser.add_argument("--jobs", default="2")
    asked = parser.parse_args()
    few = asked.labels is not None
    name = "few-labels" if few else "flowers"
    spec = parted(Path(asked.photos), Path(f"runs/{name}-photos"), asked.labels) if few else f"imagefolder:{asked.photos}"
    data = ("--data", spec, "--image-size", "96", "--batch-size", "32")
    teacher = ("--teacher", f"{NETWORK}:build@{asked.weights}", "--teacher-epochs", "40" if few else "8", "--teacher-lr", "0.003")
    teacher = (*teacher, "--teacher-head-only", "true") if few else teacher
    stored, run = f"runs/{name}-cache", f"runs/{name}"
    stored_of = ("--views", "60") if few else ("--views", "12", "--taps", "pooled")
    if not (asked.cut and Path(stored, "cache.json").exists()):
        subprocess.run(["stillroom", "cache", *data, *teacher, *TRAINED, *stored_of, "--out", stored], check=True)
    if asked.cut:
        common = (*data[:4], "--preset", "photos", "--seeds", "3")
        taught = ("--teacher", f"cache:{stored}", "--jobs", asked.jobs, "--out", "runs/flowers-cut")
        subprocess.run(["stillroom", "compare", "kd", *common, *taught], check=True)
        scratch = ("--student", f"first:{NETWORK}:build", "--out", "runs/flowers-scratch")
        subprocess.run(["stillroom", "run", "supervised", *common, *scratch], check=True)
        return
    length = ("--epochs", "30", "--warmup-epochs", "2") if few else ("--epochs", "60", "--warmup-epochs", "3")
    student = ("--student", "timm/mobilenetv3_small_050", *length, "--schedule", "cosine", "--seeds", "3")
    taught = ("--teacher", f"cache:{stored}", "--jobs", asked.jobs, "--out", run)
    options = ("--options.kd", "{temperature: 2, task_weight: 0.5, kd_weight: 0.5}") if few else ()
    subprocess.run(["stillroom", "compare", "kd", *options, *data, *taught, *student, *TRAINED], check=True)


def parted(photos: Path, out: Path, labels: int) -> str:
    """The photos of a zip as two folders, and how they are named as data: some of each kind labelled, the others in one pile."""
    with zipfile.ZipFile(photos) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        kinds: dict[str, list[str]] = {}
        for name in names:
            split, kind = PurePosixPath(name).parts[-3:-1]
            kinds.setdefault(f"{split}/{kind}", []).append(name)
        for place, mine in kinds.items():
            if place.startswith("train/"):
                random.Random(place).shuffle(mine)
            for number, name in enumerate(mine):
                pile = place.startswith("train/") and number >= labels
                file = out / ("others" if pile else f"labelled/{place}") / PurePosixPath(name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    return f"imagefolder:{out / 'labelled'},unlabelled={out / 'others'}"


if __name__ == "__main__":
    main()
