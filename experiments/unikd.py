"""UniKD's small-scale experiment: do extractors teach across kinds of detectors, and is it the shared question that teaches?

    python experiments/unikd.py                                        # procedural scenes
    python experiments/unikd.py --bccd bccd_voc.zip --only bccd        # blood cells, 80 x 107 pixels

Runs `stillroom run unikd` on each, and writes `results/unikd.json` from the runs' own `metrics.json`. A Faster R-CNN teaches GFL. Arms on
the scenes: the student alone, FitNet on the same maps, content and position alone, queries that are not shared, random extractors, and
UniKD. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from record import Numbers, paired, write

ARMS = "[fitnet, content, position, unshared, untrained]"
FIGURES = ("AP", "AP50", "AP75")
SCENES = ("--baselines", ARMS, "--teacher-epochs", "6")
CELLS = (
    *("--image-size", "80", "--batch-size", "8", "--epochs", "5", "--warmup-epochs", "1", "--baselines", "[fitnet]"),
    *("--teacher-epochs", "8", "--teacher-lr", "4e-3", "--extractor-epochs", "8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", help="BCCD in Pascal VOC's layout, in a folder or a zip")
    parser.add_argument("--teacher", help="the scenes' teacher, where it is trained already: the stage of an earlier run")
    parser.add_argument("--only", choices=("scenes", "bccd"), help="run one of the two")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", default="12", help="of the students on scenes, of 19 steps each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/unikd"), help="where the runs are; those that are there count")
    parser.add_argument("--out", type=Path, default=Path("results/unikd.json"))
    asked = parser.parse_args()
    taught = ("--teacher", asked.teacher) if asked.teacher else ()
    jobs: dict[str, tuple[str, ...]] = {"scenes": (*SCENES, *taught, "--epochs", asked.epochs)}
    if asked.bccd:
        jobs["BCCD"] = ("--data", f"voc:{asked.bccd}", *CELLS)
    arms: dict[str, Numbers] = {}
    said, notes = [], []
    for name, words in jobs.items():
        out = asked.runs / name
        if asked.only in (None, name.lower()):
            kept = ("--keep-answers", str(asked.runs / f"{name}-answers"))
            command = ["stillroom", "run", "unikd", *words, *kept, "--seeds", str(asked.seeds), "--accelerator", "cpu", "--out", str(out)]
            subprocess.run(command, check=True)
        if not (out / "metrics.json").exists():
            continue
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        for arm, results in metrics["stages"].items():
            numbers = {figure: {result["seed"]: result["metrics"][figure] for result in results} for figure in FIGURES}
            arms[f"{name}: {arm}"] = numbers | {"seconds": {result["seed"]: result["seconds"] for result in results}}
        notes += [f"{name}: {note}" for note in metrics["notes"] if "AP50" in note or "MB" in note]
        for other in [arm for arm in metrics["stages"] if arm not in ("teacher", "unikd")]:
            mean, spread = paired(arms[f"{name}: unikd"]["AP"], arms[f"{name}: {other}"]["AP"])
            clear = abs(mean) > 2 * spread / asked.seeds**0.5
            word = ("above" if mean > 0 else "below") if clear else "level within noise with"
            said.append(f"on {name} UniKD is {word} '{other}' ({mean:+.1f} +- {spread:.1f} AP)")
    setting = {
        "teacher": "stillroom/faster-rcnn_32",
        "students": "stillroom/gfl_24, 42 k parameters",
        "extractors": "32 queries of width 32, 4 heads, 4 points; weights 10 and 10; one layer of self-attention in the adapter",
        "answers": "of the trained extractors stored once, for each image and its mirror image",
        "scenes": f"48 x 48 pixels, 6 classes; teacher 6 epochs, extractors 3 of 3 000; students {asked.epochs} of 300; 300 to test",
        "BCCD": "80 x 107 pixels, 3 classes, 292 images; teacher 8 epochs, extractors 8, students 5, of batch 8",
    }
    command = "python experiments/unikd.py" + (f" --bccd {Path(asked.bccd).name}" if asked.bccd else "")
    write(asked.out, "unikd", command, range(asked.seeds), arms, "; ".join(said) + ".", setting, notes=list(dict.fromkeys(notes)))


if __name__ == "__main__":
    main()
