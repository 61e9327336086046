"""Sound files as arrays, whatever they were written as; ears and ambisonics."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest

from stillroom.errors import InputError
from stillroom.tasks.images.stores import UnreadableImage
from stillroom.tasks.sound.waves import Wave, channels_first, read_ears, read_wave, resampled, to_acn_sn3d, write_wave

TONE = 0.7 * np.stack([np.sin(np.arange(4410) / 9), np.cos(np.arange(4410) / 7)]).astype(np.float32)


def pcm(path: Path, bits: int) -> Path:
    whole = np.round(TONE.T.astype(np.float64) * (2 ** (bits - 1) - 1)).astype(np.int64)
    body = (
        (whole + 128).astype(np.uint8).tobytes()
        if bits == 8
        else b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole.flat)
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(bits // 8)
        file.setframerate(44_100)
        file.writeframes(body)
    return path


@pytest.mark.parametrize(("bits", "within"), [(8, 1e-2), (16, 1e-4), (24, 1e-6), (32, 1e-6)])
def test_one_signal_in_any_depth_is_one_array_of_channels_first(bits: int, within: float, tmp_path: Path) -> None:
    found = read_wave(pcm(tmp_path / "a.wav", bits))
    assert found.rate == 44_100
    assert found.samples.shape == (2, 4410)
    assert np.abs(found.samples - TONE).max() < within


def test_floats_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", TONE, 44_100)
    assert np.array_equal(read_wave(tmp_path / "a.wav").samples, TONE)


def test_a_second_at_one_rate_is_a_second_at_another() -> None:
    second = Wave(np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)[None], 44_100)
    found = resampled(second, 16_000)
    assert abs(found.shape[1] - 16_000) <= 1
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(found[0, 200:-200] - wanted[200:15_800]).max() < 1e-2


@pytest.mark.parametrize("content", [b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", b"fLaC....", b""])
def test_what_is_no_sound_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match=r"x\.wav"):
        read_wave(io.BytesIO(content), "x.wav")


def test_ears_are_counted_and_silence_is_no_sound(tmp_path: Path) -> None:
    def heard(samples: np.ndarray, ears: int = 2) -> np.ndarray:
        write_wave(tmp_path / "a.wav", samples, 16_000)
        return read_ears(lambda: (tmp_path / "a.wav").open("rb"), "a.wav", rate=16_000, count=960, ears=ears, convention=None)

    assert heard(TONE).shape == (2, 960)
    assert heard(TONE[:, :500])[:, 500:].max() == 0
    with pytest.raises(UnreadableImage, match="has one channel, where 2 are needed"):
        heard(TONE[:1])
    with pytest.raises(UnreadableImage, match="is silent"):
        heard(0 * TONE)


def test_arrays_lie_channels_first_and_integers_are_divided() -> None:
    assert np.abs(channels_first((TONE * 32767).astype(np.int16)) - TONE).max() < 1e-4
    assert channels_first(TONE[0]).shape == (1, 4410)
    with pytest.raises(InputError, match=r"shape \[4410, 2\], expected \[channels, samples\]"):
        channels_first(TONE.T)
    with pytest.raises(InputError, match="no numbers"):
        channels_first(TONE * np.nan)


@pytest.mark.parametrize("convention", ["acn-sn3d", "acn-n3d", "fuma"])
def test_a_source_at_the_left_is_at_the_left_in_every_convention(convention: str) -> None:
    gain = 3**0.5 if convention == "acn-n3d" else 1
    w, y = np.ones(8, np.float32), gain * np.ones(8, np.float32)
    silent = 0 * w
    given = np.stack([w / 2**0.5, silent, y, silent] if convention == "fuma" else [w, y, silent, silent])
    found = to_acn_sn3d(given, convention)  # type: ignore[arg-type]
    assert np.allclose(found[:2], 1, atol=1e-6)  # W and Y of one sign
    assert not found[2:].any()
    with pytest.raises(InputError, match="four: first order"):
        to_acn_sn3d(given[:2], convention)  # type: ignore[arg-type]
