"""The first layers of a network, pooled, with a head of their own: a student that can start from its teacher's weights.

    first:SOURCE[,until=LAYER][@WEIGHTS]

SOURCE is a classifier's, or the folder of a run, or the word ``teacher``: the network that teaches, as it is when it does. WEIGHTS are
those of the whole network; the student begins with those of its first layers, and its head from random numbers. LAYER is the module path
of the last layer that is kept; by default the block up to which nearest to half of the network's multiply-adds lie (`middle`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from stillroom.engine.tap import module_paths
from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.modules.projectors import probing

PREFIX = "first:"
_GRAMMAR = re.compile(r"first:(?P<source>.+?)(?:,until=(?P<until>[\w.]+))?")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, fx.GraphModule)
_HALF, _QUARTERS = 0.5, (0.25, 0.5, 0.75)


class FirstLayers(nn.Module):
    """Images [B, 3, H, W] to logits [B, C]: the network up to a layer, the mean over positions or tokens, and a linear head.

    Args:
        network: the whole of it, which is not changed.
        until: module path of the last layer that is kept.
        num_classes: C.
        example: images that the network reads, [1, 3, H, W].
        argument: what the user calls it.

    Raises:
        InputError: the network's operations cannot be told apart, it has no such layer, or there are no features behind it.
    """

    def __init__(self, network: nn.Module, until: str, num_classes: int, example: Tensor, argument: str) -> None:
        super().__init__()
        self.graphs: dict[bool, fx.Graph] = {}  # by whether it is training: operations outside of modules depend on it
        for training in (True, False):
            tracer, graph = traced(network, argument, training=training)
            inside = [node for node, name in tracer.node_to_qualname.items() if f"{name}.".startswith(f"{until}.")]
            if not inside:
                raise InputError(argument, f"until={until}", _layers_of(network, example, argument))
            self.graphs[training] = _ending(graph, inside[-1])
        self.layers = fx.GraphModule(network, self.graphs[True])
        _add(self.layers, self.graphs[False], network)
        with probing(self, example):
            features = self.features(example)
        if not isinstance(features, Tensor) or features.ndim not in (2, 3, 4):
            raise InputError(argument, f"until={until}", _layers_of(network, example, argument))
        _, *sides, last = features.shape
        # timm's word; torchvision's networks do not say it
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC" or (len(sides) == 2 and sides[0] == sides[1] != last)
        self.places = {2: (), 3: (1,), 4: (1, 2) if channels_last else (2, 3)}[features.ndim]  # that the mean is taken over
        self.head = nn.Linear(self.pooled(features).shape[1], num_classes)

    def pooled(self, features: Tensor) -> Tensor:
        """[B, D] of a map, of tokens [B, N, D], or of what is pooled already."""
        return features.mean(self.places) if self.places else features

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """See the class."""
        logits_BC: Tensor = self.head(self.pooled(self.features(images_B3HW)))
        return logits_BC

    def features(self, images_B3HW: Tensor) -> Tensor:
        """What the whole network has behind that layer: a map, tokens, or [B, D]."""
        wanted = self.graphs[self.training]
        if self.layers.graph is not wanted:  # not in `train`: Lightning restores modes without it
            self.layers.graph = wanted
        found: Tensor = self.layers(images_B3HW)
        return found


def middle(network: nn.Module, example: Tensor, argument: str) -> str:
    """Module path of the block up to which nearest to half of a network's multiply-adds lie.

    Raises:
        InputError: as `cuts`.
    """
    return min(cuts(network, example, argument), key=lambda cut: abs(cut[1] - _HALF))[0]


def parts_of(whole: Built, data: Any) -> tuple[str, ...]:
    """Students that are the first layers of a network, up to about a quarter, a half and three quarters of its multiply-adds.

    Raises:
        InputError: as `cuts`.
    """
    found = cuts(whole.network, data.example_inputs(), "teacher")
    untils = dict.fromkeys(min(found, key=lambda cut: abs(cut[1] - share))[0] for share in _QUARTERS)
    return tuple(str(FirstSpec(whole.spec, until)) for until in untils)


def cuts(network: nn.Module, example: Tensor, argument: str) -> list[tuple[str, float]]:
    """Where a network can be cut: module paths, and the share of its multiply-adds up to there, in the order in which they run.

    At such a place all that comes later depends on one tensor alone. Places inside a block that ends at such a place are left out.

    Args:
        network: a classifier; it is run once.
        example: images [1, 3, H, W].
        argument: what the user calls it.

    Raises:
        InputError: its operations cannot be told apart, or all of them depend on several others.
    """
    tracer, graph = traced(network, argument)
    nodes = list(graph.nodes)
    costs = _Costs(fx.GraphModule(network, graph))
    with probing(network, example):
        costs.run(example)
    number = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((number[user] for user in node.users), default=number[node]) for node in nodes}
    ends: dict[str, fx.Node] = {}  # of each module the last of its nodes
    for node, name in tracer.node_to_qualname.items():
        words = str(name).split(".")
        ends |= {".".join(words[: count + 1]): node for count in range(len(words))}
    modules = module_paths(network)
    paths: dict[fx.Node, str] = {}
    for path in sorted((path for path in ends if path in modules), key=len, reverse=True):
        paths[ends[path]] = path  # the shortest of those that end there
    total, spent, found = max(sum(costs.flops.values()), 1), 0, []
    for node in nodes[:-1]:
        spent += costs.flops[node]
        live = [other for other in nodes[: number[node] + 1] if last_use[other] > number[node] and other in costs.tensors]
        if live == [node] and node in paths:
            found.append((paths[node], spent / total))
    blocks = {path for path, _ in found if not isinstance(modules[path], _CONTAINERS)}
    found = [(path, share) for path, share in found if not any(path.startswith(f"{block}.") for block in blocks)]
    if not found:
        raise InputError(argument, type(network).__name__, "a network with blocks behind one another, where it can be cut")
    return found


def traced(network: nn.Module, argument: str, *, training: bool = False) -> tuple[Any, fx.Graph]:
    """The network's operations by torch.fx, in train or in eval mode, and the tracer that knows their names.

    Raises:
        InputError: they depend on the values in a tensor, or on its shape.
    """
    from torchvision.models.feature_extraction import NodePathTracer

    tracer, modes = NodePathTracer(**_leaves(network)), {module: module.training for module in network.modules()}
    try:
        return tracer, tracer.trace(network.train(training))
    except Exception as error:  # whatever the network's own code says to what stands for a tensor
        reason = " ".join(str(error).split())[:160]
        wanted = f"a network whose operations torch.fx can follow, so that it can be cut ({reason})"
        raise InputError(argument, type(network).__name__, wanted) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _ending(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """The same graph, which answers with what a node of it gives."""
    needed = {last}
    for node in reversed(graph.nodes):
        if node in needed:
            needed |= {*node.all_input_nodes}
        elif node.op != "placeholder":
            graph.erase_node(node)
    graph.output(last)
    return graph


def _add(layers: fx.GraphModule, graph: fx.Graph, network: nn.Module) -> None:
    """What another graph of a network needs of it besides."""
    for node in graph.nodes:
        path, _, name = str(node.target).rpartition(".")
        if node.op == "call_module":
            layers.add_submodule(node.target, network.get_submodule(node.target))
        elif node.op == "get_attr" and not hasattr(layers.get_submodule(path), name):
            value = getattr(network.get_submodule(path), name)
            layers.get_submodule(path).register_buffer(name, value)


def _leaves(network: nn.Module) -> dict[str, Any]:
    """What is one operation: a module without others in it, and what timm says of its own."""
    from timm.models import get_notrace_modules

    childless = {type(module) for module in network.modules() if next(module.children(), None) is None}
    return {"leaf_modules": [*childless, *get_notrace_modules()]}


def _layers_of(network: nn.Module, example: Tensor, argument: str) -> str:
    """For messages: what could be kept."""
    found = cuts(network, example, argument)
    return f"a layer of {type(network).__name__} with features behind it, such as {', '.join(path for path, _ in found)}"


class _Costs(fx.Interpreter):
    """Runs a graph and notes of each node its operations, and whether it is a tensor that depends on the input's values."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.flops: dict[fx.Node, int] = {}
        self.tensors: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """As `fx.Interpreter.run_node`."""
        with FlopCounterMode(display=False) as counter:
            answer = super().run_node(n)
        self.flops[n] = counter.get_total_flops()
        if isinstance(answer, Tensor) and answer.is_floating_point() and answer.ndim >= 2 and n.op != "get_attr":
            self.tensors.add(n)
        return answer


@dataclass(frozen=True)
class FirstSpec:
    """What names such a network, without weights; see the module's docstring.

    Args:
        source: of the whole network.
        until: the last layer that is kept; empty for the middle.
    """

    source: str
    until: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.source}{f',until={self.until}' if self.until else ''}"

    @classmethod
    def parse(cls, text: str, argument: str) -> FirstSpec:
        """The inverse of `str`.

        Raises:
            InputError: the text is not of this form.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None:
            raise InputError(argument, text, f"{PREFIX}NETWORK or {PREFIX}NETWORK,until=LAYER, such as {PREFIX}teacher")
        return cls(found["source"], found["until"] or "")

    def parts(self) -> tuple[str, ...]:
        """The whole network's specification."""
        return (self.source,)

    def of(self, *parts: str) -> FirstSpec:
        """The same of another network."""
        return replace(self, source=parts[0])

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> FirstLayers:
        """An untrained network, as `engine.specification.Composed` says.

        Raises:
            InputError: as `FirstLayers`.
        """
        return self.cut(make(self.source, num_classes), num_classes, example, argument)[1]

    def cut(self, network: nn.Module, num_classes: int, example: Tensor, argument: str) -> tuple[FirstSpec, FirstLayers]:
        """The first layers of a network, with its weights and a new head; and what names them, until where they go included.

        Raises:
            InputError: as `FirstLayers`.
        """
        until = self.until or middle(network, example, argument)
        return replace(self, until=until), FirstLayers(network, until, num_classes, example, argument)


parse = FirstSpec.parse
