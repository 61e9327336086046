"""What a network costs: parameters, multiply-adds, latency, bytes on disk."""

from __future__ import annotations

import platform
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from stillroom._version import __version__
from stillroom.errors import InputError
from stillroom.modules.projectors import probing

_WARM_UP_SECONDS, _WARM_UP_PASSES = 0.1, 10
_TIMED_SECONDS, _TIMED_PASSES = 0.35, 100


@dataclass(frozen=True)
class Footprint:
    """Cost of one network at inference, for one sample.

    Attributes:
        parameters: number of distinct parameters; tied ones count once.
        macs: multiply-adds of one forward pass (convolutions, matrix products, attention); None where they cannot be counted.
        latency_ms: median wall-clock milliseconds of one forward pass at batch 1.
        bytes: size of the weights on disk: every distinct tensor of the state dict in its own precision, without the file's header.
    """

    parameters: int
    macs: int | None
    latency_ms: float
    bytes: int


def measure(network: nn.Module, example_inputs: Any) -> Footprint:
    """Measure `network` on `example_inputs` in eval mode, in about half a second (longer only where single passes are slow).

    The network comes back as it was: the mode of each module, its gradients, and the random number generators.

    Args:
        network: on the same device as the example.
        example_inputs: one sample [1, ...], or a structure of such tensors; or, of ragged samples, a structure that says its
            `batch_size`. Latency is that of its device.

    Raises:
        InputError: the example is not a batch of one.
    """
    said = getattr(example_inputs, "batch_size", None)
    if said not in (None, 1):
        raise InputError("example_inputs", f"{said} samples", "one sample")
    for tensor in _tensors(example_inputs) if said is None else ():
        if tensor.dim() == 0 or tensor.shape[0] != 1:
            raise InputError("example_inputs", f"shape {list(tensor.shape)}", "one sample, shape [1, ...]")
    with probing(network, _tensors(example_inputs)[0]):
        macs = _macs(network, example_inputs)
        latency_ms = _latency_ms(network, example_inputs)
    stored = {id(value): value for value in network.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    parameters, size = sum(parameter.numel() for parameter in network.parameters()), sum(value.nbytes for value in stored.values())
    if not stored and hasattr(network, "stored"):  # a network that is a file says itself what is in it
        parameters, size = network.stored  # type: ignore[misc]
    return Footprint(parameters, macs, latency_ms, size)


class Allocated(TorchDispatchMode):
    """Inside, counts the bytes of the storages that operations make, until they are freed.

    Attributes:
        now, peak: bytes that are held, and the most that ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and counts what it made."""
        old = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in _tensors(result):
            storage = leaf.untyped_storage()
            if storage._cdata not in self._known and storage._cdata not in old:  # made here, and no view of what came in
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def working_bytes(network: nn.Module, example_inputs: Any) -> int:
    """The most that the tensors of one forward pass hold at once, without weights and inputs; the network comes back as from `measure`."""
    with probing(network, _tensors(example_inputs)[0]), Allocated() as allocated:
        network(example_inputs)
    return allocated.peak


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, the attention layers of eval mode are made of operations that counters and other runtimes know, instead of a fused one."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _tensors(example: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]


def _macs(network: nn.Module, example: Any) -> int | None:
    counter = FlopCounterMode(display=False)
    try:
        with unfused_attention(), counter:
            network(example)
    except Exception:  # the counter's trouble with exotic operations is of many types; a fault of the network shows in the timed passes
        return None
    return counter.get_total_flops() // 2 or None  # none counted: made of operations that the counter does not know


def _latency_ms(network: nn.Module, example: Any) -> float:
    _timed_passes(network, example, _WARM_UP_SECONDS, _WARM_UP_PASSES)
    return median(_timed_passes(network, example, _TIMED_SECONDS, _TIMED_PASSES)) * 1e3


def _timed_passes(network: nn.Module, example: Any, seconds: float, most: int) -> list[float]:
    """Seconds of each of at least one and at most `most` passes, of which none starts after `seconds`."""
    passes: list[float] = []
    end = time.perf_counter() + seconds
    while not passes or (len(passes) < most and time.perf_counter() < end):
        start = time.perf_counter()
        network(example)
        if (device := next((tensor.device for tensor in _tensors(example)), torch.device("cpu"))).type == "cuda":
            torch.cuda.synchronize(device)
        passes.append(time.perf_counter() - start)
    return passes


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


def now() -> str:
    """The time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
