"""A finished run's student, ready to use: network, transform, class names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.stage import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.classification.models import build_classifier
from stillroom.tasks.classification.transforms import transform_from


@dataclass(frozen=True)
class Loaded:
    """A trained classifier.

    Args:
        network: in eval mode, images [B, 3, H, W] to logits [B, C].
        transform: PIL image to a normalised tensor [3, H, W].
        classes: their names, in the order of the logits.
    """

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]
    classes: tuple[str, ...]

    @torch.no_grad()
    def probabilities(self, *images: Image.Image | str | Path) -> Tensor:
        """Class probabilities [B, C] of images or image files."""
        opened = [image if isinstance(image, Image.Image) else Image.open(image) for image in images]
        batch = torch.stack([self.transform(image.convert("RGB")) for image in opened])
        return self.network(batch).float().softmax(-1)

    def classify(self, *images: Image.Image | str | Path) -> list[str]:
        """The most probable class of each image or image file."""
        return [self.classes[index] for index in self.probabilities(*images).argmax(-1).tolist()]


def load(run: str | Path) -> Loaded:
    """The student that a run shipped.

    Args:
        run: the folder that `stillroom run` wrote.

    Raises:
        InputError: the folder holds no finished run.
    """
    folder = Path(run)
    card = folder / "student.json"
    if not card.exists():
        raise InputError("run", str(run), "the folder of a finished run, which holds student.json and student.safetensors")
    described = json.loads(card.read_text())
    built = build_classifier(str(folder), num_classes=len(described["classes"]), argument="run")
    return Loaded(built.network.eval(), transform_from(described["transform"]), tuple(described["classes"]))


def ship(folder: Path, network: nn.Module, model: str, described: dict[str, Any]) -> None:
    """Writes `student.json`, and for a timm network the folder `student`, which timm itself loads (`local-dir:`)."""
    spec = model.partition("@")[0]
    card = {"model": spec, "num_classes": len(described["classes"]), **described}
    write_atomic(folder / "student.json", json.dumps(card, indent=1))
    if spec.startswith("timm/"):
        from timm.models import save_for_hf

        transform = described["transform"]
        settings = {"mean": transform["mean"], "std": transform["std"], "input_size": [3, described["image_size"], described["image_size"]]}
        save_for_hf(network, str(folder / "student"), model_config={"label_names": list(described["classes"]), "pretrained_cfg": settings})
