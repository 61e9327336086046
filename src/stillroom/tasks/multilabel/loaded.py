"""A finished multi-label run's student, ready to use: network, transform, label names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from stillroom.engine.card import Described, read_card, write_card
from stillroom.errors import InputError
from stillroom.modules.ml_decoder import MLDecoder
from stillroom.tasks.images.loaded import Ranked, Scoring, Unreadable, described
from stillroom.tasks.images.transforms import transform_from
from stillroom.tasks.multilabel.models import TASK, build_multilabel

_SURE = 0.5  # probability above which a label is given


@dataclass(frozen=True)
class Labelled(Ranked):
    """All labels of one image; `top` is how many to name."""

    top: int

    def to_json(self) -> dict[str, Any]:
        """The labels above one half, and the most probable ones."""
        return {"labels": [name for name, probability in self.ranking if probability > _SURE], "top": self.entries()[: self.top]}

    def rows(self) -> list[list[str]]:
        """The labels above one half, and the most probable of the others."""
        words, count = self.words(), sum(probability > _SURE for _, probability in self.ranking)
        return [[", ".join(words[:count]) or "none", ", ".join(words[count : count + self.top])]]


@dataclass(frozen=True)
class LoadedMultiLabel(Scoring):
    """A trained multi-label network; see `Scoring`."""

    kind: ClassVar[str] = "a multi-label classifier"

    def activation(self, logits_BK: Tensor) -> Tensor:
        """Sigmoid: each label by itself."""
        return logits_BK.sigmoid()

    def labels(self, *images: Image.Image | str | Path, threshold: float = _SURE) -> list[list[str]]:
        """The labels of each image or image file whose probability is above a threshold, the most probable first.

        Raises:
            InputError, UnreadableImage: as `probabilities`.
        """
        found = []
        for row in self.probabilities(*images).tolist():
            ranked = sorted(zip(row, self.classes, strict=True), reverse=True)
            found.append([name for probability, name in ranked if probability > threshold])
        return found

    def columns(self, top: int = 2) -> list[str]:
        """Of `Labelled.rows`."""
        return ["labels", "next"]

    def predict(self, files: Sequence[Path], *, unreadable: Unreadable, top: int = 2) -> Iterator[Labelled]:
        """The labels of each file, and the `top` most probable; see `Student`."""
        for file, ranking in self.rankings(files, len(self.classes), unreadable):
            yield Labelled(file, ranking, top)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedMultiLabel:
    """The student that a multi-label run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    classes, transform = described(card, transform_from)
    size = card.parsed(lambda content: int(content["image_size"]), "image_size")
    built = build_multilabel(card.spec, num_classes=len(classes), image_size=size, trust_pickle=trust_pickle, argument="run")
    return LoadedMultiLabel(built.network.eval(), transform, classes, card)


def ship(folder: Path, network: nn.Module, model: str, data: Described) -> None:
    """Writes `student.json`: the model, its head, its labels, and how images are prepared."""
    head = getattr(network, "head", None)
    if not isinstance(head, MLDecoder):
        raise InputError("network", type(network).__name__, "a network that `build_multilabel` built: its head must be described")
    write_card(folder, TASK, model, data, head=head.options.to_json())
