"""Which order a student's convolutions keep their numbers in while it is trained: channels last, where the network can take it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stillroom.engine.tap import unwrap


@contextmanager
def channels_last(network: nn.Module, example: Any) -> Iterator[bool]:
    """Inside, the network's 4-D weights lie as NHWC in memory, which convolutions compute faster with; afterwards as NCHW again.

    Values, shapes and keys stay as they are: a layout is no part of a state dict. A network that cannot be trained so (it flattens a
    feature map by `view`, say) is found out on a copy of it, and keeps its own layout.

    Args:
        network: the same object inside and afterwards, on whatever device.
        example: inputs of one sample, [1, ...], or a structure of such tensors, on the CPU.

    Yields:
        Whether the layout was changed.
    """
    inner = unwrap(network)
    changed = any(parameter.ndim == 4 for parameter in inner.parameters()) and _trains(inner, example)
    if changed:
        inner.to(memory_format=torch.channels_last)
    try:
        yield changed
    finally:
        if changed:
            inner.to(memory_format=torch.contiguous_format)


def _trains(network: nn.Module, example: Any) -> bool:
    """Whether a copy of the network goes forward in both modes, and back, in the new layout. Draws no random number for good."""
    # batch norm wants more than one value per channel
    inputs = tree_map(lambda leaf: torch.cat((leaf, leaf)) if isinstance(leaf, Tensor) else leaf, example)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            trial = copy.deepcopy(network).cpu().to(memory_format=torch.channels_last)
            trial.eval()(inputs)
            answers = [leaf for leaf in tree_leaves(trial.train()(inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
            torch.autograd.backward([answer.sum() for answer in answers])
        except Exception:  # whatever it is: training in the ordinary layout goes on, or says it better
            return False
    return True
