"""Rooms that are made up, what is seen in them, and what their echoes sound like: all exact, so that there is a truth.

A room is a box with up to four pieces of furniture. The listener stands in it and makes a sound; x is ahead, y at the left, z above.
Everything is computed for many rooms at a time.

Source: the specification's small-scale experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SPEED = 343.0  # metres per second
CLASSES = ("wall", "floor", "ceiling", "low furniture", "high furniture")
WALL, FLOOR, CEILING, LOW, HIGH = range(1, 6)
HEAD = 1.5  # metres, of the listener's ears and eyes
_HALF_HEAD = 0.09
_REFLECTS = np.array([0, 0.8, 0.5, 0.7, 0.6, 0.6], np.float32)
_COLOURS = np.array([[0, 0, 0], [0.8, 0.75, 0.6], [0.55, 0.4, 0.3], [0.9, 0.9, 0.95], [0.35, 0.55, 0.8], [0.75, 0.35, 0.35]], np.float32)
_PIECES, _TRIES = 4, 12
_RAYS = 2000
_TOGETHER = 64  # rooms at a time
_FAST = 128  # transforms are of multiples of so many samples
_SECOND = 0.3  # strength of echoes from two walls
_NOISE = 0.01  # of the peak
CUBE = np.array([5.0, 5.0, 4.0], np.float32)  # metres around the listener that a 3D network answers for
_THICK = 0.3125  # metres, of walls, in the voxels


class Rooms(NamedTuple):
    """N rooms around their listeners, who are at the origin.

    Attributes:
        low, high: the walls, [N, 3] both, metres.
        pieces: opposite corners of the furniture, [N, 4, 2, 3]; empty boxes (NaN) where there are fewer.
        kinds: of each piece, `LOW` or `HIGH`, [N, 4].
        tint: of the light, [N, 3].
        stripes: of the walls, per metre, [N].
        seeds: of the noise, [N].
    """

    low: np.ndarray
    high: np.ndarray
    pieces: np.ndarray
    kinds: np.ndarray
    tint: np.ndarray
    stripes: np.ndarray
    seeds: np.ndarray


def draw_rooms(seeds: Sequence[int]) -> Rooms:
    """One room of each seed, whatever the others are."""
    return Rooms(*(np.stack(parts) for parts in zip(*map(_drawn, seeds), strict=True)))


def _drawn(seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    size = np.array([*random.uniform(3, 8, 2), random.uniform(2.4, 3.5)])
    place = np.array([*random.uniform(0.7, size[:2] - 0.7), HEAD])
    pieces, kinds = np.full((_PIECES, 2, 3), np.nan), random.integers(LOW, HIGH + 1, _PIECES)
    sides_T3 = random.uniform(0.5, 1.5, (_PIECES, _TRIES, 3))
    corners_T2 = random.random((_PIECES, _TRIES, 2))
    for number in range(int(random.integers(0, _PIECES + 1))):
        sides = sides_T3[number].copy()
        sides[:, 2] = (0.25 if kinds[number] == LOW else 0.75) + sides[:, 2] / 2
        corner = corners_T2[number] * (size[:2] - sides[:, :2]) - place[:2]
        apart = np.maximum(np.maximum(corner, -(corner + sides[:, :2])), 0)
        free = np.flatnonzero(np.hypot(*apart.T) >= 0.5)
        if len(free):
            one = free[0]
            pieces[number, 0] = *corner[one], -HEAD
            pieces[number, 1] = *(corner[one] + sides[one, :2]), sides[one, 2] - HEAD
    return -place, size - place, pieces, kinds, random.uniform(0.7, 1.0, 3), np.array(random.uniform(1, 4)), np.array(seed)


class Hits(NamedTuple):
    """What rays meet first: metres [N, M], class [N, M], cosine of the incidence [N, M], and the axis of the surface's normal [N, M]."""

    distance: np.ndarray
    label: np.ndarray
    incidence: np.ndarray
    axis: np.ndarray


def cast(rooms: Rooms, directions_M3: np.ndarray) -> Hits:
    """Follows rays from the listener."""
    u = directions_M3.astype(np.float32)
    steep = np.where(np.abs(u) < 1e-9, 1e-9, u)
    far_NM3 = np.where(steep > 0, rooms.high[:, None], rooms.low[:, None]).astype(np.float32) / steep
    axis = far_NM3.argmin(-1)
    distance = np.take_along_axis(far_NM3, axis[..., None], -1)[..., 0]
    label = np.where(axis < 2, WALL, np.where(u[:, 2] > 0, CEILING, FLOOR))
    for piece, kind in zip(rooms.pieces.swapaxes(0, 1), rooms.kinds.T, strict=True):
        there = np.flatnonzero(np.isfinite(piece[:, 0, 0]))
        sides = piece[there].astype(np.float32)[:, :, None] / steep  # [n, 2, M, 3]
        near, far = sides.min(1), sides.max(1)
        entry = near.max(-1)
        hit = (entry > 0) & (entry < far.min(-1)) & (entry < distance[there])
        distance[there] = np.where(hit, entry, distance[there])
        axis[there] = np.where(hit, near.argmax(-1), axis[there])
        label[there] = np.where(hit, kind[there, None], label[there])
    incidence = np.abs(np.take_along_axis(np.broadcast_to(u, (*axis.shape, 3)), axis[..., None], -1)[..., 0])
    return Hits(distance, label, incidence, axis)


def panorama_directions(height: int, width: int) -> np.ndarray:
    """Unit vectors [H W, 3]: rows from 80 degrees above to 80 below, columns from behind over the left, ahead and the right to behind."""
    elevation = np.deg2rad(np.linspace(80, -80, height))[:, None]
    azimuth = np.pi - (np.arange(width) + 0.5) * 2 * np.pi / width
    level = np.cos(elevation)
    return np.stack(np.broadcast_arrays(level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)), -1).reshape(-1, 3)


def sphere_directions(count: int = _RAYS) -> np.ndarray:
    """Unit vectors [M, 3], evenly spread: a Fibonacci sphere."""
    number = np.arange(count) + 0.5
    z, angle = 1 - 2 * number / count, np.pi * (1 + 5**0.5) * number
    level = np.sqrt(1 - z**2)
    return np.stack((level * np.cos(angle), level * np.sin(angle), z), -1)


def panoramas(rooms: Rooms, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is seen: RGB uint8 [N, 3, H, 2H], metres float32 [N, H, 2H], classes uint8 [N, H, 2H]."""
    width = 2 * height
    u = panorama_directions(height, width)
    hits = cast(rooms, u)
    shape = len(rooms.low), height, width
    light = (0.4 + 0.6 * hits.incidence) * np.exp(-hits.distance / 10)
    points = hits.distance[..., None] * u.astype(np.float32)
    along = np.where(hits.axis == 0, points[..., 1], points[..., 0])
    striped = (hits.label == WALL) & (np.sin(2 * np.pi * rooms.stripes[:, None] * along) > 0.6)
    colour = _COLOURS[hits.label] * rooms.tint[:, None] * np.where(striped, 0.75, 1.0)[..., None]
    noise = np.stack([np.random.default_rng((int(seed), 1)).standard_normal((height * width, 3), np.float32) for seed in rooms.seeds])
    seen = np.clip(colour * light[..., None] + 0.03 * noise, 0, 1)
    pixels = np.ascontiguousarray(np.moveaxis((255 * seen).astype(np.uint8).reshape(*shape, 3), 3, 1))
    return pixels, hits.distance.reshape(shape).astype(np.float32), hits.label.reshape(shape).astype(np.uint8)


def occupancy(rooms: Rooms, side: int) -> np.ndarray:
    """Which voxels are solid, walls and furniture, in the `CUBE` around the listener: bool [N, side, side, side] by x, y, z.

    What lies behind the walls is empty.
    """
    ticks = (np.arange(side) + 0.5) / side - 0.5
    points_3 = np.stack(np.meshgrid(*(ticks * length for length in CUBE), indexing="ij"), -1).astype(np.float32)
    lower, upper = (bound[:, None, None, None] for bound in (rooms.low, rooms.high))
    inside = ((points_3 > lower) & (points_3 < upper)).all(-1)
    shell = np.asarray(((points_3 > lower - _THICK) & (points_3 < upper + _THICK)).all(-1) & ~inside)
    for piece in rooms.pieces.swapaxes(0, 1):
        corners = piece[:, :, None, None, None]
        shell |= ((points_3 > corners[:, 0]) & (points_3 < corners[:, 1])).all(-1)
    return shell


# Echoes ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ears:
    """What hears.

    Args:
        rate: samples per second.
        samples: that are kept after the emission.
        ambisonic: four channels W, Y, Z, X (ACN, SN3D) instead of two ears.
        hrir: head-related impulse responses [D, 2, taps] at the rate, left ear first; None for a simple head.
        directions: unit vectors of these, [D, 3].
    """

    rate: int = 16_000
    samples: int = 960
    ambisonic: bool = False
    hrir: np.ndarray | None = None
    directions: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Channels."""
        return 4 if self.ambisonic else 2


def sweep(rate: int, seconds: float = 0.003, low: float = 200.0, high: float = 8000.0) -> np.ndarray:
    """A linear sweep, up to half of the rate at most, float32 [n]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.sin(2 * np.pi * (low * time + (min(high, rate / 2) - low) * time**2 / (2 * seconds))).astype(np.float32)


def echoes(rooms: Rooms, ears: Ears, dry: Sequence[np.ndarray]) -> np.ndarray:
    """What is heard of each room: float32 [N, E, samples].

    Args:
        rooms: N.
        ears: who hears.
        dry: the sound that is made in each room, [n] each.
    """
    found = [_heard(Rooms(*(part[start : start + _TOGETHER] for part in rooms)), ears) for start in range(0, len(rooms.low), _TOGETHER)]
    impulses = np.concatenate(found)
    size = -(-(ears.samples + max(map(len, dry))) // _FAST) * _FAST
    sources = np.stack([np.fft.rfft(sound, size) for sound in dry])[:, None]
    wet = np.fft.irfft(np.fft.rfft(impulses, size) * sources, size)[..., : ears.samples]
    noise = np.stack([np.random.default_rng((int(seed), 2)).standard_normal(wet.shape[1:]) for seed in rooms.seeds])
    peak = np.abs(wet).max((1, 2), keepdims=True)
    return (wet + _NOISE * peak * noise).astype(np.float32)


def _heard(rooms: Rooms, ears: Ears) -> np.ndarray:
    """Impulse responses [N, E, samples]."""
    u = sphere_directions().astype(np.float32)
    hits = cast(rooms, u)
    far_NS3, strength_NS = _second_order(rooms)
    path_NS = np.linalg.norm(far_NS3, axis=-1)
    path = np.concatenate((2 * hits.distance, path_NS), 1)
    direction = np.concatenate((np.broadcast_to(u, (len(path), *u.shape)), far_NS3 / path_NS[..., None]), 1)
    amplitude = np.concatenate((_REFLECTS[hits.label] * hits.incidence**12, strength_NS), 1) / (path / 2) ** 2
    if ears.hrir is not None and ears.directions is not None:
        return _through_head(path, direction, amplitude, ears, ears.hrir, ears.directions)
    if ears.ambisonic:
        gains = [np.ones_like(path), direction[..., 1], direction[..., 2], direction[..., 0]]
        delays = [np.zeros_like(path)] * 4
    else:
        gains = [0.6 + 0.3 * side * direction[..., 1] + 0.1 * direction[..., 0] for side in (1, -1)]
        delays = [-side * _HALF_HEAD * direction[..., 1] for side in (1, -1)]  # the ear on the sound's side hears it first
    heard = [_impulses(path + delay, amplitude * gain, ears) for gain, delay in zip(gains, delays, strict=True)]
    return np.stack(heard, 1)


def _second_order(rooms: Rooms) -> tuple[np.ndarray, np.ndarray]:
    """Listeners mirrored in two walls: where they are, [N, S, 3], and how much of the sound the walls leave, [N, S]."""
    walls_N32 = np.stack((rooms.low, rooms.high), -1)
    reflects_32 = _REFLECTS[[[WALL, WALL], [WALL, WALL], [FLOOR, CEILING]]]
    places, strengths = [], []
    for first in range(3):
        for side in (0, 1):
            opposite = np.zeros((len(walls_N32), 3))
            opposite[:, first] = (2 * side - 1) * 2 * (rooms.high - rooms.low)[:, first]
            places.append(opposite)
            strengths.append(reflects_32[first].prod())
            for second in range(first + 1, 3):
                for other in (0, 1):
                    corner = np.zeros((len(walls_N32), 3))
                    corner[:, first], corner[:, second] = 2 * walls_N32[:, first, side], 2 * walls_N32[:, second, other]
                    places.append(corner)
                    strengths.append(reflects_32[first, side] * reflects_32[second, other])
    return np.stack(places, 1).astype(np.float32), np.broadcast_to(_SECOND * np.array(strengths, np.float32), (len(walls_N32), len(places)))


def _impulses(path_NM: np.ndarray, amplitude_NM: np.ndarray, ears: Ears, rows: np.ndarray | None = None, count: int = 0) -> np.ndarray:
    """Impulses at the time that the paths take, shared by the two nearest samples: [N, samples], or [count, samples] by `rows`."""
    place = path_NM / SPEED * ears.rate
    before = np.floor(place).astype(np.int64)
    part = place - before
    rows = np.broadcast_to(np.arange(len(path_NM))[:, None], path_NM.shape) if rows is None else rows
    count = count or len(path_NM)
    total = np.zeros(count * ears.samples)
    for index, weight in ((before, amplitude_NM * (1 - part)), (before + 1, amplitude_NM * part)):
        kept = (index >= 0) & (index < ears.samples)
        total += np.bincount((rows * ears.samples + index)[kept], weight[kept], count * ears.samples)
    return total.reshape(count, ears.samples)


def _through_head(
    path: np.ndarray, direction: np.ndarray, amplitude: np.ndarray, ears: Ears, hrir_DET: np.ndarray, directions_D3: np.ndarray
) -> np.ndarray:
    """Impulses through the response of the nearest measured direction."""
    size = -(-(ears.samples + hrir_DET.shape[-1]) // _FAST) * _FAST
    head = np.fft.rfft(hrir_DET, size).astype(np.complex64)
    found = []
    for one_path, one_direction, one_amplitude in zip(path, direction, amplitude, strict=True):
        nearest = (one_direction @ directions_D3.T.astype(np.float32)).argmax(1)
        used, rows = np.unique(nearest, return_inverse=True)
        impulses = _impulses(one_path[None], one_amplitude[None], ears, rows[None], len(used))
        spectrum = np.fft.rfft(impulses.astype(np.float32), size).astype(np.complex64)
        found.append(np.fft.irfft(np.einsum("df,def->ef", spectrum, head[used]), size)[:, : ears.samples])
    return np.stack(found)
