"""How near a teacher that an engine runs is to the network that it was made of, and how near it has to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

Measured = dict[str, float]


@dataclass(frozen=True)
class Bound:
    """What one figure has to be.

    Args:
        name: in words, as it is told; ``{temperature}`` in it is filled in.
        limit: see `least`.
        least: at least `limit`, or else at most.
        unit: behind the number.
    """

    name: str
    limit: float
    least: bool = False
    unit: str = ""

    def holds(self, value: float) -> bool:
        """Whether the figure is good enough; what is no number never is."""
        return value >= self.limit if self.least else value <= self.limit

    def said(self, value: float, temperature: float) -> str:
        """The figure and the bound."""
        number = f"{value:.1f}" if self.unit else f"{value:.2g}"
        bound = f"at {'least' if self.least else 'most'} {self.limit:g}"
        return f"{self.name.format(temperature=f'{temperature:g}')} {number}{self.unit} ({bound})"


def _called(network: nn.Module, inputs: Any) -> Any:
    return network(inputs)


def _as_they_are(network: nn.Module, inputs: Tensor, data: Any) -> tuple[Tensor, int | None]:
    return inputs, None


@dataclass(frozen=True)
class ByEngine:
    """What a task says of frozen teachers that an inference engine runs.

    Args:
        measure: ``(the network's answers, the engine's, temperature)`` -> figures by name.
        bounds: what each of them has to be.
        ask: how a network is asked for what teaches, of one tensor of images and for a batch of any size.
        example: ``(network, images, data)`` -> images to export it with; and the cell, see `export.ExportSpec`, where it reads several
            sizes.
        exact: keys of an answer, a mapping, whose tensors are computed in float32 from the last convolution on.
    """

    measure: Callable[[Any, Any, float], Measured]
    bounds: Mapping[str, Bound]
    ask: Callable[[nn.Module, Any], Any] = _called
    example: Callable[[nn.Module, Tensor, Any], tuple[Tensor, int | None]] = _as_they_are
    exact: tuple[str, ...] = field(default=())

    def said(self, measured: Measured, temperature: float) -> str:
        """All figures, in one line."""
        return ", ".join(self.bounds[name].said(value, temperature) for name, value in measured.items())

    def holds(self, measured: Measured) -> bool:
        """Whether all are good enough."""
        return all(self.bounds[name].holds(value) for name, value in measured.items())


@torch.no_grad()
def _classes(wanted_BC: Tensor, told_BC: Tensor, temperature: float) -> Measured:
    log_p, log_q = ((logits.double() / temperature).log_softmax(1) for logits in (wanted_BC, told_BC))
    same = (wanted_BC.argmax(1) == told_BC.argmax(1)).double().mean()
    apart = kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return {"agreement": 100 * float(same), "kl": float(apart.clamp_min(0))}  # rounding alone makes it negative; NaN stays


@torch.no_grad()
def bernoulli_kl(wanted: Tensor, told: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(sigmoid(wanted / T) || sigmoid(told / T)) of each pair of logits; 0 where rounding would make it negative."""
    p_logits, q_logits = wanted.double() / temperature, told.double() / temperature
    p = p_logits.sigmoid()
    cross, entropy = (binary_cross_entropy_with_logits(logits, p, reduction="none") for logits in (q_logits, p_logits))
    return (cross - entropy).clamp_min(0)


@torch.no_grad()
def _labels(wanted_BK: Tensor, told_BK: Tensor, temperature: float) -> Measured:
    same = ((wanted_BK > 0) == (told_BK > 0)).double().mean()
    return {"agreement": 100 * float(same), "kl": float(bernoulli_kl(wanted_BK, told_BK, temperature).mean())}


AGREEMENT = Bound("agreement", 95.0, least=True, unit=" %")

# Of a trained ResNet-56 on CIFAR-10 onnxruntime's int8 agrees on 98 % and has a KL of 0.002 (docs/engines.md).
CLASSES = ByEngine(_classes, {"agreement": AGREEMENT, "kl": Bound("KL at T = {temperature}", 0.02)})
LABELS = ByEngine(_labels, {"agreement": AGREEMENT, "kl": Bound("KL of each label at T = {temperature}", 0.02)})
