"""Distiller: a student, whatever teaches it, and one question - `losses(batch)`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from stillroom.engine.run.guard import FiniteGuard
from stillroom.engine.schedule import warmup_factor
from stillroom.engine.teacher import Teacher
from stillroom.engine.training import Progress, Training
from stillroom.errors import InputError, at_least

if TYPE_CHECKING:
    from typing_extensions import Self

OLD_RATE = 0.1  # share of the learning rate at which weights that a student brings are changed, beside those of a new head
_TRIED = 4  # samples of a trial


class Batch(Protocol):
    """What a task hands to a distiller: its own fields, besides these two."""

    @property
    def ids(self) -> Tensor:
        """[B] int64: each sample's index in its data set. Per-sample state is joined by it, never by position."""

    @property
    def inputs(self) -> Any:
        """What a network reads, e.g. images [B, 3, H, W]."""


@dataclass(frozen=True)
class Losses:
    """The scalar terms of one step, in two groups; their reduction is the method's and is never changed here.

    Args:
        task: what plain training would minimise.
        distill: what the teacher adds.
    """

    task: Mapping[str, Tensor]
    distill: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = self.task.keys() & self.distill.keys()
        if both:
            raise InputError("Losses", f"the term {sorted(both)[0]!r} in both groups", "a name for each term that no other term has")
        for name, term in self.terms.items():
            if term.numel() != 1:
                raise InputError("Losses", f"the term {name!r} of shape {list(term.shape)}", "scalars: the method states its reduction")

    @property
    def terms(self) -> dict[str, Tensor]:
        """Every term by its name."""
        return {**self.task, **self.distill}

    @property
    def task_total(self) -> Tensor | None:
        """Sum of the task terms; None when there is none."""
        return _sum(self.task.values())

    @property
    def distill_total(self) -> Tensor | None:
        """Sum of the distillation terms; None when there is none."""
        return _sum(self.distill.values())

    @property
    def total(self) -> Tensor:
        """Sum of all terms: what one ordinary backward pass minimises."""
        total = _sum(self.terms.values())
        if total is None:
            raise InputError("Losses", "no term at all", "at least one task or distillation term")
        return total


def _sum(terms: Iterable[Tensor]) -> Tensor | None:
    total: Tensor | None = None
    for term in terms:
        total = term.reshape(()) if total is None else total + term.reshape(())
    return total


class Distiller(LightningModule):
    """Base of every method: owns the student and what teaches it, and answers `losses(batch)`.

    In anyone's own loop, ``distiller.losses(batch).total.backward()`` is all there is to it, with `at` before it where the method changes
    over the training. Under the :class:`~stillroom.engine.lab.Lab` the base class sums the terms, steps, and follows the learning-rate
    schedule; a method that optimises differently sets ``automatic_optimization = False`` and overrides ``training_step``.

    The teacher is kept as a plain attribute: it never shows in ``parameters()``, ``state_dict()`` or DDP's buckets. Every other
    module that a method assigns (projectors, memories) is trained with the student and saved in checkpoints.

    Args:
        student: the network to train; ``student(batch.inputs)`` is its answer.
        teacher: a :class:`Teacher`; a bare network is wrapped into one. None for training without a teacher.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self._place: Progress | None = None
        self._warned = False
        self.new_head: tuple[str, ...] = ()  # the student's parameters that start from random numbers, where the others bring weights
        self.head_only = False  # whether nothing but these learns
        self.plan = Training()
        self.guard = FiniteGuard()

    @property
    def progress(self) -> Progress:
        """Where training stands. The Lab says so before every step, `at` in a loop of one's own; until then it is the beginning.

        A method that asks for it while nobody says so is warned of, once: its ramp would never move.
        """
        if self._place is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} changes over the training (a ramp, a schedule), and nobody says how far it has come: it stays at "
                "the beginning. In a loop of your own call distiller.at(step, steps_per_epoch=..., epochs=...) before each step",
                stacklevel=3,
            )
        return self._place or Progress()

    @progress.setter
    def progress(self, place: Progress) -> None:
        self._place = place

    def at(self, step: int, *, steps_per_epoch: int, epochs: int) -> None:
        """Says where training stands: to be called before each step of a loop of one's own. What the method changes over the training
        follows it, such as DKD's weight, which grows over the first epochs.

        Args:
            step: batches seen before this one, over the whole training.
            steps_per_epoch: batches in an epoch.
            epochs: epochs in all.

        Raises:
            InputError: an epoch without batches, or a step that is none of the training's.
        """
        at_least("steps_per_epoch", steps_per_epoch, 1)
        if not 0 <= step < epochs * steps_per_epoch:
            raise InputError("step", step, f"a number from 0 and below {epochs * steps_per_epoch}, the steps of {epochs} epochs")
        self.progress = Progress(step // steps_per_epoch + 1, epochs, step, steps_per_epoch)

    def ramp(self, epochs: float) -> float:
        """min(epoch / epochs, 1): the weight of a loss that grows over the first epochs of the training; 1 where they are one or none."""
        return warmup_factor(self.progress.epoch, epochs) if epochs > 1 else 1.0

    def losses(self, batch: Any) -> Losses:
        """The terms of this batch. The one method that every distiller must have."""
        raise TypeError(f"{type(self).__name__} does not define losses(batch)")

    def predict(self, batch: Any) -> Any:
        """The student's answer at inference, which evaluation scores."""
        return self.student(batch.inputs)

    def forward(self, inputs: Any) -> Any:
        """The student's answer to bare inputs."""
        return self.student(inputs)

    def training_data(self, data: Any) -> Any:
        """The task's data as this method trains on them: in several views, in stored crops, other images altogether.

        By default as they are. Validation must stay what it is in `data`.
        """
        return data

    def shipped(self) -> nn.Module:
        """The network that is used when the training is over: by default the student, of some a part of it."""
        return self.student

    def specification(self, student: str) -> str:
        """What builds the network that is trained again, by the specification of the one that the distiller was made around.

        Mostly they are the same; of a method that composes its student of others see `engine.specification.Composed`.
        """
        return student

    def companions(self) -> dict[str, nn.Module]:
        """Networks that are kept beside the student when the stage ends, and read again with it, by the names of their files."""
        return {}

    def select(self) -> Tensor | None:
        """Which training samples the coming epoch shows: their ids, int64 [M], the same in every process; None for all.

        Asked before every epoch, with `progress` at its first step, in eval mode and without gradients. An epoch that was killed half way
        goes on with its selection, which is kept in the checkpoint.
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups in torch.optim's form: by default one, of everything that learns.

        A student that starts from weights with a new head has two: what the weights were loaded into learns at a tenth of the rate, or,
        with `head_only`, not at all.
        """
        old = {p for name, p in self.student.named_parameters() if self.new_head and name not in self.new_head}
        learning = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in learning if p not in old]}]
        if self.head_only:
            for parameter in old:
                parameter.requires_grad_(False)
            return groups
        return [*groups, {"params": [p for p in learning if p in old], "lr": self.plan.lr * OLD_RATE}] if old else groups

    def train(self, mode: bool = True) -> Self:
        """As every module's; a student whose head alone learns stays in eval mode, so that its batch norms' statistics stay, too."""
        super().train(mode)
        if self.head_only:
            self.student.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The plan's optimiser over `parameter_groups`."""
        return self.plan.build_optimizer(self.parameter_groups())

    def checked_losses(self, batch: Any) -> Losses:
        """`losses(batch)`, refused with :class:`~stillroom.errors.NonFiniteLoss` when a term is not finite."""
        losses = self.losses(batch)
        self.guard.watch(losses.terms, batch.ids, (self._place or Progress()).step)
        return losses

    def rehearse(self, batch: Any) -> None:
        """Asks for the losses of a few samples before anything is trained, so that what is wrong is said at once. Nothing of it is kept.

        Raises:
            InputError: the loss depends on nothing that learns.
        """
        self.check_learns(self.losses(batch))

    def check_learns(self, losses: Losses) -> None:
        """Raises InputError when the loss depends on nothing that learns."""
        if not losses.total.requires_grad:
            raise InputError("student", type(self.student).__name__, "a network that learns: the loss depends on none of its parameters")

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One step's loss for Lightning's automatic optimisation, with its terms for the record."""
        losses = self.checked_losses(batch)
        self.check_learns(losses)
        return {"loss": losses.total, "terms": {name: term.detach() for name, term in losses.terms.items()}}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """`predict`, by the name under which Lightning's strategies redirect sharded modules."""
        return self.predict(batch)

    def rate(self, base_lr: float) -> float:
        """The learning rate now of a parameter group that starts at `base_lr`: the plan's. For methods whose schedule is another."""
        return self.plan.rate(base_lr, self.progress)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets every group's learning rate, and its momentum where that is scheduled: pure functions of the step, so that resuming needs no
        scheduler's state.

        Frees the last step's gradients too, which Lightning would keep in memory until the forward pass is done.
        """
        optimizers, momentum = self.optimizers(), self.plan.momentum_at(self.progress)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            if self.automatic_optimization and batch_idx % self.plan.accumulate == 0:
                optimizer.zero_grad()
            for group in optimizer.param_groups:
                base = group.setdefault("initial_lr", group["lr"])
                group["lr"] = self.rate(base)
                if momentum is not None:
                    group |= {"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum}


def rehearse(distiller: Distiller, data: Any, plan: Training, *, seed: int, samples: int = _TRIED) -> None:
    """Asks for the losses of a few samples, as training's first step shows them, so that what is wrong is said at once; nothing is kept.

    Args:
        distiller: fresh, on the CPU.
        data: what it will train on.
        plan: how.
        seed: of the batch that is tried.
        samples: in it.

    Raises:
        InputError: what is wrong.
    """
    distiller.plan = plan
    distiller.configure_optimizers()
    loader = data.train_loader(seed=seed)
    distiller.progress = Progress(1, plan.epochs, 0, loader.whole)
    distiller.train()
    distiller.rehearse(loader.first(samples))


def unused_parameters(distiller: Distiller, data: Any, seed: int) -> list[str]:
    """Names of parameters that the loss does not depend on, by a trial on a copy: of methods with one loss and one backward pass.

    Args:
        distiller: on the CPU, with its plan.
        data: what it trains on.
        seed: of the batch that is tried.
    """
    if not distiller.automatic_optimization:
        return []
    trial = copy.deepcopy(distiller, {id(distiller.teacher): distiller.teacher})
    loader = data.train_loader(seed=seed)
    trial.progress = Progress(1, trial.plan.epochs, 0, loader.whole)
    trial.train()
    learning = {name: parameter for name, parameter in trial.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            gradients = torch.autograd.grad(trial.losses(loader.first(_TRIED)).total, list(learning.values()), allow_unused=True)
        except Exception:  # a method that cannot be asked before its training begins: then its first step says what is wrong
            return []
    return [name.removeprefix("student.") for name, gradient in zip(learning, gradients, strict=True) if gradient is None]
