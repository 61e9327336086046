"""Miniature data sets of recordings, as they lie on people's disks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.tasks.sound.waves import write_wave

RATE, SAMPLES = 16_000, 960


def sound(random: np.random.Generator, ears: int = 2, samples: int = SAMPLES) -> np.ndarray:
    return random.standard_normal((ears, samples)).astype(np.float32) * np.exp(-np.arange(samples) / 200)


def echoes(root: Path, *, count: int = 6, size: tuple[int, int] = (16, 32), scale: float = 65536 / 10) -> Path:
    """Sounds, panoramas, 16-bit depth and Matterport's categories, with lists."""
    random = np.random.default_rng(0)
    for folder in ("sound", "rgb", "depth", "labels"):
        (root / folder / "scene").mkdir(parents=True)
    for number in range(count):
        write_wave(root / f"sound/scene/{number}.wav", sound(random), RATE)
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / f"rgb/scene/{number}.png")
        metres = random.uniform(1, 5, size)
        metres[0, 0] = 0
        Image.fromarray((metres * scale).astype(np.uint16)).save(root / f"depth/scene/{number}.png")
        Image.fromarray(random.choice([1, 2, 17], size).astype(np.uint8)).save(root / f"labels/scene/{number}.png")
    (root / "train.txt").write_text("".join(f"scene/{number}\n" for number in range(count - 2)))
    (root / "test.txt").write_text("".join(f"scene/{number}.wav\n" for number in range(count - 2, count)))
    return root


def replica(root: Path) -> Path:
    """SoundSpaces' Replica as echo-to-depth works have it."""
    random = np.random.default_rng(0)
    for scene in ("office_0", "room_1", "room_2"):
        frames = {}
        for place in (3, 11):
            for turn in (0, 90):
                folder = root / f"echoes_navigable/{scene}/3ms_sweep/{turn}"
                folder.mkdir(parents=True, exist_ok=True)
                write_wave(folder / f"{place}.wav", sound(random, samples=2646), 44_100)
                frames[place, turn] = {
                    "rgb": random.integers(0, 255, (128, 128, 4), dtype=np.uint8),
                    "depth": random.uniform(0.5, 4, (128, 128)).astype(np.float32),
                }
        (root / "scene_observations_128").mkdir(exist_ok=True)
        (root / f"scene_observations_128/{scene}.pkl").write_bytes(pickle.dumps(frames))
    return root


def batvision(root: Path) -> Path:
    """BatVision V2."""
    random = np.random.default_rng(0)
    for place, part in (("2nd_Floor", "train"), ("2nd_Floor", "val"), ("Salle", "train")):
        head = "depth path,depth file name,audio path,audio file name,camera path,camera file name"
        rows = [head]
        for folder in ("audio", "depth", "camera"):
            (root / place / folder).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            stem = f"{part}_{number}"
            write_wave(root / place / f"audio/{stem}.wav", sound(random, samples=2646), 44_100)
            np.save(root / place / f"depth/{stem}.npy", random.uniform(500, 4000, (24, 32)).astype(np.float32))
            Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(root / place / f"camera/{stem}.jpg")
            rows.append(f"{place}/depth,{stem}.npy,{place}/audio,{stem}.wav,{place}/camera,{stem}.jpg")
        (root / place / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return root
