"""What a network hears: magnitudes of the short-time Fourier transform of every ear, and the tokens that an encoder reads them as."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from stillroom.errors import InputError, at_least, at_least_zero, one_of
from stillroom.losses.precision import at_least_float32

Tokens = Literal["time", "frequency", "picture"]
TOKENS = ("time", "frequency", "picture")
_MILLISECONDS = 60  # after the emission, that are kept of an echo


@dataclass(frozen=True)
class FrontEnd:
    """How waveforms become spectrograms.

    Args:
        rate: samples per second that waveforms have.
        samples: n, of each waveform.
        n_fft, window, hop: of the transform, in samples; the periodic Hann window lies in the middle of n_fft.
        compression: c of log(1 + c x) of the magnitudes x; 0 for the magnitudes as they are.

    Raises:
        InputError: a window longer than n_fft, or a number that cannot be used.
    """

    rate: int = 16_000
    samples: int = 960
    n_fft: int = 512
    window: int = 32
    hop: int = 8
    compression: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate", "samples", "n_fft", "window", "hop"):
            at_least(name, getattr(self, name), 1)
        at_least_zero("compression", self.compression)
        if self.window > self.n_fft:
            raise InputError("window", self.window, f"at most n_fft, {self.n_fft} samples")

    @property
    def bins(self) -> int:
        """F, frequencies."""
        return self.n_fft // 2 + 1

    @property
    def frames(self) -> int:
        """T, columns of a whole waveform's spectrogram."""
        return self.samples // self.hop + 1

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> FrontEnd:
        """What `to_json` wrote."""
        numbers = {name: int(value) for name, value in content.items() if name != "compression"}
        return cls(**numbers, compression=float(content["compression"]))


# Source: code of the echo-to-depth work that the paper follows: n_fft, a window of 32 every 8 at 16 kHz, of 64 every 16 at 44.1 kHz.
_PUBLISHED = {16_000: (512, 32, 8), 44_100: (512, 64, 16)}


def front_end(rate: int, *, small: bool = False, compression: float = 0.0) -> FrontEnd:
    """The front end of a sampling rate: the published numbers at 16 and 44.1 kHz, their durations at others.

    Args:
        rate: samples per second.
        small: n_fft 64 instead of 512: fewer frequencies, for small experiments.
        compression: see `FrontEnd`.
    """
    n_fft, window, hop = _PUBLISHED.get(rate, (512, max(4, round(0.002 * rate)), max(1, round(0.0005 * rate))))
    n_fft = max(64, 1 << (window - 1).bit_length()) if small else max(n_fft, window)
    return FrontEnd(rate, round(rate * _MILLISECONDS / 1000), n_fft, window, hop, compression)


def fourier_kernels(n_fft: int, window: int) -> Tensor:
    """The windowed real and imaginary waves as kernels of a convolution, float64 [2 F, 1, window]: first all real ones."""
    hann = torch.hann_window(window, periodic=True, dtype=torch.float64)
    phase = 2 * math.pi / n_fft * torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(window)).double()
    return (torch.cat((phase.cos(), phase.sin())) * hann)[:, None]


def binaural_spectrogram(waveforms: Tensor, *, n_fft: int, win_length: int, hop_length: int, kernels: Tensor | None = None) -> Tensor:
    """Magnitudes of the centred short-time Fourier transform, with a periodic Hann window in the middle of n_fft.

    Frames overhang the ends by half of n_fft, where the waveform is mirrored; a magnitude knows nothing of where its window lies in n_fft,
    so only the window's own samples are read: it is one convolution, which exports anywhere.

    Args:
        waveforms: [..., E, n] of every ear or channel.
        n_fft, win_length, hop_length: in samples.
        kernels: those of `fourier_kernels`, where they are at hand.

    Returns:
        [..., E, n_fft // 2 + 1, frames].

    Source: the specification's front end.
    """
    before = n_fft // 2 - (n_fft - win_length) // 2
    after = 2 * (n_fft // 2) - (n_fft - win_length) - before
    made = fourier_kernels(n_fft, win_length) if kernels is None else kernels
    waves = at_least_float32(waveforms)
    flat_M1N = pad(waves.reshape(-1, 1, waves.shape[-1]), (before, after), mode="reflect")
    real, imaginary = conv1d(flat_M1N, made.to(waves), stride=hop_length).chunk(2, 1)
    found = (real.square() + imaginary.square()).sqrt()
    return found.reshape(*waveforms.shape[:-1], *found.shape[1:])


def band_tokens(magnitude_BEFT: Tensor, patch: Tokens) -> Tensor:
    """One-dimensional patches: a column of all frequencies and ears is one token, or a row of all times and ears.

    Args:
        magnitude_BEFT: spectrograms.
        patch: ``time``: [B, T, E F]; ``frequency``: [B, F, E T]; the ear is the slower index of a token.
    """
    one_of("patch", patch, TOKENS[:2])
    moved = magnitude_BEFT.permute(0, 3, 1, 2) if patch == "time" else magnitude_BEFT.permute(0, 2, 1, 3)
    return moved.flatten(2)


class Spectrogram(nn.Module):
    """Waveforms [B, E, n] to standardised spectrograms [B, E, F, T].

    Args:
        front: how.
        ears: E.
        mean, std: of each ear and frequency of the (compressed) magnitudes, [E, F]; they are kept with the network's weights.
    """

    mean: Tensor
    std: Tensor
    kernels: Tensor

    def __init__(self, front: FrontEnd, ears: int, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.front, self.ears = front, ears
        self.register_buffer("mean", torch.zeros(ears, front.bins) if mean is None else mean.clone())
        self.register_buffer("std", torch.ones(ears, front.bins) if std is None else std.clone())
        self.register_buffer("kernels", fourier_kernels(front.n_fft, front.window).float(), persistent=False)

    def forward(self, waveforms_BEN: Tensor) -> Tensor:
        """[B, E, F, T].

        Raises:
            InputError: another number of ears.
        """
        if waveforms_BEN.shape[1] != self.ears:
            heard = "one channel" if waveforms_BEN.shape[1] == 1 else f"{waveforms_BEN.shape[1]} channels"
            raise InputError("waveforms", heard, f"{self.ears}, as the network hears: [batch, channels, samples]")
        with torch.autocast(waveforms_BEN.device.type, enabled=False):
            return (self.magnitudes(waveforms_BEN) - self.mean[..., None]) / self.std[..., None]

    def magnitudes(self, waveforms_BEN: Tensor) -> Tensor:
        """The (compressed) magnitudes, not standardised, [B, E, F, T]."""
        front = self.front
        sizes = {"n_fft": front.n_fft, "win_length": front.window, "hop_length": front.hop}
        found = binaural_spectrogram(waveforms_BEN.to(self.kernels.dtype), **sizes, kernels=self.kernels)
        return (front.compression * found).log1p() if front.compression else found
