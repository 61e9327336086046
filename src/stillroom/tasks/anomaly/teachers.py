"""The teacher: any classifier's feature maps at a few layers, found by themselves or named."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from stillroom.engine import Teacher
from stillroom.engine.folding import fold_batchnorm
from stillroom.engine.tap import module_paths, unwrap
from stillroom.engine.teacher import Precision, Renormalise
from stillroom.errors import InputError, near
from stillroom.modules.projectors import probing
from stillroom.tasks.images.arguments import renormalisation
from stillroom.tasks.images.classifiers import build_classifier, configurations

STRIDES = (4, 8, 16, 32)  # of the levels that papers read
_HEAD = ("normal", "anomalous")  # what the head answers for is of no matter: it is never asked


class _Enough(Exception):
    """The last layer that is read has answered."""


@dataclass(frozen=True)
class Level:
    """A feature map of the teacher.

    Args:
        layer: the module's path.
        channels: C.
        size: height and width at the data's image size.
        stride: pixels of the image between two of its positions.
    """

    layer: str
    channels: int
    size: tuple[int, int]
    stride: int


class Extractor(nn.Module):
    """A network up to the last of some layers; images [B, 3, S, S] to their feature maps [B, C, H, W], in the order of the layers.

    The network's layers behind the last one are not run, and their parameters are left out where nothing else needs them.

    Args:
        network: changed: see above.
        layers: module paths.
        example: images such as it will read.
        argument: what the user calls the layers.

    Raises:
        InputError: no such layer, or one that gives no feature map.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], example: Tensor, argument: str = "layers") -> None:
        super().__init__()
        self.network, self.layers = unwrap(network), tuple(layers)
        paths = module_paths(self.network)
        for layer in layers:
            if layer not in paths:
                raise InputError(argument, layer, f"layers of the teacher, such as {near(layer, paths)}")
        with probing(self.network, example):
            maps = self(example)
            self._drop_rest(example, maps)
        for layer, found in zip(layers, maps, strict=True):
            if not isinstance(found, Tensor) or found.ndim != 4:
                shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(argument, layer, f"layers that give feature maps [B, C, H, W], not {shape}")
        side = example.shape[-1]
        self.levels = tuple(
            Level(layer, found.shape[1], (found.shape[2], found.shape[3]), round(side / found.shape[3]))
            for layer, found in zip(layers, maps, strict=True)
        )

    def forward(self, images: Tensor, count: int | None = None) -> tuple[Tensor, ...]:
        """See the class; of the first `count` layers alone, if that is given: what is behind them is not run."""
        found: dict[str, Any] = {}
        layers = self.layers[:count]
        modules = [self.network.get_submodule(layer) for layer in layers]

        def keep(layer: str, answer: Any) -> None:
            found[layer] = answer
            if len(found) == len(layers):
                raise _Enough

        handles = [
            module.register_forward_hook(lambda _, __, answer, layer=layer: keep(layer, answer))
            for layer, module in zip(layers, modules, strict=True)
        ]
        try:
            self.network(images)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return tuple(found[layer] for layer in layers)

    def traced(self, images: Tensor, count: int | None = None) -> fx.GraphModule:
        """The same as a graph of plain operations for batches of any size, which exporters can follow: `forward` ends by an exception.

        Args:
            images: at least two.
            count: see `forward`.
        """
        with torch.no_grad():
            return make_fx(lambda images: self(images, count), tracing_mode="symbolic", _allow_non_fake_inputs=True)(images)

    def _drop_rest(self, example: Tensor, maps: Sequence[Tensor]) -> None:
        """Leaves out the parameters of what was not run, if the features are the same without."""
        run: set[nn.Module] = set()
        leaves = {path: module for path, module in self.network.named_modules() if not list(module.children())}
        handles = [module.register_forward_hook(lambda module, *_: run.add(module)) for module in leaves.values()]
        try:
            self(example)
        finally:
            for handle in handles:
                handle.remove()
        pruned = copy.deepcopy(self.network)
        for path, module in leaves.items():
            if module not in run and next(module.parameters(), None) is not None:
                pruned.set_submodule(path, nn.Identity())
        whole, self.network = self.network, pruned
        try:
            same = all(torch.equal(*pair) for pair in zip(self(example), maps, strict=True))
        except Exception:  # what was not run is needed all the same, by its attributes say
            same = False
        if not same:
            self.network = whole


@dataclass(frozen=True)
class TaughtBy:
    """A teacher as the command line names it, built.

    Attributes:
        extractor: its feature maps.
        spec: what builds the network again, without weights.
        origin: where its weights are from, in words.
        renormalise: what makes its inputs of the data's; None where they are the same.
        notes: what is to be known of it, a clause each.
    """

    extractor: Extractor
    spec: str
    origin: str
    renormalise: Renormalise | None
    notes: tuple[str, ...] = ()

    def teacher(self, precision: Precision, *, compile: bool) -> Teacher:
        """Frozen, in the precision that was asked for; batch norms are folded."""
        folded = copy.copy(self.extractor)
        folded._modules = {"network": fold_batchnorm(self.extractor.network, keep=self.extractor.layers)}
        return Teacher(folded, precision=precision, compile=compile, fold=False, renormalise=self.renormalise)

    @property
    def said(self) -> str:
        """What it is, for the report."""
        layers = ", ".join(self.extractor.layers)
        return "; ".join([f"{self.spec} with {self.origin}, its maps those of {layers}", *self.notes])


def build_teacher(
    spec: str,
    data: Any,
    layers: Sequence[str] | None,
    count: int,
    *,
    random: bool,
    trust_pickle: bool,
    argument: str = "teacher",
) -> TaughtBy:
    """The teacher of a specification.

    Args:
        spec: any classifier with weights (see `build_classifier`), of whatever classes.
        data: whose images it reads.
        layers: module paths, from the first to the last; by default those of the last map at strides 4, 8, 16 and 32 where it has them,
            else of its `count` last sizes.
        count: how many levels are wanted.
        random: it may be without weights.
        trust_pickle: read weights that can run code as they are read.
        argument: what the user calls it.

    Raises:
        InputError: it cannot be built, has no weights, or not so many levels; or its answers are not finite.
    """
    built = build_classifier(
        spec, num_classes=len(_HEAD), image_size=data.image_size, trust_pickle=trust_pickle, argument=argument, classes=_HEAD
    )
    if built.weights is None and not random:
        raise InputError(
            argument, f"{spec}, without weights", "weights behind an @, data to train it on (--teacher-data), or --random-teacher"
        )
    found = next((one.statistics for one in configurations(spec, trust_pickle=trust_pickle, argument=argument) if one.statistics), None)
    renormalise = data.renormalise
    if renormalise is None and found is not None:
        renormalise = renormalisation((data.mean, data.std), *found)
    example = data.example_inputs()
    example = example if renormalise is None else renormalise(example)
    named = tuple(layers) if layers else default_layers(built.network, count, example, argument)
    if len(named) != count:
        raise InputError("layers", " ".join(named), f"{count} of them")
    extractor = Extractor(built.network, named, example)
    with probing(extractor, example):
        maps = extractor(example)
    if not all(one.isfinite().all() for one in maps):
        raise InputError(argument, f"{spec}, whose features are not finite", "weights without NaN")
    origin = f"the weights of {built.weights}" if built.weights else "random weights"
    return TaughtBy(extractor, built.spec, origin, renormalise, built.notes)


def default_layers(network: nn.Module, count: int, example: Tensor, argument: str) -> tuple[str, ...]:
    """Paths of the modules that give the last map of each of `count` sizes: at `STRIDES` where there are maps at all of them, else of the
    smallest ones that have more than one position.

    Of a size the outermost modules count, a stage or a block: the next block's first layers answer in the same size.

    Raises:
        InputError: the network has not so many sizes.
    """
    found: dict[int, str] = {}  # by the width of a map
    paths = {module: path for path, module in reversed(module_paths(network).items())}

    def look(module: nn.Module, answer: Any) -> None:
        if isinstance(answer, Tensor) and answer.ndim == 4 and answer.shape[-1] > 1:
            before = found.setdefault(answer.shape[-1], paths[module])
            if paths[module].count(".") <= before.count("."):
                found[answer.shape[-1]] = paths[module]

    handles = [module.register_forward_hook(lambda module, _, answer: look(module, answer)) for module in paths]
    try:
        with probing(network, example):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    side = example.shape[-1]
    wanted = [-(-side // stride) for stride in STRIDES[:count]]
    sizes = wanted if all(size in found for size in wanted) else sorted(found, reverse=True)[-count:]
    if len(sizes) < count:
        there = ", ".join(f"{path} ({size} x {size})" for size, path in sorted(found.items(), reverse=True))
        raise InputError(argument, f"a teacher with maps of {len(sizes)} sizes: {there}", f"one with maps of {count} sizes, or --layers")
    return tuple(found[size] for size in sizes)
