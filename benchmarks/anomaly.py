"""MemKD beside the same networks without memories, and Stillroom's reverse distillation beside anomalib's.

    python benchmarks/anomaly.py                                                    # a step, and scoring
    python benchmarks/anomaly.py --data mvtec:boards.zip --weights resnet18.pth     # both trained on the same pictures, and scored

Contenders take turns, one step or one batch each per round, in one process (`measuring.Turns`), in processor time of one thread.
Stillroom's students lie channels last, as the Lab trains them. anomalib is a plain loop around its own module, loss and optimiser; where it
is not installed its rows are left out, and it is said. Trained, each contender has a process of its own (`--only` is that process), so that
its peak memory is its own; teacher, pictures, image size, number of steps, optimiser and blur (4 pixels, anomalib's) are the same, and all
are scored by Stillroom's metrics.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from measuring import Turns, keep, setting
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.engine.weights import read_weights
from stillroom.methods.memkd.distiller import MemKD
from stillroom.methods.memkd.loss import Distillation
from stillroom.methods.memkd.networks import build
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.detector import Detectors
from stillroom.tasks.anomaly.maps import MapOptions
from stillroom.tasks.anomaly.metrics import Answers
from stillroom.tasks.anomaly.teachers import Extractor

try:
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
except ImportError:
    ReverseDistillationLoss = ReverseDistillationModel = None

FAMILIES = {"resnet18": "resnet18", "wide_resnet50_2": "resnet50"}  # teacher: its student's blocks
LAYERS = ("layer1", "layer2", "layer3", "layer4")
CONTENDERS = ("rd4ad", "memkd", "anomalib")
BLUR = 4.0  # pixels; anomalib's, at any image size


def extractor(backbone: str, size: int, weights: str | None = None) -> Extractor:
    network = timm.create_model(backbone, pretrained=False)
    if weights is not None:
        found = read_weights(weights)
        missing = network.load_state_dict({name: tensor for name, tensor in found.items() if not name.startswith("fc.")}, strict=False)[0]
        if set(missing) - {"fc.weight", "fc.bias"}:
            raise SystemExit(f"{weights} has not all weights of timm's {backbone}: {missing[:3]}")
    return Extractor(network.eval().requires_grad_(False), LAYERS, torch.zeros(2, 3, size, size))


def distiller(teacher: Extractor, backbone: str, between: str, kd: Distillation = "positions") -> MemKD:
    levels = [[level.channels, level.stride] for level in teacher.levels]
    description = {"variant": "reverse", "levels": levels, "family": FAMILIES[backbone]}
    description |= {"between": between, "slots": 50, "temperature": 1.0}
    made = MemKD(build(description), Teacher(teacher), kd=kd)
    made.student.to(memory_format=torch.channels_last)
    return made.train()


def peer(teacher: Extractor, backbone: str, size: int) -> Any:
    """anomalib's module with the same teacher inside."""
    model = ReverseDistillationModel(backbone, (size, size), LAYERS[:3], "add", pre_trained=False)
    missing = model.encoder.feature_extractor.load_state_dict(teacher.network.state_dict(), strict=False).missing_keys
    if missing:
        raise SystemExit(f"anomalib's encoder has weights that the teacher has not: {missing[:3]}")
    return model


def stepping(made: MemKD, optimizer: torch.optim.Optimizer) -> Callable[[dict[str, Any]], None]:
    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        losses = made.losses(batch)
        sum(losses.distill.values()).backward()
        optimizer.step()

    return step


def peer_stepping(model: Any, optimizer: torch.optim.Optimizer) -> Callable[[dict[str, Any]], None]:
    loss = ReverseDistillationLoss()

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        loss(*model(batch["normal"].images)).backward()
        optimizer.step()

    return step


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.99))


class Batch:
    """What a distiller reads of a batch."""

    def __init__(self, images: Tensor) -> None:
        self.images = self.inputs = images


def speed(backbone: str, size: int, batch: int, rounds: int, note: str) -> None:
    """A step's time with memories over the time without, and a batch scored, beside anomalib; prints both and keeps them."""
    teacher = extractor(backbone, size)
    images = torch.randn(batch, 3, size, size)
    shown = {"normal": Batch(images), "exemplars": Batch(torch.randn(batch, 3, size, size))}
    steps: dict[str, Callable[[], None]] = {}
    arms = {"plain": distiller(teacher, backbone, "nothing"), "memkd": distiller(teacher, backbone, "memory")}
    for name, given in (("plain", "plain"), ("memkd, exemplars not shown", "memkd"), ("memkd", "memkd")):
        step = stepping(arms[given], adam(arms[given].student.parameters()))
        batch_of = shown if name == "memkd" else {"normal": shown["normal"]}
        steps[name] = lambda step=step, batch_of=batch_of: step(batch_of)
    steps["teacher alone"] = lambda: arms["plain"].teacher(images)
    scoring: dict[str, Callable[[], Any]] = {}
    for name, made in arms.items():
        detectors = Detectors(teacher, [made.student], MapOptions("sum", "equal", True, BLUR), None, {}).eval()
        scoring[name] = torch.no_grad()(lambda detectors=detectors: detectors(images))
    if ReverseDistillationModel is not None:
        model = peer(teacher, backbone, size)
        step = peer_stepping(model.train(), adam([*model.decoder.parameters(), *model.bottleneck.parameters()]))
        steps["anomalib"] = lambda: step(shown)
        asked = peer(teacher, backbone, size).eval()
        scoring["anomalib"] = torch.no_grad()(lambda: asked(images))
    lines = []
    for what, contenders in (("a step", steps), ("scoring a batch", scoring)):
        for made in arms.values():
            made.student.train(what == "a step")
        turns = Turns(time.process_time)
        for ask in contenders.values():
            ask()
        for number in range(rounds):
            turns.round(contenders, number)
        for name in contenders:
            low, high = turns.spread(name, "plain")
            line = {
                "what": what,
                "name": name,
                "processor_s": turns.median(name),
                "ratio": turns.ratio(name, "plain"),
                "quartiles": [low, high],
            }
            lines.append({"backbone": backbone, "size": size, "batch": batch, "rounds": rounds, **line})
            print(f"{backbone}, {size} px, {batch} pictures, {what}: {name}: {turns.median(name):.3f} s, ", end="")
            print(f"{line['ratio']:.3f} ({low:.3f} to {high:.3f}) of plain", flush=True)
    keep("anomaly", lines, setting(note))


def trained(only: str, data: str, weights: str | None, size: int, steps: int, seed: int) -> dict[str, float]:
    """One contender trained on every category of the data and scored on its test pictures."""
    torch.manual_seed(seed)
    pictures = AnomalyData(data, image_size=size, batch_size=8)
    teacher = extractor("resnet18", size, weights)
    found: list[nn.Module] = []
    started = time.process_time()
    for category in range(len(pictures.classes)):
        if only == "anomalib":
            model = peer(teacher, "resnet18", size).train()
            step = peer_stepping(model, adam([*model.decoder.parameters(), *model.bottleneck.parameters()]))
            found.append(model)
        else:
            made = distiller(teacher, "resnet18", "memory") if only == "memkd" else distiller(teacher, "resnet18", "nothing", "flat")
            step = stepping(made, adam(made.student.parameters()))
            found.append(made.student)
        normal = pictures.of_category(category)
        batches, exemplars = _endless(normal, seed), _endless(normal, seed + 1000)
        for _ in range(steps):
            step({"normal": next(batches), **({"exemplars": next(exemplars)} if only == "memkd" else {})})
    training = time.process_time() - started
    judged = pictures.evaluator()
    started = time.process_time()
    with torch.no_grad():
        for batch in pictures.eval_loader():
            maps, scores = torch.zeros(batch.masks.shape), torch.zeros(len(batch.images))
            for category in batch.categories.unique().tolist():
                rows = (batch.categories == category).nonzero()[:, 0]
                network = found[category].eval()
                if only == "anomalib":
                    answer = network(batch.images[rows])
                    maps[rows], scores[rows] = answer.anomaly_map[:, 0], answer.pred_score.flatten()
                else:
                    detectors = Detectors(teacher, [network], MapOptions("sum", "equal", True, BLUR), None, {}).eval()
                    maps[rows], scores[rows] = detectors(batch.images[rows])
            nothing = torch.zeros(1, *maps.shape)
            judged.update(Answers(maps, scores, nothing, torch.zeros(len(scores))), batch)
    scoring = time.process_time() - started
    figures = judged.compute()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kept = {name: figures[name] for name in ("image_auroc", "pixel_auroc", "aupro")}
    return {**kept, "training_s": training, "scoring_s": scoring, "peak_MiB": peak}


def _endless(data: Any, seed: int) -> Iterator[Any]:
    while True:
        yield from data.train_loader(seed=seed)
        seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", choices=FAMILIES)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", help="mvtec:ROOT; with it the contenders are trained")
    parser.add_argument("--weights", help="of the teacher, a ResNet-18 of timm's names")
    parser.add_argument("--steps", type=int, default=60, help="of training, for each category")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--note", default="", help="kept with the results")
    parser.add_argument("--only", choices=CONTENDERS)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if ReverseDistillationModel is None:
        print("anomalib is not installed here: its rows are left out")
    if asked.data is None:
        speed(asked.backbone, asked.image_size, asked.batch, asked.rounds, asked.note)
    elif asked.only is not None:
        print(json.dumps(trained(asked.only, asked.data, asked.weights, asked.image_size, asked.steps, asked.seed)))
    else:
        contenders = CONTENDERS if ReverseDistillationModel is not None else CONTENDERS[:2]
        for seed in range(asked.seed, asked.seed + asked.seeds):
            for only in contenders:
                again = subprocess.run(
                    [sys.executable, *sys.argv, "--only", only, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, check=True
                )
                found = json.loads(again.stdout.splitlines()[-1])
                print(f"{only}, seed {seed}: {found}", flush=True)
                of = {"data": asked.data.rpartition("/")[2], "size": asked.image_size, "steps": asked.steps}
                keep("anomaly", [{"what": "trained", "name": only, "seed": seed, **of, **found}], setting(asked.note))


if __name__ == "__main__":
    main()
