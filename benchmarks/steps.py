"""Time and memory of a training step: Stillroom at its defaults, loops written by hand, and other libraries.

Everything takes turns within one process, on the same batch: the Lab's loop asks its loader for a batch, and the loader lets all the
others do one step before it hands it over. Peak memory is of a process of each contender's own.

    python benchmarks/steps.py [--pair resnet|timm|all] [--threads 1] [--seconds 80] [--student | --cache | --engines] [--no-memory]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import Allocated, Turns, keep, setting, show, verdict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.engine.cache import CachedTeacher, Views, build_cache
from stillroom.engine.inference.teacher import EngineTeacher, TeacherPrecision
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import measure
from stillroom.methods.dot import DOT
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.classification.metrics import ClassificationEvaluator
from stillroom.tasks.images.networks import NETWORKS

TEMPERATURE, TASK_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # KD's defaults, given to everyone
PLAN = Training(epochs=1, lr=0.01, schedule="constant")
HAND, PREPARED = "loop by hand", "loop by hand, prepared teacher"
BARE, LAB, DOT_STEP, CACHED = "stillroom, own loop", "stillroom, Lab", "stillroom, DOT", "stillroom, cached teacher"
TIMM, TORCHDISTILL = "timm LogitDistillationTask", "torchdistill"
HAND_FP32 = "loop by hand, fp32"
# With a teacher that an engine computes: its name in the tables, engine and precision.
BY_ENGINE = {
    "stillroom, onnxruntime fp32": ("onnxruntime", "fp32"),
    "stillroom, onnxruntime int8": ("onnxruntime", "int8"),
    "stillroom, openvino": ("openvino", "auto"),  # bfloat16 where the CPU is fast at it
    "stillroom, openvino int8": ("openvino", "int8"),
}
WARMUP = 1  # rounds; every contender has done one step before, too
MEMORY_STEPS = 10  # the heap still grows a little in the first ones
Step = Callable[[Batch], Any]


@dataclass(frozen=True)
class Pair:
    """Teacher, student and batch."""

    title: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    classes: int
    image_size: int
    batch_size: int
    images: int


PAIRS = {
    "resnet": Pair(
        "resnet32x4 -> resnet8x4, 32 px",
        partial(NETWORKS["resnet32x4"], num_classes=100),
        partial(NETWORKS["resnet8x4"], num_classes=100),
        100, 32, 64, 640,
    ),
    "timm": Pair(
        "resnet50 -> mobilenetv3_small_100, 224 px",
        partial(timm.create_model, "resnet50"),
        partial(timm.create_model, "mobilenetv3_small_100"),
        1000, 224, 16, 128,
    ),
}  # fmt: skip


class Bench:
    """The contenders of one pair. Each has a copy of the same student, and its own optimiser."""

    def __init__(self, pair: Pair) -> None:
        torch.manual_seed(0)
        self.pair = pair
        self.teacher, self.student = pair.teacher().eval(), pair.student().train()
        for network in (self.teacher, self.student):
            network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # one normalisation for both, so none is undone
            network.num_classes, network.in_chans = pair.classes, 3
        self.views = Views(1)
        self.data = ImageData(
            "digits", image_size=pair.image_size, batch_size=pair.batch_size, subset=pair.images, val_subset=10, workers=0
        )

    def batch(self) -> Batch:
        return next(iter(self.data.replaying(self.views).train_loader(seed=0)))

    def step(self, name: str) -> Step:
        made: dict[str, Callable[[], Step]] = {
            HAND: self.by_hand,
            HAND_FP32: lambda: self.by_hand(exact=True),
            **{name: partial(self.by_engine, *chosen) for name, chosen in BY_ENGINE.items()},
            PREPARED: self.by_hand_prepared,
            BARE: lambda: self.own_loop(self.kd(student=self.laid_out())),
            DOT_STEP: self.dot,
            CACHED: lambda: self.own_loop(self.kd(self.cached(), self.laid_out())),
            TIMM: self.timm_task,
            TORCHDISTILL: self.torchdistill,
        }
        return made[name]()

    def kd(self, teacher: Teacher | None = None, student: nn.Module | None = None) -> KD:
        """The distiller as the recipe makes it."""
        distiller = KD(student or copy.deepcopy(self.student), teacher or Teacher(self.teacher))
        distiller.plan = PLAN
        return distiller

    def laid_out(self) -> nn.Module:
        """The student as the Lab trains it."""
        return copy.deepcopy(self.student).to(memory_format=torch.channels_last)

    def own_loop(self, distiller: KD, optimizer: torch.optim.Optimizer | None = None) -> Step:
        optimizer = optimizer or distiller.configure_optimizers()

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            distiller.losses(batch).total.backward()
            optimizer.step()

        return step

    def engine_teacher(self, engine: str, precision: TeacherPrecision) -> EngineTeacher:
        """Computed by an engine; accepted however it answers, since nobody trained it."""
        return EngineTeacher(self.teacher, engine=engine, precision=precision, data=self.data, accept=True, say=print)

    def by_engine(self, engine: str, precision: TeacherPrecision) -> Step:
        return self.own_loop(self.kd(self.engine_teacher(engine, precision), self.laid_out()))

    def by_hand(self, network: nn.Module | None = None, *, exact: bool = False) -> Step:
        """What an engineer writes: channels_last for both networks, and bfloat16 autocast around the teacher; `exact`, neither of them."""
        teacher = network or copy.deepcopy(self.teacher).requires_grad_(False)
        student, layout = (copy.deepcopy(self.student), torch.contiguous_format) if exact else (self.laid_out(), torch.channels_last)
        teacher = teacher.to(memory_format=layout)
        optimizer = PLAN.build_optimizer([{"params": list(student.parameters())}])
        precision = Teacher(self.teacher).precision_on(torch.device("cpu"))

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and not exact):
                answers_BC = teacher(batch.images.contiguous(memory_format=layout)).float()
            logits_BC = student(batch.images)
            soft_BC, target_BC = log_softmax(logits_BC / TEMPERATURE, 1), log_softmax(answers_BC / TEMPERATURE, 1)
            distance = kl_div(soft_BC, target_BC, reduction="batchmean", log_target=True) * TEMPERATURE**2
            (TASK_WEIGHT * cross_entropy(logits_BC, batch.labels) + KD_WEIGHT * distance).backward()
            optimizer.step()

        return step

    def by_hand_prepared(self) -> Step:
        """The same with the network as Stillroom prepares it (folded batch norms, cast weights): what is left is overhead alone."""
        teacher = Teacher(self.teacher)
        teacher(self.batch())
        assert teacher._prepared is not None
        return self.by_hand(teacher._prepared.networks[0])

    def dot(self) -> Step:
        distiller = DOT(self.kd(student=self.laid_out()))
        distiller.plan = PLAN
        optimizer = distiller.configure_optimizers()
        parameters = optimizer.parameters()

        def step(batch: Batch) -> None:
            task, distill = distiller.two_gradients(distiller.losses(batch), parameters)
            optimizer.step(task=task, distill=distill)

        return step

    def cached(self) -> CachedTeacher:
        folder = Path(tempfile.mkdtemp(prefix="stillroom-cache-"))
        return self.build(folder)

    def build(self, folder: Path, teacher: Teacher | None = None) -> CachedTeacher:
        return build_cache(folder, teacher or self.shared_teacher, self.data, self.result, views=self.views)

    @cached_property
    def result(self) -> StageResult:
        """What is known of the teacher before its cache is built; measuring its latency takes half a second."""
        return StageResult("teacher", 0, {}, {}, [], measure(self.teacher, self.data.example_inputs()), 0.0, 0, "benchmark")

    @cached_property
    def shared_teacher(self) -> Teacher:
        return Teacher(self.teacher)

    def timm_task(self) -> Step:
        """timm's task at its defaults: the teacher online, in float32."""
        from timm.task import LogitDistillationTask

        student = copy.deepcopy(self.student)
        task = LogitDistillationTask(
            student, copy.deepcopy(self.teacher).requires_grad_(False), criterion=nn.CrossEntropyLoss(), task_loss_weight=TASK_WEIGHT,
            distill_loss_weight=KD_WEIGHT, temperature=TEMPERATURE, verbose=False,
        ).train()  # fmt: skip
        optimizer = PLAN.build_optimizer([{"params": list(student.parameters())}])

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            task(batch.images, batch.labels)["loss"].backward()
            optimizer.step()

        return step

    def torchdistill(self) -> Step:
        """torchdistill's box as its KD configurations make it."""
        logging.disable(logging.INFO)
        from torchdistill.core.distillation import DistillationBox

        ends = {f"{who}_module_{what}": value for who in ("student", "teacher") for what, value in (("path", "."), ("io", "output"))}
        kd = {"key": "KDLoss", "kwargs": {**ends, "temperature": TEMPERATURE, "alpha": TASK_WEIGHT, "beta": KD_WEIGHT}}
        plain = {"forward_proc": "forward_batch_only", "sequential": [], "forward_hook": {"input": [], "output": []}}
        config = {
            "num_epochs": 1,
            "teacher": {**plain, "requires_grad": False},
            "student": {**plain, "requires_grad": True},
            "optimizer": {"key": "SGD", "kwargs": {"lr": PLAN.lr, "momentum": PLAN.momentum, "weight_decay": PLAN.weight_decay}},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
        }
        cpu = torch.device("cpu")
        box = DistillationBox(copy.deepcopy(self.teacher), copy.deepcopy(self.student), {}, config, cpu, None, False, 1.0)
        box.teacher_model.eval()
        box.student_model.train()

        def step(batch: Batch) -> None:
            loss = box.forward_process(batch.images, batch.labels, None)
            box.post_forward_process(loss=loss)

        return step


class InTurn:
    """The Lab's training loader: one batch again and again, and between two of the Lab's steps a step of everyone else."""

    def __init__(
        self,
        batch: Batch,
        others: dict[str, Callable[[], Any]],
        turns: Turns,
        rounds: int,
        seconds: float,
        counted: Allocated | None = None,
    ) -> None:
        self.batch, self.others, self.turns, self.rounds, self.seconds = batch, others, turns, rounds, seconds
        self.counted = counted
        self.whole = rounds
        self.place = (0, 0)

    def __len__(self) -> int:
        return self.rounds

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "batch": self.place[1]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.place = (0, state_dict["batch"])

    def __iter__(self) -> Iterator[Batch]:
        end = time.monotonic() + self.seconds
        measuring = True
        for number in range(self.rounds):
            self.place = (0, number + 1)
            measuring = measuring and (time.monotonic() < end or number < WARMUP + 3)
            if measuring and self.others:
                self.turns.round(self.others, number)
            started = time.perf_counter()
            with self.counted if self.counted and number == self.rounds - 1 else contextlib.nullcontext():
                yield self.batch
            if measuring:
                self.turns.note(LAB, time.perf_counter() - started)
            else:
                raise _Enough


class _Enough(Exception):
    """The time is up."""


class OneBatch:
    """Data of one batch, as the Lab reads data."""

    fingerprint = "benchmark"
    indices: Mapping[str, np.ndarray] = {}

    def __init__(self, bench: Bench, loader: InTurn) -> None:
        self.bench, self.loader, self.batch_size = bench, loader, bench.pair.batch_size

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Any:
        return self.loader

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Any:
        return [self.loader.batch]

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.bench.pair.classes)

    def example_inputs(self) -> Tensor:
        return self.bench.data.example_inputs()


def take_turns(
    bench: Bench,
    steps: dict[str, Step],
    rounds: int,
    seconds: float,
    *,
    lab: bool = True,
    counted: Allocated | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Rounds of everyone, after a warm-up that is thrown away; if asked for, the Lab's last step with its tensors counted."""
    batch, turns = bench.batch(), Turns(clock)
    others = {name: partial(step, batch) for name, step in steps.items()}
    for step in others.values():
        step()
    if lab:
        with tempfile.TemporaryDirectory() as folder:
            loader = InTurn(batch, others, turns, rounds + WARMUP, seconds, counted)
            options = LabOptions(out=Path(folder), accelerator="cpu")
            with contextlib.suppress(_Enough):
                Lab(options).fit(bench.kd(), OneBatch(bench, loader), PLAN, name="kd")  # type: ignore[arg-type]
    else:
        end = time.monotonic() + seconds
        for number in range(rounds + WARMUP):
            if time.monotonic() >= end and number >= WARMUP + 3:
                break
            turns.round(others, number)
    turns.seconds = {name: values[WARMUP:] for name, values in turns.seconds.items()}
    count = turns.rounds
    turns.seconds = {name: values[:count] for name, values in turns.seconds.items()}
    return turns


def peak_memory(pair: str, names: Sequence[str], threads: int, processes: int) -> dict[str, list[dict[str, float]]]:
    """MiB that the steps of each contender add to a process that has the networks and the batch; several processes of each, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(processes):
        for name in names:
            command = [sys.executable, __file__, "--pair", pair, "--threads", str(threads), "--memory-of", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def memory_of(bench: Bench, name: str) -> dict[str, float]:
    """In a process of its own: the peak above what the networks and the batch take, and the most that a step's tensors hold at once."""
    batch, counted = bench.batch(), Allocated()
    bench.student(batch.images[:2])  # the kernels' own buffers
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here on
    if name == LAB:
        take_turns(bench, {}, MEMORY_STEPS, 600.0, counted=counted)
        peak = resident("VmHWM")
    else:
        step = bench.step(name)
        for _ in range(MEMORY_STEPS):
            step(batch)
        peak = resident("VmHWM")
        with counted:
            step(batch)
    return {"resident": (peak - before) / 1024, "tensors": counted.peak / 2**20}


def resident(which: str) -> int:
    """KiB of this process that are, or at the peak were, in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(which)))


def compare(key: str, options: argparse.Namespace) -> None:
    bench = Bench(PAIRS[key])
    steps, absent = {}, {}
    for name in (HAND, PREPARED, BARE, DOT_STEP, CACHED, TIMM, TORCHDISTILL):
        try:
            steps[name] = bench.step(name)
            steps[name](bench.batch())
        except Exception as error:  # another library's refusal is a row of the table, not the end of it
            if name not in (TIMM, TORCHDISTILL):
                raise
            absent[name] = f"{type(error).__name__}: {error}"
            steps.pop(name, None)
    turns = take_turns(bench, steps, options.rounds, options.seconds)
    names = [name for name in (HAND, PREPARED, BARE, LAB, DOT_STEP, CACHED, TIMM, TORCHDISTILL) if name in turns.seconds]
    peaks = (
        {}
        if options.no_memory or not Path("/proc/self/clear_refs").exists()
        else peak_memory(key, (HAND, PREPARED, BARE, LAB, TIMM), options.threads, options.processes)
    )
    memory = {name: statistics.median(each["resident"] for each in values) for name, values in peaks.items()}
    tensors = {name: values[0]["tensors"] for name, values in peaks.items()}  # the same in every process
    targets = {
        BARE: [("time to prepared loop", turns.ratio(BARE, PREPARED), 1.05, True)],
        LAB: [
            ("time to prepared loop", turns.ratio(LAB, PREPARED), 1.05, True),
            ("time to loop by hand", turns.ratio(LAB, HAND), 1.05, True),
        ],
        DOT_STEP: [("time to KD", turns.ratio(DOT_STEP, BARE), 1.35, True)],
        CACHED: [],
    }
    if TIMM in turns.seconds:
        targets[LAB].append(("faster than timm", turns.ratio(TIMM, LAB), 2.3, False))
        targets[BARE].append(("faster than timm", turns.ratio(TIMM, BARE), 2.3, False))
        targets[CACHED].append(("faster than timm", turns.ratio(TIMM, CACHED), 3.0, False))
    for name in (LAB, BARE) if memory else ():
        targets[name].append(("peak memory to prepared loop", memory[name] / memory[PREPARED], 1.1, True))
        targets[name].append(("tensors to prepared loop", tensors[name] / tensors[PREPARED], 1.1, True))
    about = setting(options.note)
    rows, lines = [], []
    for name in names:
        low, high = turns.spread(name, PREPARED)
        checks = [f"{what} {value:.2f} ({verdict(value, target, at_most=most)})" for what, value, target, most in targets.get(name, [])]
        faster = f"{turns.ratio(TIMM, name):.2f}x" if TIMM in turns.seconds else "-"
        mib = f"{memory[name]:.0f} ({tensors[name]:.0f})" if name in memory else "-"
        ratio = f"{turns.ratio(name, PREPARED):.2f} [{low:.2f}, {high:.2f}]"
        rows.append([name, f"{1e3 * turns.median(name):.0f}", ratio, faster, mib, "\n".join(checks)])
        lines.append({
            "benchmark": "steps", "pair": key, "contender": name, "batch": bench.pair.batch_size, "rounds": turns.rounds,
            "ms": 1e3 * turns.median(name), "to_prepared_loop": turns.ratio(name, PREPARED), "quartiles": [low, high],
            "timm_over_this": turns.ratio(TIMM, name) if TIMM in turns.seconds else None, "peak_mib": memory.get(name),
            "peaks_mib": [each["resident"] for each in peaks.get(name, [])], "tensors_mib": tensors.get(name),
            "targets": {what: {"value": value, "target": target, "at_most": most} for what, value, target, most in targets.get(name, [])},
        })  # fmt: skip
    for name, reason in absent.items():
        rows.append([name, "-", "-", "-", "-", reason[:60]])
        lines.append({"benchmark": "steps", "pair": key, "contender": name, "absent": reason})
    columns = ["contender", "ms/step", "to prepared loop [quartiles]", "timm / this", "peak MiB (tensors)", "targets"]
    show(f"{bench.pair.title}, batch {bench.pair.batch_size}, {turns.rounds} rounds", columns, rows, about)
    keep("steps", lines, about)


def cache(key: str, options: argparse.Namespace) -> None:
    """Building a cache against one pass of the same images past the same teacher."""
    bench, turns = Bench(PAIRS[key]), Turns()
    bench.shared_teacher(bench.batch())
    _ = bench.result

    def passing() -> None:
        for batch, _ in bench.data.every_view(bench.views, batch_size=bench.pair.batch_size):
            bench.shared_teacher(batch)

    def building() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bench.build(Path(folder))

    end = time.monotonic() + options.seconds / 3
    while turns.rounds < 3 or time.monotonic() < end:
        turns.round({"teacher pass": passing, "building the cache": building}, turns.rounds)
    about = setting(options.note)
    ratio = turns.ratio("building the cache", "teacher pass")
    rows = [[name, f"{turns.median(name):.2f}", f"{turns.ratio(name, 'teacher pass'):.2f}"] for name in turns.seconds]
    show(f"{bench.pair.title}: {bench.pair.images} images, {turns.rounds} rounds; {verdict(ratio, 1.1, at_most=True)}",
         ["", "s", "ratio"], rows, about)  # fmt: skip
    keep("steps", [{"benchmark": "cache", "pair": key, "images": bench.pair.images, "rounds": turns.rounds, "ratio": ratio, "target": 1.1,
                    "seconds": {name: turns.median(name) for name in turns.seconds}}], about)  # fmt: skip


def engines(key: str, options: argparse.Namespace) -> None:
    """Whole KD steps with teachers that engines compute, in processor time; the teacher of the second pair reads 112 pixels."""
    pair = replace(PAIRS[key], image_size=min(PAIRS[key].image_size, 112))
    bench = Bench(pair)
    names = [HAND_FP32, HAND, TIMM, BARE, *BY_ENGINE, CACHED]
    steps = {name: bench.step(name) for name in names if name not in BY_ENGINE or find_spec(BY_ENGINE[name][0])}
    turns = take_turns(bench, steps, options.rounds, options.seconds, lab=False, clock=time.process_time)
    about = setting(f"processor time; {options.note}".rstrip("; "))
    builds = Turns(time.process_time)
    teachers = {BARE: bench.shared_teacher, **{name: bench.engine_teacher(*BY_ENGINE[name]) for name in steps if "int8" in name}}
    for number in range(2):
        with tempfile.TemporaryDirectory() as folder:
            places = {name: Path(folder) / str(place) for place, name in enumerate(teachers)}
            builds.round({name: partial(bench.build, places[name], teacher) for name, teacher in teachers.items()}, number)
    rows, lines = [], []
    for name in steps:
        low, high = turns.spread(HAND_FP32, name)
        ratios = f"{turns.ratio(HAND_FP32, name):.2f} [{low:.2f}, {high:.2f}]", f"{turns.ratio(TIMM, name):.2f}"
        cache = f"{builds.ratio(BARE, name):.2f}" if name in builds.seconds else "-"
        rows.append([name, f"{1e3 * turns.median(name):.0f}", *ratios, cache])
        lines.append({
            "benchmark": "engines", "pair": key, "image_size": pair.image_size, "contender": name, "batch": pair.batch_size,
            "rounds": turns.rounds, "ms": 1e3 * turns.median(name), "hand_over_this": turns.ratio(HAND_FP32, name),
            "quartiles": [low, high], "timm_over_this": turns.ratio(TIMM, name),
            "cache_faster": builds.ratio(BARE, name) if name in builds.seconds else None,
        })  # fmt: skip
    title = f"{pair.title.partition(',')[0]}, {pair.image_size} px, batch {pair.batch_size}, {turns.rounds} rounds"
    show(title, ["contender", "ms/step", f"{HAND_FP32} / this [quartiles]", "timm / this", "cache built faster by"], rows, about)
    keep("steps", lines, about)


def student_side(key: str, options: argparse.Namespace) -> None:
    """What each choice on the student's side is worth, one at a time and together."""
    bench = Bench(PAIRS[key])

    def variant(*, last: bool = False, optimizer: dict[str, bool] | None = None, inputs: bool = False) -> Step:
        student = bench.laid_out() if last else copy.deepcopy(bench.student)
        distiller = bench.kd(student=student)
        sgd = torch.optim.SGD(student.parameters(), lr=PLAN.lr, momentum=PLAN.momentum, weight_decay=PLAN.weight_decay, **(optimizer or {}))
        plain = bench.own_loop(distiller, sgd)
        if not inputs:
            return plain
        return lambda batch: plain(batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last)))

    steps = {
        "contiguous": variant(),
        "fused SGD": variant(optimizer={"fused": True}),
        "foreach SGD": variant(optimizer={"foreach": True}),
        "channels_last student": variant(last=True),
        "channels_last student and inputs": variant(last=True, inputs=True),
        "channels_last student, fused SGD": variant(last=True, optimizer={"fused": True}),
        TIMM: bench.step(TIMM),
    }
    turns = take_turns(bench, steps, options.rounds, options.seconds, lab=False)
    about = setting(options.note)
    rows = []
    for name in steps:
        low, high = turns.spread(name, "contiguous")
        ratio = f"{turns.ratio(name, 'contiguous'):.3f} [{low:.3f}, {high:.3f}]"
        rows.append([name, f"{1e3 * turns.median(name):.0f}", ratio, f"{turns.ratio(TIMM, name):.2f}x"])
    show(f"{bench.pair.title}: the student's side, {turns.rounds} rounds", ["", "ms/step", "ratio [quartiles]", "timm / this"], rows, about)
    lines = [
        {
            "benchmark": "student",
            "pair": key,
            "contender": name,
            "rounds": turns.rounds,
            "ms": 1e3 * turns.median(name),
            "to_contiguous": turns.ratio(name, "contiguous"),
            "timm_over_this": turns.ratio(TIMM, name),
        }
        for name in steps
    ]
    keep("steps", lines, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="all", choices=[*PAIRS, "all"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=80.0, help="of measuring, per table")
    parser.add_argument("--rounds", type=int, default=200, help="at most")
    parser.add_argument("--student", action="store_true", help="measure choices on the student's side instead")
    parser.add_argument("--cache", action="store_true", help="measure the building of a cache instead")
    parser.add_argument("--engines", action="store_true", help="measure teachers that inference engines compute instead")
    parser.add_argument("--processes", type=int, default=5, help="whose peak memory is measured, per contender")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--note", default="", help="kept with the results, e.g. that the machine was shared")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory_of(Bench(PAIRS[options.pair]), options.memory_of)))
        return
    for key in PAIRS if options.pair == "all" else (options.pair,):
        (student_side if options.student else cache if options.cache else engines if options.engines else compare)(key, options)


if __name__ == "__main__":
    main()
