"""A small diffusion model of pictures in pixel space: the teacher of whoever has no pipeline, and its training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss, silu

from stillroom.engine import Distiller, Losses
from stillroom.engine.teacher import Precision, Teacher
from stillroom.errors import InputError, one_of
from stillroom.tasks.editing.diffusion import add_noise, alphas_cumprod

STEPS = 200
BETAS = 1e-4, 0.04  # linear
_NO_CONDITION = 0.1  # share of the training images whose class is left out
_GROUPS = 8
_LOWEST = 8  # pixels of the coarsest scale, about
_EMBEDDING = 64


class Denoiser(nn.Module):
    """A U-Net that predicts the noise: one residual block for each scale and way, time and class added in each of them.

    Args:
        num_classes: K conditions; class K is none at all.
        image_size: pixels; halved until 8 are left, once at least.
        width: channels of the finest scale; all others have twice as many.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 24) -> None:
        super().__init__()
        scales = max(1, round(math.log2(image_size / _LOWEST)))
        if image_size % 2**scales:
            raise InputError("image_size", image_size, f"a multiple of {2**scales}, which a denoiser halves {scales} times")
        self.num_classes = num_classes
        widths = [width, *[2 * width] * scales]
        self.classes = nn.Embedding(num_classes + 1, _EMBEDDING)
        self.time = nn.Sequential(nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU(), nn.Linear(_EMBEDDING, _EMBEDDING))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(w, w) for w in widths[:-1])
        self.to_coarse = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.middle = _Block(widths[-1], widths[-1])
        self.to_fine = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * w, w) for w in widths[:-1])
        answer = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(answer.weight)
        self.last = nn.Sequential(nn.GroupNorm(_GROUPS, width), nn.SiLU(), answer)

    def forward(self, noisy: Tensor, t: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """The noise in pictures.

        Args:
            noisy: z_t, [B, 3, H, W].
            t: time steps, int64 [B]; by default 0.
            condition: classes, int64 [B]; by default none.
        """
        count = len(noisy)
        t = noisy.new_zeros(count, dtype=torch.int64) if t is None else t
        condition = torch.full_like(t, self.num_classes) if condition is None else condition
        frequencies = torch.exp(torch.arange(_EMBEDDING // 2, device=noisy.device) * (-math.log(1000.0) / (_EMBEDDING // 2)))
        angles = t[:, None].float() * frequencies
        embedding = self.time(torch.cat((angles.sin(), angles.cos()), 1).to(noisy.dtype)) + self.classes(condition)
        x, kept = self.first(noisy), []
        for block, to_coarse in zip(self.down, self.to_coarse, strict=True):
            x = block(x, embedding)
            kept.append(x)
            x = to_coarse(x)
        x = self.middle(x, embedding)
        for block, to_fine in zip(self.up[::-1], self.to_fine[::-1], strict=True):
            x = to_fine(interpolate(x, scale_factor=2.0, mode="nearest"))
            x = block(torch.cat((x, kept.pop()), 1), embedding)
        noise: Tensor = self.last(x)
        return noise


class _Block(nn.Module):
    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, inside), nn.Conv2d(inside, out, 3, padding=1)
        self.embed = nn.Linear(_EMBEDDING, out)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x))) + self.embed(silu(embedding))[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(silu(self.norm2(h)))
        return out


class Denoising(Distiller):
    """Trains a denoiser: mean ((eps_th(z_t, t, class) - eps)^2) at a random time step of each picture; one in ten without its class."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        self.register_buffer("abar", alphas_cumprod(STEPS, *BETAS, "linear"), persistent=False)

    abar: Tensor

    def losses(self, batch: Any) -> Losses:
        """The error, averaged over everything, as the only term."""
        clean = batch.images
        t = torch.randint(STEPS, (len(clean),), device=clean.device)
        left_out = torch.rand(len(clean), device=clean.device) < _NO_CONDITION
        condition = torch.where(left_out, self._none, batch.labels)
        noise = torch.randn_like(clean)
        return Losses(task={"denoising": mse_loss(self._predicted(clean, noise, t, condition), noise)})

    @torch.no_grad()
    def predict(self, batch: Any) -> Tensor:
        """The error of each picture, [B], at a time step and with a noise that depend on its id alone."""
        clean, drawn = batch.images, []
        for number in batch.ids.tolist():
            generator = torch.Generator().manual_seed(number)
            t = torch.randint(STEPS, (1,), generator=generator)
            drawn.append((t, torch.randn(clean.shape[1:], generator=generator)))
        t_B, noise = torch.cat([t for t, _ in drawn]).to(clean.device), torch.stack([noise for _, noise in drawn]).to(clean)
        return (self._predicted(clean, noise, t_B, batch.labels) - noise).square().mean((1, 2, 3))

    @property
    def _none(self) -> int:
        return int(self.student.num_classes)  # type: ignore[arg-type]

    def _predicted(self, clean: Tensor, noise: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        predicted: Tensor = self.student(add_noise(clean, noise, self.abar[t][:, None, None, None]), t, condition)
        return predicted


class PixelTeacher:
    """A trained denoiser as a `DiffusionTeacher`: its latents are the pictures themselves.

    Args:
        network: the denoiser.
        classes: names of its conditions, in their order.
        image_size: pixels of the pictures that it was trained on.
        precision: that it answers in without gradient; see `engine.Teacher`.
    """

    def __init__(self, network: Denoiser, classes: tuple[str, ...], image_size: int, precision: Precision = "auto") -> None:
        self.networks = (network.eval().requires_grad_(False),)
        self.classes, self.image_size = classes, image_size
        self.alphas_cumprod = alphas_cumprod(STEPS, *BETAS, "linear")
        self.null_condition = torch.tensor([network.num_classes])
        self._frozen = Teacher(_OfOneInput(network), precision=precision)

    def condition(self, prompt: str) -> Tensor:
        """The class of that name."""
        one_of("prompt", prompt, self.classes)
        return torch.tensor([self.classes.index(prompt)])

    def encode(self, images: Tensor) -> Tensor:
        """The pictures."""
        return images.float()

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures."""
        return latents

    def predict_noise(self, noisy: Tensor, t: int, condition: Tensor) -> Tensor:
        """The noise; with gradient where that is enabled and wanted, in float32 then."""
        inputs = noisy, torch.full((len(noisy),), t, device=noisy.device), condition
        if torch.is_grad_enabled() and noisy.requires_grad:
            answer: Tensor = self.networks[0].to(noisy.device)(*inputs)
            return answer
        return self._frozen(inputs)

    def fingerprint(self) -> str:
        """Of the weights and the precision."""
        return self._frozen.fingerprint()


class _OfOneInput(nn.Module):
    """The denoiser as `engine.Teacher` asks networks: by one structure of tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        answer: Tensor = self.network(*inputs)
        return answer
