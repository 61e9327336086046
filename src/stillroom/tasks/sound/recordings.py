"""Recordings with what was seen where they were made: of rooms that are made up, or in files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from stillroom.engine.loading import sample_seeds
from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.stores import UnreadableImage, read_image, reason_of
from stillroom.tasks.sound import rooms
from stillroom.tasks.sound.scores import nine_classes
from stillroom.tasks.sound.spectrogram import FrontEnd
from stillroom.tasks.sound.waves import read_ears

Target = Literal["depth", "segmentation", "occupancy"]
TARGETS = ("depth", "segmentation", "occupancy")
Size = tuple[int, int]
FINE, COARSE = 32, 16  # voxels of a side that are answered for, and that a teacher sees
UNITS = {"m": 1.0, "mm": 1e-3, "daps": 10 / 65536}  # metres of one step
_AWAY = 100.0  # metres that no indoor picture's median reaches
_SHARE = 0.01  # of a picture, that a category of Matterport's must cover


class Recordings(Protocol):
    """Sounds and what was seen, by number.

    Attributes:
        has: which targets there is a truth of.
    """

    has: frozenset[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where one comes from."""

    def take(self, indices: np.ndarray) -> Recordings:
        """Some of them, renumbered from 0."""

    def hear(self, index: int, front: FrontEnd) -> np.ndarray:
        """The sound: float32 [E, n]."""

    def look(self, index: int, size: Size) -> np.ndarray:
        """The picture: uint8 [3, H, W]."""

    def truth(self, index: int, target: Target, size: Size) -> np.ndarray:
        """Metres [H, W] (0: unknown), classes [H, W] (0: unknown), or solid voxels, bool [32, 32, 32]."""


class MadeRooms:
    """Rooms that are made up when the first is asked for, all at once.

    Args:
        seeds: of each room.
        ambisonic: who hears, see `rooms.Ears`.
        dry: sounds [n] and their rate, of which each room has one; None: a sweep of 3 ms.
        head: head-related impulse responses [D, 2, taps], directions [D, 3] and their rate; None: a simple head.
    """

    has = frozenset(TARGETS)

    def __init__(
        self,
        seeds: np.ndarray,
        *,
        ambisonic: bool = False,
        dry: tuple[Sequence[np.ndarray], int] | None = None,
        head: tuple[np.ndarray, np.ndarray, int] | None = None,
    ) -> None:
        self.seeds, self.ambisonic, self.dry, self.head = seeds, ambisonic, dry, head
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.seeds)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    def name(self, index: int) -> str:
        """A short word for its seed."""
        return f"room {int(self.seeds[index]) & 0xFFFFFF:06x}"

    def take(self, indices: np.ndarray) -> MadeRooms:
        """As `Recordings.take`."""
        return MadeRooms(self.seeds[indices], ambisonic=self.ambisonic, dry=self.dry, head=self.head)

    def hear(self, index: int, front: FrontEnd) -> np.ndarray:
        """As `Recordings.hear`."""
        return self._kept(("sound", front.rate, front.samples), lambda made: self._echoes(made, front))[index]

    def look(self, index: int, size: Size) -> np.ndarray:
        """As `Recordings.look`."""
        return self._kept(("seen", size[0]), lambda made: _panoramas(made, size[0]))[0][index]

    def truth(self, index: int, target: Target, size: Size) -> np.ndarray:
        """As `Recordings.truth`."""
        if target == "occupancy":
            return rooms.occupancy(rooms.Rooms(*(part[index : index + 1] for part in self._rooms())), FINE)[0]
        return self._kept(("seen", size[0]), lambda made: _panoramas(made, size[0]))[1 if target == "depth" else 2][index]

    def _rooms(self) -> rooms.Rooms:
        if "rooms" not in self._made:
            self._made["rooms"] = rooms.draw_rooms(self.seeds.tolist())
        made: rooms.Rooms = self._made["rooms"]
        return made

    def _kept(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make(self._rooms())
        return self._made[key]

    def _echoes(self, made: rooms.Rooms, front: FrontEnd) -> np.ndarray:
        hrir = directions = None
        if self.head is not None:
            responses, directions, rate = self.head
            hrir = _at_rate(responses, rate, front.rate)
        ears = rooms.Ears(front.rate, front.samples, self.ambisonic, hrir, directions)
        if self.dry is None:
            return rooms.echoes(made, ears, [rooms.sweep(front.rate)] * len(self))
        sounds = [_at_rate(sound, self.dry[1], front.rate)[: front.samples] for sound in self.dry[0]]
        return rooms.echoes(made, ears, [sounds[seed % len(sounds)] for seed in self.seeds.tolist()])


def made_rooms(seed: int, split: int, count: int, **options: Any) -> MadeRooms:
    """So many rooms of a split, the first ones the same for any count."""
    return MadeRooms(sample_seeds(seed, split, np.arange(count)), **options)


def _at_rate(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    found: np.ndarray = resample_poly(samples, wanted, rate, axis=-1)
    return found


def _panoramas(made: rooms.Rooms, height: int) -> list[np.ndarray]:
    """`rooms.panoramas`, some rooms at a time."""
    steps = range(0, len(made.low), 128)
    parts = [rooms.panoramas(rooms.Rooms(*(part[start : start + 128] for part in made)), height) for start in steps]
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


class FileRecordings:
    """Recordings in files.

    Args:
        store: what holds the files.
        rows: of each recording its files by role: ``sound``, ``rgb``, ``depth``, ``labels``, ``voxels``; or ``frame``, a scene's file of
            pictures and the key in it.
        ears: channels that a sound must have.
        convention: of ambisonics, see `waves.to_acn_sn3d`; None for ears.
        unit: of stored depth, see `UNITS`.
        matterport: labels are Matterport's 42 categories.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[Mapping[str, Any]],
        *,
        ears: int = 2,
        convention: str | None = None,
        unit: str = "m",
        matterport: bool = False,
    ) -> None:
        self.store, self.rows, self.ears, self.convention = store, list(rows), ears, convention
        self.unit, self.matterport = unit, matterport
        roles = set(self.rows[0]) if self.rows else set()
        named = {"depth": "depth", "frame": "depth", "labels": "segmentation", "voxels": "occupancy"}
        self.has = frozenset(target for role, target in named.items() if role in roles)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The sound's file."""
        return str(self.rows[index]["sound"])

    def take(self, indices: np.ndarray) -> FileRecordings:
        """As `Recordings.take`."""
        made = FileRecordings(
            self.store,
            [self.rows[index] for index in indices.tolist()],
            ears=self.ears,
            convention=self.convention,
            unit=self.unit,
            matterport=self.matterport,
        )
        made.has = self.has
        return made

    def hear(self, index: int, front: FrontEnd) -> np.ndarray:
        """As `Recordings.hear`.

        Raises:
            UnreadableImage: see `waves.read_ears`.
        """
        name = self.name(index)

        def opened() -> io.BytesIO:
            return io.BytesIO(self.store.read(name))

        options: dict[str, Any] = {"rate": front.rate, "count": front.samples, "ears": self.ears, "convention": self.convention}
        return read_ears(opened, name, **options)

    def look(self, index: int, size: Size) -> np.ndarray:
        """As `Recordings.look`."""
        row = self.rows[index]
        if "frame" in row:
            pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(self._frame(row)["rgb"][..., :3], -1, 0)))
        else:
            pixels = pil_to_tensor(read_image(io.BytesIO(self.store.read(row["rgb"])), row["rgb"]))
        found: np.ndarray = resize(pixels, list(size), antialias=True).numpy()
        return found

    def truth(self, index: int, target: Target, size: Size) -> np.ndarray:
        """As `Recordings.truth`; maps are resized by their nearest pixels."""
        row = self.rows[index]
        if target == "occupancy":
            with _told_broken(str(row["voxels"])), np.load(io.BytesIO(self.store.read(row["voxels"]))) as content:
                voxels = content["occupancy"].astype(bool)
            if voxels.shape != (FINE,) * 3:
                raise UnreadableImage(f"{row['voxels']}: its occupancy has the shape {list(voxels.shape)}, not {[FINE] * 3}")
            return voxels
        found = self.depth(index) if target == "depth" else self._labels(row["labels"])
        nearest = [((np.arange(side) + 0.5) * length / side).astype(np.int64) for side, length in zip(size, found.shape, strict=True)]
        return found[np.ix_(*nearest)]

    def depth(self, index: int) -> np.ndarray:
        """Metres in the file's own size, float32 [H, W]; 0 for what is missing: stored as 0 or below, NaN or infinite."""
        row = self.rows[index]
        if "frame" in row:
            stored = np.squeeze(self._frame(row)["depth"])
        elif str(row["depth"]).endswith(".npy"):
            with _told_broken(str(row["depth"])):
                stored = np.squeeze(np.load(io.BytesIO(self.store.read(row["depth"])), allow_pickle=False))
        else:
            with _told_broken(str(row["depth"])), Image.open(io.BytesIO(self.store.read(row["depth"]))) as image:
                stored = np.asarray(image)
        if stored.ndim != 2:
            raise UnreadableImage(f"{row.get('depth', row['sound'])}: its depth has the shape {list(stored.shape)}, not [H, W]")
        metres = stored.astype(np.float32) * UNITS[self.unit]
        return np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float32)

    def _labels(self, name: str) -> np.ndarray:
        with _told_broken(name), Image.open(io.BytesIO(self.store.read(name))) as image:
            if image.mode not in ("L", "P", "I", "I;16"):
                raise UnreadableImage(f"{name}: is a picture of mode {image.mode}, not of class numbers (grey or palette)")
            found = np.asarray(image).astype(np.int64)
        return nine_classes(torch.from_numpy(found), _SHARE).numpy() if self.matterport else found

    def _frame(self, row: Mapping[str, Any]) -> Any:
        file, key = row["frame"]
        return frames(self.store, file)[key]


@contextmanager
def _told_broken(name: str) -> Iterator[None]:
    """What a format's reader stumbles over in damaged bytes, as an error that names the file."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"{name}: cannot be decoded ({reason_of(error)})") from None


def frames(store: Store, file: str) -> Any:
    """A scene's pictures, a dictionary that was pickled; nothing but arrays is read from it. The last few stay in memory.

    Raises:
        InputError: it holds something else.
    """
    return _frames(store, file)  # type: ignore[arg-type]  # a store is known by its identity


@lru_cache(maxsize=8)
def _frames(store: Any, file: str) -> Any:
    try:
        found = _Arrays(io.BytesIO(store.read(file))).load()
    except (pickle.UnpicklingError, AttributeError, EOFError, ValueError) as error:
        raise InputError("data", f"{file} ({error})", "a pickled dictionary of arrays") from None
    if not isinstance(found, dict):
        raise InputError("data", f"{file}, a pickled {type(found).__name__}", "a dictionary by (location, orientation)")
    return found


class _Arrays(pickle.Unpickler):
    """Reads pickled arrays and runs nobody's code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def check_unit(recordings: Any, spec: str, argument: str, count: int = 8) -> None:
    """Looks at some depth maps: can their unit be the declared one?

    Raises:
        InputError: the median is beyond any room, or next to the lens.
    """
    if not isinstance(recordings, FileRecordings) or "depth" not in recordings.has:
        return
    metres = []
    for index in range(min(count, len(recordings))):
        with suppress(UnreadableImage):  # told later, with all others
            depth = recordings.depth(index)
            metres.append(depth[depth > 0])
    known = np.concatenate(metres) if metres else np.empty(0)
    if len(known) and not 0.02 < (median := float(np.median(known))) < _AWAY:
        got = f"{spec}, whose depth has a median of {median:.4g} m if its unit is {recordings.unit}"
        raise InputError(argument, got, f"another unit: ,unit={' or ,unit='.join(name for name in UNITS if name != recordings.unit)}")
