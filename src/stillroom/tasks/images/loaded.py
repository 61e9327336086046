"""What finished runs' students of images have in common, ready to use."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.card import Card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.stores import UnreadableImage, read_image

_TOGETHER = 32  # images that go through a network at a time

Unreadable = Callable[[UnreadableImage], None]
Ranking = tuple[tuple[str, float], ...]  # classes and their probabilities, the most probable first
Read = TypeVar("Read")


@dataclass(frozen=True)
class Ranked:
    """What a student says about one image.

    Attributes:
        file: the image.
        ranking: classes and their probabilities, the most probable first.
    """

    file: Path
    ranking: Ranking

    def entries(self) -> list[dict[str, Any]]:
        """The ranking, for JSON."""
        return [{"class": name, "confidence": probability} for name, probability in self.ranking]

    def words(self) -> list[str]:
        """The ranking, for people."""
        return [f"{name} {probability:.1%}" for name, probability in self.ranking]


@dataclass(frozen=True)
class Scoring(ABC):
    """A trained network that gives every class a probability.

    Args:
        network: in eval mode, images [B, 3, H, W] to logits [B, C].
        transform: PIL image to a normalised tensor [3, H, W].
        classes: their names, in the order of the logits.
        card: what the run says about it.
    """

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]
    classes: tuple[str, ...]
    card: Card

    options: ClassVar[dict[str, Any]] = {"top": 2}

    @abstractmethod
    def activation(self, logits_BC: Tensor) -> Tensor:
        """Logits to probabilities, [B, C]."""

    @torch.no_grad()
    def probabilities(self, *images: Image.Image | str | Path) -> Tensor:
        """Class probabilities [B, C] of images or image files, each turned upright as its EXIF orientation says.

        Raises:
            InputError: no image at all.
            UnreadableImage: an image cannot be decoded; it is named.
        """
        if not images:
            raise InputError("images", "none", "at least one image or image file")
        return self._asked([self.transform(read_image(image)) for image in images])

    def rankings(self, files: Sequence[Path], most: int, unreadable: Unreadable) -> Iterator[tuple[Path, Ranking]]:
        """The `most` probable classes of each file, in the files' order; a few images are in memory at a time.

        The network is moved to the accelerator, if there is one.
        """
        accelerated(self.network)
        images = opened(files, lambda file: self.transform(read_image(file)), unreadable)
        while batch := list(islice(images, _TOGETHER)):
            best_BK, classes_BK = self._asked([image for _, image in batch]).topk(min(most, len(self.classes)))
            for (file, _), best, classes in zip(batch, best_BK.tolist(), classes_BK.tolist(), strict=True):
                yield file, tuple((self.classes[index], value) for index, value in zip(classes, best, strict=True))

    @torch.no_grad()
    def _asked(self, images: list[Tensor]) -> Tensor:
        batch = torch.stack(images)
        return self.activation(self.network(as_read_by(self.network, batch)).float())

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, S, S] and answers with ``logits`` [batch, C].

        Its metadata are those of `export_parts.description`; what `transform` says is a `resize` of the shorter side, `interpolation`, a
        central `crop`, and `mean` and `std` for pixels in [0, 1]; of a multi-label student `resize` is of both sides and there is no crop.
        """
        resize = self.card.content["transform"]["resize"]  # of the shorter side, or [height, width]
        pictures = made_up_pictures(resize if isinstance(resize, int) else min(resize))
        images_BCHW = torch.stack([self.transform(picture) for picture in pictures])
        return ExportSpec(self.network, images_BCHW, ("images", "logits"), description(self.card))


def described(card: Card, read: Callable[[dict[str, Any]], Read]) -> tuple[tuple[str, ...], Read]:
    """The names of a card's classes, and what `read` makes of its description of how images are prepared.

    Raises:
        InputError: it has none, or they cannot be understood.
    """
    return card.parsed(lambda content: (tuple(map(str, content["classes"])), read(content["transform"])), "classes and transform")


def opened(files: Sequence[Path], read: Callable[[Path], Read], unreadable: Unreadable) -> Iterator[tuple[Path, Read]]:
    """Each file with what `read` makes of it; one that cannot be decoded is told and left out."""
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
                made = read(file)
        except UnreadableImage as error:
            unreadable(error)
            continue
        yield file, made


def as_read_by(network: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs where a network's weights are, in their precision; one without weights reads them as they are."""
    weight = next(network.parameters(), inputs)
    return inputs.to(weight.device, weight.dtype)


def accelerated(network: nn.Module) -> None:
    """Moves it to the accelerator, if there is one."""
    network.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
