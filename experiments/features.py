"""Features without labels: a trained network's into a small backbone, against the same backbone as it starts.

    python experiments/features.py --digits --cifar10 cifar10.zip --resnet56 resnet56.safetensors \
        --imagenette imagenette128.zip --lite0 efficientnet-lite0-57934424.pth

The default job, digits with a teacher that is trained on their labels; CIFAR-10 with a ResNet-56 that somebody trained on its labels; and
Imagenette at 64 x 64 pixels with an EfficientNet-Lite0 that was trained on ImageNet. The teachers' answers to a few views of each image
are stored once. The students see no label before the scores: weighted k-NN, k-NN and fine-tuning with 5 labels of each class, a linear
probe. Besides: the time of a step with stored answers and without.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import Numbers, side, write

from stillroom.engine import Lab, LabOptions, Teacher
from stillroom.engine.cache import CachedTeacher
from stillroom.methods.features import Features, recipe
from stillroom.methods.features.recipe import ADAMW
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.representation import RepresentationData
from stillroom.tasks.representation.teachers import FeatureNetworks, Towers, open_teacher

HERE = Path(__file__).parent
ARMS = {"teacher": "teacher", "start": "untrained", "distilled": "features"}
METRICS = ("knn", "few", "linear", "tuned", "spread", "rank")
TIMED = 20  # steps


def seconds_of_a_step(data: RepresentationData, student: str, teacher: Teacher) -> float:
    """Median over steps, the loader's work included."""
    network = build_backbone(student, image_size=data.image_size).network.train()
    made = Features(network, teacher, example=data.example_inputs())
    shown = data.replaying(teacher.views) if isinstance(teacher, CachedTeacher) else data
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    times, began = [], time.perf_counter()
    for number, batch in enumerate(shown.train_loader(seed=0)):
        optimizer.zero_grad()
        made.losses(batch).total.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
        if number == TIMED:
            break
    return sorted(times[1:])[len(times[1:]) // 2]


def experiment(
    group: str, data: RepresentationData, networks: FeatureNetworks, epochs: int, views: int, seeds: list[int], out: Path, *, tune: int = 5
) -> dict[str, Numbers]:
    """Every arm with every seed, and a step's time."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for seed in seeds:
        lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_seconds=300), seed)
        report = recipe(lab, data, replace(ADAMW, epochs=epochs), networks, views=views, tune_labels=tune)
        for arm, results in report.arms.items():
            for metric in METRICS:
                if metric in results[0].metrics:
                    found.setdefault(f"{group}: {ARMS[arm]}", {}).setdefault(metric, {})[seed] = results[0].metrics[metric]
    if "@" not in networks.teacher:  # trained here: its weights are in no file that it is asked for by
        return found
    tower = open_teacher(networks.teacher, data, None, dense=False, trust_pickle=False).tower
    for name, teacher in (("online", Teacher(Towers([tower]), fold=False)), ("stored", CachedTeacher(out / "answers", data.cache_key))):
        seconds = seconds_of_a_step(data, networks.student, teacher)
        found.setdefault(f"{group}: features", {}).setdefault(f"step with {name} answers, ms", {})[seeds[0]] = 1000 * seconds
    return found


def verdict(group: str, found: Mapping[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    said = []
    for metric, named in (("knn", "k-NN"), ("few", "k-NN with 5 labels"), ("linear", "linear probe"), ("tuned", "fine-tuning on 5 labels")):
        if (numbers := found[f"{group}: features"].get(metric)) is None:
            continue
        word, change, spread = side(numbers, found[f"{group}: untrained"][metric], "within noise of")
        said.append(f"{named} {word} the untrained backbone's ({change:+.1f} +- {spread:.1f} points)")
    steps = [found[f"{group}: features"].get(f"step with {name} answers, ms") for name in ("online", "stored")]
    if steps[0] is not None and steps[1] is not None:
        online, stored = (next(iter(times.values())) for times in steps if times is not None)
        said.append(f"a step takes {online:.0f} ms with the teacher and {stored:.0f} ms with stored answers")
    return f"{group}: {'; '.join(said)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="the default job")
    parser.add_argument("--cifar10", help="zip of folders train/CLASS and test/CLASS")
    parser.add_argument("--resnet56", help="weights for experiments/cifar_resnet.py:resnet56")
    parser.add_argument("--imagenette", help="zip of folders train/CLASS and val/CLASS")
    parser.add_argument("--lite0", help="weights for experiments/efficientnet_lite0.py:build")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3000, help="of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--bank", type=int, default=1000, help="images that features are compared with, besides the digits")
    parser.add_argument("--tune", type=int, default=5, help="labels of each class of the fine-tuning on photographs; 0 for none")
    parser.add_argument("--views", type=int, default=4, help="of each of CIFAR-10's images")
    parser.add_argument("--photo_views", type=int, default=2, help="of each photograph")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/features"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/features.json"))
    asked = parser.parse_args()
    found: dict[str, Numbers] = {}
    said, setting, seeds = [], {}, list(range(max(2, asked.seeds)))
    shared: dict[str, Any] = {"batch_size": 64, "augment": "cifar", "workers": 0, "bank": asked.bank}
    common = f"cosine, linear projector; AdamW 2e-3, cosine, {asked.epochs} epochs of batches of 64"
    common += f"; {asked.views} stored views of each image of CIFAR-10, {asked.photo_views} of each photograph; bank of {asked.bank}"
    setting["all"] = f"{common}; fine-tuning: AdamW 5e-3, 200 steps of 16"
    if asked.digits:
        digits = RepresentationData("digits")
        networks = FeatureNetworks("stillroom/convnet24", "stillroom/convnet12")
        found |= experiment("digits", digits, networks, ADAMW.epochs, 8, seeds, asked.runs / "digits")
        said.append(verdict("digits", found))
        setting["digits"] = f"the default job, {ADAMW.epochs} epochs, 8 views: stillroom/convnet24, trained on the labels, into convnet12"
    if asked.cifar10:
        statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        data = RepresentationData(
            f"imagefolder:{asked.cifar10}", subset=asked.images, val_subset=1000, mean=statistics[0], std=statistics[1], **shared
        )
        networks = FeatureNetworks(f"{HERE / 'cifar_resnet.py'}:resnet56@{asked.resnet56}", "stillroom/resnet8")
        found |= experiment("CIFAR-10", data, networks, asked.epochs, asked.views, seeds, asked.runs / "cifar10", tune=asked.tune)
        said.append(verdict("CIFAR-10", found))
        setting["CIFAR-10"] = f"ResNet-56 into stillroom/resnet8; {data.first_lines()[0]}"
    if asked.imagenette:
        half = (0.5, 0.5, 0.5)
        data = RepresentationData(f"imagefolder:{asked.imagenette}", image_size=64, teacher_mean=half, teacher_std=half, **shared)
        networks = FeatureNetworks(f"{HERE / 'efficientnet_lite0.py'}:build@{asked.lite0}", "timm/mobilenetv3_small_050")
        found |= experiment(
            "Imagenette", data, networks, asked.epochs, asked.photo_views, seeds, asked.runs / "imagenette", tune=asked.tune
        )
        said.append(verdict("Imagenette", found))
        setting["Imagenette"] = f"EfficientNet-Lite0 into timm/mobilenetv3_small_050; 64 x 64 pixels; {data.first_lines()[0]}"
    given = " --digits" * asked.digits + " --cifar10 cifar10.zip --resnet56 resnet56.safetensors" * bool(asked.cifar10)
    given += " --imagenette imagenette128.zip --lite0 efficientnet-lite0-57934424.pth" * bool(asked.imagenette)
    command = f"python experiments/features.py{given} --seeds {asked.seeds} --images {asked.images} --epochs {asked.epochs}"
    command += f" --views {asked.views} --photo_views {asked.photo_views} --bank {asked.bank} --tune {asked.tune}"
    write(asked.out, "features", command, seeds, found, ". ".join(said) + ".", setting)
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
