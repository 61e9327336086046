"""What networks that are not ours answer with, brought to logits [B, C]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import InputError


@dataclass(frozen=True)
class AsLogits:
    """A forward hook: whatever the network answers with, its caller gets logits. Paths, weights and modes of the network stay.

    The logits of a tuple, a dictionary or an object with fields (transformers' ``ModelOutput``) are what is called ``logits`` there, or
    else its first tensor of a row for each image and a column for each class. A network may answer with one thing in training and with
    another in evaluation. A batch of one may have lost its dimension.

    Args:
        classes: that the network answers for.
        rows: which of them are wanted, and in which order; None for all. Whatever softmax comes later is over these.
        probabilities: it answers with probabilities: their logarithm is taken, of none smaller than float32 can hold.
        argument: what the user calls the network.

    Raises:
        InputError: (when called) there are no logits in the answer.
    """

    classes: int
    rows: tuple[int, ...] | None = None
    probabilities: bool = False
    argument: str = "network"

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], answer: Any) -> Tensor:
        """The answer's logits, [B, C]."""
        images = next((leaf for leaf in inputs if isinstance(leaf, Tensor)), None)
        traced = torch.compiler.is_compiling()  # a size that is compared with another is one that a traced network insists on
        logits_BC = next((found for _, found in logits_in(answer, None if traced or images is None else len(images), self.classes)), None)
        if logits_BC is None:
            raise InputError(self.argument, f"a network that answers with {described(answer)}", f"logits [B, {self.classes}]")
        if self.probabilities:
            logits_BC = logits_BC.float().clamp_min(torch.finfo(torch.float32).tiny).log()
        if self.rows is not None:
            logits_BC = logits_BC[:, torch.tensor(self.rows, device=logits_BC.device)]
        return logits_BC

    def found(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """What it finds in the answer of a network whose hook it is, before it is changed to what is wanted: [B, C]."""
        answers: list[Any] = []
        before = network.register_forward_hook(lambda module, given, answer: answers.append(answer), prepend=True)
        try:
            network(inputs)
        finally:
            before.remove()
        return next(found for _, found in logits_in(answers[0], len(inputs), self.classes))

    @property
    def changes(self) -> bool:
        """Whether it changes logits that are such already."""
        return self.rows is not None or self.probabilities


def logits_in(answer: Any, batch: int | None, classes: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an answer that can be logits, as [B, C], with its place; what is called logits is first.

    Args:
        answer: of a network.
        batch: B, images that it was given; None where that is not to be looked at.
        classes: C, columns that logits have.
    """
    leaves = sorted(_leaves(answer, ""), key=lambda found: (found[0].rpartition(".")[2] != "logits", found[1].ndim < 2))
    for place, leaf in leaves:
        if leaf.ndim == 1:
            if leaf.shape[0] == classes and batch in (1, None):
                yield place, leaf[None]
        elif leaf.ndim and leaf.shape[1] == classes and (batch is None or leaf.shape[0] == batch):
            if leaf.ndim == 2:
                yield place, leaf
            elif all(side == 1 for side in leaf.shape[2:]):  # [B, C, 1, 1]
                yield place, leaf.flatten(1)


def described(answer: Any) -> str:
    """What an answer is made of, in a few words."""
    if isinstance(answer, Tensor):
        return str(list(answer.shape))
    parts = [f"{place} {list(leaf.shape)}" for place, leaf in _leaves(answer, "")]
    return f"{type(answer).__name__}" + (f" of {', '.join(parts[:6])}" if parts else "")


def _leaves(answer: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(answer, Tensor):
        yield place, answer
        return
    if isinstance(answer, Mapping):
        entries = list(answer.items())
    elif isinstance(answer, tuple | list):
        entries = list(zip(getattr(answer, "_fields", range(len(answer))), answer, strict=True))
    else:
        entries = list(getattr(answer, "__dict__", {}).items())
    for name, entry in entries:
        if isinstance(entry, Tensor | Mapping | tuple | list):
            yield from _leaves(entry, f"{place}.{name}" if place else str(name))


def with_own_answers(network: nn.Module) -> nn.Module:
    """The network without the hook that brings its answers to logits: for whoever takes its head away."""
    for key in [key for key, hook in network._forward_hooks.items() if isinstance(hook, AsLogits)]:
        del network._forward_hooks[key]
    return network


def changed_answers(network: nn.Module) -> str:
    """What is done to a network's logits besides computing them, in words that tell it from other things; mostly nothing."""
    return "; ".join(repr(hook) for hook in network._forward_hooks.values() if isinstance(hook, AsLogits) and hook.changes)


def looks_like_probabilities(logits_BC: Tensor) -> bool:
    """Whether rows of at least two images are no logits: not below 0, and summing to 1."""
    rows_BC = logits_BC.detach().double()
    return len(rows_BC) > 1 and bool((rows_BC >= 0).all()) and bool(((rows_BC.sum(1) - 1).abs() < 1e-3).all())
