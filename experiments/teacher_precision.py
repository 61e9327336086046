"""Does a student pay for a teacher that is computed in 8 bits? CIFAR-10, a ResNet-56 that somebody trained, KD and DKD.

    python experiments/teacher_precision.py --pictures cifar10.zip --weights resnet56.safetensors
    python experiments/teacher_precision.py --scenes      # instead: BCKD on drawn scenes, from a detector in fp32 and in int8

The same teacher answers in fp32 and bf16 by PyTorch, and in int8 by onnxruntime; its answers to four crops of each picture are stored, and
students of the same initial weights learn from them, in the same order: seed by seed only the answers differ. Besides, how near each of
them is to fp32 on the validation pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar_resnet import NETWORK, STATISTICS
from record import Numbers, is_clear, paired, side, write
from torch import Tensor

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Teacher, Training
from stillroom.engine.cache import CachedTeacher, Storage, Views, build_cache
from stillroom.engine.inference.fidelity import CLASSES
from stillroom.methods import bckd, dkd, kd
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.detection.data import DetectionData

PRECISIONS = ("fp32", "bf16", "int8")
METHODS: dict[str, Callable[..., Any]] = {"KD": kd.build, "DKD": dkd.build}
STUDENT = "stillroom/resnet8"
TEMPERATURE = 4.0


@torch.no_grad()
def answers(teacher: Teacher, data: ImageData) -> tuple[Tensor, Tensor]:
    """The teacher's logits [N, C] to the validation pictures, and their labels [N]."""
    told = [(teacher(batch), batch.labels) for batch in data.eval_loader()]
    return torch.cat([logits for logits, _ in told]), torch.cat([labels for _, labels in told])


def stored(precision: str, data: ImageData, plan: Training, spec: str, out: Path) -> tuple[CachedTeacher, Tensor, Tensor]:
    """The teacher's answers to the training pictures, and those to the validation pictures with their labels."""
    lab = Lab(LabOptions(out=out / precision, accelerator="cpu", teacher_precision=precision))  # type: ignore[arg-type]
    taught = Experiment(lab, data, plan, ClassifierNetworks(spec, STUDENT)).teacher()
    teacher = lab.teach(taught)
    cache = build_cache(out / precision / "answers", teacher, data, taught.result, views=Views(4, 0), storage=Storage("fp32"))
    return cache, *answers(teacher, data)


SCENES = "BCKD on scenes"


def scenes(seeds: Sequence[int], out: Path) -> dict[str, Numbers]:
    """Detectors taught by BCKD from one detector, which answers in fp32 and in int8."""
    data = DetectionData("scenes")
    plan = Training(epochs=27, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.6, clip_norm=10.0)
    networks = Networks("stillroom/gfl_32", "stillroom/gfl_24", teacher_epochs=6, teacher_lr=3e-3)
    first = Lab(LabOptions(out=out / "scenes-teacher", accelerator="cpu"), seeds[0])
    networks = Networks(str(Experiment(first, data, plan, networks).teacher().folder), networks.student)
    found: dict[str, dict[str, dict[int, float]]] = {}
    for precision in ("fp32", "int8"):
        options = LabOptions(out=out / f"scenes-{precision}", seeds=len(seeds), accelerator="cpu", teacher_precision=precision)  # type: ignore[arg-type]
        for seed in seeds:
            experiment = Experiment(Lab(options, seed), data, plan, networks)
            trained = experiment.distilled("distilled", partial(bckd.build, data=data))
            for metric in ("AP", "AP50", "AP75"):
                found.setdefault(f"{SCENES}: {precision} teacher", {}).setdefault(metric, {})[seed] = trained.result.metrics[metric]
    return found


def verdict(found: Mapping[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    for method in METHODS:
        for precision in PRECISIONS[1:]:
            arm, exact = (found[f"{method}, {one} teacher"]["top1"] for one in (precision, "fp32"))
            change, spread = paired(arm, exact)
            word = ("higher" if change > 0 else "lower") if is_clear(change, spread, len(arm)) else "equal within noise"
            lines.append(f"{method} from {precision} against fp32: {word} ({change:+.2f} +- {spread:.2f} points)")
    return "; ".join(lines) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a zip of folders train/CLASS and test/CLASS")
    parser.add_argument("--weights", help="of the teacher, experiments/cifar_resnet.py:resnet56")
    parser.add_argument("--scenes", action="store_true", help="detectors on drawn scenes, and nothing else; by default 3 seeds")
    parser.add_argument("--subset", type=int, default=2500, help="pictures to train on")
    parser.add_argument("--val-subset", type=int, default=2500, help="pictures to measure with")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/teacher-precision"))
    asked = parser.parse_args()
    results = Path("results/teacher_precision.json")
    if asked.scenes:
        seeds = list(range(asked.seeds or 3))
        numbers = scenes(seeds, asked.out)
        exact_AP, other_AP = (numbers[f"{SCENES}: {precision} teacher"]["AP"] for precision in ("fp32", "int8"))
        word, change, spread = side(other_AP, exact_AP, "equal within noise to")
        said = f"{SCENES}: AP from an int8 teacher is {word} that from fp32 ({change:+.1f} +- {spread:.1f} points)."
        told = "teacher stillroom/gfl_32, 3 000 drawn scenes; students stillroom/gfl_24, 300 scenes, 486 steps of 16; 300 to test"
        command = f"python experiments/teacher_precision.py --scenes --seeds {len(seeds)}"
        write(results, "teacher-precision", command, seeds, numbers, said, {SCENES: told}, only=True)
        return
    if not asked.pictures or not asked.weights:
        parser.error("--pictures and --weights, or --scenes")
    size = {"subset": asked.subset, "val_subset": asked.val_subset}
    data = ImageData(f"imagefolder:{asked.pictures}", augment="cifar", batch_size=128, **STATISTICS, **size)
    plan = Training(epochs=asked.epochs, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    seeds = list(range(asked.seeds or 5))
    found: dict[str, dict[str, dict[int, float]]] = {}
    caches: dict[str, CachedTeacher] = {}
    exact: Tensor | None = None
    for precision in PRECISIONS:
        caches[precision], told, labels = stored(precision, data, plan, f"{NETWORK}:resnet56@{asked.weights}", asked.out)
        exact = told if exact is None else exact
        near = CLASSES.measure(exact, told, TEMPERATURE)
        top1 = 100 * float((told.argmax(1) == labels).double().mean())
        numbers = {"top1": top1, "agreement with fp32, %": near["agreement"], "KL to fp32 at T = 4": near["kl"]}
        found[f"teacher, {precision}"] = {name: {0: value} for name, value in numbers.items()}
        print(precision, numbers, flush=True)
    options = LabOptions(out=asked.out / "students", seeds=len(seeds), accelerator="cpu")
    for seed in seeds:
        lab = Lab(options, seed)
        networks = {one: ClassifierNetworks(f"cache:{caches[one].folder}", STUDENT) for one in PRECISIONS}
        trained = {"alone": Experiment(lab, data, plan, networks["fp32"]).alone()}
        for precision in PRECISIONS:
            experiment = Experiment(lab, data, plan, networks[precision])
            for method, build in METHODS.items():
                stage = f"{method}-{precision}".lower()
                trained[f"{method}, {precision} teacher"] = experiment.distilled(stage, partial(build, data=data))
        for name, one in trained.items():
            for metric in ("top1", "nll", "ece"):
                if metric in one.result.metrics:
                    found.setdefault(name, {}).setdefault(metric, {})[seed] = one.result.metrics[metric]
    command = f"python experiments/teacher_precision.py --pictures cifar10.zip --weights resnet56.safetensors --seeds {len(seeds)}"
    setting = {**size, "epochs": asked.epochs, "student": STUDENT, "teacher": "resnet56", "views": 4, "lr": plan.lr, "batch_size": 128}
    write(results, "teacher-precision", command, seeds, found, verdict(found), setting)


if __name__ == "__main__":
    main()
