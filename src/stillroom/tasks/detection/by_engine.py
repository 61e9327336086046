"""Frozen detectors asked by an inference engine: dense ones, whose answers are lists of scores and boxes, level by level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.export import ExportFailed
from stillroom.engine.inference.fidelity import AGREEMENT, Bound, ByEngine, Measured, bernoulli_kl
from stillroom.tasks.detection.backbones import pad_batch
from stillroom.tasks.detection.boxes import paired_iou
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.preparation import as_pixels
from stillroom.tasks.images.export_parts import made_up_pictures

_LEAST, _CELLS = 64, 3
_MOST = 100  # positions of an image that are compared: those that the network scores highest


@torch.no_grad()
def _measure(wanted: Any, told: Any, temperature: float) -> Measured:
    """Of the best positions: do both say the same class, how far are their scores apart, and how well do their boxes overlap?"""
    (z_BNC, box_BN4), (other_BNC, other_BN4) = ((torch.cat(told["logits"], 1), torch.cat(told["boxes"], 1)) for told in (wanted, told))
    best_BK1 = z_BNC.amax(-1).topk(min(_MOST, z_BNC.shape[1])).indices[..., None]
    z, other = (values.gather(1, best_BK1.expand(-1, -1, values.shape[-1])).flatten(0, 1) for values in (z_BNC, other_BNC))
    boxes, others = (values.gather(1, best_BK1.expand(-1, -1, 4)).flatten(0, 1).float() for values in (box_BN4, other_BN4))
    same = (z.argmax(-1) == other.argmax(-1)).double().mean()
    return {
        "agreement": 100 * float(same),
        "kl": float(bernoulli_kl(z, other).mean()),
        "iou": float(paired_iou(boxes, others).mean()),
    }


def _ask(network: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    if not isinstance(network, DenseDetector):
        raise ExportFailed(f"{type(network).__name__} is no dense detector (GFL, ATSS, RetinaNet, FCOS): engines are for those")
    # .shape rather than len(), which torch.export takes for a constant; sizes say what is padding, which no answer depends on
    return network.answers(network.raw(images, torch.zeros(images.shape[0], 2, dtype=torch.long, device=images.device)))


def _example(network: nn.Module, images: Tensor, data: Any) -> tuple[Tensor, int | None]:
    """Pictures of several cells of the coarsest level in each direction: torch.export takes a single one for a constant."""
    pictures = made_up_pictures(max(_LEAST, _CELLS * max(getattr(network, "strides", (1,)))), 2)
    normalised = [data.preparation.normalise(as_pixels(picture)) for picture in pictures]
    return pad_batch(normalised, data.preparation.divisor)[0], data.preparation.divisor


BY_ENGINE = ByEngine(
    _measure,
    {"agreement": AGREEMENT, "kl": Bound("KL of each score", 0.02), "iou": Bound("IoU of boxes", 0.9, least=True)},
    ask=_ask,
    example=_example,
    exact=("boxes",),
)
