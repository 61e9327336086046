"""ZeroSeg on drawn objects: floors, the paper's base and its two losses; and plain training on real street scenes, for the task.

    python experiments/zeroseg.py --camvid camvid_voc.zip                    # minutes on a quiet core, an hour on a busy one
    python experiments/zeroseg.py --coco coco_mini_voc.zip --clip runs/tinyclip

Runs `stillroom run zeroseg` on the specification's scenes (the teacher is a stand-in that is trained on single objects), `stillroom run
supervised --task segmentation` on CamVid, and, with a CLIP, ZeroSeg on photographs; writes `results/zeroseg.json` from the runs' own
`metrics.json`. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, apart, write

FIGURES = ("mIoU", "mIoU without background", "pixel accuracy", "segments used", "best-match IoU", "threshold")
CAMVID = (
    *("--student", "stillroom/unet8_4", "--image-size", "96", "--batch-size", "16"),
    *("--epochs", "3", "--subset", "200", "--val-subset", "40"),
)


def measured(out: Path, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run."""
    subprocess.run(["stillroom", "run", *words, "--accelerator", "cpu", "--out", str(out)], check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    return {
        arm: {
            **{
                f"{figure}{'' if figure in FIGURES[3::2] else ', %'}": {one["seed"]: one["metrics"][figure] for one in results}
                for figure in FIGURES
                if figure in results[0]["metrics"]
            },
            **({"seconds": {one["seed"]: one["seconds"] for one in results}} if results[0]["seconds"] else {}),
        }
        for arm, results in stages.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", help="CamVid in Pascal VOC's layout")
    parser.add_argument("--coco", help="photographs with masks in Pascal VOC's layout")
    parser.add_argument("--clip", help="the teacher of these, see `stillroom run zeroseg --help`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=690)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--arms", default="base+multi-scale+matching+both")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/zeroseg"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/zeroseg.json"))
    asked = parser.parse_args()
    length = ["--seeds", str(asked.seeds), "--epochs", str(asked.epochs), "--arms", asked.arms]
    found: dict[str, Numbers] = {}
    words = ["zeroseg", "--data", f"objects:train={asked.scenes},val=100", "--batch-size", "32", *length]
    found |= {f"objects: {arm}": numbers for arm, numbers in measured(asked.runs / "objects", words).items()}
    first, *others = asked.arms.split("+")
    said = [apart(found, "objects", arm, first, "mIoU, %") for arm in others]
    said += [apart(found, "objects", others[-1] if others else first, floor, "mIoU, %") for floor in ("cells", "background")]
    said += [apart(found, "objects", arm, first, "best-match IoU, %") for arm in others]
    setting: dict[str, object] = {
        "objects": f"{asked.scenes} drawn scenes of 64 x 64 pixels, 50 of them for the threshold, 100 measured; {asked.epochs} epochs "
        "of batches of 32, AdamW; ViT of width 64, 4 blocks, patches of 8; 8 and 4 group tokens; views of scales 1, 2, 3; 60 % masked",
    }
    if asked.camvid:
        words = ["supervised", "--task", "segmentation", "--data", f"voc:{asked.camvid}", *CAMVID, "--seeds", str(asked.seeds)]
        found["CamVid: supervised"] = measured(asked.runs / "camvid", words)["alone"]
        setting["CamVid"] = f"200 frames to train on, 40 to measure, at 96 x 128 pixels; {' '.join(CAMVID)}"
    if asked.coco and asked.clip:
        sizes = ["--image-size", "64", "--augment", "none", "--batch-size", "16", "--teacher", asked.clip, "--threshold-pictures", "20"]
        words = ["zeroseg", "--data", f"voc:{asked.coco},masks=SegmentationSuper,classes=super_names.txt", *sizes, *length]
        found |= {f"COCO-mini: {arm}": numbers for arm, numbers in measured(asked.runs / "coco", words).items()}
        setting["COCO-mini"] = "69 photographs, 12 super-categories and background, at 64 pixels; the teacher a small CLIP"
    command = f"python experiments/zeroseg.py --seeds {asked.seeds} --scenes {asked.scenes} --epochs {asked.epochs} --arms {asked.arms}"
    command += " --camvid camvid_voc.zip" * bool(asked.camvid) + " --coco coco_mini_voc.zip --clip CLIP" * bool(asked.coco and asked.clip)
    write(asked.out, "zeroseg", command, list(range(asked.seeds)), found, f"objects: {'; '.join(said)}.", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
