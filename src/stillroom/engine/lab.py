"""Lab: runs an experiment's stages. What is finished is not run again; what was killed goes on."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stillroom import catalog
from stillroom.engine.answers import changed_answers
from stillroom.engine.card import NAME as CARD
from stillroom.engine.card import amend_card
from stillroom.engine.distiller import Distiller, unused_parameters
from stillroom.engine.distributed import rank, world_size
from stillroom.engine.loading import Loader
from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.checkpoints import AtomicCheckpointIO, Checkpoints
from stillroom.engine.run.console import StageDisplay, console, quiet_libraries
from stillroom.engine.run.feed import Feed, selects
from stillroom.engine.run.folder import RunFolder
from stillroom.engine.run.layout import channels_last
from stillroom.engine.run.machines import find_way, settle_rank
from stillroom.engine.run.measure import Footprint, measure, now
from stillroom.engine.run.memory import remembered
from stillroom.engine.run.options import LabOptions, check_port, check_started
from stillroom.engine.run.recorder import Recorder, evaluate, seed_everything
from stillroom.engine.run.stage import StageFolder, digest, fingerprint
from stillroom.engine.run.together import Together
from stillroom.engine.run.written import Record, remove
from stillroom.engine.task import TaskData
from stillroom.engine.teacher import Renormalise, Resized, Teacher
from stillroom.engine.training import Training
from stillroom.engine.weights import load_weights, save_weights
from stillroom.errors import InputError, Interrupted, NonFiniteLoss


@dataclass(frozen=True)
class Trained:
    """A finished stage: its network, on the CPU, and what was measured of it.

    Attributes:
        network: None for a teacher that is known by its stored answers only.
        renormalise: if the network reads other inputs than the data give.
        teacher: what teaches in the network's place, where it does.
        notes: sentences on it for the report.
    """

    name: str
    network: nn.Module | None
    result: StageResult
    folder: Path
    renormalise: Renormalise | None = None
    teacher: Teacher | None = None
    notes: tuple[str, ...] = ()


class Lab:
    """Runs the stages of one experiment for one seed, inside one folder.

    Building a Lab seeds every generator, and so does the end of each stage: networks that are built at the same place of a recipe
    start from the same numbers, whether the stages before them were run or read from disk.

    Args:
        options: where and how to run; `options.out` must be given.
        seed: this Lab's seed; by default `options.seed`.
        settings: every argument of the run, kept in `config.yaml` and compared when a run goes on.
        opening: lines that the first process says when the first stage begins: what the data are.
        quiet: say nothing of stages: of a search with many of them.
        after_epoch: called after each epoch of a stage with its line of the record; what it raises ends the stage.

    Attributes:
        shared_seconds: what stages took that serve all seeds.
    """

    def __init__(
        self,
        options: LabOptions,
        seed: int | None = None,
        settings: dict[str, Any] | None = None,
        opening: Sequence[str] = (),
        *,
        quiet: bool = False,
        after_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        if options.out is None:
            raise InputError("out", None, "the folder of the run")
        self.options = options
        self.folder = Path(options.out).expanduser()
        check_started(options)
        if options.devices * options.num_nodes > 1:
            settle_rank(options.devices)
            find_way(options.num_nodes)
            check_port()
        self._run_folder = RunFolder(self.folder, settings or {}, overwrite=options.overwrite, main=self.is_main)
        self.seed = options.seed if seed is None else seed
        self.started, self.shared_seconds = now(), 0.0
        self._opening, self._quiet, self._after_epoch = opening, quiet, after_epoch
        self._callbacks: list[Callback] = []  # besides those that every training has
        self.settings = settings or {}
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
        accelerator = self.options.accelerator
        if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
            return torch.device("cuda")
        if accelerator in ("mps", "auto") and torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")

    def say(self, title: str, text: str) -> None:
        """One line on the terminal, of the first process."""
        StageDisplay(title, silent=self._quiet or not self.is_main).say(text)

    def begin(self) -> None:
        """Makes the run's folder and writes its arguments there, as the first stage does; for work that is no stage."""
        if self.is_main:
            self._run_folder.begin()
            for line in self._opening:
                console.print(f"data: {line}", markup=False)
            self._opening = ()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Stages inside serve all seeds of the run: they have the first seed, and a folder of their own."""
        seed, prefix, started = self.seed, self._prefix, time.perf_counter()
        self.seed, self._prefix = self.options.seed, ""
        seed_everything(self.seed)
        try:
            yield
        finally:
            self.seed, self._prefix = seed, prefix
            if prefix:  # else what is around it counts
                self.shared_seconds += time.perf_counter() - started
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
            precision=self.options.torch_precision,
            compile=self.options.teacher_compile,
            renormalise=trained.renormalise,
        )

    def fit(
        self,
        distiller: Distiller,
        data: TaskData,
        plan: Training | None = None,
        *,
        name: str,
        model: str = "",
        origin: str = "",
        renormalise: Renormalise | None = None,
    ) -> Trained:
        """Trains the distiller's student, or reads the finished stage, or goes on with the killed one.

        Args:
            distiller: what to train.
            data: what to train on.
            plan: optimiser, schedule and length.
            name: of the stage, unique within the recipe; its folder's name.
            model: the student's specification, for the report and for loading it again; with a remark in brackets for the report alone.
            origin: what its weights start from, in words for the terminal and the report, where it is not random numbers.
            renormalise: applied to the inputs, for a student whose weights were trained with other statistics than the data have.

        Returns:
            The stage with its student as the last epoch left it; `best.safetensors` in its folder has the best epoch's weights.

        Raises:
            InputError: the folder holds this stage of a run with other arguments, or another run is at work on it; or the run that this one
                continues has no such stage.
            NonFiniteLoss: a loss term became infinite or not a number.
            Interrupted: Ctrl-C or SIGTERM came.
        """
        distiller.plan = plan = plan or Training()
        folder = self._stage_folder(name)
        if self.options.continue_from is not None:
            self._start_where_ended(distiller, self.options.continue_from, name)
        parts = fingerprint(distiller, plan, data.fingerprint, data.batch_size, self.seed, self.options.precision)
        if renormalise is not None:
            parts["renormalise"] = repr(renormalise)
        record = folder.open(parts)
        if record is None or not record.get("finished"):
            with folder.taken() if self.is_main else nullcontext():
                if self.is_main and folder.open(parts) is None:
                    folder.write({"fingerprint": parts, "finished": False})
                    folder.write_indices(data.indices)
                if origin:
                    self._display(name).say(origin)
                before = [] if renormalise is None else [distiller.student.register_forward_pre_hook(partial(_renormalised, renormalise))]
                whole = copy.deepcopy(distiller.student) if self.options.strategy.startswith("fsdp") else None
                with self._layout(distiller, data):
                    recorder = self._train(distiller, data, plan, folder, name)
                if whole is not None:  # the one that was trained is left in shards
                    distiller.student = whole
                    distiller.student.load_state_dict(recorder.weights)
                record = self._conclude(distiller.cpu(), data, folder, name, model, parts, recorder, origin, renormalise)
                for hook in before:
                    hook.remove()
        else:
            load_weights(distiller.student, folder.student)
            for companion, network in distiller.companions().items():
                load_weights(network, folder.companion(companion))
            if self.is_main and not (folder.path / CARD).exists():  # finished by a version that wrote none
                self._describe(folder, distiller, model, data, renormalise=renormalise)
            self._display(name).say(f"done before ({record['result']['epochs']} epochs)")
        seed_everything(self.seed)
        return Trained(name, distiller.student, self._result(record, folder), folder.path, renormalise)

    def evaluate(
        self,
        network: nn.Module,
        data: TaskData,
        *,
        name: str,
        model: str = "",
        renormalise: Renormalise | None = None,
        around: Callable[[Any], Distiller] = Distiller,
        weights: str | None = None,
        origin: str = "",
        accept: Callable[[StageResult], tuple[str, ...]] = lambda result: (),
    ) -> Trained:
        """Scores a network that needs no training; a stage like any other, on disk and in the report.

        Args:
            network: what to score.
            data: whose validation set.
            name: of the stage.
            model: the network's specification, for the report.
            renormalise: applied to the inputs, for a network that was trained with other statistics than the data have.
            around: makes the distiller whose `predict` answers, for tasks whose networks do not answer in the form that is scored.
            weights: the file or folder that the network's come from; if there is one, no copy of them is kept.
            origin: where the network comes from, in words for the report.
            accept: looks at what was measured, and answers with the stage's notes; what it raises leaves nothing written.
        """
        folder = StageFolder(self.folder / f"{self._prefix}{name}")
        parts = {
            "architecture": repr(network),
            "weights": digest(network.state_dict()),
            "data": data.fingerprint,
            "renormalise": repr(renormalise),
        }
        if changed := changed_answers(network):
            parts["answers"] = changed
        record = None if self.is_main and self._run_folder.discards else folder.open(parts)
        done = record is not None and record.get("finished")
        notes: tuple[str, ...] = ()

        def looked_at(result: StageResult) -> None:
            """Before anything is written."""
            nonlocal notes
            score = _score({"result": {"metrics": result.metrics}}, data)
            self._display(name).say(f"{model}, {origin}: {score}" if origin else score)
            notes = accept(result)
            self._stage_folder(name)

        if record is None or not done:
            scored = around(network) if renormalise is None else _Renormalised(network, renormalise, around)
            record = self._measured(scored, data, name, model, parts, None, origin, renormalise, looked_at)
        else:
            looked_at(self._result(record, folder))
        result = self._result(record, folder)
        if not done:
            # a card cannot say that answers are changed or images resized: then the weights are kept without one
            plain = not changed and not isinstance(renormalise, Resized)
            elsewhere = weights if plain and weights and Path(weights).exists() else None
            self._write(record, folder, scored, "" if changed else model, data, elsewhere, renormalise)
        seed_everything(self.seed)
        return Trained(name, network, result, folder.path, renormalise, notes=notes)

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
        if self.is_main and self.seed == self.options.seed:
            model, network = arms[ship].result.model, arms[ship].network
            if network is None:
                raise InputError("ship", ship, "an arm that has a network")
            save_weights(network, self.folder / "student.safetensors")
            data.task.ship(self.folder, network, model, data)
            if deliver := getattr(data.task, "deliver", None):
                deliver(self.folder, network, model, data)
        return Report.on(
            data,
            {name: [trained.result] for name, trained in arms.items()},
            method=method,
            title=next((known.paper for known in catalog.METHODS if known.name == method), method),
            baseline=baseline if baseline in arms else None,
            subject=ship if ship != baseline else None,
            notes=[note for trained in arms.values() for note in trained.notes],
            started=self.started,
        )

    def remember(self, name: str, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What was computed between stages, such as the scores of a whole set: read from the run's folder where it was computed under the
        same key before, else computed now and kept; the same in every process.

        Args:
            name: of the file, without its ending; a slash puts it into a stage's folder.
            key: all that the answer depends on, in words and digests.
            compute: answers with tensors by name.
        """
        return remembered(self.folder / f"{self._prefix}{name}.npz", key, compute, is_main=self.is_main)

    def footprint(self, network: nn.Module, example: Any) -> Footprint:
        """What a network costs at inference: measured once for each architecture of a run, so that the same network has the same figures.

        Args:
            network: on the CPU.
            example: inputs of one sample.
        """
        shapes = [(name, list(value.shape), str(value.dtype)) for name, value in network.state_dict().items() if isinstance(value, Tensor)]
        key = hashlib.blake2b(repr((network, shapes, tree_map(_shape, example))).encode(), digest_size=8).hexdigest()

        def measured() -> dict[str, Tensor]:
            found = asdict(measure(network, example))
            return {name: torch.tensor(math.nan if value is None else value, dtype=torch.float64) for name, value in found.items()}

        found = remembered(self.folder / f"footprints/{key}.npz", key, measured, is_main=self.is_main)
        counts = {name: None if value.isnan() else int(value) for name, value in found.items()}
        return Footprint(**{**counts, "latency_ms": float(found["latency_ms"])})  # type: ignore[arg-type]

    def drop(self, name: str) -> None:
        """Removes what a stage wrote, and nothing else: of a trial whose weights are kept elsewhere, or not at all."""
        if (record := Record.of(self.folder)) is not None:
            remove(record.present(self.folder / f"{self._prefix}{name}"), self.folder)

    def finished(self, name: str) -> bool:
        """Whether the folder holds a finished stage of that name, of these arguments or of others: `fit` tells."""
        return bool((StageFolder(self.folder / f"{self._prefix}{name}").read() or {}).get("finished"))

    def _layout(self, distiller: Distiller, data: TaskData) -> AbstractContextManager[Any]:
        """The student's layout while it is trained. FSDP keeps weights flat, and Apple's GPUs gain nothing by another one."""
        ordinary = self.options.layout == "contiguous" or self.options.strategy.startswith("fsdp") or self.device.type == "mps"
        return nullcontext() if ordinary else channels_last(distiller.student, data.example_inputs())

    def _strategy(self, distiller: Distiller, data: TaskData, display: StageDisplay) -> DDPStrategy | str:
        """How the processes share a training. DDP waits for the gradient of every parameter unless it is told that some have none."""
        several = self.options.devices * self.options.num_nodes > 1
        if self.options.strategy not in ("auto", "ddp"):
            return self.options.strategy
        unused = unused_parameters(distiller, data, self.seed) if several else []
        if not unused:
            # Buffers are made equal before each evaluation; DDP would send them, memory banks too, at every step.
            return DDPStrategy(broadcast_buffers=False) if self.options.strategy == "ddp" else self.options.strategy
        display.say(f"parameters that take no part in the loss and stay as they are: {', '.join(unused[:5])}{', ...' * (len(unused) > 5)}")
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=True)

    def _train(self, distiller: Distiller, data: TaskData, plan: Training, folder: StageFolder, name: str) -> Recorder:
        """Lightning's loop, with our callbacks."""
        options, ours = self.options, distiller.automatic_optimization
        display = self._display(name)
        recorder = Recorder(
            self.seed,
            lambda rank, world: data.eval_loader(rank=rank, world=world),
            data.evaluator(),
            folder.best,
            display,
            self._after_epoch,
        )
        checkpoints = Checkpoints(folder.last_checkpoint, options.checkpoint_seconds, options.checkpoint_steps)
        events = TensorBoardLogger(folder.path, name="", version="events")
        together = options.devices * options.num_nodes > 1
        with quiet_libraries(), checkpoints.listening(together=together):
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.num_nodes,
                strategy=self._strategy(distiller, data, display),
                precision=options.precision,  # type: ignore[arg-type]
                max_epochs=plan.epochs,
                limit_val_batches=0,  # the recorder evaluates: a killed run never has half an evaluation to go on from
                accumulate_grad_batches=plan.accumulate if ours else 1,
                gradient_clip_val=plan.clip_norm if ours else None,
                reload_dataloaders_every_n_epochs=int(selects(distiller)),
                callbacks=[*([Together(self.folder, options.lost_seconds)] if together else []), recorder, checkpoints, *self._callbacks],
                plugins=[AtomicCheckpointIO()],
                logger=events,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                benchmark=False,
                default_root_dir=folder.path,
            )
            # Lightning's answer to SIGTERM is a call among the processes, in the middle of whatever they are doing.
            trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
            go_on = folder.last_checkpoint if folder.last_checkpoint.exists() else None
            try:
                trainer.fit(distiller, datamodule=Feed(data, self.seed), ckpt_path=go_on)
            except NonFiniteLoss as error:
                named = getattr(data, "train_name", None)
                if named is None or not isinstance(
                    trainer.train_dataloader, Loader
                ):  # of several loaders: whose ids these are is not known
                    raise
                raise NonFiniteLoss(error.step, error.terms, error.ids, [named(index) for index in error.ids]) from None
            except Interrupted as error:
                raise Interrupted(f"{display.title}: {error}; everything is saved, the same command goes on from here") from None
            # How Lightning ends at a KeyboardInterrupt; and how a loader fails whose workers got the same signal.
            except (SystemExit, RuntimeError):
                if not checkpoints.stop:
                    raise
                raise Interrupted(f"{display.title}: stopped at once; the same command goes on from the last checkpoint") from None
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
        origin: str,
        renormalise: Renormalise | None,
    ) -> dict[str, Any]:
        """Evaluates the final student once more, this time with details, and writes the stage's record, last of all."""
        record = self._measured(distiller, data, name, model, parts, recorder, origin)
        self._write(record, folder, distiller, model, data, renormalise=renormalise)
        return record

    def _measured(
        self,
        distiller: Distiller,
        data: TaskData,
        name: str,
        model: str,
        parts: dict[str, Any],
        recorder: Recorder | None,
        origin: str,
        renormalise: Renormalise | None = None,
        looked_at: Callable[[StageResult], None] = lambda result: None,
    ) -> dict[str, Any]:
        """The record of a stage whose student is final, with the details of its evaluation."""
        evaluator, device = data.evaluator(), self.device
        distiller.student.to(device)
        loader = data.eval_loader(rank=rank(), world=world_size())
        metrics = evaluate(
            distiller.predict, distiller, loader, evaluator, device, nullcontext, lambda batch: move_data_to_device(batch, device)
        )
        distiller.student.cpu()
        example = data.example_inputs()
        if isinstance(renormalise, Resized):  # a network for images of that size may read no others
            example = renormalise(example)
        result = StageResult(
            name=name,
            seed=self.seed,
            metrics=metrics,
            best=recorder.best if recorder else {},
            history=recorder.history if recorder else [],
            footprint=Footprint(0, None, 0.0, 0),
            seconds=recorder.seconds if recorder else 0.0,
            epochs=len(recorder.history) if recorder else 0,
            model=model,
            resumed=recorder.continued if recorder else 0,
            origin=origin,
        )
        result.details = evaluator.details()
        looked_at(result)
        result.footprint = self.footprint(distiller.student, example)  # which is remembered in the run's folder
        return {"fingerprint": parts, "finished": True, "result": result.to_json(), "details": result.details}

    def _write(
        self,
        record: dict[str, Any],
        folder: StageFolder,
        distiller: Distiller,
        model: str,
        data: TaskData,
        weights: str | None = None,
        renormalise: Renormalise | None = None,
    ) -> None:
        """The stage's files, its record last of all."""
        if not self.is_main:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        if weights is None:
            save_weights(distiller.student, folder.student)
        self._describe(folder, distiller, model, data, weights, renormalise)
        for companion, network in distiller.companions().items():
            save_weights(network, folder.companion(companion))
        folder.write_details(record["details"])
        folder.write({name: value for name, value in record.items() if name != "details"})
        folder.drop_checkpoint()

    def _describe(
        self,
        folder: StageFolder,
        distiller: Distiller,
        model: str,
        data: TaskData,
        weights: str | None = None,
        renormalise: Renormalise | None = None,
    ) -> None:
        """Writes the stage's own `student.json`, so that its network can be used as a run's student can; of one that has a name."""
        if not model or model.endswith(")"):  # no name, or one with a remark: no specification that builds it again
            return
        if isinstance(renormalise, Resized):  # which a card cannot say
            return
        shipped = distiller.shipped()
        data.task.ship(folder.path, shipped, model, data)
        if weights is not None:
            amend_card(folder.path, weights=str(Path(weights).resolve()))
        elif shipped is not distiller.student:
            save_weights(shipped, folder.companion("shipped"))
            amend_card(folder.path, weights=folder.companion("shipped").name)
        if renormalise is not None:
            read = {"mean": list(renormalise.to_mean), "std": list(renormalise.to_std)}
            amend_card(folder.path, transform={**data.describe()["transform"], **read})

    def earlier(self, name: str) -> str | None:
        """A stage that all seeds share, of the run that this one continues, as a specification; None where none was trained there."""
        if self.options.continue_from is None:
            return None
        folder = Path(self.options.continue_from) / name
        record = StageFolder(folder).read() or {}
        return str(folder) if record.get("finished") and record["result"]["epochs"] and (folder / CARD).exists() else None

    def _result(self, record: dict[str, Any], folder: StageFolder) -> StageResult:
        result = StageResult.from_json(record["result"])
        details = record.get("details") or folder.read_details()
        return replace(result, details=details, folder=folder.path.relative_to(self.folder).as_posix())

    def _start_where_ended(self, distiller: Distiller, run: Path, name: str) -> None:
        """Gives the student, and what is kept beside it, the weights that they ended with in this stage of an earlier run."""
        before = StageFolder(run / f"{self._prefix}{name}")
        if not (before.read() or {}).get("finished"):
            raise InputError("continue_from", str(run), f"a run with a finished stage {self._prefix}{name}")
        load_weights(distiller.student, before.student, argument="continue_from")
        for companion, network in distiller.companions().items():
            load_weights(network, before.companion(companion), argument="continue_from")

    def _stage_folder(self, name: str) -> StageFolder:
        self.begin()
        return StageFolder(self.folder / f"{self._prefix}{name}")

    def _display(self, name: str) -> StageDisplay:
        title = f"{name}, seed {self.seed}" if self._prefix and self.options.seeds > 1 else name
        return StageDisplay(title, silent=self._quiet or not self.is_main)


def _shape(leaf: Any) -> Any:
    return list(leaf.shape) if isinstance(leaf, Tensor) else leaf


def _renormalised(renormalise: Renormalise, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before a network's forward pass."""
    return renormalise(inputs[0]), *inputs[1:]


class _Renormalised(Distiller):
    """A network that is to be scored on inputs of other statistics than it was trained with."""

    def __init__(self, student: nn.Module, renormalise: Renormalise, around: Callable[[Any], Distiller]) -> None:
        super().__init__(student)
        self.renormalise = renormalise
        self._answer = around(student).predict  # not the distiller itself, whose student would be this one's a second time

    def predict(self, batch: Any) -> Any:
        if hasattr(batch, "renormalised"):
            return self._answer(batch.renormalised(self.renormalise))
        return self.student(self.renormalise(batch.inputs))


def _score(record: dict[str, Any], data: TaskData) -> str:
    """The primary metric, for the terminal."""
    primary = data.evaluator().primary
    return f"{primary} {record['result']['metrics'][primary]:.2f}"
