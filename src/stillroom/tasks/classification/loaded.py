"""A finished run's student, ready to use: network, transform, class names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.engine.run.stage import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.classification.models import build_classifier
from stillroom.tasks.images.stores import read_image
from stillroom.tasks.images.transforms import transform_from


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

    exclusive: ClassVar[bool] = True  # one class an image

    def activation(self, logits_BC: Tensor) -> Tensor:
        """Logits to probabilities, [B, C]."""
        return logits_BC.softmax(-1)

    @torch.no_grad()
    def probabilities(self, *images: Image.Image | str | Path) -> Tensor:
        """Class probabilities [B, C] of images or image files, each turned upright as its EXIF orientation says.

        Raises:
            InputError: no image at all.
            UnreadableImage: an image cannot be decoded; it is named.
        """
        if not images:
            raise InputError("images", "none", "at least one image or image file")
        batch = torch.stack([self.transform(read_image(image)) for image in images])
        weight = next(self.network.parameters(), batch)
        return self.activation(self.network(batch.to(weight.device, weight.dtype)).float())

    def classify(self, *images: Image.Image | str | Path) -> list[str]:
        """The most probable class of each image or image file.

        Raises:
            InputError, UnreadableImage: as `probabilities`.
        """
        return [self.classes[index] for index in self.probabilities(*images).argmax(-1).tolist()]


def load(run: str | Path, *, trust_pickle: bool = False) -> Loaded:
    """The student that a run shipped.

    Args:
        run: the folder that `stillroom run` wrote.
        trust_pickle: also run the Python file inside the folder that the network is built by, if there is one.

    Raises:
        InputError: the folder holds no finished run, or a damaged one.
    """
    folder = Path(run)
    card = folder / "student.json"
    if not card.is_file():
        raise InputError("run", str(run), "the folder of a finished run, which holds student.json and student.safetensors")
    try:
        described = json.loads(card.read_text(encoding="utf-8"))
        classes = tuple(str(name) for name in described["classes"])
        transform = transform_from(described["transform"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("run", str(card), "JSON with the student's classes and transform") from error
    built = build_classifier(str(folder.resolve()), num_classes=len(classes), trust_pickle=trust_pickle, argument="run")
    return Loaded(built.network.eval(), transform, classes)


def ship(folder: Path, network: nn.Module, model: str, described: dict[str, Any]) -> None:
    """Writes `student.json`, and for a timm network the folder `student`, which timm itself loads (`local-dir:`)."""
    spec = model.partition("@")[0]
    card = {"model": spec, "num_classes": len(described["classes"]), **described}
    write_atomic(folder / "student.json", json.dumps(card, indent=1))
    if spec.startswith("timm/"):
        from timm.models import save_for_hf

        transform = described["transform"]
        settings = {
            "mean": transform["mean"],
            "std": transform["std"],
            "input_size": [3, described["image_size"], described["image_size"]],
            "interpolation": transform["interpolation"],
            "crop_pct": transform["crop"] / transform["resize"],
            "crop_mode": "center",
            "test_input_size": None,  # the published weights' own recommendation, and so the next
            "test_crop_pct": None,
        }
        about = {"label_names": list(described["classes"]), "pretrained_cfg": settings}
        part = folder / ".student.part"  # timm writes in place: whoever reads or kills meanwhile would be left with half a file
        save_for_hf(network, str(part), model_config=about, safe_serialization=True)
        (folder / "student").mkdir(exist_ok=True)
        for file in part.iterdir():
            file.replace(folder / "student" / file.name)
        part.rmdir()
