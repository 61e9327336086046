"""Editing by sampling: DDIM, its inversion, and the baselines that a feed-forward student is measured against, SDEdit and DDIB."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, at_least, share
from stillroom.tasks.editing.diffusion import DiffusionTeacher, add_noise, predict_guided

logger = logging.getLogger(__name__)

Predict = Callable[[Tensor, int], Tensor]  # (z_t, t) -> the noise


def ddim_times(steps: int, total: int) -> list[int]:
    """The grid of `steps` time steps of DDIM, ascending and evenly spaced, the last of all T among them.

    Raises:
        InputError: more steps than T, or none.
    """
    at_least("ddim_steps", steps, 1)
    if steps > total:
        raise InputError("ddim_steps", steps, f"at most {total}, the time steps of the teacher")
    return [(total * number) // steps - 1 for number in range(1, steps + 1)]


def strength_steps(strength: float, steps: int) -> int:
    """How many of the grid's steps a strength stands for: 0.58 of 50 are 29, though as floats the product is below it.

    Raises:
        InputError: a strength outside [0, 1].
    """
    return int(round(share("strength", strength) * steps, 6))


def ddim_step(z: Tensor, eps: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """One deterministic step between two noise levels, in either direction: z0 = (z - sqrt(1 - a) eps) / sqrt(a), noised anew.

    Args:
        z, eps: the latents and the noise in them.
        at, to: abar of where they are and of where they go; 1 is clean.
    """
    return to.sqrt() * (z - (1 - at).sqrt() * eps) / at.sqrt() + (1 - to).sqrt() * eps


def ddim_sample(predict: Predict, z: Tensor, times: Sequence[int], abar: Tensor) -> Tensor:
    """Clean latents of z at the last of `times`, in as many calls of the network as there are times.

    Args:
        predict: the network.
        z: z_t of the last time.
        times: ascending.
        abar: of all T steps.
    """
    levels = _levels(times, abar, z)
    for number in reversed(range(len(times))):
        z = ddim_step(z, predict(z, times[number]), levels[number + 1], levels[number])
    return z


def ddim_invert(predict: Predict, z: Tensor, times: Sequence[int], abar: Tensor) -> Tensor:
    """z at the last of `times` that sampling leads back to clean latents `z`; as many calls as sampling, none at a time below the first."""
    levels = _levels(times, abar, z)
    for number in range(len(times)):
        z = ddim_step(z, predict(z, times[max(number - 1, 0)]), levels[number], levels[number + 1])
    return z


def _levels(times: Sequence[int], abar: Tensor, z: Tensor) -> Tensor:
    """abar of no noise, and of each time."""
    return torch.cat((torch.ones(1, dtype=z.dtype), abar[list(times)].to(z.dtype))).to(z.device)


class SDEdit(nn.Module):
    """SDEdit: noise is added up to a strength and taken away under the prompt. A network like any other: pictures to edited pictures.

    Args:
        teacher: the diffusion model.
        condition: of the prompt.
        strength: share of the way to pure noise, from 0 to 1.
        steps: of the whole way; a strength takes its share of them.
        guidance: s.
        seed: of the noise, the same for a batch whenever it is shown.
    """

    def __init__(
        self, teacher: DiffusionTeacher, condition: Tensor, *, strength: float, steps: int = 20, guidance: float = 7.5, seed: int = 0
    ) -> None:
        super().__init__()
        self.teacher, self.condition, self.guidance, self.seed = teacher, condition, guidance, seed
        self.networks = nn.ModuleList(getattr(teacher, "networks", ()))  # what it costs is theirs
        times = ddim_times(steps, len(teacher.alphas_cumprod))
        self.times = times[: strength_steps(strength, steps)]
        self.strength = strength
        if not self.times:
            said = f"SDEdit with a strength of {strength:g} is none of its {steps} steps: pictures come back as they are encoded"
            logger.warning(said)

    def extra_repr(self) -> str:
        """All that its answers depend on besides the weights."""
        return f"times={self.times}, guidance={self.guidance}, seed={self.seed}, condition={self.condition.tolist()}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], edited."""
        abar = self.teacher.alphas_cumprod
        z = self.teacher.encode(images)
        if self.times:
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed)).to(z)
            z = add_noise(z, noise, abar[self.times[-1]].to(z))
            z = ddim_sample(
                lambda noisy, t: predict_guided(self.teacher, noisy, t, self.condition, self.guidance).to(z), z, self.times, abar
            )
        return self.teacher.decode(z).clamp(-1, 1)


class DDIB(nn.Module):
    """DDIB: pictures are taken to noise under what they show, and back under the prompt, both without guidance.

    Args:
        teacher: the diffusion model.
        source: condition of what the pictures show.
        condition: of the prompt.
        steps: each way.
    """

    def __init__(self, teacher: DiffusionTeacher, source: Tensor, condition: Tensor, *, steps: int = 20) -> None:
        super().__init__()
        self.teacher, self.source, self.condition = teacher, source, condition
        self.networks = nn.ModuleList(getattr(teacher, "networks", ()))  # what it costs is theirs
        self.times = ddim_times(steps, len(teacher.alphas_cumprod))

    def extra_repr(self) -> str:
        """All that its answers depend on besides the weights."""
        return f"times={self.times}, source={self.source.tolist()}, condition={self.condition.tolist()}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], edited."""

        def under(condition: Tensor) -> Predict:
            rows = condition.to(images.device).expand(len(images), *condition.shape[1:])
            return lambda noisy, t: self.teacher.predict_noise(noisy, t, rows)

        abar = self.teacher.alphas_cumprod
        noise = ddim_invert(under(self.source), self.teacher.encode(images), self.times, abar)
        return self.teacher.decode(ddim_sample(under(self.condition), noise, self.times, abar)).clamp(-1, 1)
