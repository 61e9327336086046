"""OTD on drawn nuclei in two stains, from fluorescence to stained tissue, and from one microscope of blood cells to another.

    python experiments/otd.py --dsb dsb2018_nuclei.zip --wbc wbc_two_domains.zip        # a quarter of an hour on a quiet core

Runs `stillroom run otd` on each pair and writes `results/otd.json` from the runs' own `metrics.json`. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from record import Numbers, apart, write

FIGURES = (
    *("mPQ", "mDice", "type F1", "mPQ apart", "mDice apart", "type F1 apart", "PQ", "Dice", "AJI", "detection F1"),
    "train/cosine/nuclei",
    "train/cosine/types",
)
BANKS = ("--refresh-capacities", "2", "--history-capacity", "60")
SEEN = ("--domain-weight", "1e5", "--class-weight", "1e5")  # weights at which the streams' gradients are as large as those of the mix
SHORT = ("--image-size", "48", "--edge-kernel", "9", "--batch-size", "4", "--augment", "flips", *BANKS)
DSB, WBC = ("--epochs", "9", "--source-epochs", "3"), ("--epochs", "18", "--source-epochs", "6")  # about 150 steps, 50 of them alone
ARMS = ("alone", "mixing", "domain", "streams", "otd", "unprojected")
BLOOD = {"neutrophil": "granulocyte", "eosinophil": "granulocyte", "basophil": "granulocyte", "lymphocyte": "lymphocyte"}
BLOOD["monocyte"] = "monocyte"
NEW_BLOOD = "neutrophil+eosinophil+basophil"  # of which the source's labels say granulocyte alone


def measured(out: Path, words: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """By arm and figure: the numbers of every seed of a run."""
    subprocess.run(["stillroom", "run", "otd", *words, "--accelerator", "cpu", "--out", str(out)], check=True)
    stages: Mapping[str, Any] = json.loads((out / "metrics.json").read_text())["stages"]
    return {
        arm: {
            **{
                f"{figure}, %": {one["seed"]: one["metrics"][figure] for one in results}
                for figure in FIGURES
                if figure in results[0]["metrics"]
            },
            **{
                figure.removeprefix("train/"): {one["seed"]: one["history"][-1][figure] for one in results}
                for figure in FIGURES
                if figure in results[0]["history"][-1]
            },
            "seconds": {one["seed"]: one["seconds"] for one in results},
        }
        for arm, results in stages.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsb", help="nuclei of the Data Science Bowl 2018, domains fluorescence and stained")
    parser.add_argument("--wbc", help="white blood cells, domains tecom and cellavision")
    parser.add_argument("--real-only", action="store_true", help="leave out what is drawn; the file's numbers of it stay")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--real-seeds", type=int, default=3, help="of the real pairs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=280, help="drawn images of the source")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/otd"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/otd.json"))
    asked = parser.parse_args()
    found: dict[str, Numbers] = {}
    setting: dict[str, object] = {}
    verdict: list[str] = []
    banks = "banks of moments refreshed every 2 capacities, histories of 60 gradients"
    if not asked.real_only:
        drawn = ["--target", "drawn:domain=target,val=100", "--source", f"drawn:domain=source,train={asked.images}", "--batch-size", "4"]
        words = [*drawn, "--seeds", str(asked.seeds), "--epochs", str(asked.epochs), *BANKS, *SEEN, "--arms", "+".join(ARMS)]
        found |= {f"drawn: {arm}": numbers for arm, numbers in measured(asked.runs / "drawn", words).items()}
        steps = asked.images // 4 * asked.epochs
        setting["drawn"] = (
            f"{asked.images} source and 400 target images of 48 x 48 pixels, 6 of the target with labels, 100 measured; batches of 4 "
            f"from each, {steps} steps of Adam, the first {asked.images // 4} on source and few alone; nuclei8_3; {banks}, "
            "stream weights 1e5"
        )
        said = [apart(found, "drawn", "mixing", "alone", f"{metric}, %") for metric in ("mPQ", "mDice", "mDice apart")]
        said += [apart(found, "drawn", arm, "mixing", metric) for arm in ARMS[2:] for metric in ("mDice, %", "mDice apart, %")]
        verdict.append(f"drawn: {'; '.join(said)}.")
    real = "+".join((*ARMS[:2], "otd"))
    if asked.dsb:
        place = [f"nuclei:{asked.dsb},domain={domain},scale=0.5" for domain in ("stained", "fluorescence")]
        words = ["--target", place[0], "--source", place[1], "--few", "4", *SHORT, *DSB, "--arms", real, "--seeds", str(asked.real_seeds)]
        found |= {f"DSB 2018: {arm}": numbers for arm, numbers in measured(asked.runs / "dsb", words).items()}
        setting["DSB 2018"] = (
            "fluorescence to stained tissue, one class, at half the size, crops of 48; 4 target pictures with labels; banks as above, "
            "stream weights 1000"
        )
        said = [
            apart(found, "DSB 2018", *arms, metric) for arms in (("mixing", "alone"), ("otd", "mixing")) for metric in ("PQ, %", "Dice, %")
        ]
        verdict.append(f"DSB 2018: {'; '.join(said)}.")
    if asked.wbc:
        asked.runs.mkdir(parents=True, exist_ok=True)
        taxonomy = asked.runs / "blood.yaml"
        taxonomy.write_text("".join(f"{fine}: {coarse}\n" for fine, coarse in BLOOD.items()))
        merge = "merge=granulocyte:1+4+5;lymphocyte:2;monocyte:3"
        place = [f"nuclei:{asked.wbc},domain=cellavision,scale=0.16,val=0.5", f"nuclei:{asked.wbc},domain=tecom,scale=0.4,{merge}"]
        words = [
            "--target",
            place[0],
            "--source",
            place[1],
            "--taxonomy",
            str(taxonomy),
            "--new-classes",
            NEW_BLOOD,
            "--few",
            "8",
            *SHORT,
            *WBC,
        ]
        words += ["--arms", real, "--seeds", str(asked.real_seeds)]
        found |= {f"blood cells: {arm}": numbers for arm, numbers in measured(asked.runs / "wbc", words).items()}
        setting["blood cells"] = (
            "Tecom, granulocytes one class, to CellaVision with 5 classes, at 48 pixels a picture; 8 target pictures with labels; banks as "
            "above, stream weights 1000"
        )
        said = [
            apart(found, "blood cells", *arms, metric)
            for arms in (("mixing", "alone"), ("otd", "mixing"))
            for metric in ("mDice, %", "mDice apart, %")
        ]
        verdict.append(f"blood cells: {'; '.join(said)}.")
    command = f"python experiments/otd.py --seeds {asked.seeds} --epochs {asked.epochs} --images {asked.images}"
    command += " --real-only" * asked.real_only
    command += f" --real-seeds {asked.real_seeds}" * bool(asked.dsb or asked.wbc)
    command += " --dsb dsb2018_nuclei.zip" * bool(asked.dsb) + " --wbc wbc_two_domains.zip" * bool(asked.wbc)
    write(asked.out, "otd", command, list(range(asked.seeds)), found, " ".join(verdict), setting, only=asked.real_only)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
