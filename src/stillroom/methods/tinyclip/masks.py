"""Learnable masks over a tower's residual channels, heads and neurons, and the term that makes them fall (automatic inheritance)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.clip import Masks, TowerShape
from stillroom.modules.clip_resnet import ResNetShape

LOW, HIGH = -0.1, 1.1  # l and u: what a sample is stretched to before it is cut to [0, 1], so that 0 and 1 occur exactly
BETA = 2 / 3  # temperature
EPSILON = 1e-6
KAPPA = 0.8  # that a parameter is multiplied with where nothing is drawn
FIRST = 10.0  # of each parameter: kept, next to surely
MISSING = -FIRST  # of what a tower does not have
FIRST_MULTIPLIER = 10.0
MOST = math.log(100)  # that a parameter's size is clamped to after each step


def keep_probability(a: Tensor) -> Tensor:
    """s(a) = 1 - P(z = 0) = 1 - clamp(sigmoid(beta ln(-l / u) - a), eps, 1 - eps)."""
    return 1 - torch.sigmoid(BETA * math.log(-LOW / HIGH) - a).clamp(EPSILON, 1 - EPSILON)


def sampled(a: Tensor, uniform: Tensor) -> Tensor:
    """z = clip(sigmoid((ln U - ln(1 - U) + a) / beta) (u - l) + l, 0, 1); the gradient flows where it was not clipped.

    Args:
        a: parameters of any shape.
        uniform: U of that shape, from eps to 1 - eps.
    """
    return (torch.sigmoid((uniform.logit() + a) / BETA) * (HIGH - LOW) + LOW).clamp(0, 1)


def decided(a_N: Tensor) -> Tensor:
    """The mask where nothing is drawn: as many zeros as are expected, N - sum s(a) rounded half to even, at the smallest sigmoid(kappa a /
    beta); the others keep that value."""
    soft_N = torch.sigmoid(KAPPA * a_N / BETA)
    zeros = int(torch.round(len(a_N) - keep_probability(a_N).sum()))
    soft_N[soft_N.topk(zeros, largest=False).indices] = 0
    return soft_N


class TowerMasks(nn.Module):
    """The masks of one tower: a parameter for each residual channel (all layers share them), head and neuron; and its two multipliers.

    Args:
        shape: of the tower, all of whose layers are alike.

    Raises:
        InputError: they are not, or it is a ResNet.
    """

    def __init__(self, shape: TowerShape | ResNetShape) -> None:
        super().__init__()
        if isinstance(shape, ResNetShape):
            only = "a transformer, for learned masks; a ResNet is shrunk by --arms manual, or shrink-clip --inherit manual"
            raise InputError("teacher", "a ResNet as the image tower", only)
        if not shape.even:
            raise InputError("teacher", f"a tower with {shape.heads} heads and {shape.neurons} neurons", "one whose layers are all alike")
        self.shape, layers = shape, shape.layers
        self.hidden_D = nn.Parameter(torch.full((shape.width,), FIRST))
        self.heads_LH = nn.Parameter(torch.full((layers, shape.heads[0]), FIRST))
        self.neurons_LF = nn.Parameter(torch.full((layers, shape.neurons[0]), FIRST))
        self.lambda_1, self.lambda_2 = (nn.Parameter(torch.tensor(FIRST_MULTIPLIER)) for _ in range(2))

    @property
    def parameters_of_masks(self) -> list[nn.Parameter]:
        """The masks' own, without the multipliers."""
        return [self.hidden_D, self.heads_LH, self.neurons_LF]

    @property
    def multipliers(self) -> list[nn.Parameter]:
        """lambda_1 and lambda_2, which ascend."""
        return [self.lambda_1, self.lambda_2]

    @property
    def full_size(self) -> int:
        """n_full = L (n_h P_h + 2 d f + d + f), P_h = (4 d^2 + 4 d) / n_h: the blocks' weights without norms."""
        d, heads, neurons = self.shape.width, self.shape.heads[0], self.shape.neurons[0]
        return self.shape.layers * (heads * self._head_size + 2 * d * neurons + d + neurons)

    @property
    def _head_size(self) -> int:
        d = self.shape.width
        return (4 * d * d + 4 * d) // self.shape.heads[0]

    def expected_size(self) -> Tensor:
        """n(a) = (sum s(a_e)) (sum s(a_h)) P_h / d + 2 (sum s(a_e)) (sum s(a_f)), the sums over all layers. Biases of the MLP are missing
        from it, so a little sparsity is there from the start."""
        channels, heads, neurons = (keep_probability(a).sum() for a in self.parameters_of_masks)
        return channels * heads * self._head_size / self.shape.width + 2 * channels * neurons

    def sample(self, uniforms: Sequence[Tensor] | None = None) -> Masks:
        """Masks drawn for one forward pass. Of a draw that drops every channel, the one with the largest parameter stays.

        Args:
            uniforms: U for channels, heads and neurons; by default drawn.
        """
        drawn = [
            sampled(a, torch.empty_like(a).uniform_(EPSILON, 1 - EPSILON) if uniforms is None else uniforms[number])
            for number, a in enumerate(self.parameters_of_masks)
        ]
        hidden_D = drawn[0]
        largest_D = torch.arange(len(hidden_D), device=hidden_D.device).eq(self.hidden_D.argmax())
        hidden_D = torch.where(largest_D & hidden_D.eq(0).all(), torch.ones_like(hidden_D), hidden_D)
        return Masks(hidden_D, drawn[1].unbind(), drawn[2].unbind())

    @torch.no_grad()
    def decide(self) -> Masks:
        """The masks that inference has and pruning follows; channels, and heads and neurons of each layer, by themselves."""
        hidden_D = decided(self.hidden_D)
        if not hidden_D.any():
            hidden_D[self.hidden_D.argmax()] = 1.0
        return Masks(hidden_D, [decided(a) for a in self.heads_LH], [decided(a) for a in self.neurons_LF])

    @torch.no_grad()
    def clamp_(self) -> None:
        """To +-ln 100, after every optimiser step."""
        for a in self.parameters_of_masks:
            a.clamp_(-MOST, MOST)

    @torch.no_grad()
    def start_from(self, pruned: TowerShape) -> None:
        """The start of a further stage: what an earlier one pruned, behind the leading slices that it left, is masked away.

        Args:
            pruned: the tower's sizes after it.
        """
        self.hidden_D[pruned.width :] = MISSING
        for layer, (heads, neurons) in enumerate(zip(pruned.heads, pruned.neurons, strict=True)):
            self.heads_LH[layer, heads:] = MISSING
            self.neurons_LF[layer, neurons:] = MISSING


def target_sparsity(step: int, start: float, target: float, ramp: int) -> float:
    """q(t) = q_start + (q_target - q_start) min(1, t / t_w); without a ramp the target at once."""
    return target if ramp == 0 else start + (target - start) * min(1.0, step / ramp)


def sparsity_loss(towers: Sequence[TowerMasks], wanted: float, *, two_sided: bool = False) -> tuple[Tensor, Tensor]:
    """L_sparsity = lambda_1 max(q - p, 0) + lambda_2 max(q - p, 0)^2, of all towers together.

    p = 1 - sum n(a) / sum n_full is what is expected to be masked away; lambda_k the mean of the towers'. At p >= q nothing is left of it,
    not even a gradient.

    Args:
        towers: of one model; one alone for the form by towers.
        wanted: q.
        two_sided: the paper's lambda_1 (q - p) + lambda_2 (q - p)^2 instead of the released code's one-sided form.

    Returns:
        The term, and p.
    """
    size = torch.stack([tower.expected_size() for tower in towers]).sum()
    sparsity = 1 - size / sum(tower.full_size for tower in towers)
    short = wanted - sparsity if two_sided else (wanted - sparsity).clamp_min(0)
    lambda_1, lambda_2 = (torch.stack([getattr(tower, name) for tower in towers]).mean() for name in ("lambda_1", "lambda_2"))
    return lambda_1 * short + lambda_2 * short.square(), sparsity
