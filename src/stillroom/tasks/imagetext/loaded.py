"""A finished run's CLIP, ready to use: pictures and texts, and classes that are named when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.engine.card import Card, Described, read_card, write_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.modules.clip import Clip
from stillroom.tasks.images.clips import TASK, TEMPLATES, ImageText, class_embeddings, read_clip, ready
from stillroom.tasks.images.export_parts import CHECKED, description, made_up_pictures
from stillroom.tasks.images.loaded import Ranked, Unreadable, accelerated, opened
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.images.tokens import Tokenizer
from stillroom.tasks.images.transforms import Transform, transform_from

_TOGETHER = 32


@dataclass(frozen=True)
class Named(Ranked):
    """The classes of one picture, the most probable first."""

    def to_json(self) -> dict[str, Any]:
        """The ranking."""
        return {"top": self.entries()}

    def rows(self) -> list[list[str]]:
        """The first class, and the others."""
        words = self.words()
        return [[words[0], ", ".join(words[1:])]]


@dataclass(frozen=True)
class LoadedClip:
    """A trained CLIP.

    Args:
        network: in eval mode.
        tokenizer: of its texts.
        transform: PIL image to a normalised tensor [3, S, S].
        card: what the run says about it.
    """

    network: Clip
    tokenizer: Tokenizer
    transform: Transform
    card: Card

    kind: ClassVar[str] = "a CLIP"
    options: ClassVar[dict[str, Any]] = {"classes": "", "top": 2}

    @property
    def hand(self) -> ImageText:
        """Ready to answer for images and texts."""
        mean, std = (tuple(self.card.content["transform"][name]) for name in ("mean", "std"))
        return ready(self.network, self.tokenizer, mean, std, str(self.card.folder))

    @torch.no_grad()
    def images(self, *images: Image.Image | str | Path) -> Tensor:
        """Embeddings of images or image files, [B, D] of unit length.

        Raises:
            UnreadableImage: an image cannot be decoded; it is named.
        """
        return self._embedded([self.transform(read_image(image)) for image in images])

    def texts(self, *texts: str) -> Tensor:
        """Embeddings of texts, [B, D] of unit length."""
        return normalize(self.hand.encode_texts(texts), dim=-1)

    @torch.no_grad()
    def _embedded(self, images: list[Tensor]) -> Tensor:
        return normalize(self.network.visual(torch.stack(images).to(self.network.logit_scale.device)), dim=-1)

    def columns(self, classes: str = "", top: int = 2) -> list[str]:
        """Of `Named.rows`."""
        return ["class", "next"]

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, classes: str = "", top: int = 2) -> Iterator[Named]:
        """The class of each file among those that are named; see `Student`.

        Args:
            files: pictures.
            unreadable: is called with the error of a file that cannot be read.
            classes: their names, commas between them.
            top: how many to name.

        Raises:
            InputError: no class is named, or one with words that the vocabulary does not have.
        """
        names = [name.strip() for name in classes.split(",") if name.strip()]
        if not names:
            raise InputError("--classes", classes or "nothing", 'names of classes, e.g. --classes "cat,dog"')
        if strange := [name for name in names if not self.tokenizer.knows(name)]:
            raise InputError("--classes", strange[0], "names whose words the model's vocabulary has")
        accelerated(self.network)
        hand = self.hand
        classes_CD = class_embeddings(hand, names, self.card.content.get("templates", TEMPLATES))
        images = opened(files, lambda file: self.transform(read_image(file)), unreadable)
        while batch := list(islice(images, _TOGETHER)):
            near_BC = hand.scale * self._embedded([image for _, image in batch]) @ classes_CD.T
            best_BK, classes_BK = near_BC.softmax(1).topk(min(top, len(names)))
            for (file, _), best, chosen in zip(batch, best_BK.tolist(), classes_BK.tolist(), strict=True):
                yield Named(file, tuple((names[index], value) for index, value in zip(chosen, best, strict=True)))

    def export_spec(self) -> dict[str, ExportSpec]:
        """Two files: ``image`` reads ``images`` float32 [batch, 3, S, S], ``text`` reads ``tokens`` int64 [batch, T]; both answer with
        ``embeddings`` [batch, D], not of unit length. Their metadata are those of `export_parts.description`; tokens are made by
        tokenizer.json."""
        told = {**description(self.card), "logit_scale": repr(float(self.network.scale.detach()))}
        pictures = torch.stack([self.transform(picture) for picture in made_up_pictures(self.network.shape.image_size)])
        tokens = self.tokenizer([f"{'a picture of things ' * number}no. {number}" for number in range(CHECKED)])
        return {
            "image": ExportSpec(self.network.visual, pictures, ("images", "embeddings"), told),
            "text": ExportSpec(self.network.text, tokens, ("tokens", "embeddings"), told),
        }


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedClip:
    """The CLIP that a run of the task shipped.

    Args:
        run: the folder that `stillroom run` wrote.
        trust_pickle: also read weights that are pickles.

    Raises:
        InputError: the folder holds no finished run of this task, or a damaged one.
    """
    card = read_card(run, trust_pickle=trust_pickle)
    found = read_clip(str(run), trust_pickle=trust_pickle, argument="run")
    transform = card.parsed(lambda content: transform_from(content["transform"]), "transform")
    if found.tokenizer is None:
        raise InputError("run", str(run), "the folder of a run with its tokenizer.json")
    return LoadedClip(found.clip, found.tokenizer, transform, card)


def ship(folder: Path, network: Clip, model: str, data: Described, tokenizer: Tokenizer, templates: Sequence[str]) -> None:
    """Writes `student.json`, with the sizes of every layer and the templates of classes, and the vocabulary."""
    tokenizer.save(folder)
    write_card(folder, TASK, model, data, shape=network.shape.to_json(), templates=list(templates))
