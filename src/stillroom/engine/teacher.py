"""Teacher: a frozen network (or an ensemble) that answers with logits, prepared for speed."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_leaves, tree_map

from stillroom.engine.answers import changed_answers
from stillroom.engine.folding import fold_batchnorm
from stillroom.engine.tap import INPUT, Tap, module_paths, plain_path, tap, unwrap
from stillroom.errors import InputError, one_of

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Combine = Literal["probabilities", "logits"]

_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Exact types: a subclass may compute with its weight (standardise it, say), which then wants full precision.
_CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@dataclass(frozen=True)
class Renormalise:
    """Turns images normalised with one set of statistics into images normalised with another.

    x' = (x * from_std + from_mean - to_mean) / to_std, per channel.

    Args:
        from_mean, from_std: what the student's images were normalised with, one number per channel, in the units of the raw pixels.
        to_mean, to_std: what the teacher expects.

    Raises:
        InputError: different numbers of channels, or a standard deviation that is not above 0.
    """

    from_mean: tuple[float, ...]
    from_std: tuple[float, ...]
    to_mean: tuple[float, ...]
    to_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("from_mean", "from_std", "to_mean", "to_std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or len(values) != len(self.from_mean):
                raise InputError(name, f"{len(values)} values", f"one per channel, as many as from_mean ({len(self.from_mean)})")
            if not all(math.isfinite(value) and (value > 0 or name.endswith("mean")) for value in values):
                raise InputError(name, values, "finite numbers" if name.endswith("mean") else "finite numbers above 0")

    def __call__(self, images: Tensor) -> Tensor:
        """Renormalise images [..., C, H, W]; the result is float32 or wider."""
        if images.ndim < 3 or images.shape[-3] != len(self.from_mean):
            raise InputError("images", f"shape {list(images.shape)}", f"[..., {len(self.from_mean)}, H, W]")
        dtype = torch.promote_types(images.dtype, torch.float32)

        def channels(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=images.device).view(-1, 1, 1)

        # One multiply and one add; the coefficients are exact to double precision before they are rounded once.
        columns = zip(self.from_mean, self.from_std, self.to_mean, self.to_std, strict=True)
        affine = [(from_std / to_std, (from_mean - to_mean) / to_std) for from_mean, from_std, to_mean, to_std in columns]
        scale, shift = zip(*affine, strict=True)
        return torch.addcmul(channels(shift), images.to(dtype), channels(scale))


@dataclass(frozen=True)
class Resized(Renormalise):
    """Renormalises, and then resizes, for a network that reads images of another size: the same crop, in more pixels or fewer.

    Args:
        size: height and width in pixels.
        interpolation: bilinear, bicubic or nearest; the first two smooth before they shrink.
    """

    size: tuple[int, int] = (0, 0)
    interpolation: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as the network wants them, [B, C, *size]."""
        renormalised = super().__call__(images)
        smooth = self.interpolation != "nearest"
        return interpolate(renormalised, self.size, mode=self.interpolation, antialias=smooth, align_corners=False if smooth else None)


class Teacher:
    """A frozen teacher: always in eval mode, never in a gradient, never part of the student.

    A plain class, so that assigning it to a module registers nothing: it is in no ``state_dict()``, no ``parameters()`` and no DDP bucket.

    The networks given are never touched. At the first call a prepared copy is made on the inputs' device, and again when the device
    changes: this costs the memory of the weights once more (half of it under reduced precision), and means that later changes of the
    given network do not reach the teacher.

    Args:
        network: network from inputs to logits [B, C, ...], or several, whose answers are combined.
        precision: "auto" takes bfloat16 where the device computes with it natively and float32 elsewhere. Reduced precision is for
            convolutions and matrix products; normalisations stay in float32.
        channels_last: lay 4-D inputs and convolution weights out as NHWC. A network that cannot read that layout (`view` of a feature
            map) is found out at the first call and runs in the ordinary one.
        fold: fold batch norms into the convolutions before them, see `fold_batchnorm`.
        compile: run the prepared networks through torch.compile.
        weights: of an ensemble's members, >= 0, normalised to sum 1; equal by default.
        combine: an ensemble's answer: "probabilities" = log of the mean softmax over dimension 1 (valid logits), "logits" = mean logits.
        renormalise: applied to the images first, if the teacher expects other statistics than the student's: to inputs that are a tensor
            of images; of a batch that has the method ``renormalised(renormalise)``, which knows where its images are and what of them is
            padding, the inputs of the batch that this gives are read.

    Raises:
        InputError: no networks, something that is no network, weights that do not fit them, unknown options.
    """

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module],
        *,
        precision: Precision = "auto",
        channels_last: bool = True,
        fold: bool = True,
        compile: bool = False,
        weights: Sequence[float] | None = None,
        combine: Combine = "probabilities",
        renormalise: Renormalise | None = None,
    ) -> None:
        self._networks = (network,) if isinstance(network, nn.Module) else tuple(network) if isinstance(network, Sequence) else ()
        if not self._networks or not all(isinstance(member, nn.Module) for member in self._networks):
            raise InputError("network", type(network).__name__, "a network or a non-empty sequence of networks")
        one_of("precision", precision, get_args(Precision))
        one_of("combine", combine, get_args(Combine))
        self._weights = _normalised(weights, len(self._networks))
        self._precision: Precision = precision
        self._combine: Combine = combine
        self._channels_last, self._fold, self._compile = channels_last, fold, compile
        self._renormalise = renormalise
        self._kept: tuple[str, ...] = ()  # tapped paths: their modules' outputs must survive folding
        self._prepared: _Prepared | None = None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks as they were given."""
        return self._networks

    @property
    def renormalise(self) -> Renormalise | None:
        """What is applied to the images first."""
        return self._renormalise

    @torch.compiler.disable  # the first call copies and folds networks, which is nothing for a graph
    def __call__(self, batch_or_tensor: Any) -> Tensor:
        """The teacher's logits.

        Args:
            batch_or_tensor: a batch (what its ``inputs`` are is read) or the inputs themselves.

        Returns:
            Logits [B, C, ...] in float32 without gradient. A single network that answers with a structure gives that structure.
        """
        inputs = self._inputs(batch_or_tensor)
        prepared = self._prepare(inputs)
        outputs = [prepared.run(index, inputs)[0] for index in range(len(self._networks))]
        if len(outputs) == 1:
            only: Tensor = outputs[0]
            return only
        return self._combined(outputs)

    def tap(self, *paths: str, argument: str = "paths") -> Callable[[Any], tuple[Any, dict[str, Any]]]:
        """Read intermediate outputs too, see `stillroom.engine.tap`.

        Args:
            *paths: module paths of the network.
            argument: what the user calls the paths; named in errors.

        Returns:
            A callable ``batch -> (output, {path: feature})``; both in float32 and without gradient.

        Raises:
            InputError: an unknown path, or an ensemble.
        """
        if len(self._networks) > 1:
            raise InputError("teacher", f"an ensemble of {len(self._networks)} networks", "a single network, where features are read")
        tap(self._networks[0], *paths, argument=argument)  # checks them now rather than at the first step
        names = module_paths(self._networks[0])
        answers = [path for path in paths if not path.endswith(INPUT)]  # what a module is given outlives the folding of what gave it
        kept = {*self._kept, *(path if path in names else plain_path(path) for path in answers)}
        if kept != set(self._kept):
            self._kept = tuple(sorted(kept))
            self._prepared = None
        return _TeacherTap(self, paths)

    def around(self, wrap: Callable[[nn.Module], nn.Module]) -> Teacher:
        """The same teacher, each of its networks inside a module that answers otherwise: with its features, say."""
        wrapped = copy.copy(self)
        wrapped._networks = tuple(map(wrap, self._networks))
        wrapped._kept = ()
        return wrapped

    def precision_on(self, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
        """What "auto" means on a device; otherwise the precision that was asked for.

        Raises:
            InputError: the device has no such precision.
        """
        return _resolved(self._precision, device)

    def fingerprint(self) -> str:
        """A hash over architectures, weights and options: equal where the answers are, on the same machine."""
        digest = hashlib.blake2b(digest_size=16)
        options = (self._precision, self._channels_last, self._fold, self._compile, self._weights, self._combine, self._renormalise)
        digest.update(repr(options).encode())
        for network in map(unwrap, self._networks):
            # Addresses of functions would differ from one process to the next.
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())
            digest.update(changed_answers(network).encode())
            for key, value in network.state_dict().items():
                if not isinstance(value, Tensor):
                    digest.update(f"{key} {value!r}".encode())
                    continue
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # made again where it is needed

    def __repr__(self) -> str:
        names = ", ".join(type(unwrap(network)).__name__ for network in self._networks)
        return f"Teacher({names}, precision={self._precision!r})"

    def _inputs(self, batch: Any) -> Any:
        if self._renormalise is not None and hasattr(batch, "renormalised"):
            return batch.renormalised(self._renormalise).inputs
        inputs = batch.inputs if hasattr(batch, "inputs") else batch
        if self._renormalise is None:
            return inputs
        if not isinstance(inputs, Tensor):
            raise InputError(
                "renormalise",
                f"inputs of type {type(inputs).__name__}",
                "a tensor of images [B, C, H, W], or a batch with the method renormalised",
            )
        return self._renormalise(inputs)

    def _prepare(self, inputs: Any) -> _Prepared:
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        if not tensors:
            raise InputError("batch", type(inputs).__name__, "inputs that hold at least one tensor")
        device = tensors[0].device
        if self._prepared is None or self._prepared.device != device:
            self._prepared = None  # before the new one is made: never two copies in memory
            self._prepared = _Prepared(
                self._networks, device, self._precision, self._channels_last, self._kept if self._fold else None, self._compile
            )
        return self._prepared

    def _combined(self, outputs: list[Tensor]) -> Tensor:
        shapes = {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ for output in outputs}
        if len(shapes) > 1 or not isinstance(outputs[0], Tensor) or outputs[0].ndim < 2:
            answers = ", ".join(map(str, shapes))
            raise InputError("network", f"members that answer with {answers}", "logits [B, C, ...] of one shape from each")
        stacked_KBC = torch.stack(outputs)
        weights_K = torch.tensor(self._weights, device=stacked_KBC.device).view(-1, *[1] * outputs[0].ndim)
        if self._combine == "logits":
            return (weights_K * stacked_KBC).sum(0)
        return (stacked_KBC.log_softmax(2) + weights_K.log()).logsumexp(0)


class _TeacherTap:
    def __init__(self, teacher: Teacher, paths: tuple[str, ...]) -> None:
        self.teacher, self.paths = teacher, paths

    @torch.compiler.disable
    def __call__(self, batch_or_tensor: Any) -> tuple[Any, dict[str, Any]]:
        inputs = self.teacher._inputs(batch_or_tensor)
        return self.teacher._prepare(inputs).run(0, inputs, self.paths)


class _Prepared:
    """Copies of the networks, ready to answer on one device."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        device: torch.device,
        precision: Precision,
        channels_last: bool,
        kept: Sequence[str] | None,  # None: nothing is folded at all
        compile: bool,
    ) -> None:
        self.device = device
        self.dtype = _REDUCED.get(_resolved(precision, device))
        self.channels_last = channels_last
        self.networks = []
        for network in map(unwrap, networks):
            ready = copy.deepcopy(network).eval() if kept is None else fold_batchnorm(network, keep=kept)
            ready = ready.requires_grad_(False).to(device).float()  # a network kept in half precision too
            if self.dtype is not None:
                _cast(ready, self.dtype)
            self.networks.append(ready)
        self._lay_out()
        self.callables: list[nn.Module] = [cast(nn.Module, torch.compile(network)) if compile else network for network in self.networks]
        self.taps: dict[tuple[str, ...], Tap] = {}

    def _lay_out(self) -> None:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for module in (module for network in self.networks for module in network.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(module._parameters.get("weight"), Tensor):
                module.weight.data = module.weight.data.contiguous(memory_format=layout)

    def run(self, index: int, inputs: Any, paths: tuple[str, ...] | None = None) -> tuple[Any, dict[str, Any]]:
        """Network `index`'s answer and its features at `paths`."""
        try:
            return self._run(index, inputs, paths)
        except RuntimeError as error:
            if not self.channels_last or "view size is not compatible" not in str(error):
                raise
            self.channels_last = False  # this network flattens feature maps with `view`, which needs the ordinary layout
            self._lay_out()
            return self._run(index, inputs, paths)

    # Not inference_mode: its tensors cannot be saved for a backward pass, and the student's loss saves the teacher's answers.
    @torch.no_grad()
    def _run(self, index: int, inputs: Any, paths: tuple[str, ...] | None) -> tuple[Any, dict[str, Any]]:
        network = self.callables[index]
        inputs = tree_map(self._input, inputs)
        # Where precision is full, an autocast around the student's step must not reach in.
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            if paths is None:
                return tree_map(_answer, network(inputs)), {}
            if paths not in self.taps:
                self.taps[paths] = tap(network, *paths)
            output, features = self.taps[paths](inputs)
        return tree_map(_answer, output), tree_map(_answer, features)

    def _input(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            leaf = leaf.float()
        return leaf.contiguous(memory_format=torch.channels_last) if self.channels_last and leaf.ndim == 4 else leaf


def _answer(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach()
    return leaf.float() if leaf.is_floating_point() else leaf


def _normalised(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / members,) * members
    values = [float(weight) for weight in weights]
    if len(values) != members:
        raise InputError("weights", f"{len(values)} values", f"one per network ({members})")
    if not all(math.isfinite(value) and value >= 0 for value in values) or not sum(values):
        raise InputError("weights", values, "finite numbers of at least 0, not all 0")
    return tuple(value / sum(values) for value in values)


def _resolved(precision: Precision, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    if precision == "auto":
        return "bf16" if _fast_bf16(device) else "fp32"
    if precision != "fp32" and not torch.amp.is_autocast_available(device.type):
        raise InputError("precision", precision, f"fp32: PyTorch has no mixed precision on {device.type}")
    return precision


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private names of PyTorch, hence guarded; without one of these instruction sets bfloat16 is emulated, and slower.
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return False


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that autocast would cast at every call: it remembers casts of weights that need gradients only."""
    for parent in network.modules():
        if type(parent).__module__.startswith("torch.nn.") and not isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            continue  # attention and transformer layers hand their children's weights to fused kernels, which want one dtype
        for child in parent.children():
            if type(child) in _CAST:
                _cast_layer(child, dtype)
    if type(network) in _CAST:
        _cast_layer(network, dtype)


def _cast_layer(layer: nn.Module, dtype: torch.dtype) -> None:
    for name in ("weight", "bias"):
        value = layer._parameters.get(name)
        if value is not None and value.dtype == torch.float32:
            # A new parameter: the old one may be tied to an embedding, which stays as it is.
            setattr(layer, name, nn.Parameter(value.to(dtype), requires_grad=False))
