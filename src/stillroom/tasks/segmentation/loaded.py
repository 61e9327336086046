"""A finished segmentation run's student, ready to use: photos become masks and overlays, in their own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.engine.card import Card, read_card, write_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.images.answer_pictures import answer_files, write_picture
from stillroom.tasks.images.export_parts import description, made_up_pictures
from stillroom.tasks.images.label_maps import Colour, voc_colours
from stillroom.tasks.images.label_pictures import overlaid, palette_image
from stillroom.tasks.images.loaded import Unreadable, accelerated, as_read_by, opened
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.images.whole_pictures import prepared
from stillroom.tasks.segmentation.models import TASK, build_segmenter
from stillroom.tasks.segmentation.sources import BACKGROUND
from stillroom.tasks.segmentation.supervised import predicted_classes
from stillroom.tasks.segmentation.vocabulary import OpenVocabulary

_NAMED = 3  # classes that a row names


@dataclass(frozen=True)
class Segmented:
    """What was found in one photo.

    Attributes:
        file: the photo.
        mask: a palette PNG of the same size, in which index k is class k.
        overlay: the photo with the classes' colours over it.
        classes: their names, in the order of the indices.
        shares: of the pixels that each class takes.
    """

    file: Path
    mask: Path
    overlay: Path
    classes: tuple[str, ...]
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Where the pictures are, what each index means, and how much of the photo each class takes."""
        found = {name: share for name, share in zip(self.classes, self.shares, strict=True) if share}
        return {"mask": str(self.mask), "overlay": str(self.overlay), "classes": list(self.classes), "shares": found}

    def rows(self) -> list[list[str]]:
        """One row."""
        order = np.argsort(self.shares)[::-1]
        told = ", ".join(f"{self.classes[k]} {self.shares[k]:.0%}" for k in order[:_NAMED] if self.shares[k])
        return [[told, str(self.mask), str(self.overlay)]]


@dataclass(frozen=True)
class LoadedSegmenter:
    """A trained network: images [B, 3, H, W] to scores [B, C, H, W].

    Args:
        network: in eval mode.
        classes: their names, in the order of the scores.
        colours: of the classes.
        transform: of the card: ``shorter``, ``window``, ``stride`` in pixels; ``mean`` and ``std``.
        card: what the run says about it.
        trust_pickle: also for what encodes names of classes.
    """

    network: nn.Module
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    transform: dict[str, Any]
    card: Card
    trust_pickle: bool = False

    kind: ClassVar[str] = "a network that segments pictures"
    options: ClassVar[dict[str, Any]] = {"classes": None, "threshold": None, "out": None}

    def columns(self, classes: str | None = None, threshold: float | None = None, out: str | None = None) -> list[str]:
        """Of `Segmented.rows`."""
        return ["most of it", "mask", "overlay"]

    def finding(self, classes: Sequence[str] | None = None, threshold: float | None = None) -> LoadedSegmenter:
        """The same student for other classes, named in words.

        Args:
            classes: their names; pixels of none of them are the class "background", before them, unless the run was one without.
            threshold: of the background.

        Raises:
            InputError: a student of fixed classes, a name that cannot be encoded, or a threshold that has no meaning.
        """
        network = self.network
        if classes is None and threshold is None:
            return self
        if not isinstance(network, OpenVocabulary):
            what, got = ("classes", ", ".join(classes)) if classes is not None else ("threshold", threshold)
            raise InputError(what, got, f"none: this student finds the classes that it was trained on ({', '.join(self.classes[:5])}, ...)")
        vocabulary = network.vocabulary
        if threshold is not None:
            if vocabulary.background != "threshold":
                raise InputError("threshold", threshold, f"none: this student's background is {vocabulary.background}")
            vocabulary = replace(vocabulary, threshold=threshold)
        if classes is not None:
            names = [name.strip() for name in classes]
            names = names if vocabulary.background == "none" or BACKGROUND in names else [BACKGROUND, *names]
            vocabulary = vocabulary.of(names, trust_pickle=self.trust_pickle)
        found = network.finding(vocabulary)
        colours = self.colours if classes is None else voc_colours(len(vocabulary.classes))
        return LoadedSegmenter(found, vocabulary.classes, colours, self.transform, self.card, self.trust_pickle)

    @torch.no_grad()
    def segment(self, image: Image.Image) -> np.ndarray:
        """The class of each pixel of a photo (RGB), uint8 [H, W]."""
        pixels = prepared(pil_to_tensor(image), self.transform["shorter"], self.transform["mean"], self.transform["std"])
        windows = self.transform["window"], self.transform["stride"]
        (found,) = predicted_classes(self.network, [as_read_by(self.network, pixels)], [(image.height, image.width)], *windows)
        return found.to(torch.uint8).cpu().numpy()

    def predict(
        self,
        files: Sequence[Path],
        *,
        unreadable: Unreadable,
        classes: str | None = None,
        threshold: float | None = None,
        out: str | None = None,
    ) -> Iterator[Segmented]:
        """Segments each file; see `Student`.

        Args:
            files: photos.
            unreadable: is called with the error of a file that cannot be read.
            classes: of a student with an open vocabulary: names, with commas between.
            threshold: of such a student: scores below it are background.
            out: the folder that PNG files are written to; by default ``segmented`` in the run's.

        Raises:
            InputError: see `finding`.
        """
        student = self.finding(None if classes is None else classes.split(","), threshold)
        folder = Path(out) if out is not None else self.card.folder / "segmented"
        accelerated(student.network)
        masks, overlays = (answer_files(files, folder, ending=ending) for ending in ("_mask", "_overlay"))
        for file, image in opened(files, read_image, unreadable):
            found_HW = student.segment(image)
            mask, overlay = masks[file], overlays[file]
            write_picture(palette_image(found_HW, student.colours), mask)
            write_picture(overlaid(image, found_HW, student.colours), overlay)
            shares = np.bincount(found_HW.reshape(-1), minlength=len(student.classes)) / found_HW.size
            yield Segmented(file, mask, overlay, student.classes, tuple(shares.tolist()))

    def export_spec(self) -> ExportSpec:
        """The file reads ``images`` float32 [batch, 3, S, S] and answers with ``scores`` [batch, C, S, S] of the classes; that of an open
        vocabulary knows no classes: ``segment_maps`` [batch, m, h, w], probabilities on its grid of patches, ``segment_embeddings``
        [batch, m, D] and ``image_embedding`` [batch, D], in the space of the teacher's texts.

        S is a window's side. Metadata are those of `export_parts.description`; pixels in [0, 1] are normalised by `mean` and `std`.
        """
        side = int(self.transform["window"])
        mean, std = self.transform["mean"], self.transform["std"]
        pictures = [prepared(pil_to_tensor(picture.resize((side, side))), side, mean, std) for picture in made_up_pictures(side)]
        images, told = torch.stack(pictures), description(self.card)
        if isinstance(self.network, OpenVocabulary):
            names = ("images", "segment_maps", "segment_embeddings", "image_embedding")
            note = "the file knows no classes: compare segment_embeddings with the teacher's text embeddings of any"
            return ExportSpec(self.network, images, names, told, ask=lambda network, inputs: network.parts(inputs), note=note)  # type: ignore[operator]
        return ExportSpec(self.network, images, ("images", "scores"), told, note="one window; `stillroom predict` slides it over a picture")


def ship(folder: Path, network: nn.Module, model: str, data: Any) -> None:
    """Writes `student.json`, and the vocabulary of a network that has one."""
    write_card(folder, TASK, model, data)
    if isinstance(network, OpenVocabulary):
        network.vocabulary.write(folder)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedSegmenter:
    """The student that a segmentation run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    classes, transform, colours = card.parsed(
        lambda content: (
            tuple(map(str, content["classes"])),
            {name: content["transform"][name] for name in ("shorter", "window", "stride", "mean", "std")},
            tuple((int(r), int(g), int(b)) for r, g, b in content["colours"]),
        ),
        "classes, colours and transform",
    )
    built = build_segmenter(card.spec, num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    return LoadedSegmenter(built.network.eval(), classes, colours, transform, card, trust_pickle)
