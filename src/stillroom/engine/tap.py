"""tap: read intermediate outputs of any network by module path, without a change to the network."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from stillroom.errors import InputError, StillroomError, near

# Names under which wrappers hold the network they wrap: no part of a path that a user would write.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
INPUT = ":input"  # behind a module's path: what the module is given, in the place of what it answers
_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _wraps(parent: nn.Module, child: str) -> bool:
    if child == "module":  # an ordinary name too, so only below what is known to wrap
        return isinstance(parent, (DataParallel, DistributedDataParallel))
    return child in _WRAPPERS


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel, torch.compile and similar wrappers."""
    while inner := [child for name, child in model.named_children() if _wraps(model, name)]:
        model = inner[0]
    return model


def module_paths(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its path, written as if nothing in `model` were wrapped.

    A module that hangs in several places stands under each of its names. The model itself is not among them.
    """
    return {path: lineage[-1] for path, lineage in _lineages(model).items()}


def plain_path(path: str) -> str:
    """`path` without the segments that DDP, torch.compile and similar wrappers put into module names."""
    return ".".join(name for name in path.split(".") if name != "module" and name not in _WRAPPERS)


def _lineages(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """Path -> the modules from `model` down to the one of that path, wrappers included."""
    found: dict[str, tuple[nn.Module, ...]] = {}

    def visit(lineage: tuple[nn.Module, ...], path: str) -> None:
        parent = lineage[-1]
        for name, child in parent._modules.items():
            if child is None:
                continue
            here = path if _wraps(parent, name) else f"{path}.{name}".removeprefix(".")
            if here:
                found[here] = (*lineage, child)
            visit((*lineage, child), here)

    visit((model,), "")
    return found


class _Catch:
    """The forward hook of one tapped module; its forward pre-hook where what it is given is asked for.

    A later in-place operation (`nn.ReLU(inplace=True)`, `out += shortcut`) would change what was caught. While `copies` is set the hook
    therefore hands a copy on to the rest of the network; what it keeps is the module's own output, on the path to the model's output,
    so that gradients can be taken with respect to it.
    """

    def __init__(self, *, given: bool) -> None:
        self.given = given
        # A key of the hook's own, the same in every call: torch.compile guards on it, and would compile anew if it changed.
        self.key = RemovableHandle(OrderedDict()).id
        self.copies = True
        self.caught: list[Any] = []
        self.handed_on: list[Any] = []
        self.versions: list[int] = []

    def hooks(self, module: nn.Module) -> dict[int, Any]:
        """Those of the module among which this one belongs."""
        return module._forward_pre_hooks if self.given else module._forward_hooks

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> Any:
        seen = (inputs[0] if inputs else None) if self.given else output
        self.caught.append(seen)
        if not self.copies:
            self.versions = _versions(seen)
            return None
        copy = seen.clone() if isinstance(seen, Tensor) else tree_map(_clone, seen)
        self.handed_on.append(copy)
        return (copy, *inputs[1:]) if self.given and inputs else None if self.given else copy


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _versions(structure: Any) -> list[int]:
    # Inference tensors count no versions; -1 stands for "cannot be known".
    leaves = [leaf for leaf in tree_leaves(structure) if isinstance(leaf, Tensor)]
    return [-1 if leaf.is_inference() else leaf._version for leaf in leaves]


class Tap:
    """A model that answers with intermediate outputs besides its own; made by `tap`.

    Hooks are on the model only while it is called, so a copy, an export or a checkpoint of the model knows nothing of the tap, and
    the tap holds no tensor between calls. It does hold the model; where a submodule on its paths is replaced, make a new tap.

    With torch.compile, the tapped call is compiled by the model's own backend, apart from the untapped one: each has its own graph and
    neither sees the other's. Where the backend cannot be found (`module.compile()`, or regions with different backends) the tapped
    call runs eagerly. Called from inside a compiled function, it is a graph break. Gradients flow through a compiled model's features as
    usual, but the gradient of its output with respect to a feature cannot be taken: both leave the graph side by side.
    """

    def __init__(self, model: nn.Module, *paths: str, argument: str = "paths") -> None:
        self.model = model
        self.paths = paths
        lineages = _lineages(model)
        self._tapped: list[tuple[nn.Module, _Catch, list[str]]] = []
        catches: dict[tuple[int, bool], list[str]] = {}
        above: dict[int, nn.Module] = {id(model): model}
        for path in paths:
            lineage = _find(path, lineages, argument)
            above.update((id(module), module) for module in lineage)
            place = id(lineage[-1]), path.endswith(INPUT)
            if place in catches:  # two names of one module
                catches[place].append(path)
                continue
            catches[place] = [path]
            self._tapped.append((lineage[-1], _Catch(given=place[1]), catches[place]))
        self._above = list(above.values())
        self._rewritten: dict[tuple[str, bool], bool] = {}  # (path, training): does the network change that output in place?
        self._backend: _OwnBackend | None = None

    def __repr__(self) -> str:
        return f"tap({type(unwrap(self.model)).__name__}, {', '.join(map(repr, self.paths))})"

    @torch.compiler.disable  # dynamo cannot trace hooks that come and go; the model inside is compiled on its own
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Run the model.

        Args:
            *args, **kwargs: what the model takes.

        Returns:
            The model's output and, by path as given to `tap`, what the module of that path returned (or was given first): a tensor, or
            whatever structure the module returns. Nothing is detached, cast or moved.

        Raises:
            InputError: a tapped module did not run, or ran more than once (which of its outputs is meant cannot be told: tap the module
                around it).
        """
        return self.during(lambda: self.model(*args, **kwargs))

    @torch.compiler.disable
    def during(self, run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """As a call, of whatever runs the model's modules without calling the model itself: its losses, say.

        Args:
            run: is called once; its answer stands in the place of the model's.

        Raises:
            InputError: as a call.
        """
        compiled = [module for module in self._above if _is_compiled(module)]
        try:
            for module, catch, paths in self._tapped:
                catch.copies = bool(compiled) or self._rewritten.get((paths[0], module.training), True)
                catch.hooks(module)[catch.key] = catch
            with self._stance(compiled):
                output = run()
            features = {path: self._take(module, catch, paths, bool(compiled)) for module, catch, paths in self._tapped for path in paths}
            return output, {path: features[path] for path in self.paths}
        finally:
            for module, catch, _ in self._tapped:
                catch.hooks(module).pop(catch.key, None)
                catch.caught.clear()
                catch.handed_on.clear()

    def _take(self, module: nn.Module, catch: _Catch, paths: list[str], compiled: bool) -> Any:
        if len(catch.caught) != 1:
            how = f"which ran {len(catch.caught)} times in one call" if catch.caught else "which did not run"
            raise InputError("paths", f"{paths[0]!r}, {how} of {type(unwrap(self.model)).__name__}", "a module that runs exactly once")
        if catch.copies and not compiled:  # a graph's tensors count no versions, so under torch.compile every call copies
            self._rewritten[paths[0], module.training] = any(_versions(catch.handed_on))
        if not catch.copies and _versions(catch.caught[0]) != catch.versions:
            raise StillroomError(
                f"tap: the output of {paths[0]!r} was changed in place in this call but not in the first one, so its value is lost; "
                "make a new tap for this kind of input"
            )
        return catch.caught[0]

    def _stance(self, compiled: list[nn.Module]) -> contextlib.AbstractContextManager[Any]:
        # Dynamo does not look whether hooks came or went (skip_nnmodule_hook_guards), so a graph of the untapped model would be
        # reused and catch nothing. Graphs are kept per backend: one of the tap's own separates the two, in every frame.
        if not compiled:
            return contextlib.nullcontext()
        backends = [_backend_of(module) for module in compiled]
        if any(backend is None or backend != backends[0] for backend in backends):
            return torch.compiler.set_stance("force_eager")
        if self._backend is None or self._backend.inner != backends[0]:
            self._backend = _OwnBackend(backends[0])
        return torch.compiler.set_stance("default", force_backend=self._backend)


class _OwnBackend:
    """The same compiler backend under another identity."""

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.inner is not None
        return self.inner(*args, **kwargs)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _backend_of(module: nn.Module) -> Callable[..., Any] | None:
    backend = getattr(getattr(module, "dynamo_ctx", None), "callback", None)
    while inner := getattr(backend, "_torchdynamo_orig_backend", None) or getattr(backend, "_torchdynamo_orig_callable", None):
        backend = inner
    return backend if callable(backend) else None


def _find(path: str, lineages: dict[str, tuple[nn.Module, ...]], argument: str) -> tuple[nn.Module, ...]:
    if not isinstance(path, str):
        raise InputError(argument, path, "module paths as separate strings, e.g. tap(model, 'layer1', 'layer2')")
    path = path.removesuffix(INPUT)
    lineage = lineages.get(path) or lineages.get(plain_path(path))
    if lineage is None:
        raise InputError(argument, repr(path), f"a module path of the model, e.g. {near(plain_path(path), lineages)}")
    if isinstance(lineage[-1], _NEVER_CALLED):
        inside = [name for name in lineages if name.startswith(f"{plain_path(path)}.")]
        raise InputError(
            argument,
            f"{path!r}, a {type(lineage[-1]).__name__}, which is never called",
            f"a module inside it, e.g. {', '.join(inside[:5])}",
        )
    return lineage


def tap(model: nn.Module, *paths: str, argument: str = "paths") -> Tap:
    """Read intermediate outputs of a model by module path.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> output, features = tap(net, "0")(torch.ones(5, 2))
    >>> features["0"].shape
    torch.Size([5, 3])

    Args:
        model: any network, also wrapped by DistributedDataParallel or torch.compile.
        *paths: names of submodules as `named_modules` gives them, e.g. ``layer3.1`` or ``backbone.fpn``; prefixes of wrappers
            (``module.``, ``_orig_mod.``) may be there or not. With ``:input`` behind it, as in ``fc:input``, what the module is given (its
            first argument), where no module gives it as its answer.
        argument: what the user calls the paths; named in errors.

    Returns:
        A callable with the model's arguments that returns ``(output, {path: feature})``.

    Raises:
        InputError: a path that is not in the model; the message lists the nearest that are.
    """
    return Tap(model, *paths, argument=argument)
