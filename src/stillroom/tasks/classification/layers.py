"""Where a classifier's features are, for methods that compare them."""

from __future__ import annotations

from torch import nn

from stillroom.errors import InputError
from stillroom.tasks.classification.networks.parts import Taps

_POOLED = ("global_pool", "avgpool", "head.global_pool")  # timm's and torchvision's names


def _taps(network: nn.Module) -> Taps | None:
    taps = getattr(network, "taps", None)
    found = taps() if callable(taps) else None
    return found if isinstance(found, Taps) else None


def pooled_layer(network: nn.Module, argument: str) -> str:
    """Module path of the features behind the last pooling.

    Raises:
        InputError: the network does not say where they are.
    """
    if (taps := _taps(network)) is not None:
        return taps.pooled_feat
    modules = dict(network.named_modules())
    for path in _POOLED:
        if path in modules:
            return path
    raise InputError(
        argument, "nothing", f"the module path of the pooled features of {type(network).__name__}, which has no {' or '.join(_POOLED)}"
    )


def middle_layer(network: nn.Module, argument: str) -> str:
    """Module path of the third of the network's feature maps (behind its second stage), where later papers give their hints.

    Raises:
        InputError: the network does not say where it is.
    """
    if (taps := _taps(network)) is None:
        raise InputError(argument, "nothing", f"the module path of a feature map [B, C, H, W] of {type(network).__name__}")
    return taps.feats[min(2, len(taps.feats) - 1)]
