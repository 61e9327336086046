"""Sound beside frames: the piece of a waveform around each frame, and its log-mel picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

_MEAN, _STD = -28.1125, 16.5627  # of log-mel values of sound, in dB


def segments(waveform_N: Tensor, length: int, centres: Sequence[int]) -> Tensor:
    """[F, length]: the samples around each centre, zeros beyond the ends of the waveform [N].

    A piece begins floor(length / 2) samples before its centre.
    """
    left, right = length // 2, length - length // 2
    starts = [int(centre) - left for centre in centres]
    before = max(0, -min(starts, default=0))
    after = max(0, max(starts, default=0) + left + right - waveform_N.shape[-1])
    padded = pad(waveform_N, (before, after))
    return torch.stack([padded[before + start : before + start + length] for start in starts])


@dataclass(frozen=True)
class MelSpectrogram:
    """Power of sound by time and mel band, and the picture that a network reads.

    Args:
        n_fft: samples of a transform.
        window: samples of its periodic Hann window, in the middle of `n_fft`.
        hop: samples from one column to the next.
        mels: bands: triangles, evenly spaced on the HTK mel scale, of height 1.
        sample_rate: samples per second.
        f_min, f_max: Hz, the ends of the lowest and the highest band.
    """

    n_fft: int = 1024
    window: int = 160
    hop: int = 80
    mels: int = 128
    sample_rate: int = 16000
    f_min: float = 0.0
    f_max: float = 8000.0

    def power(self, waveform_FN: Tensor) -> Tensor:
        """[F, mels, columns] of waveforms [F, N]; columns are centred, the ends reflected."""
        window = torch.hann_window(self.window, dtype=waveform_FN.dtype)
        spectrum = torch.stft(waveform_FN, self.n_fft, self.hop, self.window, window, center=True, return_complex=True)
        return self._bands(waveform_FN.dtype) @ spectrum.abs().square()

    def picture(self, waveform_FN: Tensor, size: int) -> Tensor:
        """[F, 3, size, size]: 10 log10 of the power, resized by nearest neighbours and normalised; three equal channels."""
        decibels = 10 * interpolate(self.power(waveform_FN)[:, None], (size, size)).clamp_min(1e-10).log10()
        return ((decibels - _MEAN) / _STD).expand(-1, 3, -1, -1)

    def _bands(self, dtype: torch.dtype) -> Tensor:
        frequencies = torch.linspace(0, self.sample_rate / 2, self.n_fft // 2 + 1, dtype=torch.float64)
        ends = 2595 * (1 + torch.tensor([self.f_min, self.f_max], dtype=torch.float64) / 700).log10()
        points = 700 * (10 ** (torch.linspace(float(ends[0]), float(ends[1]), self.mels + 2, dtype=torch.float64) / 2595) - 1)
        rising = (frequencies - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
        falling = (points[2:, None] - frequencies) / (points[2:] - points[1:-1])[:, None]
        return torch.minimum(rising, falling).clamp_min(0).to(dtype)
