"""AdaSim's small-scale experiments: does a neighbour as the second view help, does it harm without a gate, and where does the gate open?

    python experiments/adasim.py --cifar10 cifar10.zip     # about half an hour of one core

A, digits: the specification's views, network and budget, every arm, and AdaSim at three temperatures; few-label k-NN. B, CIFAR-10, made
smaller to 16 x 16 pixels: baseline, naive from the second epoch on, AdaSim; weighted k-NN. C, made-up pictures: half of them recognisable
(a strong pattern of their own that survives the views), half ambiguous (a weak class pattern; what is their own is lost in the views): how
often the gate opens for either, and how many draws are right with the gate and without. The share of second views that showed another
image stands beside every score: where it is near 0, the arm is the baseline. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Numbers, side, write
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Networks, Training
from stillroom.engine.report.results import StageResult
from stillroom.methods.adasim import AdaSim, recipe, vote
from stillroom.methods.adasim.arms import RULES
from stillroom.methods.adasim.recipe import SMALL
from stillroom.methods.dino import build
from stillroom.tasks.images.networks import NETWORKS
from stillroom.tasks.representation import RepresentationData

PLAN = Training(epochs=40, optimizer="adamw", lr=1e-3, weight_decay=0.04, schedule="cosine", lr_floor=1e-6)
HEADS: dict[str, Any] = dict(SMALL["host_options"])  # type: ignore[call-overload]
WINDOW: dict[str, Any] = {"window": 8, "topk": 5}
ALL = "baseline+naive+gated-naive+ungated+window1+adasim"
METRICS = {"few": "k-NN with 5 labels a class, %", "knn": "k-NN, %", "linear": "linear probe, %"}
HERE = Path(__file__)
NOTES = [
    "B was set up on the baseline alone (seed 0): with the specification's four convolutions, heads without batch norms and 16 epochs "
    "of 1500 images it collapsed to one uniform answer. T_p was not tuned, and the schedule is far shorter than the specification's.",
]
CLASSES, EACH = 6, 100  # of the made-up pictures


def patterns() -> tuple[list[tuple[np.ndarray, int]], list[tuple[np.ndarray, int]]]:
    """The made-up pictures, uint8 [16, 16, 3] with their classes; every second one is ambiguous."""
    numbers = np.random.default_rng(0)

    def smooth(count: int) -> np.ndarray:
        """Patterns of 4 x 4 cells, grey."""
        return numbers.uniform(-1, 1, (count, 4, 4)).repeat(4, 1).repeat(4, 2)

    classes = smooth(CLASSES)

    def pictures(count: int) -> list[tuple[np.ndarray, int]]:
        labels = np.arange(count) // 2 % CLASSES
        own, noise = smooth(count), numbers.uniform(-1, 1, (count, 16, 16))
        recognisable = 0.4 * classes[labels] + 0.6 * own
        ambiguous = 0.15 * classes[labels] + 0.8 * noise
        mixed = np.where((np.arange(count) % 2 == 0)[:, None, None], recognisable, ambiguous)
        grey = np.clip(127.5 * (1 + mixed), 0, 255).astype(np.uint8)
        return [(picture, int(label)) for picture, label in zip(grey[..., None].repeat(3, 3), labels, strict=True)]

    return pictures(CLASSES * EACH), pictures(2 * CLASSES)


def numbers_of(result: StageResult, begin: int | None) -> dict[str, float]:
    """An arm's scores, and what its second views showed from the epoch on that may show another image."""
    found = {said: result.metrics[name] for name, said in METRICS.items()}
    if begin is not None:
        shown = [row for row in result.history if row["epoch"] > begin]
        share = sum(row["train/bootstrap/share"] for row in shown) / len(shown)
        found |= {"another image shown, %": 100 * share, "found itself first, %": 100 * shown[-1]["train/retrieval/self"]}
        if share:
            found["of these right, %"] = 100 * sum(row["train/bootstrap/right"] for row in shown) / len(shown) / share
    return found | {"entropy of the mean answer, %": result.metrics["entropy"], "seconds": result.seconds}


def experiment(
    group: str,
    data: RepresentationData,
    plan: Training,
    seeds: list[int],
    out: Path,
    student: str,
    arms: str,
    window: Mapping[str, Any],
    heads: Mapping[str, Any],
    *,
    temperatures: tuple[float, ...] = (),
) -> dict[str, Numbers]:
    """Every arm with every seed."""
    found: dict[str, Any] = {}
    for seed in seeds:
        for temperature in (None, *temperatures):
            folder = out if temperature is None else out.with_name(f"{out.name}-{temperature:g}")
            lab = Lab(LabOptions(out=folder, accelerator="cpu", checkpoint_seconds=120), seed)
            options = {**window, "host_options": dict(heads), **({} if temperature is None else {"sampling_temperature": temperature})}
            report = recipe(lab, data, plan, Networks(student=student), arms=arms if temperature is None else "adasim", **options)
            for arm, (result,) in report.arms.items():
                rule = RULES.get(arm)
                begin = (
                    None if rule is None else window["window"] if rule.begin is None and rule.window is None else rule.begin or rule.window
                )
                if arm in ("pixels", "random"):
                    numbers = {said: result.metrics[name] for name, said in METRICS.items()}
                else:
                    numbers = numbers_of(result, begin)
                name = arm if temperature is None else f"{arm}, T_p {temperature:g}"
                if temperature is None or arm == "adasim":
                    for metric, value in numbers.items():
                        found.setdefault(f"{group}: {name}", {}).setdefault(metric, {})[seed] = value
    return found


def gate_of(block: AdaSim, labels: np.ndarray, temperature: float) -> dict[str, Tensor]:
    """Of a window, in %: open gates of either half; draws of another image that are right, expected, with the gate and without."""
    ids = np.arange(len(labels))
    votes = vote(*block.window.rows(ids), torch.from_numpy(ids))
    gate = votes.gate.numpy()
    right = labels[votes.candidates.numpy()] == labels[:, None]
    drawn = votes.probabilities(block.window.size, temperature).numpy() * (votes.candidates.numpy() != ids[:, None])
    found = {"recognisable": gate[0::2].mean(), "ambiguous": gate[1::2].mean()}
    found |= {"gated": (drawn * right)[gate].sum() / drawn[gate].sum(), "ungated": (drawn * right).sum() / drawn.sum()}
    return {name: torch.tensor(100 * float(value), dtype=torch.float64) for name, value in found.items()}


def mechanism(seeds: list[int], out: Path, temperature: float) -> dict[str, Numbers]:
    """Where the gate opens, and how many draws are right, by the window that a training with AdaSim ends with."""
    data = RepresentationData(f"{HERE}:patterns", image_size=16, augment="digits", batch_size=100)
    found: dict[str, Any] = {}
    for seed in seeds:
        lab = Lab(LabOptions(out=out, accelerator="cpu"), seed)
        network = NETWORKS["mlp_256_128"](num_classes=2)
        network.fc = nn.Identity()
        distiller = build(network, None, data, **HEADS)
        rule = RULES["adasim"]
        assert rule is not None
        block = AdaSim(data.train_size, 128, rule=rule, labels=data.train_labels, sampling_temperature=temperature, **WINDOW)
        distiller.neighbours = block
        stage = lab.fit(distiller, distiller.training_data(data), PLAN, name="adasim")
        begun = [row["train/bootstrap/share"] for row in stage.result.history][block.begin :]
        # kept, since a finished stage has no window any more
        kept = lab.remember("gate", data.fingerprint, partial(gate_of, block, data.train_labels, temperature))
        gate = {name: float(value) for name, value in kept.items()}
        numbers = {
            "recognisable": {"gate open, %": gate["recognisable"]},
            "ambiguous": {"gate open, %": gate["ambiguous"]},
            "with the gate": {"of these right, %": gate["gated"]},
            "without a gate": {"of these right, %": gate["ungated"]},
            "first epochs": {"another image shown, %": 100 * float(np.mean(begun[:4]))},
            "last epochs": {"another image shown, %": 100 * float(np.mean(begun[-4:]))},
        }
        for arm, values in numbers.items():
            for metric, value in values.items():
                found.setdefault(f"mechanism: {arm}", {}).setdefault(metric, {})[seed] = float(value)
    return found


def verdict(found: Mapping[str, Numbers], group: str, metric: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    for arm, over in pairs:
        numbers = found[f"{group}: {arm}"][metric]
        word, change, spread = side(numbers, found[f"{group}: {over}"][metric], "equal within noise to")
        lines.append(f"{arm} is {word} {over} ({change:+.2f} +- {spread:.2f})")
    return f"{group}, {metric}: {'; '.join(lines)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder or zip of CIFAR-10's classes, in train and test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1500, help="of CIFAR-10")
    parser.add_argument("--cifar_epochs", type=int, default=12)
    parser.add_argument("--cifar_temperature", type=float, default=0.01)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/adasim"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/adasim.json"))
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    found = mechanism(seeds, arguments.runs / "mechanism", 0.05)
    digits = RepresentationData("digits", batch_size=100, primary="few")
    runs = arguments.runs / "digits"
    found |= experiment("digits", digits, PLAN, seeds, runs, "stillroom/mlp_256_128", ALL, WINDOW, HEADS, temperatures=(0.01, 0.05))
    few = METRICS["few"]
    against = tuple((arm, "baseline") for arm in ("adasim", "adasim, T_p 0.05", "naive", "ungated"))
    said = [
        verdict(found, "mechanism", "gate open, %", (("recognisable", "ambiguous"),)),
        verdict(found, "mechanism", "of these right, %", (("with the gate", "without a gate"),)),
        verdict(found, "mechanism", "another image shown, %", (("last epochs", "first epochs"),)),
        verdict(found, "digits", few, against),
    ]
    setting: dict[str, object] = {
        "A, digits": "900 images, 897 to measure with; MLP 256-128, head 256-256-64, 256 prototypes; AdamW 1e-3, batch 100, 40 epochs, "
        "average 0.99 -> 1, V = 8, k = 5, T_p 0.001; warped views; few labels: 5 of each class, k = 5, 40 draws",
        "C, mechanism": f"{CLASSES * EACH} pictures of {CLASSES} classes, every second one ambiguous; network and budget of A, T_p 0.05",
    }
    if arguments.cifar10:
        spec = f"imagefolder:{arguments.cifar10}"
        cifar = RepresentationData(spec, image_size=16, subset=arguments.images, val_subset=1000, batch_size=100, augment="cifar")
        plan = replace(PLAN, epochs=arguments.cifar_epochs, lr=2e-3)
        window = {"window": 4, "topk": 10, "sampling_temperature": arguments.cifar_temperature}
        arms, heads = "baseline+naive+adasim", {**HEADS, "head_batch_norm": True}
        found |= experiment("CIFAR-10", cifar, plan, seeds, arguments.runs / "cifar10", "stillroom/convnet24", arms, window, heads)
        said.append(verdict(found, "CIFAR-10", METRICS["knn"], (("adasim", "baseline"), ("naive", "baseline"), ("adasim", "naive"))))
        setting["B, CIFAR-10"] = (
            f"{arguments.images} images at 16 x 16, 1000 of the test's; convnet24; crops of 0.4 to 1 of the area; heads of A "
            f"with batch norms; AdamW 2e-3, {arguments.cifar_epochs} epochs, V = 4, k = 10, T_p {arguments.cifar_temperature:g}; "
            "naive from epoch 2"
        )
    command = f"python experiments/adasim.py{' --cifar10 cifar10.zip' * bool(arguments.cifar10)} --seeds {arguments.seeds}"
    command += f" --images {arguments.images} --cifar_epochs {arguments.cifar_epochs} --cifar_temperature {arguments.cifar_temperature:g}"
    write(arguments.out, "adasim", command, seeds, found, " ".join(said), setting, notes=NOTES)
    dino = {name.replace("baseline", "dino"): found[name] for name in found if name.endswith((": baseline", ": pixels", ": random"))}
    over = (("dino", "pixels"), ("dino", "random"))
    groups = {"digits": few, "CIFAR-10": METRICS["knn"]} if arguments.cifar10 else {"digits": few}
    told = " ".join(verdict(dino, group, metric, over) for group, metric in groups.items())
    write(
        arguments.out.with_name("dino.json"),
        "dino",
        command,
        seeds,
        dino,
        told,
        {name: setting[name] for name in setting if name[0] in "AB"},
    )
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
