"""A diffusers pipeline on disk as a teacher: Stable Diffusion 1.x and 2.x, with the extra ``stillroom[diffusion]``.

Nothing is fetched, unless the user names a hub's model as ``hub:NAME``. Of the pipeline's scheduler only its noise levels and what its
network predicts are read; the VAE works in float32 whatever is around it, for in half precision its latents overflow.
"""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from stillroom.engine.teacher import Precision, Teacher
from stillroom.errors import InputError, StillroomError
from stillroom.tasks.editing.diffusion import Prediction, check_step, noise_of

logger = logging.getLogger(__name__)

HUB = "hub:"
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class NonFiniteLatents(StillroomError):
    """A pipeline's VAE answered with infinities or with what is no number; nothing can be learnt or drawn from that."""


class PipelineTeacher:
    """The parts of a text-to-image pipeline that teach; see `DiffusionTeacher`.

    Args:
        folder: of the pipeline, as diffusers saves it; or ``hub:NAME``.
        precision: of the U-Net where no gradient goes through it.
        posterior_mean: encode to the mean of the VAE's posterior instead of a sample.

    Raises:
        InputError: diffusers is not installed, the folder is none of a pipeline, a part of it is missing, or its network predicts something
            unknown.
    """

    def __init__(self, folder: str, *, precision: Precision = "auto", posterior_mean: bool = False) -> None:
        if missing := [name for name in ("diffusers", "transformers") if find_spec(name) is None]:
            raise InputError(
                "pipeline", f"{folder}, without {' and '.join(missing)}", "them to be installed: pip install 'stillroom[diffusion]'"
            )
        place, of_hub = folder.removeprefix(HUB), folder.startswith(HUB)
        if not of_hub:
            _check_folder(Path(place).expanduser(), folder)
            place = str(Path(place).expanduser())
        self.unet, self.vae, self.text_encoder, self.tokenizer, scheduler = _loaded(place, local=not of_hub)
        self.prediction = str(scheduler.config.get("prediction_type", "epsilon"))
        if self.prediction not in get_args(Prediction):
            got = f"{folder}, whose scheduler says prediction_type {self.prediction!r}"
            raise InputError("pipeline", got, f"one of {', '.join(get_args(Prediction))}")
        if int(self.unet.config.in_channels) != int(self.vae.config.latent_channels):
            got = f"{folder}, whose U-Net reads {self.unet.config.in_channels} channels"
            raise InputError("pipeline", got, f"one that reads the VAE's {self.vae.config.latent_channels} latents alone, no inpainting")
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float()
        self.posterior_mean = posterior_mean
        self.networks = (self.unet, self.vae)
        for network in (*self.networks, self.text_encoder):
            network.eval().requires_grad_(False)
        self.scale = float(self.vae.config.scaling_factor)
        self.image_size = int(self.unet.config.sample_size) * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._frozen = Teacher(_OfOneInput(self.unet), precision=precision)
        self._conditions: dict[str, Tensor] = {}
        self.null_condition = self.condition("")

    @torch.no_grad()
    def condition(self, prompt: str) -> Tensor:
        """The text encoder's last hidden state of a prompt, [1, tokens, D]; one that is too long is cut, and said."""
        if prompt not in self._conditions:
            length = min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))
            count = len(self.tokenizer(prompt)["input_ids"])
            if count > length:
                logger.warning(f"prompt: {count} tokens, of which the text encoder reads the first {length}")
            ids = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
            self._conditions[prompt] = self.text_encoder(ids)[0].float()
        return self._conditions[prompt]

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents of pictures, in float32 and with their gradient: a sample of the posterior, or its mean.

        Raises:
            NonFiniteLatents: the VAE fails; said once a step, for the U-Net that comes next costs a hundred times the wait for the device.
        """
        self.vae.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images.float()).latent_dist
            latents: Tensor = self.scale * (posterior.mean if self.posterior_mean else posterior.sample())
        return _finite(latents, "latents", "encoder")

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of scaled latents, in float32.

        Raises:
            NonFiniteLatents: the latents, or what the VAE makes of them, are not finite.
        """
        self.vae.to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            images: Tensor = self.vae.decode(_finite(latents.float(), "latents", "decoder's input") / self.scale).sample
        return _finite(images, "pictures", "decoder")

    def predict_noise(self, noisy: Tensor, t: int, condition: Tensor) -> Tensor:
        """The noise, also where the U-Net answers with velocities; with gradient where that is wanted, in float32 then."""
        abar = self.alphas_cumprod[check_step(t, len(self.alphas_cumprod))].to(noisy.device)
        inputs = noisy, torch.full((len(noisy),), t, device=noisy.device), condition
        if torch.is_grad_enabled() and noisy.requires_grad:
            answer = _OfOneInput(self.unet.to(noisy.device))(inputs)
        else:
            answer = self._frozen(inputs)
        return noise_of(answer.float(), noisy, abar, self.prediction)

    def fingerprint(self) -> str:
        """Of all weights that answers depend on, the noise levels and the precision."""
        digest = hashlib.blake2b(self._frozen.fingerprint().encode(), digest_size=16)
        digest.update(Teacher(self.vae, precision="fp32").fingerprint().encode())
        digest.update(self.null_condition.numpy().tobytes() + self.alphas_cumprod.numpy().tobytes())
        digest.update(repr((self.prediction, self.posterior_mean, self.scale)).encode())
        return digest.hexdigest()


class _OfOneInput(nn.Module):
    """The U-Net as `engine.Teacher` asks networks: by one structure of tensors."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        noisy, t, condition = inputs
        answer: Tensor = self.unet(noisy, t, encoder_hidden_states=condition, return_dict=False)[0]
        return answer


def _finite(values: Tensor, what: str, part: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise NonFiniteLatents(f"the pipeline's VAE: {what} that are not finite numbers ({part}); its weights may be damaged or too large")
    return values


def _check_folder(path: Path, typed: str) -> None:
    if not (path / "model_index.json").is_file():
        expected = f"a folder that diffusers saved, with model_index.json; a model of the hub is {HUB}NAME"
        raise InputError("pipeline", typed, expected)
    if absent := [part for part in _PARTS if not (path / part).is_dir()]:
        raise InputError("pipeline", typed, f"a pipeline with the parts {', '.join(_PARTS)}; missing: {', '.join(absent)}")


def _loaded(place: str, *, local: bool) -> tuple[Any, Any, Any, Any, Any]:
    """The five parts; only weights that cannot run code."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    kinds: tuple[Any, ...] = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, AutoTokenizer, DDPMScheduler)
    found = []
    for part, kind in zip(_PARTS, kinds, strict=True):
        weights = {} if part in ("tokenizer", "scheduler") else {"use_safetensors": True}
        try:
            found.append(kind.from_pretrained(place, subfolder=part, local_files_only=local, **weights))
        except (OSError, ValueError, KeyError, TypeError, ImportError, json.JSONDecodeError) as error:
            raise InputError(
                "pipeline", f"{place}/{part} ({_first_line(error)})", "a part that can be read, its weights in safetensors"
            ) from None
    return found[0], found[1], found[2], found[3], found[4]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
