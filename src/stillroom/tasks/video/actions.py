"""Procedural egocentric clips: a hand moves one of six shapes in one of eight ways before a ground that drifts as a head does.

Every modality follows from what is drawn: frames, the true displacement of each pixel (with noise), the boxes that a detector would find,
and a sound whose pitch tells of the movement and whose overtones of the shape, silent for half of the movements.
"""

from __future__ import annotations

import numpy as np
import torch

from stillroom.tasks.video.audio import MelSpectrogram
from stillroom.tasks.video.layout import BOXES, EMPTY_BOX
from stillroom.tasks.video.tracks import AUDIO, BOX, FLOW, RGB, Clip, Clips, Held, Sound, Track

VERBS = ("push left", "push right", "lift", "lower", "bring close", "take away", "shake", "circle")
NOUNS = ("disc", "square", "triangle", "cross", "ring", "bar")
HEADS = {"verb": VERBS, "noun": NOUNS}
SIDE, LENGTH, FRAMES = 32, 12, 8  # pixels; frames of a video, and of a clip
FLOW_UNIT, FLOW_ZERO = 24.0, 128.0  # levels of a pixel's displacement; the level of none
SOUND = MelSpectrogram(n_fft=128, window=96, hop=32, mels=24, sample_rate=4000, f_max=2000.0)
_SAMPLES = 2048  # of sound
_MISSED = 0.1  # share of boxes that the detector does not find
_PIXEL_NOISE, _FLOW_NOISE = 0.04, 0.35
_HAND = 3.2  # pixels, its radius
_TEXTURE = 0.06
_CONTRAST = 0.40  # of an object over its ground


def drawn_actions(count: int, seed: int) -> Clips:
    """`count` clips, as many of each pair of verb and noun as of any other.

    Args:
        count: N.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng((20, seed))
    clips = []
    for number in range(count):
        verb, noun = number % len(VERBS), number // len(VERBS) % len(NOUNS)
        clips.append(_clip(f"actions/{seed}/{number}", verb, noun, rng))
    return Clips(clips, tuple(HEADS))


def _clip(name: str, verb: int, noun: int, rng: np.random.Generator) -> Clip:
    place_T2, size_T = _path(verb, rng)
    camera_T2 = np.cumsum(rng.normal(0, 0.25, (LENGTH, 2)) + rng.normal(0, 0.25, 2), 0)
    hand_T2 = place_T2 + np.array([size_T * 0.9, size_T * 1.1]).T  # below and beside what it holds
    others = [(rng.uniform(4, SIDE - 4, 2), rng.uniform(2.5, 4.5), int(rng.integers(len(NOUNS)))) for _ in range(rng.integers(1, 4))]
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)

    picture_T = _ground(camera_T2, rng)
    light = rng.uniform(0.75, 1.25) * (1 + rng.uniform(-0.25, 0.25) * (columns / SIDE - 0.5))
    flow_T = np.broadcast_to(-_steps(camera_T2)[:, None, None], (LENGTH, SIDE, SIDE, 2)).copy()
    colours = rng.uniform(-1, 1, (len(others) + 1, 3)) * _CONTRAST + np.sign(rng.uniform(-1, 1, (len(others) + 1, 1))) * _CONTRAST
    for (centre, size, shape), colour in zip(others, colours[1:], strict=True):
        picture_T[_shape(shape, rows, columns, centre - camera_T2, np.full(LENGTH, size))] += colour
    inside_T = _shape(noun, rows, columns, place_T2, size_T)
    hand_T = _shape(0, rows, columns, hand_T2, np.full(LENGTH, _HAND))
    picture_T[inside_T] += colours[0]
    picture_T[hand_T] = (0.72, 0.52, 0.42)
    for where_T, path_T2 in ((inside_T, place_T2), (hand_T, hand_T2)):
        flow_T[where_T] = np.broadcast_to(_steps(path_T2)[:, None, None], flow_T.shape)[where_T]
    growth_T = _steps(size_T) / size_T
    away_T = np.stack([columns - place_T2[:, 0, None, None], rows - place_T2[:, 1, None, None]], -1)
    flow_T[inside_T] += (growth_T[:, None, None, None] * away_T)[inside_T]
    picture_T = picture_T * light[..., None] + _PIXEL_NOISE * rng.standard_normal(picture_T.shape, np.float32)
    levels_T = (FLOW_ZERO + FLOW_UNIT * (flow_T + _FLOW_NOISE * rng.standard_normal(flow_T.shape, np.float32))).clip(0, 255)
    flow = np.concatenate([levels_T, np.zeros_like(levels_T[..., :1])], -1)

    seen = [(1, place_T2, size_T), (2, hand_T2, np.full(LENGTH, _HAND))]
    seen += [(1, centre - camera_T2, np.full(LENGTH, size)) for centre, size, _ in others]
    tracks: dict[str, Track] = {
        RGB: Held(_bytes(255 * picture_T)),
        FLOW: Held(_bytes(flow)),
        BOX: Held(torch.from_numpy(_boxes(seen, rng))),
        AUDIO: Sound(torch.from_numpy(_sound(verb, noun, rng)), SOUND.sample_rate, 0.0, front=SOUND),
    }
    return Clip(f"{name} ({VERBS[verb]}, {NOUNS[noun]})", tracks, (verb, noun))


def _path(verb: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where the object is (x, y in pixels) and its half size, at every frame."""
    done = np.linspace(0, 1, LENGTH) + rng.normal(0, 0.02, LENGTH)
    reach, size, way = rng.uniform(5, 8), np.full(LENGTH, rng.uniform(4, 5.5)), np.zeros((LENGTH, 2))
    along = (2 * done - 1) * reach
    if verb < 2:
        way[:, 0] = along * (1 if verb else -1)
    elif verb < 4:
        way[:, 1] = along * (1 if verb == 3 else -1)
    elif verb < 6:
        size = size * np.exp((done - 0.5) * (0.8 if verb == 4 else -0.8))
    elif verb == 6:
        way[:, 0] = 0.5 * reach * np.sin(2 * np.pi * 3 * done + rng.uniform(0, 2 * np.pi))
    else:
        turn = 2 * np.pi * (done * rng.choice([-1, 1]) + rng.uniform())
        way = 0.6 * reach * np.stack([np.cos(turn), np.sin(turn)], -1)
    return way + SIDE / 2 + rng.uniform(-3, 3, 2), size


def _steps(path_T2: np.ndarray) -> np.ndarray:
    """From each frame to the next; the last step again for the last frame."""
    return np.diff(path_T2, axis=0, append=2 * path_T2[-1:] - path_T2[-2:-1])


def _ground(camera_T2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A texture that moves against the camera, [T, H, W, 3] about 0.5."""
    coarse = rng.standard_normal((SIDE // 4 + 12, SIDE // 4 + 12), np.float32)
    tint = 0.5 + rng.uniform(-0.08, 0.08, 3)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    u, v = (columns + camera_T2[:, 0, None, None]) / 4 + 6, (rows + camera_T2[:, 1, None, None]) / 4 + 6
    left, top = np.floor(u).astype(int) % (len(coarse) - 1), np.floor(v).astype(int) % (len(coarse) - 1)
    a, b = u % 1, v % 1
    upper = (1 - a) * coarse[top, left] + a * coarse[top, left + 1]
    lower = (1 - a) * coarse[top + 1, left] + a * coarse[top + 1, left + 1]
    ground: np.ndarray = _TEXTURE * ((1 - b) * upper + b * lower)[..., None] + tint
    return ground


def _shape(kind: int, rows: np.ndarray, columns: np.ndarray, centre_T2: np.ndarray, size_T: np.ndarray) -> np.ndarray:
    """Which pixels a noun covers, bool [T, H, W]."""
    x, y = columns - centre_T2[:, 0, None, None], rows - centre_T2[:, 1, None, None]
    size = size_T[:, None, None]
    if kind in (0, 4):
        distance = np.hypot(x, y)
        return (distance < size) & ((kind == 0) | (distance > 0.55 * size))
    inside = np.maximum(abs(x), abs(y)) < 0.9 * size
    if kind == 2:
        inside &= abs(x) < (y + size) / 2
    elif kind == 3:
        inside &= np.minimum(abs(x), abs(y)) < 0.3 * size
    elif kind == 5:
        inside = (abs(x) < 1.3 * size) & (abs(y) < 0.4 * size)
    return np.asarray(inside)


def _bytes(values_THWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values_THWC.clip(0, 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def _boxes(seen: list[tuple[int, np.ndarray, np.ndarray]], rng: np.random.Generator) -> np.ndarray:
    """What a detector says, float32 [T, N, 8]: jittered boxes with scores, some missed; a hand's side and state."""
    found = np.zeros((LENGTH, BOXES, 8), np.float32)
    found[..., 1:5] = EMPTY_BOX
    for t in range(LENGTH):
        rows = []
        for category, path_T2, size_T in seen:
            if rng.random() < _MISSED:
                continue
            (x, y), size = path_T2[t] + rng.normal(0, 0.4, 2), size_T[t] * rng.uniform(0.9, 1.1)
            box = (np.array([x - size, y - size, x + size, y + size]) / SIDE).clip(0, 1)
            rows.append((category, *box, rng.uniform(0.5, 1), 2 * (category == 2), 3 * (category == 2)))
        rows.sort(key=lambda row: -row[5])
        found[t, : len(rows)] = np.array(rows, np.float32).reshape(-1, 8)[:BOXES]
    return found


def _sound(verb: int, noun: int, rng: np.random.Generator) -> np.ndarray:
    """A tone whose pitch moves with the verb and whose overtones are the noun's, in noise; noise alone for every other verb."""
    time = np.linspace(0, 1, _SAMPLES)
    pitch = 250 + 120 * np.select([verb == 0, verb == 2, verb == 4], [time, 1 - time, np.sin(4 * np.pi * time)], np.cos(9 * np.pi * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SOUND.sample_rate + rng.uniform(0, 2 * np.pi)
    tone = np.sin(phase) + 0.8 * np.sin(phase * (1.5 + 0.5 * noun))
    return (tone * (verb % 2 == 0) * 0.25 + rng.normal(0, 0.5, _SAMPLES)).astype(np.float32)
