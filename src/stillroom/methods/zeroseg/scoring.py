"""After training: the background's threshold, chosen on pictures that are not measured on, and what the segments are like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.methods.zeroseg.decoding import resized_assignment
from stillroom.methods.zeroseg.network import ZeroSegNetwork
from stillroom.methods.zeroseg.teacher import Cells
from stillroom.tasks.images.label_maps import IGNORE
from stillroom.tasks.images.pixel_classes import confusion, mean_iou
from stillroom.tasks.segmentation import SegmentationData, predicted_classes

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@torch.no_grad()
def best_threshold(network: ZeroSegNetwork | Cells, data: SegmentationData, device: torch.device) -> dict[str, Tensor]:
    """The background's threshold with the largest mIoU on the validation masks of `data`, the lowest of equal ones; in one process."""
    found = []
    network.eval().to(device)
    batches = list(_batches(data, device))
    for threshold in THRESHOLDS:
        asked = network.finding(replace(network.vocabulary, threshold=threshold))
        counts = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
        for images, masks, batch in batches:
            answers = predicted_classes(asked, images, [mask.shape for mask in masks], batch.window, batch.stride)
            for answer, mask in zip(answers, masks, strict=True):
                counts += confusion(answer.cpu(), mask.long(), data.num_classes)
        found.append(mean_iou(counts))
    network.cpu()
    best = max(range(len(found)), key=found.__getitem__)
    return {"threshold": torch.tensor(THRESHOLDS[best], dtype=torch.float64), "mIoU": torch.tensor(found, dtype=torch.float64)}


@torch.no_grad()
def segment_figures(network: ZeroSegNetwork, data: SegmentationData, device: torch.device) -> dict[str, Tensor]:
    """Of the validation pictures, each seen whole: ``used``, the mean number of segments that at least one pixel belongs to; and ``match``,
    in %, how well segments without names fit: the IoU of each true region (the pixels of a class in a picture) with the segment that fits
    it best, mean over regions; in one process."""
    used, matches = [], []
    network.eval().to(device)
    for images, masks, _ in _batches(data, device):
        for image, mask_HW in zip(images, masks, strict=True):
            found = network.segmented(image[None])
            grid, size = network.encoder.grid(image[None]), (int(mask_HW.shape[0]), int(mask_HW.shape[1]))
            which_HW = resized_assignment(found.maps, grid, size).argmax(1)[0].cpu()
            used.append(len(which_HW.unique()))
            inside = which_HW == torch.arange(found.segments.shape[1])[:, None, None]
            known_HW = mask_HW != IGNORE
            for region in mask_HW.unique().tolist():
                if region != IGNORE:
                    there_HW = mask_HW == region
                    both_M = (inside & there_HW).sum((1, 2))
                    matches.append(float((both_M / ((inside & known_HW) | there_HW).sum((1, 2))).max()))
    network.cpu()
    return {"used": torch.tensor(used, dtype=torch.float64).mean(), "match": 100 * torch.tensor(matches, dtype=torch.float64).mean()}


def _batches(data: SegmentationData, device: torch.device) -> Iterator[tuple[list[Tensor], list[Tensor], Any]]:
    for batch in data.eval_loader():
        yield [image.to(device) for image in batch.images], list(batch.masks), batch


class Floor(nn.Module):
    """One class everywhere: what is reached without looking.

    Args:
        number: of the class.
        num_classes: C.
    """

    def __init__(self, number: int, num_classes: int) -> None:
        super().__init__()
        self.number, self.num_classes = number, num_classes

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Scores [B, C, H, W]: 1 for the class, 0 for all others."""
        scores_BCHW = images_B3HW.new_zeros(len(images_B3HW), self.num_classes, *images_B3HW.shape[2:])
        scores_BCHW[:, self.number] = 1
        return scores_BCHW
