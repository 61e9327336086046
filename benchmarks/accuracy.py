"""Whether speed costs accuracy: KD by Stillroom at its defaults against KD by timm's task, from one teacher, on the same batches.

The Stillroom run is the Lab's own: a bfloat16 teacher where the machine is fast at it, the student channels last. timm's is a plain loop
around `LogitDistillationTask`, both networks in float32. Each seed gives both the same initial student, the same batches with the same
augmentation, the same schedule and number of steps; what is left between them is rounding, and what training makes of it.

    python benchmarks/accuracy.py --data imagefolder:PATH/cifar10.zip [--seeds 3] [--epochs 8] [--subset 4000] [--image-size 16]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from measuring import keep, setting, show
from timm.task import LogitDistillationTask
from torch import nn

from stillroom.engine import Lab, LabOptions, Progress, Teacher, Training
from stillroom.engine.run.recorder import evaluate, seed_everything
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.images.networks import NETWORKS

TEMPERATURE, TASK_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # KD's defaults, given to both
SCORES = ("top1", "nll")


def score(network: nn.Module, data: ImageData) -> dict[str, float]:
    """Both are scored alike: float32, as a user would load it."""
    network.to(memory_format=torch.contiguous_format)

    def predict(batch: object) -> object:
        return network(batch.images)  # type: ignore[attr-defined]

    return evaluate(predict, network, data.eval_loader(), data.evaluator(), torch.device("cpu"), nullcontext, lambda batch: batch)


def by_stillroom(student: nn.Module, teacher: nn.Module, data: ImageData, plan: Training, seed: int) -> nn.Module:
    """The Lab at its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(LabOptions(out=Path(folder), seed=seed, accelerator="cpu"))
        trained = lab.fit(KD(student, Teacher(teacher)), data, plan, name="kd").network
    assert trained is not None
    return trained


def by_timm(student: nn.Module, teacher: nn.Module, data: ImageData, plan: Training, seed: int) -> nn.Module:
    """timm's task at its defaults, in the loop that its documentation shows."""
    for network in (teacher, student):
        network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # one normalisation for both, so none is undone
        network.num_classes, network.in_chans = data.num_classes, 3
    task = LogitDistillationTask(
        student, copy.deepcopy(teacher).requires_grad_(False), criterion=nn.CrossEntropyLoss(), task_loss_weight=TASK_WEIGHT,
        distill_loss_weight=KD_WEIGHT, temperature=TEMPERATURE, verbose=False,
    ).train()  # fmt: skip
    optimizer = plan.build_optimizer([{"params": list(student.parameters())}])
    loader = data.train_loader(seed=seed)
    for epoch in range(plan.epochs):
        for number, batch in enumerate(loader):
            step = epoch * len(loader) + number
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(plan.lr, Progress(epoch + 1, plan.epochs, step, len(loader)))
            optimizer.zero_grad()
            task(batch.images, batch.labels)["loss"].backward()
            optimizer.step()
    return student


ARMS = {"stillroom": by_stillroom, "timm": by_timm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--teacher", default="convnet24", choices=NETWORKS)
    parser.add_argument("--student", default="convnet4", choices=NETWORKS)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--subset", type=int, default=4000)
    parser.add_argument("--val-subset", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = ImageData(options.data, image_size=options.image_size, subset=options.subset, val_subset=options.val_subset, workers=0)
    plan, classes = Training(epochs=options.epochs), data.num_classes
    seed_everything(1000)
    teacher = NETWORKS[options.teacher](num_classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Lab(LabOptions(out=Path(folder), accelerator="cpu")).fit(Supervised(teacher), data, plan, name="teacher").network
    assert teacher is not None
    teacher.eval()
    print(f"teacher: {score(teacher, data)}", flush=True)
    lines = []
    for seed in range(options.seeds):
        seed_everything(2000, seed)
        student = NETWORKS[options.student](num_classes=classes)
        for name, arm in ARMS.items():
            started = time.perf_counter()
            scores = score(arm(copy.deepcopy(student), teacher, data, plan, seed), data)
            lines.append({
                "benchmark": "accuracy", "data": options.data.rsplit("/", 1)[-1], "teacher": options.teacher, "student": options.student,
                "image_size": options.image_size, "images": options.subset, "val_images": options.val_subset, "epochs": options.epochs,
                "arm": name, "seed": seed, "seconds": time.perf_counter() - started, **{key: float(scores[key]) for key in SCORES},
            })  # fmt: skip
            print(seed, name, scores, flush=True)
    rows = []
    for key in SCORES:
        ours, theirs = ([line[key] for line in lines if line["arm"] == name] for name in ARMS)
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        cells = [f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" for values in (ours, theirs, differences)]
        # Student's t for 95 % at the paired differences: is 0 among what the mean difference could be?
        error = statistics.stdev(differences) / len(differences) ** 0.5
        quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}.get(len(differences), 2.4)
        within = abs(statistics.mean(differences)) <= quantile * error
        rows.append([key, *cells, "within noise" if within else "DIFFERENT"])
    about = setting(options.note)
    title = f"{options.teacher} -> {options.student}, {options.image_size} px, {options.subset} images, {options.epochs} epochs"
    show(f"{title}, {options.seeds} seeds", ["", *ARMS, "difference, seed by seed", ""], rows, about)
    keep("accuracy", lines, about)


if __name__ == "__main__":
    main()
