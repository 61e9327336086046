"""A finished multi-label run's student, ready to use: network, transform, label names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from stillroom.engine.run.stage import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.classification.loaded import Loaded
from stillroom.tasks.multilabel.head import MLDecoder
from stillroom.tasks.multilabel.models import TASK, build_multilabel, read_card
from stillroom.tasks.multilabel.transforms import transform_from


@dataclass(frozen=True)
class LoadedMultiLabel(Loaded):
    """A trained multi-label network.

    Args:
        network: in eval mode, images [B, 3, S, S] to logits [B, K].
        transform: PIL image to a tensor [3, S, S].
        classes: names of the labels, in the order of the logits.
    """

    exclusive: ClassVar[bool] = False

    def activation(self, logits_BK: Tensor) -> Tensor:
        """Each label's own probability, [B, K]."""
        return logits_BK.sigmoid()

    def labels(self, *images: Image.Image | str | Path, threshold: float = 0.5) -> list[list[str]]:
        """The labels of each image or image file whose probability is above a threshold, the most probable first.

        Raises:
            InputError, UnreadableImage: as `probabilities`.
        """
        found = []
        for row in self.probabilities(*images).tolist():
            ranked = sorted(zip(row, self.classes, strict=True), reverse=True)
            found.append([name for probability, name in ranked if probability > threshold])
        return found


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedMultiLabel:
    """The student that a multi-label run shipped.

    Args:
        run: the folder that `stillroom run` wrote.
        trust_pickle: also run the Python file inside the folder that the network is built by, if there is one.

    Raises:
        InputError: the folder holds no finished multi-label run, or a damaged one.
    """
    folder = Path(run)
    card = read_card(folder, "run")
    try:
        classes = tuple(str(name) for name in card["classes"])
        size = int(card["image_size"])
        transform = transform_from(card["transform"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("run", str(folder / "student.json"), "JSON with the student's classes and transform") from error
    built = build_multilabel(str(folder.resolve()), num_classes=len(classes), image_size=size, trust_pickle=trust_pickle, argument="run")
    return LoadedMultiLabel(built.network.eval(), transform, classes)


def ship(folder: Path, network: nn.Module, model: str, described: dict[str, Any]) -> None:
    """Writes `student.json`: the model, its head, its labels, and how images are prepared."""
    head = getattr(network, "head", None)
    if not isinstance(head, MLDecoder):
        raise InputError("network", type(network).__name__, "a network that `build_multilabel` built: its head must be described")
    card = {"task": TASK, "model": model, "num_classes": len(described["classes"]), "head": head.options.to_json(), **described}
    write_atomic(folder / "student.json", json.dumps(card, indent=1))
