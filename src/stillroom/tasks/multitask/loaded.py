"""A finished multi-task run's student, ready to use: photos become a map of every target, in their own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, opened
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.images.whole_pictures import prepared
from stillroom.tasks.multitask.maps import written
from stillroom.tasks.multitask.models import build_multitask, targets_of
from stillroom.tasks.multitask.supervised import answer_to, answers_to
from stillroom.tasks.multitask.targets import Target

_NAMED = 3  # classes that a row names


@dataclass(frozen=True)
class Mapped:
    """What was found in one photo.

    Attributes:
        file: the photo.
        maps: the PNG of each target, see `maps.written`.
        said: of each target, what is in it in a few words.
    """

    file: Path
    maps: Mapping[str, Path]
    said: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Where the maps are, and what is in them."""
        return {name: {"map": str(path), "said": self.said[name]} for name, path in self.maps.items()}

    def rows(self) -> list[list[str]]:
        """A row for each target."""
        return [[name, self.said[name], str(path)] for name, path in self.maps.items()]


@dataclass(frozen=True)
class LoadedMultiTask:
    """A trained network: images [B, 3, H, W] to raw answers {target: [B, C, h, w]}.

    Args:
        network: in eval mode.
        targets: what it answers to.
        transform: of the card: ``shorter`` in pixels; ``mean`` and ``std``.
        card: what the run says about it.
    """

    network: nn.Module
    targets: tuple[Target, ...]
    transform: dict[str, Any]
    card: Card

    kind: ClassVar[str] = "a network that answers to several dense targets"
    options: ClassVar[dict[str, Any]] = {"out": None}

    def columns(self, out: str | None = None) -> list[str]:
        """Of `Mapped.rows`."""
        return ["target", "what is in it", "map"]

    @torch.no_grad()
    def maps(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Of a photo (RGB), by target, in its own size: class numbers uint8 [H, W]; float32 [1, H, W] metres, of edges and saliency
        probabilities; unit vectors float32 [3, H, W]."""
        pixels = prepared(pil_to_tensor(image), self.transform["shorter"], self.transform["mean"], self.transform["std"])
        size = image.height, image.width
        (found,) = answers_to(self.network, [as_read_by(self.network, pixels)], [size], self.targets)
        return {name: (one.to(torch.uint8) if one.ndim == 2 else one.float()).cpu().numpy() for name, one in found.items()}

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, out: str | None = None) -> Iterator[Mapped]:
        """The maps of each file; see `Student`.

        Args:
            files: photos.
            unreadable: is called with the error of a file that cannot be read.
            out: the folder that PNG files are written to; by default ``maps`` in the run's.
        """
        folder = Path(out) if out is not None else self.card.folder / "maps"
        accelerated(self.network)
        places = {one.name: answer_files(files, folder, ending=f"_{one.name}") for one in self.targets}
        for file, image in opened(files, read_image, unreadable):
            found = self.maps(image)
            for target in self.targets:
                write_picture(written(target, found[target.name]), places[target.name][file])
            maps = {target.name: places[target.name][file] for target in self.targets}
            yield Mapped(file, maps, {target.name: _said(target, found[target.name]) for target in self.targets})

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, S, S] and answers with an output for each target, named as it is, of the same
        size: scores [batch, C, S, S] of classes, depth in metres, unit vectors, probabilities of saliency and edges.

        S is the shorter side of pictures that the student is measured on. Metadata are those of `export_parts.description`, where
        ``classes`` are the targets; pixels in [0, 1] are normalised by `mean` and `std`.
        """
        side = int(self.transform["shorter"])
        mean, std = self.transform["mean"], self.transform["std"]
        images = torch.stack([prepared(pil_to_tensor(picture.resize((side, side))), side, mean, std) for picture in made_up_pictures(side)])

        def ask(network: nn.Module, images_B3HW: Tensor) -> tuple[Tensor, ...]:
            raw = network(images_B3HW)
            return tuple(answer_to(target, raw[target.name], (side, side)) for target in self.targets)

        names = ("images", *(target.name for target in self.targets))
        note = "squares; `stillroom predict` asks about whole pictures of any shape"
        return ExportSpec(self.network, images, names, description(self.card), ask=ask, note=note)


def _said(target: Target, values: np.ndarray) -> str:
    if target.kind == "classes":
        shares = np.bincount(values.reshape(-1), minlength=len(target.classes)) / values.size
        return ", ".join(f"{target.classes[k]} {shares[k]:.0%}" for k in np.argsort(shares)[::-1][:_NAMED].tolist() if shares[k])
    if target.kind == "depth":
        return f"{values.min():.2f} to {values.max():.2f} m"
    if target.kind == "normals":
        return f"mean direction ({', '.join(f'{one:.2f}' for one in values.mean((1, 2)))})"
    return f"{(values >= 0.5).mean():.1%} of the pixels"


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedMultiTask:
    """The student that a multi-task run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    targets = targets_of(card)
    transform = card.parsed(lambda content: {name: content["transform"][name] for name in ("shorter", "mean", "std")}, "transform")
    built = build_multitask(card.spec, targets, trust_pickle=trust_pickle, argument="run")
    return LoadedMultiTask(built.network.eval(), targets, transform, card)
