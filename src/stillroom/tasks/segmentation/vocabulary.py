"""Open vocabularies: networks that segment by names of classes, which may be others than those that they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.run.written import write_arrays
from stillroom.errors import InputError, near, one_of, share
from stillroom.tasks.segmentation.sources import BACKGROUND

if TYPE_CHECKING:
    from typing_extensions import Self

FILE = "vocabulary.npz"
_NONSENSE = "\u2042\u2042"  # what a tokenizer of whole words knows no more of than of any other unknown word
Background = Literal["threshold", "word", "none"]


@dataclass(frozen=True)
class Vocabulary:
    """Names of classes as an image-text model encodes them, and which of them a network is to find.

    Attributes:
        words: names that are encoded already.
        embeddings: of each of them, [W, D], unit length.
        encoder: the image-text model, as `clips.open_clip` takes it, that encodes others; empty where there is none.
        scale: kappa, that cosines are multiplied with.
        classes: those to find, in the order of the network's scores.
        background: what pixels of the class "background", if it is among them, are: those whose scores stay below a ``threshold``; those
            that are nearest to the ``word``; or ``none``.
        threshold: of a score, from 0 to 1.

    Raises:
        InputError: a threshold outside [0, 1], or another background.
    """

    words: tuple[str, ...]
    embeddings: Tensor
    encoder: str
    scale: float
    classes: tuple[str, ...]
    background: Background = "threshold"
    threshold: float = 0.95

    def __post_init__(self) -> None:
        one_of("background", self.background, get_args(Background))
        share("threshold", self.threshold)

    @property
    def place(self) -> int | None:
        """Which of the classes is the background that no name says; None where there is none."""
        return None if BACKGROUND not in self.classes or self.background == "word" else self.classes.index(BACKGROUND)

    @property
    def text(self) -> Tensor:
        """Embeddings of the classes that have a name, [C, D], in their order."""
        named = [name for number, name in enumerate(self.classes) if number != self.place]
        return self.embeddings[[self.words.index(name) for name in named]]

    def of(self, classes: Sequence[str], *, trust_pickle: bool = False, argument: str = "classes") -> Vocabulary:
        """The same with other classes to find, those that are new encoded now.

        Raises:
            InputError: no class, one twice, or one that cannot be encoded.
        """
        wanted = tuple(" ".join(name.split()) for name in classes)
        if not all(wanted) or not set(wanted) - {BACKGROUND} or len(set(wanted)) < len(wanted):
            raise InputError(argument, ", ".join(classes) or "nothing", "names of classes, each once, with commas between")
        given = replace(self, classes=wanted)
        unknown = [name for number, name in enumerate(wanted) if name not in self.words and number != given.place]
        if not unknown:
            return given
        if not self.encoder:
            known = f"words that the teacher knows: {near(unknown[0], self.words, most=12)}"
            raise InputError(argument, ", ".join(unknown), f"{known} (others need a teacher that reads text)")
        from stillroom.tasks.images.clips import class_embeddings, open_clip

        clip = open_clip(self.encoder, trust_pickle=trust_pickle, argument="teacher")
        found, nonsense = class_embeddings(clip, [*unknown, _NONSENSE]).tensor_split([-1])
        if strange := [name for name, one in zip(unknown, found, strict=True) if torch.allclose(one, nonsense[0], atol=1e-6)]:
            raise InputError(argument, ", ".join(strange), f"words that the tokenizer of {self.encoder} knows")
        if found.shape[1] != self.embeddings.shape[1]:
            got = f"{self.encoder}, which encodes names as {found.shape[1]} numbers"
            raise InputError("teacher", got, f"the image-text model of the training, of {self.embeddings.shape[1]}")
        return replace(given, words=(*self.words, *unknown), embeddings=torch.cat((self.embeddings, found)))

    def write(self, folder: Path) -> None:
        """Writes `FILE` there."""
        told = {"encoder": self.encoder, "background": self.background}
        numbers = {"embeddings": self.embeddings.numpy(), "scale": np.array(self.scale), "threshold": np.array(self.threshold)}
        names = {"words": np.array(self.words), "classes": np.array(self.classes)}
        write_arrays(folder / FILE, {**numbers, **names, **{name: np.array(text) for name, text in told.items()}})

    @classmethod
    def read(cls, folder: Path, argument: str) -> Vocabulary:
        """What `write` wrote.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            with np.load(folder / FILE, allow_pickle=False) as file:
                words, classes = (tuple(map(str, file[name])) for name in ("words", "classes"))
                scale, threshold = float(file["scale"]), float(file["threshold"])
                background: Background = str(file["background"])  # type: ignore[assignment]  # looked at by the constructor
                return cls(words, torch.from_numpy(file["embeddings"]), str(file["encoder"]), scale, classes, background, threshold)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(argument, f"{folder / FILE} ({error})", "the names of a student's classes, as its run wrote them") from None


@runtime_checkable
class OpenVocabulary(Protocol):
    """A network from images [B, 3, H, W] to scores [B, C, H, W] of the classes of its vocabulary."""

    vocabulary: Vocabulary

    def finding(self, vocabulary: Vocabulary) -> Self:
        """The same network for other classes."""

    def parts(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What knows no classes: maps of segments [B, m, h, w], probabilities on the grid of patches; the segments' embeddings [B, m, D];
        that of the whole image [B, D]."""
