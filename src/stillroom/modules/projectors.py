"""Modules that bring a student's and a teacher's features to a common form, and a way to learn the sizes they are built for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.utils.hooks import RemovableHandle

from stillroom.errors import InputError, at_least
from stillroom.losses.precision import at_least_float32


@contextmanager
def probing(network: nn.Module, example: Tensor) -> Iterator[None]:
    """Inside, `network` may be run on `example` to see what shapes come out, without leaving a trace.

    Eval mode without gradients, so that no BatchNorm statistic moves; afterwards every module is back in its own mode and the random
    number generators are where they were.
    """
    modes = [(module, module.training) for module in network.modules()]
    with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []), torch.no_grad():
        try:
            network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def probe(network: nn.Module, example: Tensor, hooks: Iterable[RemovableHandle]) -> None:
    """Runs the network once as in `probing`; the hooks that watch it are taken away afterwards, whatever happens."""
    try:
        with probing(network, example):
            network(example)
    finally:
        for hook in hooks:
            hook.remove()


class LinearEmbedding(nn.Module):
    """A linear map to the unit sphere: z / ||z|| with z = W x + b.

    Args:
        in_features: D, width of the features.
        embed_dim: E, width of the embedding.

    Raises:
        InputError: a width is not above 0.

    Source: Tian et al. 2020 (CRD), section 3.1, g_T and g_S; Wu et al. 2018, section 3.
    """

    def __init__(self, in_features: int, embed_dim: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(at_least("in_features", in_features, 1), at_least("embed_dim", embed_dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings [B, E] of unit length, float32 at least.

        Args:
            features: [B, D], or more dimensions that flatten to D such as [B, D, 1, 1].
        """
        features_BD = features.flatten(1)
        if features_BD.shape[1] != self.linear.in_features:
            raise InputError("features", f"a tensor of shape {tuple(features.shape)}", f"[B, {self.linear.in_features}]")
        embedding_BE = linear(features_BD.to(self.linear.weight.dtype), self.linear.weight, self.linear.bias)
        return normalize(at_least_float32(embedding_BE), dim=1)


class ConvRegressor(nn.Module):
    """Maps a student's feature map to the channels and the size of a teacher's: convolution, BatchNorm and, where asked for, ReLU.

    The paper's regressor is a convolution without padding whose kernel is as large as it takes to reach the hint's size,
    k = H_student - H_teacher + 1 (so 1x1 for equal sizes). Where one size divides the other a stride does the same with a small kernel.
    A student's map that is smaller than the teacher's goes through the transpose of that convolution. BatchNorm is what later
    benchmarks put behind it; it needs more than one value per channel in train mode.

    Args:
        student_shape, teacher_shape: (C, H, W) of the two maps.
        relu: True for a hint read behind a ReLU, False for one read before it. The two sides must share their non-linearity.

    Raises:
        InputError: a shape is not (C, H, W), or the student's map is larger along one side and smaller along the other.

    Source: Romero et al. 2015 (FitNets), section 2.2.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], *, relu: bool = True) -> None:
        super().__init__()
        for name, shape in (("student_shape", student_shape), ("teacher_shape", teacher_shape)):
            if len(shape) != 3 or min(shape) < 1:
                raise InputError(name, tuple(shape), "(C, H, W) of a feature map, each at least 1")
        self.student_shape, self.teacher_shape = tuple(student_shape), tuple(teacher_shape)
        (channels, *student_size), (hint_channels, *hint_size) = student_shape, teacher_shape
        shrinks = all(ours >= hint for ours, hint in zip(student_size, hint_size, strict=True))
        grows = all(ours <= hint for ours, hint in zip(student_size, hint_size, strict=True))
        if not (shrinks or grows):
            expected = f"a map nowhere smaller, or nowhere larger, than {self.teacher_shape}"
            raise InputError("student_shape", self.student_shape, expected)
        sides = [_side(max(pair), min(pair)) for pair in zip(student_size, hint_size, strict=True)]
        kernel, stride, padding = ((a, b) for a, b in zip(*sides, strict=True))
        self.conv: nn.Module
        if shrinks:
            self.conv = nn.Conv2d(channels, hint_channels, kernel, stride, padding, bias=False)
        else:
            rest = (stride[0] - 1, stride[1] - 1)
            self.conv = nn.ConvTranspose2d(channels, hint_channels, kernel, stride, padding, output_padding=rest, bias=False)
        self.norm = nn.BatchNorm2d(hint_channels)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """The student's map in the teacher's shape, [B, *teacher_shape].

        Raises:
            InputError: another shape than the regressor was built for.
        """
        if features_BCHW.shape[1:] != self.student_shape:
            expected = f"[B, {', '.join(map(str, self.student_shape))}]"
            raise InputError("features_BCHW", f"a tensor of shape {tuple(features_BCHW.shape)}", expected)
        mapped: Tensor = self.relu(self.norm(self.conv(features_BCHW)))
        return mapped


def _side(large: int, small: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a convolution that takes `large` pixels to `small`; its transpose goes the other way."""
    if large % small == 0:
        ratio = large // small
        return 2 * ratio - 1, ratio, ratio - 1
    return large - small + 1, 1, 0
