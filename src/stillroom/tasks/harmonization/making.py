"""Composites as files, in iHarmony4's layout: photos whose foreground was given other colours, with the masks and the photos themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.loading import sample_order, sample_seeds
from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError, at_least, one_of, share
from stillroom.tasks.harmonization.recolouring import COLOURS, composites
from stillroom.tasks.harmonization.scenes import MaskFiles, Scenes
from stillroom.tasks.images.answer_pictures import write_picture
from stillroom.tasks.images.beside import photos_with_masks
from stillroom.tasks.images.masks import OpaqueFiles

_RECORD = "composites.json"  # says what the folder was made with


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        composites: how many, of them `found` there already.
        said: what was passed over or left out; sentences.
    """

    composites: int
    found: int
    said: tuple[str, ...]


def make_composites(
    photos: str,
    masks: str,
    out: Path,
    *,
    variants: int = 4,
    colours: str = "random",
    seed: int = 0,
    val: float = 0.2,
    progress: Callable[[int], object] = lambda count: None,
) -> Made:
    """Writes composites, PNG files whose pixels outside the mask are the photo's own, and the lists of both parts.

    Each composite depends on the seed, its photo's and its mask's name and its number alone: made again they are the same, and what was
    begun in the same folder with the same arguments goes on.

    Args:
        photos, masks: folders or zips; a mask belongs to the photo whose name its own begins with.
        out: a folder that is new, empty, or was begun so.
        variants: composites of each mask.
        colours: ``random`` lights, or ``chart``: between two random lights by the polynomials of a colour chart.
        seed: of the lights, and of which photos validate.
        val: the share of the photos whose composites are for validation.
        progress: is told how many are done.

    Raises:
        InputError: an argument that cannot be used, no photo with a mask, or a folder of something else.
    """
    one_of("colours", colours, COLOURS)
    at_least("variants", variants, 1)
    at_least("seed", seed, 0)
    share("val", val)
    pairs, photo_store, mask_store, said = photos_with_masks(photos, masks, "PHOTOS")
    reals = OpaqueFiles(photo_store, [photo for photo, _ in pairs], np.zeros(len(pairs), np.int64))
    scenes, more = Scenes(reals, MaskFiles(mask_store, [mask for _, mask in pairs])).looked_at(strict=False)
    _begin(out, {"photos": photos, "masks": masks, "variants": variants, "colours": colours, "seed": seed, "val": val})
    assert scenes.masks is not None, "each was made of a mask"
    names = [PurePosixPath(scenes.name(index)).stem.replace("_", "-") for index in range(len(scenes))]
    stems = [
        PurePosixPath(mask).stem.removeprefix(f"{PurePosixPath(scenes.name(index)).stem}_").replace("_", "-")
        for index, mask in enumerate(scenes.masks.names)
    ]
    different = sorted(set(names))
    held = {different[i] for i in sample_order(seed, 0, len(different))[: round(val * len(different))].tolist()}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    there = 0
    for index, (name, stem) in enumerate(zip(names, stems, strict=True)):
        files = [f"{name}_{stem}_{number}.png" for number in range(1, variants + 1)]
        lists["test" if name in held else "train"] += files
        places = [out / "composite_images" / file for file in files]
        if all(place.exists() for place in places):
            there += len(places)
            progress(len(places))
            continue
        real, mask, _ = scenes.scene(index)
        assert mask is not None, "as above"
        write_picture(to_pil_image(real), out / "real_images" / f"{name}.png")
        write_picture(to_pil_image(mask), out / "masks" / f"{name}_{stem}.png")
        for number, place in enumerate(places):
            key = hashlib.blake2b(f"{name}/{stem}/{number}".encode(errors="surrogateescape"), digest_size=7).digest()
            light = sample_seeds(seed, 3, np.array([int.from_bytes(key, "little")]))
            made = composites(real[None].float() / 255, mask[None].float() / 255, light, colours)
            write_picture(to_pil_image((made[0] * 255).round().to(torch.uint8)), place)
            progress(1)
    for split, files in lists.items():
        write_atomic(out / f"{out.resolve().name}_{split}.txt", "".join(f"{file}\n" for file in files).encode())
    return Made(sum(map(len, lists.values())), there, (*said, *more))


def _begin(out: Path, arguments: dict[str, object]) -> None:
    """Makes the folder, unless it was begun with the same arguments."""
    record: dict[str, object] = {}
    with suppress(OSError, ValueError):
        record = json.loads((out / _RECORD).read_text(encoding="utf-8"))
    differs = [f"{name} was {record.get(name)!r}, now {value!r}" for name, value in arguments.items() if record.get(name) != value]
    if record and differs:
        raise InputError("OUT", f"{out}, made with other arguments ({'; '.join(differs)})", "another folder")
    if not record and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("OUT", f"{out}, which holds something else", "a new folder, or an empty one")
    for folder in ("composite_images", "masks", "real_images"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_atomic(out / _RECORD, json.dumps(arguments, indent=1))
