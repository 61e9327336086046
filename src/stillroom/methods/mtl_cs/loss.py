"""What KDAM compares, and how: probability maps of every kind of target, matched in rows (inter-task) and in columns (intra-task).

Symbols: z_t [B, C_t, h, w] the raw answer to target t, P_t [B, K_t, h, w] its probability map, T the temperature, kappa the gain that
brings measured values to the range of logits, M the number of targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from stillroom.engine.distributed import averaged
from stillroom.errors import InputError, at_least_zero, one_of, positive
from stillroom.losses.precision import in_one_type

Kind = Literal["classes", "binary", "scalar", "direction"]
Divergence = Literal["cs", "kl"]
Inter = Literal["joint", "per_task", "none"]

DIVERGENCES: tuple[Divergence, ...] = ("cs", "kl")
INTERS: tuple[Inter, ...] = ("joint", "per_task", "none")
EPS = 1e-12
_DEVIATIONS = 20.0  # at most so large is u: a teacher's map that is constant has no scale
_FLAT = 1e-6  # added to the variance of a teacher's map
_TINY = 1e-24  # of a squared norm: below it a vector has no direction


class _CauchySchwarz(torch.autograd.Function):
    """See `cs_divergence`: with r = p - (p q / |q|^2) q, which is what p has beside q, |p|^2 |q|^2 - (p q)^2 is |q|^2 |r|^2, in all its
    digits where p and q are nearly proportional; value and gradient are told by r."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
        qq, pq = (q * q).sum(dims, keepdim=True), (p * q).sum(dims, keepdim=True)
        along = pq / qq.clamp_min(_TINY)
        r = torch.addcmul(p, q, -along)
        rr = (r * r).sum(dims, keepdim=True)
        both, inner = (along * pq + rr) * qq + eps, pq * pq + eps
        sine = qq * rr / both  # 1 - inner / both
        near = sine < 0.5
        found = torch.where(near, -torch.log1p(-torch.where(near, sine, 0.0)), -torch.log(inner / both))
        ctx.save_for_backward(r, q, 2 * qq / both, -2 * pq * sine / inner)
        ctx.dims = dims
        return found.squeeze(dims)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        r, q, of_r, of_q = ctx.saved_tensors
        gradient = gradients[0]
        for dim in sorted(ctx.dims):
            gradient = gradient.unsqueeze(dim)
        return torch.addcmul(r * (gradient * of_r), q, gradient * of_q), None, None, None


def cs_divergence(p: Tensor, q: Tensor, dim: int | tuple[int, ...] = -1, *, square: bool = True, eps: float = EPS) -> Tensor:
    """Cauchy-Schwarz divergence: symmetric, blind to the scale of either, 0 where they are proportional or one is all zeros.

        D = -log( ((p q)^2 + eps) / (|p|^2 |q|^2 + eps) )

    Args:
        p, q: non-negative, of one shape; they need not sum to 1. No gradient reaches q.
        dim: along which, one or several, they are vectors.
        square: with the square, as above; else half of it, -log cos.
        eps: keeps rows of zeros, and orthogonal ones, finite.

    Returns:
        The shape without `dim`, at least 0.

    Source: section 2 of the method; the standard form of the divergence.
    """
    dims = tuple(one % p.ndim for one in ((dim,) if isinstance(dim, int) else dim))
    divergence: Tensor = _CauchySchwarz.apply(p, q, dims, eps)
    return divergence if square else divergence / 2


def probability_maps(student: Tensor, teacher: Tensor, kind: Kind, *, temperature: float, kappa: float = 4.0) -> tuple[Tensor, Tensor]:
    """Both networks' answers to one target as distributions over K outcomes at every position.

    ``classes``: softmax(z / T), K = C. ``binary``: softmax([0, z] / T). ``scalar``: u = kappa (z - mu) / sigma, with mean and deviation of
    the *teacher's* map of the same image for both, at most 20 in size; softmax([0, u] / T), near against far. ``direction``:
    n = z / |z|; softmax(kappa [n, -n] / T), the six directions of the axes.

    Args:
        student, teacher: z [B, C, h, w].
        kind: of the target.
        temperature: T.
        kappa: gain of what is measured.

    Returns:
        P_S and P_T, [B, K, h, w], at least float32. No gradient reaches the teacher.

    Source: section 3 of the method.
    """
    student, teacher = in_one_type(student, teacher.detach())
    if kind == "classes":
        found = student, teacher
    elif kind == "binary":
        found = _against_zero(student), _against_zero(teacher)
    elif kind == "scalar":
        variance, mean = torch.var_mean(teacher, (2, 3), correction=0, keepdim=True)
        gain = kappa / (variance + _FLAT).sqrt()
        found = tuple(_against_zero(((z - mean) * gain).clamp(-_DEVIATIONS, _DEVIATIONS)) for z in (student, teacher))  # type: ignore[assignment]
    else:
        found = _six_directions(student, kappa), _six_directions(teacher, kappa)
    return (found[0] / temperature).softmax(1), (found[1] / temperature).softmax(1)


def _against_zero(z_B1HW: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(z_B1HW), z_B1HW), 1)


def _six_directions(z_B3HW: Tensor, kappa: float) -> Tensor:
    n_B3HW = kappa * z_B3HW / (z_B3HW.square().sum(1, keepdim=True) + EPS).sqrt()
    return torch.cat((n_B3HW, -n_B3HW), 1)


@dataclass(frozen=True)
class Match:
    """How the answers of student and teacher are matched.

    Args:
        temperature: T, above 0.
        beta: weight of what is matched.
        kappa: gain of what is measured, above 0.
        divergence: ``cs``, by rows and columns; or ``kl``, the usual distillation, target by target.
        inter: rows: ``joint``, all targets' distributions at a position as one vector; ``per_task``, each alone; ``none``.
        intra: whether columns are matched: a class's probabilities over all positions of the batch.
        square: of `cs_divergence`.

    Raises:
        InputError: a number or a word that has no meaning here, or nothing to match.
    """

    temperature: float = 8.0
    beta: float = 0.5
    kappa: float = 4.0
    divergence: Divergence = "cs"
    inter: Inter = "joint"
    intra: bool = True
    square: bool = True

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        positive("kappa", self.kappa)
        at_least_zero("beta", self.beta)
        one_of("divergence", self.divergence, DIVERGENCES)
        one_of("inter", self.inter, INTERS)
        if self.divergence == "cs" and self.inter == "none" and not self.intra:
            raise InputError("inter", "none, without intra", "something to match: inter joint or per_task, or intra")

    def maps(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], kinds: Mapping[str, Kind]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """`probability_maps` of each target."""
        settings = {"temperature": self.temperature, "kappa": self.kappa}
        return {name: probability_maps(student[name], teacher[name], kind, **settings) for name, kind in kinds.items()}

    def terms(self, maps: Sequence[tuple[Tensor, Tensor]], valid_B1HW: Tensor | None = None) -> dict[str, Tensor]:
        """The terms that are switched on, each with T^2 and without beta: ``inter`` and ``intra``, or ``kl``.

        Args:
            maps: P_S and P_T of each target.
            valid_B1HW: where it is 0, rows are dropped and columns shortened; by default all positions take part.
        """
        scale = self.temperature**2
        if self.divergence == "kl":
            return {"kl": scale * kl_match(maps, valid_B1HW)}
        together, found = collected(maps), {}
        if self.inter == "joint":
            found["inter"] = scale * inter_match(together, valid_B1HW, square=self.square)
        elif self.inter == "per_task":
            each = [inter_match(collected([pair]), valid_B1HW, square=self.square) for pair in maps]
            found["inter"] = scale * torch.stack(each).mean()
        if self.intra:
            found["intra"] = scale * intra_match(together, valid_B1HW, square=self.square)
        return found


class Collected(NamedTuple):
    """All targets' distributions at every position: c = concat_t sqrt(K_t) P_t.

    The factor gives a flat distribution norm 1 in every target: a peaked target weighs more, one of many classes does not.

    Attributes:
        student, teacher: [B, sum K_t, h, w].
        sizes: K_t.
    """

    student: Tensor
    teacher: Tensor
    sizes: tuple[int, ...]


def collected(maps: Sequence[tuple[Tensor, Tensor]]) -> Collected:
    """P_S and P_T [B, K_t, h, w] of some targets, together."""
    sizes = tuple(int(P.shape[1]) for P, _ in maps)
    scales = torch.tensor([math.sqrt(size) for size in sizes for _ in range(size)], device=maps[0][0].device).view(1, -1, 1, 1)
    student, teacher = (scales.to(side[0].dtype) * torch.cat(side, 1) for side in zip(*maps, strict=True))
    return Collected(student, teacher, sizes)


def inter_match(together: Collected, valid_B1HW: Tensor | None = None, *, square: bool = True) -> Tensor:
    """Rows: the divergence of what both say at a position, of all targets together; the mean over positions and the batch.

    Source: section 4 of the method.
    """
    return _mean(cs_divergence(together.student, together.teacher, 1, square=square), valid_B1HW)


def intra_match(together: Collected, valid_B1HW: Tensor | None = None, *, square: bool = True) -> Tensor:
    """Columns: the divergence of a class's probabilities over all positions of the batch, the mean over classes, then over targets.

    A column is compared up to its scale: it fixes patterns, not levels. Source: section 5 of the method.
    """
    sides = [side if valid_B1HW is None else side * valid_B1HW for side in together[:2]]
    each = cs_divergence(sides[0], sides[1], (0, 2, 3), square=square)
    return torch.stack([of_target.mean() for of_target in each.split(together.sizes)]).mean()


def kl_match(maps: Sequence[tuple[Tensor, Tensor]], valid_B1HW: Tensor | None = None) -> Tensor:
    """KL(P_T || P_S) of every target at every position, the mean over positions, then over targets: the distillation that CS replaces."""
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([_mean(kl_div(p.clamp_min(tiny).log(), q, reduction="none").sum(1), valid_B1HW) for p, q in maps]).mean()


def _mean(values_BHW: Tensor, valid_B1HW: Tensor | None) -> Tensor:
    """Over the valid positions of all processes; 0 where there is none."""
    if valid_B1HW is None:
        return values_BHW.mean()
    # DDP takes the mean of the processes' gradients: so each sum is divided by their mean number of valid positions
    return (values_BHW * valid_B1HW[:, 0]).sum() / averaged(valid_B1HW.sum()).clamp_min(1)
