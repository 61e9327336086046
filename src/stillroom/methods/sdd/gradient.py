"""The teacher's gradient: score distillation, injected at the student's latents (the specification's "Teacher gradient").

y = resize(x)      z = E(y)      z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps
eps_hat = eps_0 + s (eps_c - eps_0)
g = (1 - abar_t) (eps_hat - eps) * loss_weight       the network's Jacobian is left out, as in DreamFusion
L_sds = sum( sg[g] * z )                             whose gradient at z is exactly g
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.errors import InputError, at_least
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.editing.diffusion import DiffusionTeacher, add_noise, check_step, guided, noise_of, predict_guided


def resized(images: Tensor, size: int | None, *, unit_range: bool = False) -> Tensor:
    """What the teacher's encoder is shown: a bilinear resize (align_corners false) to a square, in [-1, 1].

    Args:
        images: [B, 3, H, W], of the student.
        size: its height and width; None leaves them as they are.
        unit_range: the images are in [0, 1] and become 2y - 1.
    """
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return 2 * images - 1 if unit_range else images


def largest(gradient: Tensor, count: int) -> Tensor:
    """The gradient with its `count` largest magnitudes of the whole batch kept, and zeros elsewhere; equals of the last one are kept too.

    Args:
        gradient: of any shape.
        count: k; all are kept where there are no more.

    Raises:
        InputError: k below 1.
    """
    at_least("top_k", count, 1)
    magnitudes = gradient.abs().flatten()
    if count >= len(magnitudes):
        return gradient
    return gradient * (gradient.abs() >= magnitudes.topk(count).values[-1])


def sds_gradient(eps_hat: Tensor, noise: Tensor, abar: Tensor, *, loss_weight: float = 1.0, top_k: int | None = None) -> Tensor:
    """g = (1 - abar_t) (eps_hat - eps) * loss_weight, float32, without gradient and without any mean.

    Args:
        eps_hat: the teacher's guided noise, [B, c, h, w].
        noise: eps.
        abar: abar_t, a scalar.
        loss_weight: a factor.
        top_k: see `largest`; None keeps all.
    """
    gradient = (1 - abar) * (at_least_float32(eps_hat) - at_least_float32(noise)).detach() * loss_weight
    return gradient if top_k is None else largest(gradient, top_k)


def guided_noise(
    unconditional: Tensor, conditional: Tensor, noisy: Tensor, abar: Tensor, guidance: float, prediction: str = "epsilon"
) -> Tensor:
    """eps_hat of a teacher's two answers, both first turned into noise where they are velocities."""
    return guided(noise_of(unconditional, noisy, abar, prediction), noise_of(conditional, noisy, abar, prediction), guidance)


def injected(gradient: Tensor, latents: Tensor) -> Tensor:
    """L_sds = sum( sg[g] * z ): a scalar whose gradient at z is g.

    Raises:
        InputError: the latents do not depend on anything that learns.
    """
    if torch.is_grad_enabled() and not latents.requires_grad:
        raise InputError("student", "images without a gradient", "the answer of a network that learns, not detached")
    return (gradient.detach() * latents).sum()


class Distilled(NamedTuple):
    """One step's score distillation.

    Attributes:
        loss: a scalar for the backward pass.
        value: for the record only, loss_weight * mean((eps_hat - eps)^2).
    """

    loss: Tensor
    value: Tensor


def score_distillation(
    teacher: DiffusionTeacher,
    images: Tensor,
    noise: Tensor | Literal["normal", "zeros"] | int,
    t: int,
    condition: Tensor,
    *,
    guidance: float,
    loss_weight: float = 1.0,
    top_k: int | None = None,
    through_teacher: bool = False,
) -> Distilled:
    """The teacher's word on a batch of edited images, in one call of it.

    Args:
        teacher: the frozen diffusion model.
        images: x, [B, 3, H, W] in [-1, 1].
        noise: eps, of the latents' shape; or how it is made: drawn ("normal", or by a seed of its own), or none ("zeros").
        t: the batch's time step.
        condition: e_c, [1, ...].
        guidance: s.
        loss_weight, top_k: see `sds_gradient`.
        through_teacher: the whole objective instead, (1 - abar_t) / 2 * loss_weight * sum((eps_hat - eps)^2), with the network's Jacobian:
            for small teachers. There is no gradient to thin out then.

    Raises:
        InputError: t is none of the teacher's steps, `top_k` beside `through_teacher`, or images that nothing learns from.
    """
    check_step(t, len(teacher.alphas_cumprod))
    if through_teacher and top_k is not None:
        raise InputError("top_k", top_k, "none beside through_teacher: there is no gradient at the latents to thin out")
    latents = teacher.encode(images)
    eps = noise if isinstance(noise, Tensor) else _made(noise, latents)
    abar = teacher.alphas_cumprod[t].to(latents.device)
    if through_teacher:
        eps_hat = predict_guided(teacher, add_noise(latents, eps, abar), t, condition, guidance)
        loss = 0.5 * (1 - abar) * loss_weight * (eps_hat - eps).square().sum()
    else:
        with torch.no_grad():
            eps_hat = predict_guided(teacher, add_noise(latents.detach(), eps, abar), t, condition, guidance)
        loss = injected(sds_gradient(eps_hat, eps, abar, loss_weight=loss_weight, top_k=top_k), latents)
    return Distilled(loss, loss_weight * (eps_hat.detach() - eps).square().mean())


def _made(noise: Literal["normal", "zeros"] | int, latents: Tensor) -> Tensor:
    if noise == "zeros":
        return torch.zeros_like(latents)
    if isinstance(noise, int):
        return torch.randn(latents.shape, generator=torch.Generator().manual_seed(noise)).to(latents)
    return torch.randn_like(latents)
