"""How the cost of losses and taps grows: time and memory over batch size, classes and number of taps.

Each sweep ends with its exponents: e where cost ~ size^e. Over all sizes it is below 1 where a constant part dominates; between the two
largest sizes it is 1 for a linear cost. Memory is the peak of what the tensors hold at once on top of the inputs, counted at every
operation.

    python benchmarks/growth.py [--seconds 90] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import matplotlib
import torch
from measuring import RESULTS, Allocated, Turns, keep, setting, show, verdict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Teacher, Training, tap
from stillroom.losses.features import hint_loss
from stillroom.losses.logits import dkd_loss, kd_loss
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch
from stillroom.tasks.images.networks import NETWORKS

matplotlib.use("Agg")
from matplotlib import pyplot

LIMIT = 1.15  # of the exponent between the two largest sizes: linear, and some room for caches that overflow
Step = Callable[[], None]


@dataclass(frozen=True)
class Sweep:
    """One cost over one size; `baseline` is what size 0 costs (a network without taps)."""

    name: str
    size: str
    sizes: tuple[int, ...]
    make: Callable[[int], Step]
    repeats: int = 1  # steps in one measurement, for those of microseconds
    baseline: Callable[[], Step] | None = None


def loss_step(loss: Callable[..., Tensor], batch: int, classes: int) -> Step:
    """Forward and backward of a loss of logits."""
    student_BC = torch.randn(batch, classes, requires_grad=True)
    teacher_BC, labels_B = torch.randn(batch, classes), torch.randint(classes, (batch,))
    if loss is cross_entropy:  # the least that any loss of logits does: shows what of the growth is the machine's own

        def reference() -> None:
            student_BC.grad = None
            cross_entropy(student_BC, labels_B).backward()

        return reference
    keywords = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0} if loss is dkd_loss else {"temperature": 4.0}
    more = (labels_B,) if loss is dkd_loss else ()

    def step() -> None:
        student_BC.grad = None
        loss(student_BC, teacher_BC, *more, **keywords).backward()

    return step


def hint_step(batch: int) -> Step:
    """Forward and backward of FitNets' loss on features [B, 128, 16, 16]."""
    student = torch.randn(batch, 128, 16, 16, requires_grad=True)
    teacher = torch.randn(batch, 128, 16, 16)

    def step() -> None:
        student.grad = None
        hint_loss(student, teacher).backward()

    return step


def kd_step(batch: int) -> Step:
    """A whole step of KD, resnet32x4 -> resnet8x4."""
    torch.manual_seed(0)
    distiller = KD(NETWORKS["resnet8x4"](num_classes=100), Teacher(NETWORKS["resnet32x4"](num_classes=100)))
    distiller.plan = Training(lr=0.01)
    optimizer = distiller.configure_optimizers()
    data = Batch(torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,)), torch.arange(batch))
    distiller.teacher(data)

    def step() -> None:
        optimizer.zero_grad()
        distiller.losses(data).total.backward()
        optimizer.step()

    return step


def tapped_step(taps: int, *, train: bool) -> Step:
    """resnet8x4 with that many of its convolutions tapped, forward (and backward); batch 16."""
    torch.manual_seed(0)
    network = copy.deepcopy(NETWORKS["resnet8x4"](num_classes=100)).train(train)
    paths = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][:taps]
    if len(paths) < taps:
        raise ValueError(f"resnet8x4 has {len(paths)} convolutions, fewer than {taps}")
    tapped = tap(network, *paths) if taps else None
    images = torch.randn(16, 3, 32, 32)

    def step() -> None:
        with torch.set_grad_enabled(train):
            output = network(images) if tapped is None else tapped(images)[0]
        if train:
            network.zero_grad()
            output.sum().backward()

    return step


BATCHES, CLASSES = (16, 64, 256, 1024, 4096), (10, 100, 1000, 5000, 20000)
TAPS = (1, 2, 4, 8)
SWEEPS = [
    *[
        sweep
        for name, loss in (("cross_entropy, for reference", cross_entropy), ("kd_loss", kd_loss), ("dkd_loss", dkd_loss))
        for sweep in (
            Sweep(f"{name}, 100 classes", "batch", BATCHES, lambda size, loss=loss: loss_step(loss, size, 100), 5),
            Sweep(f"{name}, batch 64", "classes", CLASSES, lambda size, loss=loss: loss_step(loss, 64, size), 5),
        )
    ],
    Sweep("hint_loss, [B, 128, 16, 16]", "batch", (4, 16, 64, 256), hint_step),
    Sweep("KD step, resnet32x4 -> resnet8x4", "batch", (4, 8, 16, 32, 64), kd_step),
    Sweep("taps, forward, batch 16", "taps", TAPS, lambda size: tapped_step(size, train=False), 1, lambda: tapped_step(0, train=False)),
    Sweep("taps, forward and backward, batch 16", "taps", TAPS, lambda size: tapped_step(size, train=True), 1,
          lambda: tapped_step(0, train=True)),
]  # fmt: skip


def peak_bytes(step: Step) -> int:
    """Of one step, after one that made whatever stays."""
    step()
    with Allocated() as allocated:
        step()
    return allocated.peak


def exponent(sizes: Iterable[float], costs: Iterable[float]) -> float:
    """Slope of log cost over log size, by least squares."""
    xs, ys = [math.log(size) for size in sizes], [math.log(max(cost, 1e-12)) for cost in costs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, all sweeps together")
    parser.add_argument("--rounds", type=int, default=100, help="at most, per sweep")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines, rows = [], []
    figure, axes = pyplot.subplots(2, len({sweep.size for sweep in SWEEPS}), figsize=(13, 7.5))
    columns = {size: column for column, size in enumerate(dict.fromkeys(sweep.size for sweep in SWEEPS))}
    for sweep in SWEEPS:
        seconds, memory = measured(sweep, options.seconds / len(SWEEPS), options.rounds)
        growth_time, growth_memory = exponent(sweep.sizes[-2:], seconds[-2:]), exponent(sweep.sizes[-2:], memory[-2:])
        added = f" (untapped {1e3 * seconds[0]:.1f} ms)" if sweep.baseline else ""
        shown, kept_memory = (seconds[1:], memory[1:]) if sweep.baseline else (seconds, memory)
        rows.append([
            sweep.name + added, f"{sweep.size} {sweep.sizes[0]} .. {sweep.sizes[-1]}",
            f"{1e3 * shown[0]:.2f} .. {1e3 * shown[-1]:.1f}", f"{exponent(sweep.sizes, shown):.2f}",
            f"{growth_time:.2f} ({verdict(growth_time, LIMIT, at_most=True)})",
            f"{kept_memory[0] / 2**20:.2f} .. {kept_memory[-1] / 2**20:.1f}",
            f"{growth_memory:.2f} ({verdict(growth_memory, LIMIT, at_most=True)})",
        ])  # fmt: skip
        lines += [
            {"benchmark": "growth", "sweep": sweep.name, "size": sweep.size, "at": at, "ms": 1e3 * taken, "peak_bytes": peak}
            for at, taken, peak in zip(((0,) if sweep.baseline else ()) + sweep.sizes, seconds, memory, strict=True)
        ]
        for row, costs in ((0, [1e3 * each for each in shown]), (1, [each / 2**20 for each in kept_memory])):
            axes[row, columns[sweep.size]].plot(sweep.sizes, costs, marker="o", label=sweep.name)
    about = setting(options.note)
    for row, unit in ((0, "ms"), (1, "peak MiB")):
        for size, column in columns.items():
            axes[row, column].set(xscale="log", yscale="log", xlabel=size, ylabel=unit)
            axes[row, column].grid(alpha=0.3)
            axes[row, column].legend(fontsize=7)
    figure.suptitle(
        f"{about['machine']}, {about['threads']} thread(s), torch {about['versions']['torch']}, {about['date'][:10]}", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(RESULTS / "growth.svg")
    heads = ["cost", "over", "ms", "exponent", "at the end", "peak MiB", "exponent at the end"]
    show("How cost grows", heads, rows, about)
    keep("growth", lines, about)


def measured(sweep: Sweep, seconds: float, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds and peak bytes at every size (first of all without, where there is a baseline); the sizes take turns."""
    steps = [sweep.make(size) for size in sweep.sizes]
    if sweep.baseline is not None:
        steps.insert(0, sweep.baseline())
    memory = [float(peak_bytes(step)) for step in steps]

    def several(step: Step) -> Step:
        def run() -> None:
            for _ in range(sweep.repeats):
                step()

        return run

    turns, end = Turns(), time.monotonic() + seconds
    contenders = {str(number): several(step) for number, step in enumerate(steps)}
    while turns.rounds < 3 or (time.monotonic() < end and turns.rounds < rounds):
        turns.round(contenders, turns.rounds)
    return [turns.median(name) / sweep.repeats for name in contenders], memory


if __name__ == "__main__":
    main()
