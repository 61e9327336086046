"""Where a classifier's features are, for methods that compare them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stillroom.engine.tap import module_paths
from stillroom.errors import InputError
from stillroom.modules.convolutions import Taps
from stillroom.modules.projectors import probing

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


def last_map(network: nn.Module, example: Tensor, argument: str) -> str:
    """Module path of the last feature map [B, C, H, W] before the global pooling.

    It is what the pooling reads: the module that the network or timm's and torchvision's names tell, or the last one without parameters
    that makes a map one pixel which stays one pixel. Of a network that pools without a module it is the last map.

    Args:
        network: left as it is.
        example: a few inputs [B, 3, H, W], run once in eval mode.
        argument: what the user calls the layer.

    Raises:
        InputError: the network has no such map, as most transformers.
    """
    poolings = _POOLED if (taps := _taps(network)) is None else (taps.pooled_feat,)
    maps: list[tuple[str, Tensor]] = []
    pooled: Tensor | None = None
    paths = module_paths(network)

    def note(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal pooled
            if isinstance(output, Tensor) and output.ndim == 3:  # tokens: what was a map before is none of the last features
                maps.clear()
            reads = inputs[0] if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4 else None
            pixels = output.shape[2:].numel() if isinstance(output, Tensor) and output.ndim == 4 else 0
            shrinks = pixels == 1 and reads is not None and reads.shape[2:].numel() > 1 and not any(True for _ in module.parameters())
            if reads is not None and (path in poolings or shrinks):
                pooled = reads
            elif pixels > 1:  # a pooling inside a block, as of squeeze and excitation
                pooled = None
            if pixels:
                maps.append((path, output))

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in paths.items()]
    try:
        with probing(network, example):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    if getattr(network, "output_fmt", "NCHW") == "NHWC":  # timm's word for maps with the channels last
        maps.clear()
    read = [path for path, output in maps if output is pooled]
    if not maps or (pooled is not None and not read):
        what = "has none" if not maps else "changes it before its pooling outside of any module"
        raise InputError(argument, "nothing", f"the module path of the last feature map [B, C, H, W]; {type(network).__name__} {what}")
    return (read or [path for path, _ in maps])[-1]
