"""Where a classifier's features are, for methods that compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stillroom.engine.tap import INPUT, module_paths
from stillroom.errors import InputError
from stillroom.modules.convolutions import Taps
from stillroom.modules.projectors import probe

_POOLED = ("global_pool", "avgpool", "head.global_pool")  # timm's and torchvision's names


def _taps(network: nn.Module) -> Taps | None:
    taps = getattr(network, "taps", None)
    found = taps() if callable(taps) else None
    return found if isinstance(found, Taps) else None


def pooled_layer(network: nn.Module, example: Tensor, argument: str) -> str:
    """Module path of the features behind the last pooling.

    Networks of Stillroom, and those with timm's or torchvision's names, say where they are. Of any other it is what the last linear layer
    that runs is given; of one without linear layers the last map.

    Args:
        network: left as it is.
        example: a few inputs [B, 3, H, W], run once in eval mode.
        argument: what the user calls the layer.

    Raises:
        InputError: it has neither.
    """
    if (taps := _taps(network)) is not None:
        return taps.pooled_feat
    paths = module_paths(network)
    for path in _POOLED:
        if path in paths:
            return path
    linear: list[str] = []

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            linear.append(path)

    _watched(network, example, note)
    return f"{linear[-1]}{INPUT}" if linear else last_map(network, example, argument)


def middle_layer(network: nn.Module, example: Tensor, argument: str) -> str:
    """Module path of the third of the network's feature maps (behind its second stage), where later papers give their hints.

    Networks of Stillroom say where it is. Of any other it is the last map of the middle one of the sizes that its maps have, as of
    outermost modules as there are: the second stage of ResNets, for small images as for large ones.

    Args:
        network, example, argument: see `pooled_layer`.

    Raises:
        InputError: the network has no maps [B, C, H, W].
    """
    if (taps := _taps(network)) is not None:
        return taps.feats[min(2, len(taps.feats) - 1)]
    by_size: dict[int, list[str]] = {}

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        pixels = output.shape[2:].numel() if isinstance(output, Tensor) and output.ndim == 4 else 0
        if pixels > 1:
            by_size.setdefault(pixels, []).append(path)

    _watched(network, example, note)
    if not by_size or getattr(network, "output_fmt", "NCHW") == "NHWC":  # timm's word for maps with the channels last
        raise InputError(argument, "nothing", f"the module path of a feature map [B, C, H, W] of {type(network).__name__}")
    sizes = sorted(by_size, reverse=True)
    of_middle = by_size[sizes[len(sizes) // 2]]
    outermost = min(path.count(".") for path in of_middle)
    return [path for path in of_middle if path.count(".") == outermost][-1]


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

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
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

    _watched(network, example, note)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":  # timm's word for maps with the channels last
        maps.clear()
    read = [path for path, output in maps if output is pooled]
    if not maps or (pooled is not None and not read):
        what = "has none" if not maps else "changes it before its pooling outside of any module"
        raise InputError(argument, "nothing", f"the module path of the last feature map [B, C, H, W]; {type(network).__name__} {what}")
    return (read or [path for path, _ in maps])[-1]


def dense_layer(network: nn.Module, example: Tensor, argument: str) -> str:
    """Module path of the last features that have places: the last map (`last_map`); of a transformer the last tokens [B, N, D], or the last
    map with its channels last.

    Args:
        network, example, argument: see `last_map`.

    Raises:
        InputError: the network has none of them.
    """
    tokens: list[str] = []
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 3 + channels_last and output.shape[1:-1].numel() > 1:
            tokens.append(path)

    try:
        return last_map(network, example, argument)
    except InputError:
        _watched(network, example, note)
        if not tokens:
            raise
    return tokens[-1]


def _watched(network: nn.Module, example: Tensor, note: Callable[[str, nn.Module, Any, Any], None]) -> None:
    """Runs the network once and tells of every module that runs, in the order in which they end: path, module, inputs, answer."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output, path=path: note(path, module, inputs, output))
        for path, module in module_paths(network).items()
    ]
    probe(network, example, handles)
