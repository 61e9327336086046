"""Where recordings come from, as one string: ``rooms``, ``echoes:ROOT``, ``replica:ROOT``, ``batvision:ROOT``."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stillroom.errors import InputError, one_of
from stillroom.tasks.images.files import Store, open_store
from stillroom.tasks.images.folders import counted
from stillroom.tasks.images.sources import Kind, Source, held_out_samples, held_out_share, open_spec, whole_numbers
from stillroom.tasks.images.tables import read_table
from stillroom.tasks.sound.recordings import UNITS, FileRecordings, Recordings, check_unit, frames, made_rooms
from stillroom.tasks.sound.rooms import CLASSES
from stillroom.tasks.sound.scores import NINE_NAMES
from stillroom.tasks.sound.waves import CONVENTIONS, SOUNDS, read_wave, sounds_among

_ROLES = {
    "sound": ("sound", "sounds", "audio", "wav", "echoes"),
    "rgb": ("rgb", "images", "camera", "panorama"),
    "depth": ("depth",),
    "labels": ("labels", "semantic", "semantics", "segmentation"),
    "voxels": ("voxels", "occupancy"),
}
_HEARD = ("ears", *CONVENTIONS)  # of the option `channels`
_LISTED = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
_REPLICA = re.compile(r"(?:.*/)?(?P<scene>[^/]+)/3ms_sweep[^/]*/(?P<turn>\d+)/(?P<place>\d+)\.wav")
_BAT = {"sound": "audio", "rgb": "camera", "depth": "depth"}  # columns "audio path", "audio file name", ...


@dataclass(frozen=True, kw_only=True)
class SoundSource(Source):
    """A data set of recordings.

    Attributes:
        rate: samples per second that networks hear by default.
        small: by default a short transform will do (`spectrogram.front_end`).
        image_size: height and width that networks see and answer for by default.
        ears: channels.
        heard: what these are, in words.
    """

    rate: int
    small: bool = False
    image_size: tuple[int, int]
    ears: int
    heard: str


def open_source(spec: str, argument: str = "data") -> SoundSource:
    """Find and list the recordings that a specification names.

    Args:
        spec: one of
            ``rooms``: made up: boxes with furniture and their echoes; ``train=1500``, ``val=300``, ``seed=0``; ``sounds=FOLDER``, dry WAV
            files instead of a sweep; ``hrir=FILE``, head-related impulse responses (npz with hrir, azimuth_elevation_deg and, if it is not
            44 100, rate; or SOFA, which needs h5py) instead of a simple head; ``channels=acn-sn3d``: ambisonics instead of ears;
            ``echoes:ROOT``: a folder or zip with folders ``sound``, ``rgb`` and ``depth`` (16-bit PNG or npy), ``labels`` (PNG of class
            numbers, 0 unknown) or ``voxels`` (npz with occupancy [32, 32, 32]), of files of the same names; lists ``train.txt`` and
            ``val.txt`` or ``test.txt`` of names, else ``val=0.2``; ``unit=m``, ``mm`` or ``daps`` (65536 steps for 10 m);
            ``classes=FILE`` with a name per line; ``categories=matterport`` maps its 42 categories to nine; ``channels=ears`` or the
            convention of ambisonics;
            ``replica:ROOT``: SoundSpaces' Replica as echo-to-depth works have it: ``.../SCENE/3ms_sweep*/TURN/PLACE.wav`` and
            ``.../SCENE.pkl`` of pictures by (place, turn); ``val=SCENE+SCENE`` are validated on, else a fifth of the scenes;
            ``batvision:ROOT``: BatVision V2: ``train.csv`` and ``val.csv`` or ``test.csv``, anywhere below, with the columns ``audio path``
            and ``audio file name`` and so on for ``camera`` and ``depth`` (npy); ``unit=mm``.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    found = open_spec(spec, KINDS, argument, others=", followed by where the recordings are, e.g. echoes:ROOT")
    check_unit(found.train, spec, argument)
    return found


# Made up --------------------------------------------------------------------------------------------------------------------------------


def _open_rooms(path: str, options: dict[str, str], argument: str) -> SoundSource:
    numbers = {name: value for name, value in options.items() if name in ("train", "val", "seed")}
    given = {"train": 1500, "val": 300, "seed": 0, **whole_numbers(numbers, argument)}
    heard = one_of(argument, options.get("channels", "ears"), _HEARD[:2])
    more: dict[str, Any] = {}
    parts: list[Any] = [sorted(given.items())]
    said = ["procedural data: rooms that are made up"]
    if "sounds" in options:
        store, names = _sounds(options["sounds"], argument)
        waves = [read_wave(io.BytesIO(store.read(name)), name) for name in names]
        if len({wave.rate for wave in waves}) > 1:
            raise InputError(argument, f"{options['sounds']} with sounds of several rates", "one rate")
        dry = [wave.samples.mean(0) for wave in waves]
        more["dry"] = [sound[_loudest(sound, waves[0].rate) :] for sound in dry if sound.any()], waves[0].rate
        said.append(f"{len(more['dry'][0])} dry sounds of {options['sounds']}")
        parts.append([names])
    if "hrir" in options:
        if heard != "ears":
            raise InputError(argument, f"channels={heard},hrir={options['hrir']}", "one of them: ambisonics have no head")
        more["head"] = read_hrir(options["hrir"], argument)
        said.append(f"heads: {len(more['head'][0])} measured directions of {options['hrir']}")
        parts.append([float(np.abs(more["head"][0]).sum())])
    rooms = {split: made_rooms(given["seed"], number, given[split], ambisonic=heard != "ears", **more) for number, split in _NUMBERED}
    mark = hashlib.sha256(repr((parts, heard)).encode()).hexdigest()[:16]
    about = {"rate": 16_000, "small": True, "image_size": (32, 64), "ears": 2 if heard == "ears" else 4, "heard": heard}
    half = (0.5,) * 3, (0.25,) * 3
    return SoundSource(name="rooms", classes=CLASSES, **rooms, mean=half[0], std=half[1], fingerprint=mark, said=tuple(said), **about)  # type: ignore[arg-type]


_NUMBERED = ((1, "train"), (2, "val"))


def _sounds(path: str, argument: str) -> tuple[Store, list[str]]:
    """The sound files of a folder, zip or tar."""
    store = open_store(path, argument)
    names, _ = sounds_among(store, store.listing()[0])
    if not names:
        raise InputError(argument, path, f"sound files in it ({', '.join(SOUNDS)})")
    return store, names


def _loudest(sound: np.ndarray, rate: int) -> int:
    """Where the loudest tenth of a second begins."""
    length = max(1, rate // 10)
    energy = np.add.reduceat(sound.astype(np.float64) ** 2, np.arange(0, len(sound), length))
    return int(energy.argmax()) * length


def read_hrir(path: str, argument: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Head-related impulse responses: [D, 2, taps] with the left ear first, unit vectors [D, 3] (x ahead, y left, z up), and the rate.

    Args:
        path: an npz with `hrir` and `azimuth_elevation_deg` (0 ahead, 90 left, up positive), also ``archive.zip/inside.npz``; or SOFA.
        argument: what errors call it.

    Raises:
        InputError: it cannot be read.
    """
    inside = re.fullmatch(r"(?P<archive>.+\.zip)/(?P<name>.+)", path)
    try:
        if path.endswith(".sofa"):
            import h5py  # type: ignore[import-not-found, unused-ignore]

            with h5py.File(path) as file:
                responses, degrees = np.array(file["Data.IR"]), np.array(file["SourcePosition"])[:, :2]
                rate = int(np.array(file["Data.SamplingRate"]).ravel()[0])
        else:
            content = open_store(inside["archive"], argument).read(inside["name"]) if inside else Path(path).expanduser().read_bytes()
            with np.load(io.BytesIO(content)) as arrays:
                responses, degrees = arrays["hrir"], arrays["azimuth_elevation_deg"]
                rate = int(arrays["rate"]) if "rate" in arrays else 44_100
    except ImportError:
        raise InputError(argument, f"hrir={path}", "h5py to be installed: pip install 'stillroom[sound]'") from None
    except (OSError, KeyError, ValueError) as error:
        raise InputError(argument, f"hrir={path} ({error})", "an npz with hrir [D, 2, n] and azimuth_elevation_deg, or SOFA") from None
    if responses.ndim != 3 or responses.shape[1] != 2 or degrees.shape != (len(responses), 2):
        raise InputError(argument, f"hrir={path} of shapes {list(responses.shape)}, {list(degrees.shape)}", "[D, 2, n] and [D, 2]")
    azimuth, elevation = np.deg2rad(degrees).T
    level = np.cos(elevation)
    vectors = np.stack((level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)), -1)
    return responses.astype(np.float32), vectors.astype(np.float32), rate


# Files ----------------------------------------------------------------------------------------------------------------------------------


def _open_echoes(path: str, options: dict[str, str], argument: str) -> SoundSource:
    store = open_store(path, argument)
    files, _ = store.listing()
    of: dict[str, dict[str, str]] = {role: {} for role in _ROLES}
    for name in sorted(files):
        parts = PurePosixPath(name).parts
        for role, words in _ROLES.items():
            place = next((number for number, part in enumerate(parts[:-1]) if part.lower() in words), None)
            if place is not None and (role != "sound" or PurePosixPath(name).suffix.lower() in SOUNDS):
                of[role][str(PurePosixPath(*parts[place + 1 :]).with_suffix(""))] = name
                break
    roles = [role for role in _ROLES if of[role]]
    if not {"sound", "rgb"} <= set(roles) or len(roles) < 3:
        raise InputError(argument, f"echoes:{path} with {', '.join(roles) or 'none'}", "folders sound, rgb and depth, labels or voxels")
    whole = [stem for stem in of["sound"] if all(stem in of[role] for role in roles)]
    said = []
    if lacking := [of["sound"][stem] for stem in of["sound"] if stem not in whole]:
        said.append(f"passed over {counted(lacking, 'sound{s} without a file of that name in all other folders')}")
    rows = {stem: {role: of[role][stem] for role in roles} for stem in whole}
    lists = {PurePosixPath(name).stem.lower(): name for name in files if name.endswith(".txt") and "/" not in name}
    split: dict[str, list[str]] = {}
    for part, words in _LISTED.items():
        if (listed := next((lists[word] for word in words if word in lists), None)) is not None:
            named = [str(PurePosixPath(line)) for line in store.read(listed).decode("utf-8-sig").split("\n") if line.strip()]
            known = [name if name in rows else str(PurePosixPath(name).with_suffix("")) for name in named]
            split[part] = [name for name in known if name in rows]
            if len(split[part]) < len(named):
                said.append(f"{listed} names {len(named) - len(split[part])} recordings that are not there")
    if set(split) != {"train", "val"}:
        split = _held_out(list(rows), held_out_share(options, argument))
    classes = tuple(store.read(options["classes"]).decode().split("\n")) if "classes" in options else ()
    if options.get("categories") not in (None, "matterport"):
        raise InputError(argument, f"categories={options['categories']}", "matterport")
    matterport = "categories" in options
    names = NINE_NAMES if matterport else tuple(name.strip() for name in classes if name.strip())
    recorded = {part: [rows[stem] for stem in stems] for part, stems in split.items()}
    more: dict[str, Any] = {"matterport": matterport, "unit": options.get("unit", "m"), "classes": names}
    return _of_files("echoes", store, recorded, options, argument, said=said, **more)


def _open_replica(path: str, options: dict[str, str], argument: str) -> SoundSource:
    store = open_store(path, argument)
    files, _ = store.listing()
    pictures = {PurePosixPath(name).stem: name for name in files if name.endswith(".pkl")}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(files):
        found = _REPLICA.fullmatch(name)
        if found is not None and found["scene"] in pictures:
            frame = pictures[found["scene"]], (int(found["place"]), int(found["turn"]))
            rows.setdefault(found["scene"], []).append({"sound": name, "frame": frame})
    if len(rows) < 2:
        raise InputError(argument, f"replica:{path}", "SCENE/3ms_sweep/TURN/PLACE.wav and SCENE.pkl of at least two scenes")
    rows = {scene: [row for row in found if row["frame"][1] in frames(store, pictures[scene])] for scene, found in rows.items()}
    if "val" in options:
        held = options["val"].split("+")
        for scene in held:
            one_of(argument, scene, rows)
        split = {"train": [scene for scene in rows if scene not in held], "val": held}
    else:
        split = _held_out(list(rows), 0.2)
    said = [f"validated on the scenes {', '.join(split['val'])}"]
    recorded = {part: [row for scene in scenes for row in rows[scene]] for part, scenes in split.items()}
    return _of_files("replica", store, recorded, options, argument, said=said, unit="m", rate=44_100, image_size=(128, 128))


def _open_batvision(path: str, options: dict[str, str], argument: str) -> SoundSource:
    store = open_store(path, argument)
    files, _ = store.listing()
    recorded: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for name in sorted(files):
        part = next((part for part, words in _LISTED.items() if PurePosixPath(name).stem in words[: 1 if part == "train" else 4]), None)
        if part is None or not name.endswith(".csv"):
            continue
        table = read_table(name, argument, content=store.read(name), asked=("audio path",))
        columns = {role: (f"{word} path", f"{word} file name") for role, word in _BAT.items()}
        if missing := [column for pair in columns.values() for column in pair if column not in table.head]:
            raise InputError(argument, f"{name} with the columns {', '.join(table.head)}", f"a column {missing[0]}, as in BatVision V2")
        folder = PurePosixPath(name).parent
        cells = {role: list(zip(table.column(place), table.column(file), strict=True)) for role, (place, file) in columns.items()}
        for number in range(len(table.rows)):
            row = {role: _below(folder, *pairs[number], files) for role, pairs in cells.items()}
            if None not in row.values():
                recorded[part].append(row)
    more: dict[str, Any] = {"unit": options.get("unit", "mm"), "rate": 44_100, "image_size": (128, 128)}
    return _of_files("batvision", store, recorded, options, argument, **more)


def _below(folder: PurePosixPath, place: str, file: str, files: Mapping[str, int]) -> str | None:
    """A file as the store calls it, whose path is from the table's folder or from one above it."""
    for base in (folder, *folder.parents):
        name = str(base / place / file).removeprefix("./")
        if name in files:
            return name
    return None


def _held_out(names: Sequence[str], share: float) -> dict[str, list[str]]:
    """A share of them, always the same ones."""
    held_N = held_out_samples(len(names), share, spare=True)
    return {split: [names[i] for i in np.flatnonzero(part).tolist()] for split, part in (("train", ~held_N), ("val", held_N))}


def _of_files(
    name: str,
    store: Store,
    recorded: Mapping[str, Sequence[Mapping[str, Any]]],
    options: Mapping[str, str],
    argument: str,
    *,
    said: Sequence[str] = (),
    unit: str,
    rate: int = 16_000,
    image_size: tuple[int, int] = (192, 384),
    classes: tuple[str, ...] = (),
    matterport: bool = False,
) -> SoundSource:
    """Of the files of each recording, by split."""
    if empty := [part for part, rows in recorded.items() if not rows]:
        raise InputError(argument, f"{name} without a recording to {'train on' if empty[0] == 'train' else 'measure with'}", "some")
    one_of(argument, unit, UNITS)
    heard = one_of(argument, options.get("channels", "ears"), _HEARD)
    convention = None if heard == "ears" else heard
    about: dict[str, Any] = {"ears": 2 if convention is None else 4, "convention": convention, "unit": unit, "matterport": matterport}
    parts: dict[str, Recordings] = {part: FileRecordings(store, rows, **about) for part, rows in recorded.items()}
    sizes = sorted((str(row[role]), store.size(str(row[role]))) for rows in recorded.values() for row in rows for role in ("sound",))
    mark = hashlib.sha256(repr((name, recorded, about, classes, sizes)).encode(errors="surrogateescape")).hexdigest()[:16]
    return SoundSource(
        name=name,
        classes=classes,
        train=parts["train"],
        val=parts["val"],
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        fingerprint=mark,
        said=tuple(said),
        rate=rate,
        image_size=image_size,
        ears=about["ears"],
        heard=heard,
    )


KINDS: tuple[Kind[SoundSource], ...] = (
    Kind("rooms", _open_rooms, ("train", "val", "seed", "sounds", "hrir", "channels"), None),
    Kind("echoes", _open_echoes, ("val", "unit", "classes", "categories", "channels"), "ROOT"),
    Kind("replica", _open_replica, ("val", "channels"), "ROOT"),
    Kind("batvision", _open_batvision, ("unit", "channels"), "ROOT"),
)
