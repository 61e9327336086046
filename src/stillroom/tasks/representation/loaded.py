"""A finished run's backbone, ready to use: images to embeddings."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.engine.run.written import replacing, write_atomic
from stillroom.errors import InputError
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, described, opened
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.images.transforms import transform_from

_TOGETHER = 32  # images that go through a network at a time
_SHOWN = 4  # numbers of an embedding in the table
_FILE = "embeddings.npz"


@dataclass(frozen=True)
class Embedding:
    """What a backbone says about one image: its features, float32 [D], as they are, not of unit length."""

    file: Path
    values: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"embedding": [float(value) for value in self.values]}

    def rows(self) -> list[list[str]]:
        """Its width, its length and its first numbers."""
        first = " ".join(f"{value:.3g}" for value in self.values[:_SHOWN])
        return [[str(len(self.values)), f"{np.linalg.norm(self.values):.3g}", f"{first} ..."]]


@dataclass(frozen=True)
class LoadedBackbone:
    """A trained backbone.

    Args:
        network: in eval mode, images [B, 3, H, W] to features [B, D].
        transform: PIL image to a normalised tensor [3, H, W].
        card: what the run says about it.
    """

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]
    card: Card

    kind: ClassVar[str] = "a backbone, which answers with embeddings"
    options: ClassVar[dict[str, Any]] = {"out": None}

    @torch.no_grad()
    def embed(self, *images: Image.Image | str | Path) -> Tensor:
        """Embeddings float32 [B, D] of images or image files.

        Raises:
            InputError: no image at all.
            UnreadableImage: an image cannot be decoded; it is named.
        """
        if not images:
            raise InputError("images", "none", "at least one image or image file")
        return self._asked([self.transform(read_image(image)) for image in images])

    def columns(self, out: str | None = None) -> list[str]:
        """Of `Embedding.rows`."""
        return ["numbers", "length", "embedding"]

    @torch.no_grad()
    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, out: str | None = None) -> Iterator[Embedding]:
        """The embedding of each file; when the last is told, all are written.

        Args:
            files: images.
            unreadable: called with the error of one that cannot be decoded.
            out: the file to write: ``.csv`` (a row ``file,0,1,...`` for each image), or ``.npz`` with ``files`` [N] and ``embeddings``
                float32 [N, D]; of a folder, its ``embeddings.npz``; by default that of the run's folder.
        """
        target = _target(self.card.folder if out is None else Path(out))
        accelerated(self.network)
        images = opened(files, lambda file: self.transform(read_image(file)), unreadable)
        found: list[Embedding] = []
        while batch := list(islice(images, _TOGETHER)):
            rows = self._asked([image for _, image in batch]).cpu().numpy()
            for (file, _), values in zip(batch, rows, strict=True):
                found.append(Embedding(file, values))
                yield found[-1]
        if found:
            _write(target, found)

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, S, S] and answers with ``embedding`` [batch, D]; its metadata are those of
        `export_parts.description`."""
        pictures = made_up_pictures(self.card.content["transform"]["resize"])
        images_BCHW = torch.stack([self.transform(picture) for picture in pictures])
        return ExportSpec(self.network, images_BCHW, ("images", "embedding"), description(self.card))

    @torch.no_grad()
    def _asked(self, images: list[Tensor]) -> Tensor:
        batch = torch.stack(images)
        features_BD: Tensor = self.network(as_read_by(self.network, batch))
        return features_BD.float()


def _target(out: Path) -> Path:
    """The file that embeddings are written to.

    Raises:
        InputError: a file of another kind, or in a folder that there is not.
    """
    target = out / _FILE if out.is_dir() else out
    if target.suffix not in (".csv", ".npz") or not target.parent.is_dir():
        raise InputError("out", str(out), "a folder that exists, or a file .npz or .csv in one")
    return target


def _write(target: Path, found: Sequence[Embedding]) -> None:
    names, values = [str(one.file) for one in found], np.stack([one.values for one in found])
    if target.suffix == ".npz":
        with replacing(target) as file:
            np.savez(file, files=np.array(names), embeddings=values)
        return
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(["file", *range(values.shape[1])])
    writer.writerows([name, *map(float, row)] for name, row in zip(names, values, strict=True))
    write_atomic(target, written.getvalue().encode("utf-8", "surrogateescape"))


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedBackbone:
    """The backbone that a run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    _, transform = described(card, transform_from)
    size = card.parsed(lambda content: int(content["image_size"]), "image_size")
    built = build_backbone(card.spec, image_size=size, trust_pickle=trust_pickle, argument="run")
    return LoadedBackbone(built.network.eval(), transform, card)
