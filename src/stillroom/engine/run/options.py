"""Where and how an experiment runs."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.strategies import StrategyRegistry

from stillroom.engine.inference.teacher import TeacherPrecision, check_engine_precision
from stillroom.engine.teacher import Precision
from stillroom.errors import InputError, one_of


@dataclass(frozen=True)
class LabOptions:
    """Where and how an experiment runs.

    Args:
        out: folder of the run; made when missing. A run that was killed goes on when it is started again with the same arguments.
        seed: seed of everything random.
        seeds: number of repetitions, with seeds `seed`, `seed + 1`, ...; one teacher serves them all.
        accelerator: cpu, gpu, mps or auto.
        devices: processes per node, one per device.
        num_nodes: machines.
        strategy: auto, ddp, fsdp, or Lightning's name of a variant of these two, such as ddp_find_unused_parameters_true.
        precision: of the student's training: 32-true, bf16-mixed or 16-mixed.
        teacher_precision: bf16, fp16, fp32, or auto, which is bf16 where the device is fast at it. Or int8, by an engine of the CPU: its
            weights and activations, whose ranges are measured on training images.
        teacher_engine: what computes the teacher's forward pass: torch, or on the CPU onnxruntime or openvino, for which the teacher is
            exported first; auto is torch, and onnxruntime for int8.
        teacher_compile: compile the teacher's forward pass with torch.compile.
        layout: of a student's convolution weights while it is trained: auto, which is channels last where the student can be trained so, or
            contiguous. Speed, and the last bits of the numbers; files are the same.
        checkpoint_seconds: time between two checkpoints: so much of its work, at most, a run that was killed does again.
        lost_seconds: of several processes: one that is silent for so long is taken for gone, and the others end with one line.
        checkpoint_steps: if given, a checkpoint also after every so many batches and after every epoch.
        trust_code: allow what can run code of whoever made it: weights files that need unpickling of arbitrary objects, and runs' folders
            that name a function.
        continue_from: folder of a finished run of the same method: each stage begins with the weights that the stage of its name and seed
            ended with there, and with a fresh optimiser and schedule; a teacher that was trained there is not trained again.
        overwrite: discard what an earlier run wrote into `out`, and nothing else that lies there.
    """

    out: Path | None = None
    seed: int = 0
    seeds: int = 1
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    teacher_precision: TeacherPrecision = "auto"
    teacher_engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    teacher_compile: bool = False
    layout: Literal["auto", "contiguous"] = "auto"
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    lost_seconds: float = 60.0
    trust_code: bool = False
    continue_from: Path | None = None
    overwrite: bool = False

    @property
    def trust_pickle(self) -> bool:
        """The old name of `trust_code`."""
        return self.trust_code

    @property
    def engine(self) -> str | None:
        """The engine that computes the teacher's forward pass; None for PyTorch."""
        if self.teacher_engine == "auto":
            return "onnxruntime" if self.teacher_precision == "int8" else None
        return None if self.teacher_engine == "torch" else self.teacher_engine

    @property
    def torch_precision(self) -> Precision:
        """The precision of a teacher that PyTorch alone can ask.

        Raises:
            InputError: an engine was asked for.
        """
        if self.engine is not None or self.teacher_precision == "int8":
            expected = "torch: this method asks its teacher in a way of its own, which no engine computes"
            raise InputError("teacher_engine", self.engine, expected)
        return self.teacher_precision

    def __post_init__(self) -> None:
        for name, least in (
            ("seeds", 1),
            ("devices", 1),
            ("num_nodes", 1),
            ("seed", 0),
            ("checkpoint_steps", 1),
            ("checkpoint_seconds", 0),
            ("lost_seconds", 5),
        ):
            value = getattr(self, name)
            if not (value is None or value >= least):
                raise InputError(name, value, f"a number of at least {least}")
        for name, known in (
            ("layout", ("auto", "contiguous")),
            ("accelerator", ("auto", "cpu", "gpu", "cuda", "mps")),
            ("strategy", ("auto", *_strategies())),
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
        ):
            one_of(name, getattr(self, name), known)
        if self.engine is not None:
            check_engine_precision(self.engine, self.teacher_precision)
            if self.teacher_compile:
                raise InputError("teacher_compile", True, f"false: {self.engine} compiles a teacher in its own way")
        elif self.teacher_precision == "int8":
            raise InputError("teacher_engine", "torch, with --teacher-precision int8", "onnxruntime or openvino")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise InputError("accelerator", self.accelerator, "a device that this machine has; torch sees no CUDA device here")
        if self.strategy.startswith("fsdp") and (self.accelerator in ("cpu", "mps") or not torch.cuda.is_available()):
            raise InputError("strategy", self.strategy, "ddp: fsdp is for GPUs of NVIDIA and AMD")
        if self.accelerator == "mps" and not torch.backends.mps.is_available():
            raise InputError("accelerator", self.accelerator, "a device that this machine has; torch sees no Apple GPU here")


def _strategies() -> list[str]:
    """DDP and FSDP in Lightning's variants, but those that start processes by pickling: a lab cannot be pickled."""
    known = StrategyRegistry.available_strategies()
    return [name for name in known if name.startswith(("ddp", "fsdp")) and not re.search("spawn|fork|notebook", name)]


def started_by_torchrun() -> dict[str, int]:
    """How many processes torchrun started: `devices` and `num_nodes`; nothing where it started none."""
    whole, here = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or not (whole.isdecimal() and here.isdecimal() and int(here)):
        return {}
    return {"devices": int(here), "num_nodes": int(whole) // int(here)}


def check_started(options: LabOptions) -> None:
    """Where torchrun started the processes: are there as many as were asked for? Else each would run the whole experiment for itself."""
    started = os.environ.get("WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" in os.environ and started.isdecimal() and int(started) != options.devices * options.num_nodes:
        got = f"{options.devices} (with --num-nodes {options.num_nodes})"
        raise InputError("devices", got, f"as many processes in all as torchrun started, {started}")


def check_port() -> None:
    """Where this process will start the others, and was told at which port they meet: is that free?"""
    port, external = os.environ.get("MASTER_PORT"), {"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys()
    if port is None or external or os.environ.get("NODE_RANK", "0") != "0":
        return
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise InputError("MASTER_PORT", port, f"a free port, or none: then one is found ({error})") from None
