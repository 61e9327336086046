"""Lab: runs an experiment's stages. What is finished is not run again; what was killed goes on."""

from __future__ import annotations

import copy
import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn

from stillroom import catalog
from stillroom._version import __version__
from stillroom.engine.checkpoints import AtomicCheckpointIO, Checkpoints
from stillroom.engine.console import StageDisplay, console, quiet_libraries
from stillroom.engine.distiller import Distiller
from stillroom.engine.distributed import world_size
from stillroom.engine.loading import Loader
from stillroom.engine.measure import measure
from stillroom.engine.recorder import Evaluator, Recorder, evaluate, seed_everything
from stillroom.engine.report import Report, Section, StageResult
from stillroom.engine.run_folder import RunFolder
from stillroom.engine.stage import StageFolder, digest, fingerprint
from stillroom.engine.teacher import Precision, Renormalise, Teacher
from stillroom.engine.training import Training
from stillroom.engine.weights import load_weights, save_weights
from stillroom.errors import InputError, Interrupted, StillroomError


class TaskData(Protocol):
    """What a task's data gives to the Lab."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data do."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch, of all processes together."""

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled, augmented batches for one process of `world`."""

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation set, each sample once over all processes."""

    def evaluator(self) -> Evaluator:
        """What scores a student's answers."""

    def example_inputs(self) -> Tensor:
        """Inputs of one sample, for measuring a network."""

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics between two models' per-sample results, e.g. agreement with the teacher."""

    def sections(self, report: Report) -> list[Section]:
        """The task's own part of the report, e.g. per-class changes."""

    def ship(self, folder: Path, network: nn.Module, model: str) -> None:
        """Writes what is needed to load the student again, besides its weights."""


@dataclass(frozen=True)
class Trained:
    """A finished stage: its network, on the CPU, and what was measured of it.

    Attributes:
        network: None for a teacher that is known by its stored answers only.
        renormalise: if the network reads other inputs than the data give.
        teacher: what teaches in the network's place, where it does.
    """

    name: str
    network: nn.Module | None
    result: StageResult
    folder: Path
    renormalise: Renormalise | None = None
    teacher: Teacher | None = None


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
        strategy: auto, ddp, fsdp, or any other that Lightning knows.
        precision: of the student's training: 32-true, bf16-mixed or 16-mixed.
        teacher_precision: bf16, fp16, fp32, or auto, which is bf16 where the device is fast at it.
        teacher_compile: compile the teacher's forward pass with torch.compile.
        checkpoint_seconds: time between two checkpoints within an epoch; there is always one after each epoch.
        checkpoint_steps: if given, a checkpoint also after every so many batches.
        trust_pickle: allow weights files that need unpickling of arbitrary objects, which can run code of whoever made them.
        overwrite: discard what an earlier run left in `out`.
    """

    out: Path | None = None
    seed: int = 0
    seeds: int = 1
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    teacher_precision: Precision = "auto"
    teacher_compile: bool = False
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    trust_pickle: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "a number of at least 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "a number of at least 0")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise InputError("checkpoint_steps", self.checkpoint_steps, "a number of at least 1, or none")
        if not self.checkpoint_seconds >= 0:
            raise InputError("checkpoint_seconds", self.checkpoint_seconds, "a number of at least 0")
        for name, known in (
            ("accelerator", ("auto", "cpu", "gpu", "cuda", "mps")),
            ("strategy", ("auto", *StrategyRegistry.available_strategies())),
            ("precision", ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")),
        ):
            if getattr(self, name) not in known:
                raise InputError(name, getattr(self, name), f"one of {', '.join(known)}")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise InputError("accelerator", self.accelerator, "a device that this machine has; torch sees no CUDA device here")
        if self.accelerator == "mps" and not torch.backends.mps.is_available():
            raise InputError("accelerator", self.accelerator, "a device that this machine has; torch sees no Apple GPU here")


class Lab:
    """Runs the stages of one experiment for one seed, inside one folder.

    Building a Lab seeds every generator, and so does the end of each stage: networks that are built at the same place of a recipe
    start from the same numbers, whether the stages before them were run or read from disk.

    Args:
        options: where and how to run; `options.out` must be given.
        seed: this Lab's seed; by default `options.seed`.
        settings: every argument of the run, kept in `config.yaml` and compared when a run goes on.
    """

    def __init__(self, options: LabOptions, seed: int | None = None, settings: dict[str, Any] | None = None) -> None:
        if options.out is None:
            raise InputError("out", None, "the folder of the run")
        self.options = options
        self.folder = Path(options.out)
        if options.devices * options.num_nodes > 1:
            _check_port()
        self._run_folder = RunFolder(self.folder, settings or {}, overwrite=options.overwrite)
        self.seed = options.seed if seed is None else seed
        self.started = _now()
        self._prefix = f"seed{self.seed}/"
        torch.backends.cudnn.deterministic = True
        seed_everything(self.seed)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return int(getattr(rank_zero_only, "rank", 0)) == 0

    @property
    def device(self) -> torch.device:
        """Where work of one process is done."""
        return _device(self.options.accelerator)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Stages inside serve all seeds of the run: they have the first seed, and a folder of their own."""
        seed, prefix = self.seed, self._prefix
        self.seed, self._prefix = self.options.seed, ""
        seed_everything(self.seed)
        try:
            yield
        finally:
            self.seed, self._prefix = seed, prefix
            seed_everything(self.seed)

    def teach(self, trained: Trained) -> Teacher:
        """A finished stage's network as a frozen teacher, in the precision that the options ask for.

        Raises:
            InputError: the stage has no network.
        """
        if trained.teacher is not None:
            return trained.teacher
        if trained.network is None:
            raise InputError("teacher", f"the stage {trained.name} without a network", "a stage that has one")
        return Teacher(
            trained.network,
            precision=self.options.teacher_precision,
            compile=self.options.teacher_compile,
            renormalise=trained.renormalise,
        )

    def fit(self, distiller: Distiller, data: TaskData, plan: Training | None = None, *, name: str, model: str = "") -> Trained:
        """Trains the distiller's student, or reads the finished stage, or goes on with the killed one.

        Args:
            distiller: what to train.
            data: what to train on.
            plan: optimiser, schedule and length.
            name: of the stage, unique within the recipe; its folder's name.
            model: the student's specification, for the report and for loading it again.

        Returns:
            The stage with its student as the last epoch left it; `best.safetensors` in its folder has the best epoch's weights.

        Raises:
            InputError: the folder holds this stage of a run with other arguments.
            NonFiniteLoss: a loss term became infinite or not a number.
            Interrupted: Ctrl-C or SIGTERM came.
        """
        distiller.plan = plan = plan or Training()
        folder = self._stage_folder(name)
        parts = fingerprint(distiller, plan, data.fingerprint, data.batch_size, self.seed, self.options.precision)
        record = folder.open(parts)
        if record is None or not record.get("finished"):
            if record is None and self.is_main:
                folder.write({"fingerprint": parts, "finished": False})
            whole = copy.deepcopy(distiller.student) if self.options.strategy.startswith("fsdp") else None
            recorder = self._train(distiller, data, plan, folder, name)
            if whole is not None:  # the one that was trained is left in shards
                distiller.student = whole
                distiller.student.load_state_dict(recorder.weights)
            record = self._conclude(distiller.cpu(), data, folder, name, model, parts, recorder)
        else:
            load_weights(distiller.student, folder.student)
            self._display(name).say(f"done before ({record['result']['epochs']} epochs)")
        seed_everything(self.seed)
        return Trained(name, distiller.student, _result(record, folder), folder.path)

    def evaluate(
        self, network: nn.Module, data: TaskData, *, name: str, model: str = "", renormalise: Renormalise | None = None
    ) -> Trained:
        """Scores a network that needs no training; a stage like any other, on disk and in the report.

        Args:
            network: what to score.
            data: whose validation set.
            name: of the stage.
            model: the network's specification, for the report.
            renormalise: applied to the inputs, for a network that was trained with other statistics than the data have.
        """
        folder = self._stage_folder(name)
        parts = {
            "architecture": repr(network),
            "weights": digest(network.state_dict()),
            "data": data.fingerprint,
            "renormalise": repr(renormalise),
        }
        record = folder.open(parts)
        if record is None or not record.get("finished"):
            scored = Distiller(network) if renormalise is None else _Renormalised(network, renormalise)
            record = self._conclude(scored, data, folder, name, model, parts, None)
        seed_everything(self.seed)
        return Trained(name, network, _result(record, folder), folder.path, renormalise)

    def report(
        self, method: str, data: TaskData, arms: dict[str, Trained], *, baseline: str | None = "alone", ship: str = "distilled"
    ) -> Report:
        """The experiment's report for this seed, and the shipped student: weights and what is needed to load them again.

        Args:
            method: the method's name in the catalog.
            data: for the task's own sections and for the shipped student's description.
            arms: the stages by the name they have in the report, in its order. An arm named `teacher` is the reference of agreement.
            baseline: the arm that the others are compared with.
            ship: the arm whose student is written to the run's folder (the first seed's).
        """
        if "teacher" in arms:
            reference = arms["teacher"].result.details
            for name, trained in arms.items():
                if name != "teacher":
                    trained.result.metrics.update(data.compare(trained.result.details, reference))
        if self.is_main and self.seed == self.options.seed:
            model, network = arms[ship].result.model, arms[ship].network
            if network is None:
                raise InputError("ship", ship, "an arm that has a network")
            save_weights(network, self.folder / "student.safetensors")
            data.ship(self.folder, network, model)
        evaluator = data.evaluator()
        results = {name: [replace(trained.result, name=name)] for name, trained in arms.items()}
        return Report(
            method=method,
            title=_title(method),
            arms=results,
            primary=evaluator.primary,
            higher_is_better=evaluator.higher_is_better,
            baseline=baseline if baseline in arms else None,
            subject=ship if ship != baseline else None,
            versions=versions(),
            started=self.started,
            finished=_now(),
        )

    def finished(self, name: str) -> bool:
        """Whether the folder holds a finished stage of that name, of these arguments or of others: `fit` tells."""
        return bool((StageFolder(self.folder / f"{self._prefix}{name}").read() or {}).get("finished"))

    def _train(self, distiller: Distiller, data: TaskData, plan: Training, folder: StageFolder, name: str) -> Recorder:
        """Lightning's loop, with our callbacks."""
        options, ours = self.options, distiller.automatic_optimization
        display = self._display(name)
        recorder = Recorder(self.seed, lambda rank, world: data.eval_loader(rank=rank, world=world), data.evaluator(), folder.best, display)
        checkpoints = Checkpoints(folder.last_checkpoint, options.checkpoint_seconds, options.checkpoint_steps)
        events = TensorBoardLogger(folder.path, name="", version="events")
        with quiet_libraries(), checkpoints.listening():
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.num_nodes,
                # Buffers are made equal before each evaluation; DDP would send them, memory banks too, at every step.
                strategy=DDPStrategy(broadcast_buffers=False) if options.strategy == "ddp" else options.strategy,
                precision=options.precision,  # type: ignore[arg-type]
                max_epochs=plan.epochs,
                limit_val_batches=0,  # the recorder evaluates: a killed run never has half an evaluation to go on from
                accumulate_grad_batches=plan.accumulate if ours else 1,
                gradient_clip_val=plan.clip_norm if ours else None,
                callbacks=[recorder, checkpoints],
                plugins=[AtomicCheckpointIO()],
                logger=events,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                benchmark=False,
                default_root_dir=folder.path,
            )
            go_on = folder.last_checkpoint if folder.last_checkpoint.exists() else None
            try:
                trainer.fit(distiller, datamodule=_Feed(data, self.seed), ckpt_path=go_on)
            except StillroomError as error:
                if isinstance(error, Interrupted):
                    raise Interrupted(f"{display.title}: {error}; everything is saved, the same command goes on from here") from None
                raise
        return recorder

    def _conclude(
        self,
        distiller: Distiller,
        data: TaskData,
        folder: StageFolder,
        name: str,
        model: str,
        parts: dict[str, Any],
        recorder: Recorder | None,
    ) -> dict[str, Any]:
        """Evaluates the final student once more, this time with details, and writes the stage's record, last of all."""
        evaluator = data.evaluator()
        device = _device(self.options.accelerator)
        distiller.student.to(device)
        loader = data.eval_loader(rank=torch.distributed.get_rank() if world_size() > 1 else 0, world=world_size())
        metrics = evaluate(
            distiller.predict, distiller, loader, evaluator, device, nullcontext, lambda batch: move_data_to_device(batch, device)
        )
        distiller.student.cpu()
        result = StageResult(
            name=name,
            seed=self.seed,
            metrics=metrics,
            best=recorder.best if recorder else {},
            history=recorder.history if recorder else [],
            footprint=measure(distiller.student, data.example_inputs()),
            seconds=recorder.seconds if recorder else 0.0,
            epochs=len(recorder.history) if recorder else 0,
            model=model,
            resumed=recorder.continued if recorder else 0,
        )
        record = {"fingerprint": parts, "finished": True, "result": result.to_json()}
        details = evaluator.details()
        if self.is_main:
            folder.path.mkdir(parents=True, exist_ok=True)
            save_weights(distiller.student, folder.student)
            folder.write_details(details)
            folder.write(record)
        return {**record, "details": details}

    def _stage_folder(self, name: str) -> StageFolder:
        if self.is_main:
            self._run_folder.begin()
        return StageFolder(self.folder / f"{self._prefix}{name}")

    def _display(self, name: str) -> StageDisplay:
        title = f"{name}, seed {self.seed}" if self._prefix and self.options.seeds > 1 else name
        return StageDisplay(title, silent=not self.is_main)


class _Renormalised(Distiller):
    """A network that is to be scored on inputs of other statistics than it was trained with."""

    def __init__(self, student: nn.Module, renormalise: Renormalise) -> None:
        super().__init__(student)
        self.renormalise = renormalise

    def predict(self, batch: Any) -> Any:
        return self.student(self.renormalise(batch.inputs))


class _Feed(LightningDataModule):
    """The training loader, made once the processes know their ranks, at the place where a checkpoint left it.

    Lightning restores a loader's place too, but not from a checkpoint of an epoch's end.
    """

    def __init__(self, data: TaskData, seed: int) -> None:
        super().__init__()
        self.data, self.seed = data, seed
        self._loader: Loader | None = None
        self._place: dict[str, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict() if self._loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict or None

    def train_dataloader(self) -> Loader:
        assert self.trainer is not None
        self._loader = self.data.train_loader(seed=self.seed, rank=self.trainer.global_rank, world=self.trainer.world_size)
        if self._place is not None:
            self._loader.load_state_dict(self._place)
        return self._loader


def run_seeds(
    recipe: Callable[..., Report],
    options: LabOptions,
    data: TaskData,
    arguments: dict[str, Any],
    *,
    command: str = "",
    settings: dict[str, Any] | None = None,
) -> Report:
    """Runs a recipe once per seed, merges the reports, and writes the page.

    In a process that is not the first, answers with the last seed's report and writes nothing.

    Args:
        recipe: called as ``recipe(lab, data, **arguments)``.
        options: `options.seeds` repetitions.
        data: the task's data.
        arguments: the recipe's other arguments.
        command: what the user typed, for the report.
        settings: every argument of the run, for the report.
    """
    reports = []
    for repetition in range(options.seeds):
        lab = Lab(replace(options, overwrite=options.overwrite and not repetition), options.seed + repetition, settings)
        reports.append(recipe(lab, data, **arguments))
    if not lab.is_main:
        return reports[-1]
    report = Report.merge(reports)
    report.command, report.settings = command, settings or {}
    report.sections = data.sections(report)
    page = report.write(lab.folder)
    console.print(report.table())
    console.print(f"report: {page}", markup=False)
    return report


def versions() -> dict[str, str]:
    """What this was measured with."""
    return {
        "stillroom": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def _result(record: dict[str, Any], folder: StageFolder) -> StageResult:
    result = StageResult.from_json(record["result"])
    result.details = record.get("details") or folder.read_details()
    return result


def _device(accelerator: str) -> torch.device:
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _check_port() -> None:
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


def _title(method: str) -> str:
    """The paper's title; the name itself for a method that is not in the catalog."""
    return next((known.paper for known in catalog.METHODS if known.name == method), method)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


__all__ = ["Lab", "LabOptions", "TaskData", "Trained", "run_seeds", "versions"]
