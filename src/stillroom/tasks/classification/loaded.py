"""A finished run's student, ready to use: network, transform, class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from stillroom.engine.card import read_card
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.loaded import Ranked, Scoring, Unreadable, described
from stillroom.tasks.images.transforms import transform_from


class Prediction(Ranked):
    """The most probable classes of one image."""

    def to_json(self) -> dict[str, Any]:
        """The most probable class, and the ranking."""
        top = self.entries()
        return {**top[0], "top": top}

    def rows(self) -> list[list[str]]:
        """The most probable class, and the others in one cell."""
        (name, probability), *others = self.ranking
        return [[name, f"{probability:.1%}", *([", ".join(self.words()[1:])] if others else [])]]


@dataclass(frozen=True)
class Loaded(Scoring):
    """A trained classifier; see `Scoring`."""

    kind: ClassVar[str] = "a classifier"

    def activation(self, logits_BC: Tensor) -> Tensor:
        """Softmax: one class an image."""
        return logits_BC.softmax(-1)

    def classify(self, *images: Image.Image | str | Path) -> list[str]:
        """The most probable class of each image or image file.

        Raises:
            InputError, UnreadableImage: as `probabilities`.
        """
        return [self.classes[index] for index in self.probabilities(*images).argmax(-1).tolist()]

    def columns(self, top: int = 2) -> list[str]:
        """Of `Prediction.rows`."""
        return ["class", "confidence", *(["runner-up" if top == 2 else "runners-up"] if top > 1 else [])]

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, top: int = 2) -> Iterator[Prediction]:
        """The `top` most probable classes of each file; see `Student`."""
        for file, ranking in self.rankings(files, top, unreadable):
            yield Prediction(file, ranking)


def load(run: str | Path, *, trust_pickle: bool = False) -> Loaded:
    """The student that a run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    classes, transform = described(card, transform_from)
    built = build_classifier(card.spec, num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    return Loaded(built.network.eval(), transform, classes, card)
