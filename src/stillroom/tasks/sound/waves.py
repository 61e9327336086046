"""Sound files as arrays: WAV of any depth with the standard library alone, all else by `soundfile`; resampling; ambisonic channels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from math import gcd
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.stores import UnreadableImage

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
Convention = Literal["acn-sn3d", "acn-n3d", "fuma"]
CONVENTIONS = ("acn-sn3d", "acn-n3d", "fuma")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # WAV's formats
_SLOWEST, _FASTEST = 1000, 768_000  # samples per second
_MOST_CHANNELS = 32  # an array with more rows than this, and fewer columns, lies the wrong way round


class Wave(NamedTuple):
    """A sound.

    Attributes:
        samples: float32 [channels, n]; integers are divided by half of their range, so that these are from -1 to 1.
        rate: samples per second.
    """

    samples: np.ndarray
    rate: int


def sounds_among(store: Store, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names of the files that are sounds by their endings, and of those that are not; both sorted."""
    kept: tuple[list[str], list[str]] = ([], [])
    for name in sorted(files):
        kept[PurePosixPath(name).suffix.lower() not in SOUNDS].append(name)
    return kept


def read_wave(file: Path | BinaryIO, name: str = "") -> Wave:
    """A sound file.

    Args:
        file: its path, or what it holds.
        name: what messages call it.

    Raises:
        UnreadableImage: it is none, is broken or empty, has samples that are no numbers, or is of a kind that `soundfile` would read if
            it were installed.
    """
    called = name or str(file)
    content = file.read_bytes() if isinstance(file, Path) else file.read()
    try:
        wave = _riff(content) if content[:4] in (b"RIFF", b"RF64") else _by_soundfile(content, called)
    except UnreadableImage:
        raise
    except Exception as error:  # libsndfile's errors are of its own kind
        raise UnreadableImage(f"{called}: cannot be decoded ({error})") from error
    if not wave.samples.size:
        raise UnreadableImage(f"{called}: holds no sample")
    if not _SLOWEST <= wave.rate <= _FASTEST:
        raise UnreadableImage(f"{called}: has {wave.rate} samples per second, which no recorder takes")
    if not np.isfinite(wave.samples).all():
        raise UnreadableImage(f"{called}: holds samples that are no numbers")
    return wave


def _by_soundfile(content: bytes, name: str) -> Wave:
    try:
        import soundfile
    except ImportError:
        raise UnreadableImage(f"{name}: is no WAV file; others need soundfile: pip install 'stillroom[sound]'") from None
    samples_NE, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return Wave(np.ascontiguousarray(samples_NE.T), int(rate))


def _riff(content: bytes) -> Wave:
    """WAV: 8 (unsigned), 16, 24 and 32 bits, and floats of 32 and 64."""
    place, layout = 12, b""
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        body = content[place + 8 : place + 8 + size]
        if kind == b"fmt ":
            layout = body
        if kind == b"data":
            return _decoded(layout, body)
        place += 8 + size + size % 2
    raise ValueError("a WAV file without samples")


def _decoded(layout: bytes, body: bytes) -> Wave:
    kind, channels, rate, bits = (int.from_bytes(layout[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8), (14, 16)))
    kind = int.from_bytes(layout[24:26], "little") if kind == _EXTENSIBLE else kind
    whole = body[: len(body) // (channels * bits // 8) * (channels * bits // 8)]
    if kind == _FLOAT and bits in (32, 64):
        values = np.frombuffer(whole, f"<f{bits // 8}")
    elif kind == _PCM and bits == 8:
        values = np.frombuffer(whole, np.uint8) / 128.0 - 1
    elif kind == _PCM and bits in (16, 32):
        values = np.frombuffer(whole, f"<i{bits // 8}") / 2.0 ** (bits - 1)
    elif kind == _PCM and bits == 24:
        padded = np.zeros((len(whole) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
        values = padded.view("<i4")[:, 0] / 2.0**31
    else:
        raise ValueError(f"WAV format {kind} of {bits} bits")
    return Wave(np.ascontiguousarray(values.reshape(-1, channels).T, dtype=np.float32), rate)


def write_wave(file: Path, samples: np.ndarray, rate: int) -> None:
    """A WAV file of 32-bit floats [channels, n]."""
    body = np.ascontiguousarray(samples.T, "<f4").tobytes()
    channels = len(samples)
    layout = b"".join(
        value.to_bytes(size, "little")
        for value, size in ((_FLOAT, 2), (channels, 2), (rate, 4), (rate * channels * 4, 4), (channels * 4, 2), (32, 2))
    )
    chunks = b"WAVEfmt " + len(layout).to_bytes(4, "little") + layout + b"data" + len(body).to_bytes(4, "little") + body
    file.write_bytes(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks)


def channels_first(samples: Any, argument: str = "samples") -> np.ndarray:
    """A sound in memory as float32 [channels, n]; one channel may be [n]. Integers are divided as those of files.

    Raises:
        InputError: it lies the wrong way round, [n, channels], is no array of one or two dimensions, or holds what is no number.
    """
    found = np.atleast_2d(np.asarray(samples))
    if found.ndim != 2 or found.shape[1] < found.shape[0] or found.shape[0] > _MOST_CHANNELS:
        raise InputError(argument, f"shape {list(np.shape(samples))}", "[channels, samples], such as [2, 16000] for two ears")
    if np.issubdtype(found.dtype, np.integer):
        found = found / -float(np.iinfo(found.dtype).min or -1)
    if not np.isfinite(found).all():
        raise InputError(argument, "samples that are no numbers", "finite ones")
    return found.astype(np.float32)


def resampled(wave: Wave, rate: int) -> np.ndarray:
    """The samples at another rate, float32 [channels, n'], by a polyphase filter: 44 100 at 44.1 kHz become 16 000 at 16 kHz."""
    if wave.rate == rate:
        return wave.samples
    from scipy.signal import resample_poly

    common = gcd(at_least("rate", rate, 1), wave.rate)
    found: np.ndarray = resample_poly(wave.samples, rate // common, wave.rate // common, axis=1)
    return found.astype(np.float32)


def fitted(samples_EN: np.ndarray, count: int) -> np.ndarray:
    """The first `count` samples; a shorter sound is followed by silence."""
    kept = samples_EN[:, :count]
    return np.pad(kept, ((0, 0), (0, count - kept.shape[1]))) if kept.shape[1] < count else kept


def to_acn_sn3d(channels_4N: np.ndarray, convention: Convention) -> np.ndarray:
    """First-order ambisonics as W, Y, Z, X with SN3D's scale, from a declared convention.

    In all of them X is ahead, Y at the left, Z above: of a source at the left W and Y have one sign and X is about 0.

    Args:
        channels_4N: ``acn-sn3d`` (AmbiX): itself; ``acn-n3d``: first-order channels are sqrt(3) times as large; ``fuma``: W, X, Y, Z, and
            W divided by sqrt(2).
        convention: which. It cannot be told from the samples.

    Raises:
        InputError: another convention, or other than four channels.
    """
    one_of("ambisonic", convention, CONVENTIONS)
    if len(channels_4N) != 4:
        raise InputError("ambisonic", f"{len(channels_4N)} channels", "four: first order")
    scale = {"acn-sn3d": (1, 1, 1, 1), "acn-n3d": (1, *(3**-0.5,) * 3), "fuma": (2**0.5, 1, 1, 1)}[convention]
    order = [0, 2, 3, 1] if convention == "fuma" else [0, 1, 2, 3]
    found: np.ndarray = channels_4N[order] * np.array(scale, np.float32)[:, None]
    return found.astype(np.float32)


def read_ears(open_file: Callable[[], BinaryIO], name: str, *, rate: int, count: int, ears: int, convention: str | None) -> np.ndarray:
    """A recording as a network hears it: [E, count] at the rate.

    Raises:
        UnreadableImage: as `read_wave`; or it has another number of channels, one where two ears are needed say, or is silent.
    """
    with open_file() as file:
        wave = read_wave(file, name)
    channels = len(wave.samples)
    if channels != ears:
        heard = "one channel" if channels == 1 else f"{channels} channels"
        raise UnreadableImage(f"{name}: has {heard}, where {ears} are needed")
    samples = fitted(resampled(wave, rate), count)
    if not samples.any():
        raise UnreadableImage(f"{name}: is silent")
    return to_acn_sn3d(samples, convention) if convention is not None else samples  # type: ignore[arg-type]
