"""Sparse convolution in three dimensions: features live at the voxels that hold something, and only there is anything computed.

A convolution with kernel offset o, stride s and padding p takes the value at `target * s + o - p` to `target`, as `conv3d` does on a
dense block whose other cells are 0. Which rows meet at which offset (the kernel map) depends on the coordinates alone; it is found once,
by binary search in sorted keys, and kept with the coordinates for every later layer on them. Where spconv is installed and the features
lie on a CUDA device, it does the forward arithmetic on these maps.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import InputError
from stillroom.tasks.points.voxels import RowNorm

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class KernelMap:
    """Rows that meet, offset by offset.

    Args:
        source, target: int64 [T], rows of the input and of the output; within one offset neither holds a row twice.
        sizes: pairs per kernel offset, in the order of the weight's (z, y, x); they add up to T.
        centre: the offset at which every row meets itself and whose pairs are therefore left out (their size is 0); None: there is none.
    """

    source: Tensor
    target: Tensor
    sizes: tuple[int, ...]
    centre: int | None = None

    @functools.cached_property
    def transposed(self) -> KernelMap:
        """The same pairs the other way."""
        return KernelMap(self.target, self.source, self.sizes, self.centre)


@dataclass(frozen=True)
class SparseTensor:
    """Features at voxels.

    Args:
        features: [M, C].
        coords: int64 [M, 4] (batch, z, y, x), each once.
        spatial_shape: cells along (z, y, x).
        batch_size: samples, those without a voxel included.
        stride: size of a cell along (z, y, x) in voxels of the finest level.
        maps: what was found about these coordinates; every tensor on them shares it.
    """

    features: Tensor
    coords: Tensor
    spatial_shape: Triple
    batch_size: int
    stride: Triple = (1, 1, 1)
    maps: dict[Any, Any] = field(default_factory=dict)

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features [M, C'] at the same voxels."""
        return replace(self, features=features)

    def sorted_keys(self, padding: Triple) -> tuple[Tensor, Tensor, Triple]:
        """Numbers of the cells in a block padded on each side, rising; the row of each; and the padded block's steps along (z, y, x).

        With the padding of a kernel's reach a neighbour's number is a cell's plus a constant, and none wraps into the next row.
        """
        if ("keys", padding) not in self.maps:
            z, y, x = (size + 2 * pad for size, pad in zip(self.spatial_shape, padding, strict=True))
            batch, *cell = self.coords.unbind(1)
            keys = ((batch * z + cell[0] + padding[0]) * y + cell[1] + padding[1]) * x + cell[2] + padding[2]
            self.maps["keys", padding] = (*keys.sort(), (y * x, x, 1))
        return cast(tuple[Tensor, Tensor, Triple], self.maps["keys", padding])

    def dense(self) -> Tensor:
        """[B, C, Z, Y, X], 0 where there is no voxel."""
        z, y, x = self.spatial_shape
        batch, *cell = self.coords.unbind(1)
        block = self.features.new_zeros(self.batch_size * z * y * x, self.features.shape[1])
        block.index_copy_(0, ((batch * z + cell[0]) * y + cell[1]) * x + cell[2], self.features)
        return block.view(self.batch_size, z, y, x, -1).permute(0, 4, 1, 2, 3)

    def to_bev(self) -> Tensor:
        """The layers of height stacked into channels: [B, C * Z, Y, X], channel c * Z + z."""
        return self.dense().flatten(1, 2)


def _submanifold_map(tensor: SparseTensor, kernel: Triple) -> KernelMap:
    """Pairs of voxels one kernel apart. An offset and its mirror image share their search: their pairs are each other's turned round."""
    if ("submanifold", kernel) in tensor.maps:
        return cast(KernelMap, tensor.maps["submanifold", kernel])
    reach = cast(Triple, tuple(size // 2 for size in kernel))
    keys, rows, steps = tensor.sorted_keys(reach)
    offsets = list(itertools.product(*(range(-size, size + 1) for size in reach)))
    half = []
    for offset in offsets[: len(offsets) // 2]:
        wanted = keys + sum(step * shift for step, shift in zip(steps, offset, strict=True))
        place = torch.searchsorted(keys, wanted).clamp_max_(max(len(keys) - 1, 0))
        found = (keys[place] == wanted).nonzero().squeeze(1)
        half.append((rows[place[found]], rows[found]))
    none = rows[:0]
    pairs = [*half, (none, none), *((target, source) for source, target in reversed(half))]
    source, target = (torch.cat(side) for side in zip(*pairs, strict=True))
    made = KernelMap(source, target, tuple(len(side) for side, _ in pairs), centre=len(half))
    tensor.maps["submanifold", kernel] = made
    return made


@dataclass(frozen=True)
class _Coarser:
    """The level that a strided convolution leads to: its coordinates, and the pairs that lead there."""

    pairs: KernelMap
    coords: Tensor
    shape: Triple
    stride: Triple
    maps: dict[Any, Any]


def _coarser(tensor: SparseTensor, kernel: Triple, stride: Triple, padding: Triple) -> _Coarser:
    """Every cell that a strided convolution reaches from a voxel; the cells come in rising order."""
    geometry = (kernel, stride, padding)
    if ("coarser", geometry) in tensor.maps:
        return cast(_Coarser, tensor.maps["coarser", geometry])
    shape = cast(Triple, tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(tensor.spatial_shape, kernel, stride, padding, strict=True)))
    if min(shape) < 1:
        raise InputError("spatial_shape", tensor.spatial_shape, f"at least the kernel {kernel} less the padding {padding} on both sides")
    batch, cells = tensor.coords[:, 0], tensor.coords[:, 1:]
    step, most = cells.new_tensor(stride), cells.new_tensor(shape)
    sources, keys = [], []
    for offset in itertools.product(*(range(size) for size in kernel)):
        lower = cells + cells.new_tensor(padding) - cells.new_tensor(offset)
        reached = lower.div(step, rounding_mode="floor")
        row = ((lower >= 0) & (lower == reached * step) & (reached < most)).all(1).nonzero().squeeze(1)
        z, y, x = reached[row].unbind(1)
        sources.append(row)
        keys.append(((batch[row] * shape[0] + z) * shape[1] + y) * shape[2] + x)
    unique, target = torch.unique(torch.cat(keys), return_inverse=True)
    rest = unique // shape[2]
    coords = torch.stack((rest // (shape[1] * shape[0]), rest // shape[1] % shape[0], rest % shape[1], unique % shape[2]), 1)
    pairs = KernelMap(torch.cat(sources), target, tuple(len(row) for row in sources))
    coarse_stride = cast(Triple, tuple(a * b for a, b in zip(tensor.stride, stride, strict=True)))
    finer = (pairs, tensor.coords, tensor.spatial_shape, tensor.stride, tensor.maps)
    made = _Coarser(pairs, coords, shape, coarse_stride, {"finer": finer, "kernel": kernel})
    tensor.maps["coarser", geometry] = made
    return made


class _Convolve(torch.autograd.Function):
    """Gather, multiply, add, offset by offset; only the features and the weight are kept for the backward pass, no gathered rows."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: KernelMap, rows: int) -> Tensor:
        """Features [M, C_in] and weight [K, C_in, C_out] -> [rows, C_out], added up in float32 or wider."""
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        if features.is_cuda and _spconv():
            return _convolve_by_spconv(features, weight, pairs, rows)
        wide = torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype
        out = features.new_zeros(rows, weight.shape[2], dtype=wide)
        if pairs.centre is not None:
            out += features @ weight[pairs.centre]
        for place, source, target in _offsets(pairs):
            out.index_add_(0, target, (features[source] @ weight[place]).to(wide))
        return out.to(features.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features and weight."""
        (features, weight), pairs, grad = ctx.saved_tensors, ctx.pairs, grads[0]
        wide = torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype
        grad_features = torch.zeros_like(features, dtype=wide)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        if pairs.centre is not None:
            grad_features += grad @ weight[pairs.centre].T
            grad_weight[pairs.centre] = features.T @ grad
        for place, source, target in _offsets(pairs):
            arrived = grad[target]
            if ctx.needs_input_grad[0]:
                grad_features.index_add_(0, source, (arrived @ weight[place].T).to(wide))
            grad_weight[place] = features[source].T @ arrived
        return grad_features.to(features.dtype), grad_weight.to(weight.dtype), None, None


def _offsets(pairs: KernelMap) -> list[tuple[int, Tensor, Tensor]]:
    """(offset, rows of the input, rows of the output) of each offset at which any meet."""
    both = zip(pairs.source.split(pairs.sizes), pairs.target.split(pairs.sizes), strict=True)
    return [(place, source, target) for place, (source, target) in enumerate(both) if len(source)]


@functools.cache
def _spconv() -> bool:
    return importlib.util.find_spec("spconv") is not None


def _convolve(features: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap, rows: int) -> Tensor:
    """Weight [C_out, kz, ky, kx, C_in] over the pairs; under autocast in its precision, added up in float32."""
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        features, weight = features.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
    out = cast(Tensor, _Convolve.apply(features, weight.flatten(1, 3).permute(1, 2, 0), pairs, rows))
    return out if bias is None else out + bias.to(out)


def _convolve_by_spconv(features: Tensor, weight: Tensor, pairs: KernelMap, rows: int) -> Tensor:
    """`_Convolve`'s forward pass by spconv's kernels, on our map in its layout: pairs [2, K, most] filled up with -1, their number [K]."""
    from spconv.core import ConvAlgo
    from spconv.pytorch import functional as native

    sizes = list(pairs.sizes)
    parts = [list(side.split(sizes)) for side in (pairs.source, pairs.target)]
    if pairs.centre is not None:
        every = torch.arange(rows, device=features.device)
        sizes[pairs.centre], parts[0][pairs.centre], parts[1][pairs.centre] = rows, every, every
    table = torch.full((2, len(sizes), max(sizes)), -1, dtype=torch.int32, device=features.device)
    for side in range(2):
        for place, part in enumerate(parts[side]):
            table[side, place, : len(part)] = part
    counts = torch.tensor(sizes, dtype=torch.int32, device=features.device)
    filters = weight.permute(2, 0, 1).contiguous()[:, :, None, None]  # [C_out, K, 1, 1, C_in]
    return cast(Tensor, native.indice_conv(features.contiguous(), filters, table, counts, rows, ConvAlgo.Native))


class _SparseConv(nn.Module):
    """Weight [C_out, kz, ky, kx, C_in] as spconv lays it out, and an optional bias [C_out]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], *, bias: bool) -> None:
        super().__init__()
        self.kernel = _triple(kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels * math.prod(self.kernel))  # as torch's convolutions start
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{self.weight.shape[-1]}, {self.weight.shape[0]}, kernel_size={self.kernel}"


class SubMConv3d(_SparseConv):
    """Submanifold convolution: the voxels stay where they are, however many layers follow.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd, one number or (z, y, x).
        bias: whether there is one.

    Raises:
        InputError: an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int] = 3, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        if not all(size % 2 for size in self.kernel):
            raise InputError("kernel_size", kernel_size, "odd sizes")

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """[M, C_in] -> [M, C_out] at the same voxels."""
        pairs = _submanifold_map(tensor, self.kernel)
        return tensor.with_features(_convolve(tensor.features, self.weight, self.bias, pairs, len(tensor.coords)))


class SparseConv3d(_SparseConv):
    """Strided convolution: the output lives wherever the kernel reaches from a voxel.

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, padding: one number or (z, y, x).
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        self.stride, self.padding = _triple(stride), _triple(padding)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """[M, C_in] -> [M', C_out] on the coarser level.

        Raises:
            InputError: the block is smaller than the kernel.
        """
        level = _coarser(tensor, self.kernel, self.stride, self.padding)
        features = _convolve(tensor.features, self.weight, self.bias, level.pairs, len(level.coords))
        return SparseTensor(features, level.coords, level.shape, tensor.batch_size, level.stride, level.maps)


class SparseInverseConv3d(_SparseConv):
    """Back to the voxels that the strided convolution of the same kernel came from, along the same pairs turned round.

    Args:
        in_channels, out_channels: widths.
        kernel_size: that of the strided convolution.
        bias: whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """[M', C_in] -> [M, C_out] on the finer level.

        Raises:
            InputError: the tensor does not come from a strided convolution of this kernel.
        """
        if tensor.maps.get("kernel") != self.kernel:
            raise InputError("tensor", "a tensor of another origin", f"the output of a strided convolution of kernel {self.kernel}")
        pairs, coords, shape, stride, maps = tensor.maps["finer"]
        features = _convolve(tensor.features, self.weight, self.bias, pairs.transposed, len(coords))
        return SparseTensor(features, coords, shape, tensor.batch_size, stride, maps)


class SparseBatchNorm(RowNorm):
    """Batch norm over the voxels."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """[M, C] -> [M, C]."""
        return tensor.with_features(super().forward(tensor.features))


class SparseReLU(nn.Module):
    """ReLU at every voxel."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """[M, C] -> [M, C]."""
        return tensor.with_features(functional.relu(tensor.features))


def interpolate(tensor: SparseTensor, positions: Tensor, batch_index: Tensor, *, renormalise: bool = False) -> Tensor:
    """Trilinear values at positions.

    Args:
        tensor: of any level.
        positions: [N, 3] (z, y, x) in voxels of the finest level; voxel i covers [i, i + 1), and values sit at the cells' centres.
        batch_index: int64 [N].
        renormalise: divide by the weight of the neighbours that exist; otherwise a missing neighbour counts as 0.

    Returns:
        [N, C]; 0 where no neighbour exists.
    """
    keys, rows, steps = tensor.sorted_keys((1, 1, 1))  # a position within half a cell of the block's side has neighbours outside
    z, y, x = (size + 2 for size in tensor.spatial_shape)
    cell = positions / positions.new_tensor(tensor.stride) - 0.5
    cell = torch.minimum(cell.clamp_min(-1), cell.new_tensor(tensor.spatial_shape) - 1e-3)
    lower = cell.floor()
    part = cell - lower
    low = lower.long() + 1
    base = ((batch_index * z + low[:, 0]) * y + low[:, 1]) * x + low[:, 2]
    out = tensor.features.new_zeros(len(positions), tensor.features.shape[1])
    total = part.new_zeros(len(positions))
    if not len(keys):
        return out
    for corner in itertools.product((0, 1), repeat=3):
        wanted = base + sum(step * shift for step, shift in zip(steps, corner, strict=True))
        place = torch.searchsorted(keys, wanted).clamp_max_(len(keys) - 1)
        weight = torch.where(part.new_tensor(corner) > 0, part, 1 - part).prod(1) * (keys[place] == wanted)
        out = out + weight[:, None].to(out) * tensor.features[rows[place]]
        total = total + weight
    return out / total.clamp_min(1e-12)[:, None].to(out) if renormalise else out


def _triple(value: int | Sequence[int]) -> Triple:
    return (value, value, value) if isinstance(value, int) else cast(Triple, tuple(value))
