"""Photos, the masks of a foreground in them, and the composites that were made of both, as far as there are such."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import counted, warn_left_out
from stillroom.tasks.images.masks import read_mask
from stillroom.tasks.images.stores import Images, UnreadableImage, taken

_LOOKED_AT = 20_000  # scenes of larger sets are not looked at before a run


class Scene(NamedTuple):
    """One sample in its own size, uint8 [C, H, W].

    Attributes:
        real: the photo.
        mask: of the foreground, 0 to 255; None where it is still to be drawn.
        composite: None where it is still to be made.
    """

    real: Tensor
    mask: Tensor | None
    composite: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> Scene:
        """All that there is of it, changed alike."""
        return Scene(change(self.real), *(None if part is None else change(part) for part in (self.mask, self.composite)))


class MaskFiles:
    """Masks in files, by the files' names in a store."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.store, self.names = store, list(names)

    def mask(self, index: int) -> Tensor:
        """One mask, see `read_mask`."""
        try:
            content = self.store.read(self.names[index])
        except (OSError, zipfile.BadZipFile) as error:
            raise UnreadableImage(f"{self.names[index]}: cannot be read ({error})") from None
        return read_mask(io.BytesIO(content), self.names[index])


class Scenes:
    """Samples that are read one by one.

    Args:
        reals: the photos.
        masks: of each; None where they are drawn.
        composites: of each; None where they are made when they are asked for.
    """

    def __init__(self, reals: Images, masks: MaskFiles | None = None, composites: Images | None = None) -> None:
        self.reals, self.masks, self.composites = reals, masks, composites

    def __len__(self) -> int:
        return len(self.reals)

    def name(self, index: int) -> str:
        """What a report calls the sample."""
        return self.reals.name(index) if self.composites is None else self.composites.name(index)

    def scene(self, index: int) -> Scene:
        """One sample, read now.

        Raises:
            UnreadableImage: a file cannot be decoded.
            InputError: photo, mask and composite differ in size.
        """
        real = _pixels(self.reals, index)
        mask = None if self.masks is None else self.masks.mask(index)
        composite = None if self.composites is None else _pixels(self.composites, index)
        for what, other in (("mask", mask), ("composite", composite)):
            if other is not None and other.shape[1:] != real.shape[1:]:
                sizes = [f"{part.shape[2]} x {part.shape[1]}" for part in (other, real)]
                raise InputError("data", f"{self.name(index)}, whose {what} has {sizes[0]} pixels", f"those of its photo, {sizes[1]}")
        return Scene(real, mask, composite)

    def take(self, indices: np.ndarray) -> Scenes:
        """Some of them, renumbered from 0."""
        masks = None if self.masks is None else MaskFiles(self.masks.store, [self.masks.names[i] for i in indices.tolist()])
        return Scenes(taken(self.reals, indices), masks, None if self.composites is None else taken(self.composites, indices))

    def looked_at(self, *, strict: bool) -> tuple[Scenes, list[str]]:
        """Those that can be used, each of them read once, and what is to be said of the others and of full masks: sentences.

        Args:
            strict: refuse sets with files that cannot be decoded.

        Raises:
            InputError: sizes differ; no sample is left; or `strict`.
        """
        if self.masks is None or len(self) > _LOOKED_AT:
            return self, []
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
            warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
            found = list(threads.map(self._kind, range(len(self))))
        of = {kind: [self.name(index) for index, (one, _) in enumerate(found) if one == kind] for kind in ("damaged", "empty", "full")}
        reason = next((why for one, why in found if one == "damaged"), "")
        if strict and of["damaged"]:
            raise InputError("data", f"{counted(of['damaged'])} ({reason})", "none such, since strict was asked for")
        if of["damaged"]:
            warn_left_out(of["damaged"])
        kept = np.array([index for index, (one, _) in enumerate(found) if one in ("", "full")], np.int64)
        if not len(kept):
            got = f"no sample with a readable photo and a foreground{f' ({reason})' if reason else ''}"
            raise InputError("data", got, "at least one")
        said = [f"left out {counted(of['damaged'])}; the first: {reason}"] if of["damaged"] else []
        said += [f"left out {counted(of['empty'], 'sample{s} with an empty mask')}"] if of["empty"] else []
        said += [counted(of["full"], "sample{s} whose mask leaves no background to be in harmony with")] if of["full"] else []
        return (self if len(kept) == len(self) else self.take(kept)), said

    def _kind(self, index: int) -> tuple[str, str]:
        """What is the matter with a sample, and why."""
        try:
            mask = self.scene(index).mask
        except UnreadableImage as error:
            return "damaged", str(error)
        assert mask is not None, "those without are not looked at"
        return "full" if bool((mask == 255).all()) else "" if bool(mask.any()) else "empty", ""


def _pixels(images: Images, index: int) -> Tensor:
    image = images.image(index)
    return image if isinstance(image, torch.Tensor) else pil_to_tensor(image)
