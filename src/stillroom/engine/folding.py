"""Batch normalisation folded into the convolution before it: the same function in fewer passes over memory (inference only)."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from stillroom.errors import InputError

# Exact types: a subclass may do more than its base (standardise its weight, blend batch statistics).
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fold_batchnorm(network: nn.Module, keep: Collection[str] = ()) -> nn.Module:
    """A deep copy in eval mode in which batch norms are folded into the convolution or linear layer that feeds them.

    For y = gamma * (W x + b - mean) / sqrt(var + eps) + beta the layer becomes W' = s W and b' = s (b - mean) + beta with
    s = gamma / sqrt(var + eps), computed in float64. A pair is folded where that is exact: both modules run once, nothing else reads the
    layer's output, neither has hooks, the batch norm uses running statistics. Everything else, and any network or part that torch.fx
    cannot trace, stays as it is. Module paths stay: a folded batch norm becomes `nn.Identity`, timm's BatchNormAct2d its activation.

    Args:
        network: left untouched.
        keep: module paths whose outputs must keep their meaning (they will be read by a tap); a layer whose output would change
            under one of them is not folded.
    """
    folded = copy.deepcopy(network).eval()
    graph = _trace(folded)
    if graph is None:
        return folded
    for layer_path, norm_path in _pairs(folded, graph):
        if any(_inside(layer_path, kept) and not _inside(norm_path, kept) for kept in keep):
            continue
        layer, norm = folded.get_submodule(layer_path), folded.get_submodule(norm_path)
        replacement = _replacement(layer, norm)
        _fold(layer, norm)
        for name, module in list(folded.named_modules(remove_duplicate=False)):  # under all the names it goes by
            if module is norm:
                folded.set_submodule(name, replacement)
    return folded.eval()


def _inside(path: str, container: str) -> bool:
    return path == container or path.startswith(f"{container}.")


class _DropAct(nn.Module):
    """What timm's BatchNormAct2d does after its normalisation, under the same child names."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(x))
        return out


class _FoldedAfterLinear(nn.Identity):
    """Stands for a batch norm after a linear layer. Over [N, L, C] the two use different axes, which no trace shows: refused, not wrong."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            got = f"True, and a batch norm after a linear layer that reads {list(x.shape)}"
            raise InputError("fold", got, "False, since such a batch norm folds over rows [N, C] only")
        return x


def _norm_act_type() -> type[nn.Module] | None:
    # A network that holds one has imported it; others need not pay for importing timm.
    return getattr(sys.modules.get("timm.layers.norm_act"), "BatchNormAct2d", None)


def _is_norm(module: nn.Module) -> bool:
    return type(module) in _BATCH_NORMS or type(module) is _norm_act_type()


def _replacement(layer: nn.Module, norm: nn.Module) -> nn.Module:
    if type(norm) is _norm_act_type():
        return _DropAct(norm.drop, norm.act)  # type: ignore[arg-type]
    return _FoldedAfterLinear() if isinstance(layer, nn.Linear) else nn.Identity()


@torch.no_grad()
def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, (*_CONVOLUTIONS, nn.Linear))
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    weight = layer.weight
    scale_C = (var.double() + norm.eps).rsqrt()
    shift_C = -mean.double() if layer.bias is None else layer.bias.double() - mean.double()
    if norm.weight is not None:
        scale_C = scale_C * norm.weight.double()
    bias_C = shift_C * scale_C
    if norm.bias is not None:
        bias_C = bias_C + norm.bias.double()
    scaled = weight.double() * scale_C.reshape(-1, *[1] * (weight.ndim - 1))
    # New parameters, not new values in the old ones: another module may share those.
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias_C.to(weight.dtype), requires_grad=weight.requires_grad)


def _pairs(network: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    modules = dict(network.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(str(node.target) for node in calls)
    # What an untraced module holds may run in it any number of times; what is read by attribute is used outside its module.
    hidden = {id(part) for node in calls for part in modules[str(node.target)].modules() if part is not modules[str(node.target)]}
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]

    def alone(path: str) -> bool:
        module = modules[path]
        return (
            times[path] == 1
            and id(module) not in hidden
            and not any(name.startswith(f"{path}.") for name in read)
            and not any(getattr(module, hooks) for hooks in _HOOKS)
        )

    found = []
    for node in calls:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer_path, norm_path = str(source.target), str(node.target)
        layer, norm = modules[layer_path], modules[norm_path]
        if _is_norm(norm) and _fits(layer, norm) and alone(layer_path) and alone(norm_path):
            found.append((layer_path, norm_path))
    return found


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return False  # normalises with the batch's own statistics
    after_linear = type(layer) is nn.Linear and type(norm) in (nn.BatchNorm1d, nn.SyncBatchNorm)
    if type(layer) not in _CONVOLUTIONS and not after_linear:
        return False
    weight = layer._parameters.get("weight")  # one computed from others (weight norm) is not among the layer's own
    return weight is not None and weight.is_floating_point() and weight.shape[0] == norm.num_features


class _Tracer(fx.Tracer):
    """Traces through every module but torch.nn's own, norms, those with hooks (which must not see proxies) and `opaque` types."""

    def __init__(self, opaque: set[type[nn.Module]]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failed: type[nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = any(getattr(m, hooks) for hooks in _HOOKS)
        return hooked or _is_norm(m) or type(m) in self.opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or type(m)  # the innermost, which raised first
            raise


def _trace(network: nn.Module) -> fx.Graph | None:
    opaque: set[type[nn.Module]] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            return tracer.trace(network)
        except Exception:  # a forward that meets proxies may raise anything; whatever it is, this part cannot be traced
            if tracer.failed is None or tracer.failed in opaque:
                return None
            opaque.add(tracer.failed)
