"""SDD's small-scale experiment: edits to one class, trade-off curves of a swept L2 weight, for several ways to take the time step.

    python experiments/sdd.py                                         # drawn pictures; some 25 minutes on one core
    python experiments/sdd.py --data imagefolder:flowers5.zip --image_size 32 --prompt sunflowers --out results/sdd_flowers.json

One teacher serves all seeds; each seed has its own initial student, order and noise. Arms, all with the same steps: the time step with the
largest HQS, with the least, and (where it is another one) with the least entropy; the last of the grid; a random step for each batch; and
SDEdit with the same teacher. Compared is the error at an equal share of edited pictures, read between the points of each arm's curve.
Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from record import Numbers, side, write

from stillroom.engine import Lab, LabOptions, Training
from stillroom.methods.sdd import SDD
from stillroom.methods.sdd.hqs import hybrid_quality, selected
from stillroom.methods.sdd.recipe import denoiser, judged, sampled, searched, trained
from stillroom.tasks.editing import EDITOR, TASK, EditingData, SDEdit

RATE = 90.0  # % edited at which errors are compared
EDITED = "edited as asked, %"
ARMS = ["HQS", "random t", "least HQS", "t = 190", "least entropy"]
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def error_at(points: list[tuple[float, float]], rate: float) -> float | None:
    """The error of a curve of (share edited, error) at a share, between its two neighbours; None where it does not get there."""
    ordered = sorted(points)
    if not ordered[0][0] <= rate <= ordered[-1][0]:
        return None
    return float(np.interp(rate, *zip(*ordered, strict=True)))


def experiment(
    data: EditingData, prompt: str, asked_for: list[str], weights: list[float], seeds: list[int], plan: Training, out: Path
) -> tuple[dict[str, Numbers], str]:
    """Every arm, weight and seed; and what was chosen, in words."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    told = ""
    error = "background" if data.drawn else "change"

    def prepared(seed: int):
        lab = Lab(LabOptions(out=out, accelerator="cpu", teacher_precision="fp32"), seed)
        teacher, taught = denoiser(lab, data, TASK.networks)
        judge = None if data.drawn else judged(lab, data)
        return lab, teacher, taught, data.for_edit(prompt, classifier=judge), teacher.condition(prompt)

    def note(arm: str, seed: int, metrics: dict[str, float]) -> tuple[float, float]:
        numbers = found.setdefault(arm, {})
        for name in (error, "iou"):
            if name in metrics:
                numbers.setdefault(TASK.metric_formats[name].label, {})[seed] = metrics[name]
        numbers.setdefault(EDITED, {})[seed] = metrics["edited"]
        return metrics["edited"], metrics[error]

    for seed in seeds:
        lab, teacher, taught, edits, condition = prepared(seed)
        asked = {"guidance": 5.0, "top_k": None, "through_teacher": False}
        grid = list(range(10, 200, 20))
        entropy, l1, steps = searched(lab, edits, teacher, condition, prompt, 200, grid, None, asked)
        quality = hybrid_quality(entropy, l1)
        best, worst, least = (
            int(selected(values, steps, rule)) for values, rule in ((quality, "max"), (quality, "min"), (entropy.mean(0), "min"))
        )
        arms: dict[str, list[int] | None] = {"HQS": [best], "random t": None, "least HQS": [worst], f"t = {grid[-1]}": [grid[-1]]}
        if least != best:
            arms["least entropy"] = [least]
        scores = ", ".join(f"{t}: {value:.2f}" for t, value in zip(grid, quality.tolist(), strict=True))
        told = f"HQS by t: {scores}; largest at {best}, least entropy at {least}; denoising error {taught.result.metrics['denoising']:.1f}"

        for arm, chosen in ((arm, arms[arm]) for arm in asked_for if arm in arms):
            points = [(0.0, 0.0)]  # an endless weight edits nothing
            for weight in weights:
                name = f"{arm}-{weight:g}".replace(" ", "").replace("=", "")

                make = partial(SDD, teacher=teacher, condition=condition, timesteps=chosen, l2_weight=weight, **asked)
                points.append(
                    note(f"{arm}, L2 weight {weight:g}", seed, trained(lab, edits, plan, TASK.networks, name, make).result.metrics)
                )
            if (at := error_at(points, RATE)) is not None:
                found.setdefault(arm, {}).setdefault(f"error at {RATE:g} % edited × 1000", {})[seed] = at
    for seed in seeds:
        lab, teacher, taught, edits, condition = prepared(seed)
        points = [(0.0, 0.0)]
        for strength in STRENGTHS:
            sample = sampled(
                lab,
                edits,
                TASK.networks,
                taught,
                SDEdit(teacher, condition, strength=strength, guidance=5.0, seed=seed),
                f"sdedit-{strength:g}",
                "",
            )
            points.append(note(f"SDEdit, strength {strength:g}", seed, sample.result.metrics))
        if (at := error_at(points, RATE)) is not None:
            found.setdefault("SDEdit", {}).setdefault(f"error at {RATE:g} % edited × 1000", {})[seed] = at
    return found, told


def verdict(found: dict[str, Numbers], seeds: int) -> str:
    """What the numbers say, in words made from the numbers alone."""
    metric = f"error at {RATE:g} % edited × 1000"
    at = {arm: numbers[metric] for arm, numbers in found.items() if metric in numbers}
    curves = {arm.partition(",")[0] for arm in found}
    said = [f"{arm} does not edit {RATE:g} % with every seed" for arm in sorted(curves) if len(at.get(arm, {})) < seeds]
    if len(at.get("HQS", {})) == seeds:
        for arm, numbers in at.items():
            if arm == "HQS" or len(numbers) < seeds or seeds < 2:
                continue
            word, change, spread = side(at["HQS"], numbers, "equal within noise to")
            said.append(f"the error of HQS is {word} that of {arm} ({change:+.1f} +- {spread:.1f})")
    return f"At {RATE:g} % edited: " + "; ".join(said) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="colours")
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--prompt", default="red")
    parser.add_argument("--arms", nargs="+", default=ARMS, help="ways to take the time step")
    parser.add_argument("--weights", type=float, nargs="+", default=[700, 2000, 4000], help="of the L2 term")
    parser.add_argument("--epochs", type=int, default=EDITOR.epochs, help="of each student; one has 100 steps on the drawn pictures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/sdd"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/sdd.json"))
    arguments = parser.parse_args()
    data = EditingData(arguments.data, image_size=arguments.image_size)
    plan = replace(EDITOR, epochs=arguments.epochs)
    found, told = experiment(data, arguments.prompt, arguments.arms, arguments.weights, list(range(arguments.seeds)), plan, arguments.runs)
    steps = plan.epochs * (data.for_edit(arguments.prompt).train_size // data.batch_size)
    setting = {
        "data": "; ".join(data.first_lines()[:2]),
        "prompt": arguments.prompt,
        "teacher": f"{TASK.networks.teacher}, T = 200, trained here, one for all seeds",
        "student": f"{TASK.networks.student}, {steps} steps of {data.batch_size} pictures, AdamW {plan.lr:g}, guidance 5",
        "search": told,
    }
    place = (
        ""
        if arguments.data == "colours"
        else f" --data {Path(arguments.data).name} --image_size {arguments.image_size} --prompt {arguments.prompt}"
    )
    chosen = "" if arguments.arms == ARMS else f" --arms {shlex.join(arguments.arms)}"
    chosen += f" --weights {' '.join(f'{weight:g}' for weight in arguments.weights)}"
    command = f"python experiments/sdd.py --seeds {arguments.seeds} --epochs {arguments.epochs}{chosen}{place}"
    write(arguments.out, "sdd", command, list(range(arguments.seeds)), found, verdict(found, arguments.seeds), setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
