"""What every family of these networks shares: the tap table, the convolution unit, the pooling and the initialisation.

No activation here works in place: the tensor before a ReLU is itself a tap (`Taps.preact_feats`) and must survive the ReLU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Taps:
    """Module paths of a network's intermediate tensors; each is the output of the module at that path.

    Args:
        feats: feature maps [B, D, H, W] after an activation, from the input to the output.
        preact_feats: the same places, one activation earlier: `activation(preact) == feat`, entry by entry. The activation is ReLU,
            in MobileNetV2 ReLU6.
        pooled_feat: the pooled features [B, D] that the last linear layer reads.
    """

    feats: tuple[str, ...]
    preact_feats: tuple[str, ...]
    pooled_feat: str


class Add(nn.Module):
    """Sum of the two branches of a residual block; a module of its own so that the sum before the last ReLU has a path."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Both inputs and the result are [B, D, H, W]."""
        return branch + shortcut


def conv_unit(
    in_channels: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation: submodules `conv`, `bn` and (unless `activation` is None) `relu`.

    Args:
        kernel: side of the square kernel, in pixels.
        padding: pixels of zeros on each side; None keeps the size at stride 1.
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2 if padding is None else padding, groups=groups, bias=bias)),
        ("bn", nn.BatchNorm2d(channels)),
    ]
    if activation is not None:
        layers.append(("relu", activation()))
    return nn.Sequential(OrderedDict(layers))


def global_average_pool() -> nn.Sequential:
    """[B, D, H, W] -> [B, D], whatever H and W are; at the papers' image sizes the same as their fixed pooling windows."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def stage(block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    """A first block, which may change the number of channels and the resolution, and others of the same shape.

    Args:
        block: builds one, from the channels of its input, those of its result, and the stride.
    """
    return nn.Sequential(block(in_channels, channels, stride), *(block(channels, channels, 1) for _ in range(blocks - 1)))


def initialise_convolutions(network: nn.Module, fan: Literal["fan_out", "fan_in"] = "fan_out") -> None:
    """Convolution weights from N(0, 2 / (k * k * C)) (Kaiming normal), their biases 0; batch norm starts as the identity.

    Args:
        fan: whether C are the channels of the result or of the input.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
