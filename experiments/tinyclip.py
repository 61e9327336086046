"""TinyCLIP's small-scale experiment: what does a small CLIP gain by affinities, by inheritance, by learned masks, by stages?

    python experiments/tinyclip.py --openclipart openclipart_pairs.zip --flickr flickr8k_1k.zip      # an hour on a busy core

Drawn pairs (`compositions`): pictures of combinations of shape, colour, size and place that no training picture has, among their
captions; one teacher for all seeds. Arms of as many steps with the same seeds: from random numbers by the contrastive loss and on
affinities; with inherited weights on affinities, on embeddings, by the contrastive loss; by learned masks; and three quarters dropped at
once or in two stages. Real pairs: drawings of the Open Clip Art Library and photographs of Flickr8k, a teacher trained on them, shrunk to
half. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import Numbers, side, write

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.tinyclip import recipe
from stillroom.methods.tinyclip.recipe import NETWORKS
from stillroom.tasks.imagetext import SMALL, ImageTextData

TEACHER, SCRATCH = "teacher", "scratch + contrastive"
ARMS = {
    "teacher": TEACHER,
    "alone": SCRATCH,
    "affinity": "scratch + affinity",
    "manual": "inherited + affinity",
    "auto": "learned masks + affinity",
    "features": "inherited + embeddings",
    "contrast": "inherited + contrastive",
}
METRICS = ("I2T@1", "I2T@5", "T2I@1", "T2I@5")
Found = dict[str, dict[str, dict[int, float]]]


def run(
    found: Found, group: str, names: Mapping[str, str], data: ImageTextData, plan: Training, seeds: Sequence[int], out: Path, **options: Any
) -> None:
    """One recipe with every seed; its arms by their names in the results."""
    networks = replace(NETWORKS, **options.pop("networks"))
    for seed in seeds:
        lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_seconds=60), seed)
        report = recipe(lab, data, plan, networks, **options)
        for arm, (result,) in report.arms.items():
            if arm in names:
                numbers = {name: result.metrics[name] for name in METRICS}
                numbers["parameters, k"] = result.footprint.parameters / 1e3
                if result.footprint.macs is not None:
                    numbers["multiply-adds, M"] = result.footprint.macs / 1e6
                for metric, value in numbers.items():
                    found.setdefault(f"{group}: {names[arm]}", {}).setdefault(metric, {})[seed] = value


def verdict(group: str, found: Found, pairs: Sequence[tuple[str, str]]) -> str:
    """What the numbers say of the arms that there are, in words made from the numbers alone."""
    lines = []
    for arm, over in pairs:
        if not {f"{group}: {arm}", f"{group}: {over}"} <= found.keys():
            continue
        numbers, others = (found[f"{group}: {name}"]["I2T@1"] for name in (arm, over))
        if len(numbers) < 2:
            (seed,) = numbers
            lines.append(f"{arm} is {numbers[seed] - others[seed]:+.1f} points of R@1 from {over} (one seed)")
            continue
        word, change, spread = side(numbers, others, "equal within noise to")
        lines.append(f"{arm} is {word} {over} ({change:+.1f} +- {spread:.1f} points of R@1)")
    return f"{group}: " + "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openclipart", help="folder or zip with pairs.csv and its images")
    parser.add_argument("--flickr", help="likewise")
    parser.add_argument("--arms", default="alone+affinity+features+contrast+manual+auto", help="on drawn pairs")
    parser.add_argument("--one_stage", action="store_true", help="without dropping three quarters at once and in two stages")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--real_seeds", type=int, default=1, help="on real pairs")
    parser.add_argument("--teacher_epochs", type=int, default=7, help="of drawn pairs")
    parser.add_argument("--real_teacher_epochs", type=int, default=20)
    parser.add_argument("--real_epochs", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/tinyclip"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/tinyclip.json"))
    given = parser.parse_args()
    found: Found = {}
    seeds = list(range(given.seeds))
    data = ImageTextData("compositions")
    networks = {"teacher_epochs": given.teacher_epochs}
    run(found, "compositions", ARMS, data, SMALL, seeds, given.runs / "compositions", networks=networks, arms=given.arms)
    taught = {"teacher": str(given.runs / "compositions/teacher")}
    stages = {} if given.one_stage else {"three quarters at once": (0.75,), "three quarters in two stages": (0.5, 0.75)}
    for name, targets in stages.items():
        folder = given.runs / f"compositions-{len(targets)}"
        run(found, "compositions", {"auto": name}, data, SMALL, seeds, folder, networks=taught, arms="auto", targets=targets)
    inherited, masks = ARMS["manual"], ARMS["auto"]
    said = [
        verdict(
            "compositions",
            found,
            [
                (ARMS["affinity"], SCRATCH),
                (inherited, SCRATCH),
                (masks, SCRATCH),
                (masks, inherited),
                (inherited, ARMS["contrast"]),
                (inherited, ARMS["features"]),
                ("three quarters in two stages", "three quarters at once"),
            ],
        )
    ]
    steps = SMALL.epochs * (data.train_size // data.batch_size)
    setting = {
        "compositions": f"{data.first_lines()[0]}; teacher 64 x 4 and 48 x 4, {given.teacher_epochs} epochs; students 48 x 4 and 32 x 4 or "
        f"what masks leave at q = 0.5, {steps} steps of 64 (half of them before the cut), AdamW 1e-3, scale 50"
    }
    for name, place in (("Open Clip Art", given.openclipart), ("Flickr8k", given.flickr)):
        if place:
            pairs = ImageTextData(f"pairs:{place}", image_size=48, vocabulary=2048, context=24, batch_size=128)
            plan = replace(SMALL, epochs=given.real_epochs)
            real = {"teacher": "stillroom/clip_96x4p8_96x3_d64_h16", "teacher_epochs": given.real_teacher_epochs}
            folder = given.runs / name.lower().replace(" ", "-")
            run(found, name, ARMS, pairs, plan, range(given.real_seeds), folder, networks=real, arms="alone+manual+auto")
            said.append(verdict(name, found, [(inherited, SCRATCH), (masks, SCRATCH), (masks, inherited)]))
            setting[name] = (
                f"{pairs.first_lines()[0]}, 48 x 48; teacher 96 x 4 and 96 x 3, {given.real_teacher_epochs} epochs of 128; students "
                f"half of its blocks, {given.real_epochs} epochs"
            )
    command = f"python experiments/tinyclip.py{' --openclipart openclipart_pairs.zip' * bool(given.openclipart)}"
    command += f"{' --flickr flickr8k_1k.zip' * bool(given.flickr)} --arms {given.arms}{' --one_stage' * given.one_stage}"
    command += f" --seeds {given.seeds} --real_seeds {given.real_seeds}"
    command += (
        f" --teacher_epochs {given.teacher_epochs} --real_teacher_epochs {given.real_teacher_epochs} --real_epochs {given.real_epochs}"
    )
    arms_found: dict[str, Numbers] = dict(found)
    write(given.out, "tinyclip", command, seeds, arms_found, ". ".join(said) + ".", setting)
    print(given.out.read_text())


if __name__ == "__main__":
    main()
