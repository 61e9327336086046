"""What methods do to a network's batch norms from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode normalise by their batch as ever, but their running statistics and counters stay as they are.

    For a forward pass on other inputs than those that the network will meet. Those in eval mode are as they were.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats and module.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
