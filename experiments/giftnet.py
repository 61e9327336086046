"""GiftNet's small-scale experiment: does GIFT harmonise better, does it need the global vector, does relation distillation add to it?

    python experiments/giftnet.py --cifar10 cifar10.zip --harmony harmony_mini_iharmony4_layout.zip     # hours on a busy core

CIFAR-10 at 32 x 32 pixels: random blobs in random lights, new in every step, fixed ones for the test; and real photographs, composites
in iHarmony4's layout at 64 x 64. Arms with the same seeds, first weights of the baseline and order of data: the composite as it is; the
baseline; with GIFT; with GIFT without a global vector (v = 0); with GIFT and relation distillation from the network's own features of the
real photos. Besides the errors: L_rel on the test set, and how far the foreground changes when every picture is given another one's
global vector. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import Numbers, side, write
from torch import Tensor

from stillroom.engine import Lab, LabOptions, Networks, Training
from stillroom.methods.giftnet import Gifted, GiftNet, recipe
from stillroom.methods.giftnet.gift import global_vector
from stillroom.tasks.harmonization import SMALL, HarmonyData, load

BASELINE, GIFT, ZERO, FULL = "baseline", "GIFT", "GIFT, v = 0", "GIFT + relation"
ARMS = {"composite": "composite as it is", "alone": BASELINE, "gift": GIFT, "gift, zero": ZERO, "distilled": FULL}
METRICS = ("fMSE", "MSE", "PSNR", "SSIM", "fSSIM")
NETWORK = "stillroom/harmony8_3"


@torch.no_grad()
def diagnosis(network: Gifted, data: HarmonyData, grid: int) -> dict[str, float]:
    """L_rel on the test set, in thousandths, and the foreground's mean change, in grey levels, by the next picture's global vector."""
    distiller = GiftNet(network.eval(), grid=grid)
    relations, moved, weights = [], [], []
    for batch in data.eval_loader():
        relations.append(distiller.relation(network.answer(batch.inputs)[1], distiller.real_features(batch), batch.masks))
        weights.append(len(batch.ids))

        def others(features: list[Tensor], mask: Tensor) -> list[Tensor]:
            return network.transformed(features, mask, global_vector(features[-1], mask, network.source).roll(1, 0))

        pictures = data.pixels(network.base.answer(batch.inputs, others)[0]), data.pixels(network(batch.inputs))
        change = (batch.masks * (pictures[0] - pictures[1]).abs()).sum((1, 2, 3)) / (3 * batch.masks.sum((1, 2, 3)).clamp_min(1))
        moved.append(change.mean())
    share = torch.tensor(weights, dtype=torch.float32) / sum(weights)
    return {
        "L_rel x 1000": 1000 * float((share * torch.stack(relations)).sum()),
        "change by another's v, grey levels": float((share * torch.stack(moved)).sum()),
    }


def experiment(
    group: str, data: HarmonyData, plan: Training, seeds: list[int], out: Path, options: Mapping[str, Any]
) -> dict[str, Numbers]:
    """Every arm with every seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for seed in seeds:
        lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_seconds=120), seed)
        report = recipe(lab, data, plan, Networks(student=NETWORK), ablations=("zero",), **options)
        for arm, (result,) in report.arms.items():
            numbers = {name: result.metrics[name] for name in METRICS} | {"seconds": result.seconds}
            if "gift" in arm or arm == "distilled":
                network = load(out / result.folder).network
                assert isinstance(network, Gifted)
                numbers |= diagnosis(network, data, options["grid"])
            for metric, value in numbers.items():
                found.setdefault(f"{group}: {ARMS[arm]}", {}).setdefault(metric, {})[seed] = value
    return found


def verdict(group: str, found: Mapping[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    for arm, over in ((GIFT, BASELINE), (FULL, BASELINE), (FULL, GIFT), (GIFT, ZERO)):
        numbers = found[f"{group}: {arm}"]["fMSE"]
        word, change, spread = side(numbers, found[f"{group}: {over}"]["fMSE"], "equal within noise to")
        lines.append(f"{arm} is {word} {over} ({change:+.1f} +- {spread:.1f} fMSE, lower is better)")
    return f"{group}: " + "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="folder or zip of CIFAR-10's classes, in train and test")
    parser.add_argument("--harmony", help="folder or zip in iHarmony4's layout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1280, help="of CIFAR-10; an epoch shows each once, in a batch of 16")
    parser.add_argument("--cifar_epochs", type=int, default=5, help="on CIFAR-10")
    parser.add_argument("--epochs", type=int, default=40, help="on photographs")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/giftnet"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/giftnet.json"))
    arguments = parser.parse_args()
    found: dict[str, Numbers] = {}
    said, seeds = [], list(range(arguments.seeds))
    setting: dict[str, str] = {"network": f"{NETWORK}: 8, 16, 32 channels, no attention; GIFT at all levels; lambda 0.1, teacher shared"}
    if arguments.cifar10:
        data = HarmonyData(f"blobs:imagefolder:{arguments.cifar10}", batch_size=16, subset=arguments.images, val_subset=250)
        plan = replace(SMALL, epochs=arguments.cifar_epochs)
        found |= experiment("CIFAR-10", data, plan, seeds, arguments.runs / "cifar10", {"grid": 8, "min_foreground": 20 / 1024})
        said.append(verdict("CIFAR-10", found))
        steps = arguments.cifar_epochs * (arguments.images // 16)
        setting["CIFAR-10"] = f"{arguments.images} images, 250 of the test's; {steps} steps of 16, Adam 2e-3, x 0.2 at 80, 93 %; A_min 20"
    if arguments.harmony:
        data = HarmonyData(f"iharmony4:{arguments.harmony}", image_size=64)
        found |= experiment(
            "photographs", data, replace(SMALL, epochs=arguments.epochs), seeds, arguments.runs / "photographs", {"grid": 16}
        )
        said.append(verdict("photographs", found))
        setting["photographs"] = f"{data.first_lines()[0]}, 64 x 64; {arguments.epochs} epochs of 8 steps of 32, cropped and mirrored"
    given = " --cifar10 cifar10.zip" * bool(arguments.cifar10) + " --harmony harmony_mini.zip" * bool(arguments.harmony)
    command = f"python experiments/giftnet.py{given} --seeds {arguments.seeds}"
    command += f" --images {arguments.images} --cifar_epochs {arguments.cifar_epochs} --epochs {arguments.epochs}"
    write(arguments.out, "giftnet", command, seeds, found, ". ".join(said) + ".", setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
