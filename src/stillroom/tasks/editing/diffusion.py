"""The mathematics of diffusion that a teacher, its training and its samplers share.

With abar_t the cumulative product of (1 - beta), t = 0 .. T-1, and eps ~ N(0, I):

    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps

A network may answer with the noise eps, or with the velocity v = sqrt(abar_t) eps - sqrt(1 - abar_t) z.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from stillroom.errors import InputError, at_least, one_of

Betas = Literal["linear", "scaled_linear"]
Prediction = Literal["epsilon", "v_prediction"]


class DiffusionTeacher(Protocol):
    """What a diffusion model must answer to teach: the whole of what editing knows of it. Frozen, in eval mode; never trained here.

    Attributes:
        alphas_cumprod: abar, float32 [T].
        null_condition: of no condition at all, [1, ...].
    """

    alphas_cumprod: Tensor
    null_condition: Tensor

    def condition(self, prompt: str) -> Tensor:
        """What a prompt is to the network, [1, ...] of the shape of `null_condition`; InputError for one that it does not know."""

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] as float32 latents [B, c, h, w], with their gradient; a pixel-space model gives them back."""

    def decode(self, latents: Tensor) -> Tensor:
        """The images [B, 3, H', W'] in [-1, 1] of latents."""

    def predict_noise(self, noisy: Tensor, t: int, condition: Tensor) -> Tensor:
        """eps(z_t, t, e), float32 like `noisy` [B, c, h, w]; `condition` has a row for each of its rows."""

    def fingerprint(self) -> str:
        """Changes when its answers do."""


def alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012, betas: Betas = "scaled_linear") -> Tensor:
    """abar, float32 [T], computed in float64.

    Args:
        steps: T.
        start, end: beta of the first and of the last step.
        betas: ``linear`` between them, or ``scaled_linear``, as Stable Diffusion 1.4: the squares of what is linear between their roots.

    Raises:
        InputError: a number that cannot be used.
    """
    one_of("betas", betas, get_args(Betas))
    at_least("steps", steps, 1)
    if not 0 < start <= end < 1:
        raise InputError("betas", f"{start} to {end}", "numbers above 0 and below 1, the first not above the last")
    power = 1.0 if betas == "linear" else 0.5
    values = torch.linspace(start**power, end**power, steps, dtype=torch.float64) ** (1 / power)
    return (1 - values).cumprod(0).float()


def check_step(t: int, steps: int, argument: str = "t") -> int:
    """`t`, if it is one of the T steps.

    Raises:
        InputError: it is not.
    """
    if not 0 <= t < steps:
        raise InputError(argument, t, f"a time step from 0 to {steps - 1}")
    return t


def add_noise(clean: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.

    Args:
        clean, noise: z and eps, of one shape.
        abar: abar_t, a scalar or of a shape that broadcasts to theirs.
    """
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def noise_of(answer: Tensor, noisy: Tensor, abar: Tensor, prediction: str) -> Tensor:
    """The noise that a network's answer says: its answer itself, or eps = sqrt(abar_t) v + sqrt(1 - abar_t) z_t of a velocity.

    Args:
        answer: the network's.
        noisy: z_t.
        abar: abar_t, as in `add_noise`.
        prediction: "epsilon" or "v_prediction", as a pipeline's scheduler says.

    Raises:
        InputError: another kind of answer.
    """
    one_of("prediction_type", prediction, get_args(Prediction))
    return answer if prediction == "epsilon" else abar.sqrt() * answer + (1 - abar).sqrt() * noisy


def guided(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: eps_0 + s (eps_c - eps_0)."""
    return unconditional + guidance * (conditional - unconditional)


def predict_guided(teacher: DiffusionTeacher, noisy: Tensor, t: int, condition: Tensor, guidance: float) -> Tensor:
    """The guided noise of a batch, in one call of the teacher on the doubled batch [z_t; z_t] with [e_0; e_c].

    Args:
        teacher: the frozen model.
        noisy: z_t, [B, c, h, w].
        t: one time step for the batch.
        condition: e_c, [1, ...] for all of them.
        guidance: s.
    """
    count = len(noisy)
    null = teacher.null_condition.to(noisy.device)
    doubled = torch.cat((null.expand(count, *null.shape[1:]), condition.to(noisy.device).expand(count, *condition.shape[1:])))
    unconditional, conditional = teacher.predict_noise(torch.cat((noisy, noisy)), t, doubled).chunk(2)
    return guided(unconditional, conditional, guidance)
