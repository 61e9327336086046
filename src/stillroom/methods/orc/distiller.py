"""ORC's iteration: the roles of a group of networks change with every batch, and each network is updated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from stillroom.engine import Losses
from stillroom.engine.distributed import average_gradients, world_size
from stillroom.engine.own_gradients import OwnGradients
from stillroom.engine.run.recorder import evaluating
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError, at_least_zero, one_of, positive, share
from stillroom.methods.orc.loss import Teaching, intensive_loss, labels_loss, private_loss, student_loss
from stillroom.methods.orc.roles import Evaluation, evaluate_group

Promotion = Literal["dynamic", "fixed", "none"]
Mixing = Literal["mix", "feedback", "train"]


@dataclass(frozen=True)
class Iteration:
    """What one iteration did.

    Attributes:
        evaluation: the student group on this batch, before any update.
        promoted_K: 1 for each temporary teacher, 0 for the others, int64.
        pivot_NC: the pivot's logits of the batch after its update.
        intensive: L_I, of shape []; None when the pivot does not learn.
        private: {i: L_P of temporary teacher i}, the best one first.
        group: {i: (1 - beta) H + beta L_G of student i}; their sum is L_T.
    """

    evaluation: Evaluation
    promoted_K: Tensor
    pivot_NC: Tensor
    intensive: Tensor | None
    private: dict[int, Tensor]
    group: dict[int, Tensor]


class ORC(OwnGradients):
    """A student among networks of intermediate size, a pivot teacher that goes on learning, and roles that change with every batch.

    The networks learn together, each with an optimiser of its own that it keeps across its roles: see `configure_optimizers`.
    `student` is the target, which is delivered; it is the last of the student group.

    Args:
        student: the target, from images [N, 3, H, W] to logits [N, C]; so are all the others.
        pivot: the pre-trained teacher. It is trained further, in place: hand over a copy of one that is still needed.
        group: the other networks of the student group, untrained.
        names: what the student group's networks are called in the record, the target last; by default member1, member2, ..., target.
        balance: beta, balance of the labels (1 - beta) and the teachers (beta), in [0, 1].
        temperature: temperature of softened class probabilities, T > 0.
        promotion: dynamic: the best on the batch become temporary teachers; fixed: always the network `fixed_index`; none: the pivot
            teaches alone.
        num_promoted: k, temporary teachers in each iteration; at least one student remains. The paper's best is 1.
        fixed_index: place in the student group, from 0, of the network that `promotion` "fixed" means.
        teaching: individual: a student has one KL term for each teacher; ensemble: one for the mean of their logits.
        intensive: whether the pivot is refined; if not it stays as it is given.
        private: whether the pivot corrects the temporary teachers; if not they learn from the labels only.
        mixing: what the pivot is refined on: mix (training images mixed with feedback samples), feedback or train alone.
        mixup_alpha: a > 0 of MixUp's lambda ~ Beta(a, a).
        feedback_temperature: tau_F > 0; a smaller one takes more feedback samples from the worst network.
        pivot_lr_factor: the pivot's learning rate over the students', at least 0. A pre-trained pivot must not be destroyed: 0.1 for
            full schedules, 0.01 for less than some 10 000 iterations; 1 is the paper's letter.
        renormalise: applied to the inputs of the pivot, if it expects other statistics than the student group.

    Raises:
        InputError: a value is out of its range or unknown, no student would remain, or there are not as many names as networks.
    """

    promotions: Tensor

    def __init__(
        self,
        student: nn.Module,
        pivot: nn.Module,
        group: Sequence[nn.Module],
        *,
        names: Sequence[str] | None = None,
        balance: float = 0.9,
        temperature: float = 4.0,
        promotion: Promotion = "dynamic",
        num_promoted: int = 1,
        fixed_index: int = 0,
        teaching: Teaching = "individual",
        intensive: bool = True,
        private: bool = True,
        mixing: Mixing = "mix",
        mixup_alpha: float = 1.0,
        feedback_temperature: float = 1.0,
        pivot_lr_factor: float = 0.01,
        renormalise: Renormalise | None = None,
    ) -> None:
        super().__init__(student)
        self.pivot = pivot.train().requires_grad_(intensive)
        self.group = nn.ModuleList(group)
        size = len(self.group) + 1
        self.names = tuple(names) if names is not None else (*(f"member{i}" for i in range(1, size)), "target")
        if len(self.names) != size or len(set(self.names)) != size:
            raise InputError("names", list(self.names), f"{size} different names, one for each network of the student group")
        for argument, value, known in (
            ("promotion", promotion, ("dynamic", "fixed", "none")),
            ("teaching", teaching, ("individual", "ensemble")),
            ("mixing", mixing, ("mix", "feedback", "train")),
        ):
            one_of(argument, value, known)
        self.num_promoted = {"dynamic": num_promoted, "fixed": 1, "none": 0}[promotion]
        if not 0 <= self.num_promoted < size:
            expected = f"a number from 0 to {size - 1}: of a group of {size} networks, one at least remains a student"
            raise InputError("num_promoted", self.num_promoted, expected)
        if not 0 <= fixed_index < size:
            raise InputError("fixed_index", fixed_index, f"a number from 0 to {size - 1}")
        self.balance, self.temperature = share("balance", balance), positive("temperature", temperature)
        self.promotion, self.fixed_index = promotion, fixed_index
        self.teaching: Teaching = teaching
        self.intensive, self.private, self.mixing = intensive, private, mixing
        self.mixup_alpha = positive("mixup_alpha", mixup_alpha)
        self.feedback_temperature = positive("feedback_temperature", feedback_temperature)
        self.pivot_lr_factor = at_least_zero("pivot_lr_factor", pivot_lr_factor)
        self.renormalise = renormalise
        self.register_buffer("promotions", torch.zeros(size, dtype=torch.int64))

    @property
    def members(self) -> list[nn.Module]:
        """S_1 .. S_K, the student group; the target is the last."""
        return [*self.group, self.student]

    def losses(self, batch: Any) -> Losses:
        """There are none before the first update: see `iterate`.

        Raises:
            InputError: always.
        """
        raise InputError(
            "losses", "ORC", "iterate(batch, optimizers): its networks are updated one after the other, and the later ones learn from that"
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]  # one for each network
        """The plan's optimiser for each network of the student group and, at the end, for the pivot, if it learns.

        Raises:
            InputError: the plan accumulates gradients.
        """
        plan = self.plan
        if plan.accumulate != 1:
            raise InputError("accumulate", plan.accumulate, "1: ORC's networks change their roles with every batch")
        learning = [(member, plan.lr) for member in self.members]
        if self.intensive:
            learning.append((self.pivot, plan.lr * self.pivot_lr_factor))
        return [
            plan.build_optimizer([{"params": [p for p in network.parameters() if p.requires_grad], "lr": rate}])
            for network, rate in learning
        ]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One iteration, and its figures for the record."""
        optimizers = self.optimizers(use_pl_optimizer=False)
        done = self.iterate(batch, optimizers if isinstance(optimizers, list) else [optimizers])
        scaler = self.gradient_scaler()
        if scaler is not None:
            scaler.update()
        losses = self._losses_of(done)
        # A member may diverge: it is never promoted then, and teaches nobody. The pivot, the temporary teachers and the target may not.
        target = len(self.group)
        watched: dict[str, Tensor] = {name: losses[name] for name in ("intensive", "private") if name in losses}
        watched["target"] = {**done.private, **done.group}[target].detach()
        self.guard.watch(watched, batch.ids, self.progress.step)
        figures = self._figures_of(done, batch.labels)
        return {"loss": torch.stack(list(losses.values())).sum(), "terms": losses, "figures": figures}

    def companions(self) -> dict[str, nn.Module]:
        """The networks beside the target: the rest of the group, and the pivot."""
        return dict(zip([*self.names[:-1], "pivot"], [*self.group, self.pivot], strict=True))

    def rehearse(self, batch: Any) -> None:
        """One iteration."""
        self.iterate(batch, self.configure_optimizers())

    def iterate(self, batch: Any, optimizers: Sequence[torch.optim.Optimizer]) -> Iteration:
        """One iteration: evaluate, promote, intensive, private and group teaching, demote. Every network is updated once.

        Args:
            batch: images `inputs` [N, 3, H, W] and `labels` int64 [N].
            optimizers: as `configure_optimizers` gives them.

        Raises:
            InputError: the networks do not answer with logits of the same classes, the labels are no classes, or a batch of one image
                meets a BatchNorm.
        """
        images, labels_N = batch.inputs, batch.labels
        if labels_N.ndim != 1 or labels_N.is_floating_point():
            raise InputError("labels", f"{labels_N.dtype} of shape {list(labels_N.shape)}", "one class for each image, whole numbers [N]")
        members = self.members

        # 1. The student group is tested. Nothing changes these networks before they learn: the same forward pass serves both [inferred].
        logits = [_answer(member, images) for member in members]
        _check_agreement(self.names, logits)
        evaluation = evaluate_group(torch.stack([z.detach() for z in logits]), labels_N, feedback_temperature=self.feedback_temperature)

        # 4. Intensive teaching; step 3's samples are mixed in. The roles (step 2) are read by the host behind it, when they are long known.
        intensive = None
        if self.intensive:
            lam, permutation_N = self.draw(len(labels_N), labels_N.device)
            partners_N = evaluation.feedback_M[permutation_N]
            mixed = lam * images + (1 - lam) * images[partners_N]
            mixed_NC = _answer(self.pivot, self._for_pivot(mixed))
            _check_agreement((self.names[-1], "pivot"), (logits[-1], mixed_NC))
            intensive = intensive_loss(mixed_NC, labels_N, labels_N[partners_N], lam)
            self._update(optimizers[-1], intensive)
        with evaluating(self.pivot):
            pivot_NC = self.pivot(self._for_pivot(images))

        # 2. Role change. The host must know who computes what: the one place of a step where it waits for the device.
        chosen_k = evaluation.ranking_K[: self.num_promoted]
        if self.promotion == "fixed":
            chosen_k = torch.arange(self.fixed_index, self.fixed_index + 1, device=chosen_k.device)
        promoted_K = torch.zeros_like(self.promotions).scatter_(0, chosen_k, 1)
        self.promotions += promoted_K
        promoted: list[int] = [self.fixed_index] if self.promotion == "fixed" else chosen_k.tolist()

        # 5. Private teaching, after which the temporary teachers answer anew [inferred: with batch statistics].
        weighed = {"beta": self.balance, "temperature": self.temperature}
        private, teachers = {}, []
        for i in promoted:
            if self.private:
                private[i] = private_loss(logits[i], pivot_NC, labels_N, **weighed)
            else:
                private[i] = labels_loss(logits[i], labels_N, beta=self.balance)
            self._update(optimizers[i], private[i])
            with _leaving_buffers(members[i]):
                teachers.append(members[i](images))

        # 6. Group teaching; the sum over the students separates, so each makes its own step.
        group = {}
        for i in (i for i in range(len(members)) if i not in promoted):
            group[i] = student_loss(logits[i], [*teachers, pivot_NC], labels_N, teaching=self.teaching, **weighed)
            self._update(optimizers[i], group[i])

        # 7. Demotion: nothing is reset.
        return Iteration(evaluation, promoted_K, pivot_NC, intensive, private, group)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """This iteration's mixing ratio lambda, of shape [], and the order in which the feedback samples meet the batch, int64 [count].

        The ratio stays on the CPU, where a number that scales a tensor of any device may lie.
        """
        permutation_N = torch.randperm(count, device=device)
        if self.mixing != "mix":
            return torch.tensor(float(self.mixing == "train")), permutation_N
        return torch.distributions.Beta(self.mixup_alpha, self.mixup_alpha).sample(), permutation_N

    def _for_pivot(self, images: Any) -> Any:
        return images if self.renormalise is None else self.renormalise(images)

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step of one network on its own loss."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        scaler = self.gradient_scaler()
        scaled = loss if scaler is None else scaler.scale(loss)
        gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
        for p, gradient in zip(parameters, average_gradients(gradients, parameters), strict=True):
            p.grad = gradient
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.plan.clip_norm is not None:
            clip_grad_norm_(parameters, self.plan.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad()
        torch.clear_autocast_cache()  # it holds the weights of before the step in reduced precision, and this network answers again

    def _losses_of(self, done: Iteration) -> dict[str, Tensor]:
        """L_I, the sum of L_P, and L_T, as far as there are any."""
        found = {} if done.intensive is None else {"intensive": done.intensive}
        for name, terms in (("private", done.private), ("group", done.group)):
            if terms:
                found[name] = torch.stack(list(terms.values())).sum()
        return {name: term.detach() for name, term in found.items()}

    def _figures_of(self, done: Iteration, labels_N: Tensor) -> dict[str, Tensor]:
        """The batch's accuracies in %, who was promoted (0 or 1), the pivot's confidence, and of how many samples somebody erred."""
        error_KN = done.evaluation.error_KN
        accuracy_K = 100 * (1 - error_KN.float().mean(1))
        figures = {f"accuracy/{name}": accuracy for name, accuracy in zip(self.names, accuracy_K, strict=True)}
        figures |= {f"promoted/{name}": promoted for name, promoted in zip(self.names, done.promoted_K.float(), strict=True)}
        figures["accuracy/pivot"] = 100 * (done.pivot_NC.argmax(-1) == labels_N).float().mean()
        figures["confidence/pivot"] = (done.pivot_NC.float() / self.temperature).softmax(-1).amax(-1).mean()
        figures["feedback/samples"] = error_KN.any(0).sum().float() * world_size()
        return figures


def _answer(network: nn.Module, images: Any) -> Tensor:
    try:
        logits_NC: Tensor = network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "batch_size", len(images), "at least 2 images for each process: a BatchNorm of these networks needs them"
        ) from error
    return logits_NC


def _check_agreement(names: Sequence[str], logits: Sequence[Tensor]) -> None:
    if len({z_NC.shape for z_NC in logits}) > 1:
        answers = ", ".join(f"{name} {list(z_NC.shape)}" for name, z_NC in zip(names, logits, strict=True))
        raise InputError("group", f"networks that answer with {answers}", "logits of the same classes from all")


@contextmanager
def _leaving_buffers(network: nn.Module) -> Iterator[None]:
    """No gradients, and no trace in the running statistics."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.no_grad():
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
