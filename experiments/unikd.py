"""UniKD's small-scale experiment: do extractors teach across kinds of detectors, and is it the shared question that teaches?

    python experiments/unikd.py                                        # procedural scenes
    python experiments/unikd.py --bccd bccd_voc.zip --only bccd        # blood cells, 80 x 107 pixels

A Faster R-CNN teaches GFL with 42 k parameters. On the scenes the student alone is compared with UniKD, FitNet on the same maps, queries
that are not shared, random extractors, and either part of UniKD alone; on the cells with UniKD and FitNet. The teacher's answers are stored
once, for each image and its mirror image, but for those of random extractors. All arms of a seed have the same initial weights, images and
number of steps. Runs that were killed go on; an arm is written down once all its seeds are done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import Numbers, side, write

from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Networks, Teacher, Trained, Training
from stillroom.methods.unikd.distillers import Absorb
from stillroom.methods.unikd.extractors import Extractors, load_extractors
from stillroom.methods.unikd.recipe import absorb, hint_student, inject_student, keep
from stillroom.methods.unikd.teaching import Answers, Taught, common_strides, sizes_for, with_extractors
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.supervised import DetectionDistiller

ARMS = ("none", "UniKD", "FitNet", "queries not shared", "extractors untrained", "content only", "position only")
NUMBERS = {"queries": 32, "width": 32, "heads": 4, "points": 4}
PLAN = Training(epochs=18, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.6, clip_norm=10.0)
ABSORBING = Training(epochs=3, optimizer="adamw", lr=2e-3, weight_decay=1e-4, milestones=(0.8,), clip_norm=0.1)


def made(arm: str, student: Any, data: DetectionData, taught: Taught, untrained: Callable[[], Taught]) -> Distiller:
    """The student under an arm's distiller."""
    if arm == "none":
        return DetectionDistiller(student)
    if arm == "FitNet":
        return hint_student(student, taught, data, None, 5.0)
    options: dict[str, dict[str, Any]] = {
        "queries not shared": {"shared_queries": False},
        "content only": {"position_weight": 0.0},
        "position only": {"content_weight": 0.0},
    }
    return inject_student(student, untrained() if arm == "extractors untrained" else taught, data, None, **options.get(arm, {}))


def experiment(
    name: str, data: DetectionData, networks: Networks, plans: tuple[Training, Training], arms: Sequence[str], asked: argparse.Namespace
) -> tuple[dict[str, Numbers], list[str]]:
    """Every arm with every seed; one teacher and one pair of extractors for all."""
    options = LabOptions(out=asked.runs / name, seeds=asked.seeds, accelerator="cpu")
    plan, absorbing = plans
    found: dict[str, dict[str, dict[int, float]]] = {}
    notes: list[str] = []

    def note(arm: str, seed: int, trained: Trained) -> None:
        measured = {**{metric: trained.result.metrics[metric] for metric in ("AP", "AP50", "AP75")}, "seconds": trained.result.seconds}
        for metric, value in measured.items():
            found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value

    def new(teacher: Teacher) -> Taught:
        student = first.network(networks.student, "student").network
        sizes = sizes_for(teacher, common_strides(student, teacher.networks[0].strides), data, networks.teacher, **NUMBERS)  # type: ignore
        return with_extractors(teacher, Extractors(sizes))

    lab = Lab(options, 0)
    first = Experiment(lab, data, plan, networks)
    whole = first.teacher()
    teacher = lab.teach(whole)
    with lab.shared():
        if asked.extractors and name == "scenes":
            taught = with_extractors(teacher, load_extractors(asked.extractors))
            learnt = json.loads((Path(asked.extractors) / "stage.json").read_text())["result"]["metrics"]["AP50"]
            notes.append(f"The extractors detect with AP50 {learnt:.1f}, their teacher with {whole.result.metrics['AP50']:.1f}.")
        else:
            taught = new(teacher)
            assert taught.maps is not None
            notes.append(absorb(lab, Absorb(taught.extractors, taught.maps), data, absorbing, whole))
            taught = with_extractors(teacher, taught.extractors)
        assert isinstance(taught.answers, Answers)
        kept, said = keep(lab, str(asked.runs / f"{name}-answers"), taught.answers, data, whole.result, "fp16")
        taught, notes = replace(taught, answers=kept), [*notes, said]
    for arm in arms:
        for seed in range(asked.seeds):
            one = Experiment(Lab(options, seed), data, plan, networks, taught=whole)
            folder = arm.replace(" ", "-")
            note(arm, seed, one.trained(folder, lambda student, arm=arm: made(arm, student, data, taught, lambda: new(teacher))))
        print(f"{name}: {arm}", found[f"{name}: {arm}"]["AP"], flush=True)
        if arm == asked.until:
            break
    found[f"{name}: teacher"] = {
        metric: dict.fromkeys(range(asked.seeds), whole.result.metrics[metric]) for metric in ("AP", "AP50", "AP75")
    }
    return dict(found), [f"{name}: {line}" for line in notes]


def verdict(name: str, found: dict[str, Numbers]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""
    lines, own = [], found[f"{name}: UniKD"]["AP"]
    for over in [arm.partition(": ")[2] for arm in found if arm not in (f"{name}: UniKD", f"{name}: teacher")]:
        word, change, spread = side(own, found[f"{name}: {over}"]["AP"], "level within noise with")
        lines.append(f"UniKD is {word} '{over}' ({change:+.1f} +- {spread:.1f} AP)")
    return f"{name}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", help="BCCD in Pascal VOC's layout, in a folder or a zip")
    parser.add_argument("--only", choices=("scenes", "bccd"), help="run one of the two; the other's numbers are left out")
    parser.add_argument("--teacher", help="the scenes' teacher, where it is trained already: the stage of an earlier run")
    parser.add_argument("--extractors", help="its extractors, likewise")
    parser.add_argument("--until", choices=ARMS, help="the last arm to run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/unikd"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/unikd.json"))
    asked = parser.parse_args()
    found: dict[str, Numbers] = {}
    said, notes = [], []
    student = "stillroom/gfl_24"
    setting: dict[str, object] = {
        "teacher": "stillroom/faster-rcnn_32",
        "students": f"{student}, 42 k parameters",
        "extractors": "32 queries of width 32, 4 heads, 4 points; weights 10 and 10; one layer of self-attention in the adapter",
        "answers": "stored once, for each image and its mirror image, in fp16; those of random extractors asked anew in each step",
    }
    if asked.only != "bccd":
        data = DetectionData("scenes")
        networks = Networks(asked.teacher or "stillroom/faster-rcnn_32", student, teacher_epochs=6, teacher_lr=3e-3)
        arms, more = experiment("scenes", data, networks, (PLAN, ABSORBING), ARMS, asked)
        found, notes, said = found | arms, notes + more, [*said, verdict("scenes", arms)]
        setting["scenes"] = (
            "48 x 48 pixels, 6 classes; teacher 6 epochs, extractors 3 of 3 000; students 342 steps of 16 of 300; 300 to test"
        )
    if asked.bccd and asked.only != "scenes":
        data = DetectionData(f"voc:{asked.bccd}", image_size=80, batch_size=8)
        networks = Networks("stillroom/faster-rcnn_32", student, teacher_epochs=8)
        plans = replace(PLAN, epochs=5, warmup_epochs=1), replace(ABSORBING, epochs=8)
        arms, more = experiment("BCCD", data, networks, plans, ARMS[:3], asked)
        found, notes, said = found | arms, notes + more, [*said, verdict("BCCD", arms)]
        setting["BCCD"] = "80 x 107 pixels, 3 classes, 292 images; teacher 8 epochs, extractors 8, students 5, of batch 8"
    command = "python experiments/unikd.py" + (" --bccd bccd_voc.zip" if asked.bccd else "")
    write(asked.out, "unikd", command, range(asked.seeds), found, ". ".join(said) + ".", setting, notes=notes)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
