"""A detector as the rest of the library sees it: raw outputs for distillation, its own task loss, and detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from stillroom.tasks.detection.dense import Assigner, DenseOutputs, DenseTargets, dense_targets
from stillroom.tasks.detection.metrics import Detections


class DenseDetector(nn.Module, ABC):
    """Base of detectors that answer at every position of a pyramid.

    Images come as one batch, float [B, 3, H, W], normalised, padded at the right and the bottom; `image_sizes` int64 [B, 2] says how much
    of each is image. Called with images alone (`detector(images)`), it answers with its scores and boxes at every position: what a frozen
    teacher is asked for, and what is measured.

    Attributes:
        num_classes: C.
        strides: of the pyramid's levels.
    """

    num_classes: int
    strides: tuple[int, ...]
    score_threshold, nms_threshold, most_of_level, most = 0.05, 0.6, 1000, 100

    @abstractmethod
    def raw(self, images: Tensor, image_sizes: Tensor) -> DenseOutputs:
        """Scores and boxes at each position of each level."""

    @abstractmethod
    def assigner(self, *, regions: bool = False) -> Assigner:
        """The rule that gives positions their objects; with LD's regions if they are asked for."""

    @abstractmethod
    def task_losses(self, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """What plain training minimises: scalars by name."""

    def targets(self, outputs: DenseOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor], *, regions: bool = False) -> DenseTargets:
        """What the positions are to answer, by this detector's own assigner."""
        return dense_targets(outputs, boxes, labels, self.assigner(regions=regions), self.num_classes)

    def scores(self, outputs: DenseOutputs) -> list[Tensor]:
        """Per level [B, N_l, C] in [0, 1], by which detections are ranked."""
        scores = [logits.float().sigmoid() for logits in outputs.logits]
        if not outputs.centerness:
            return scores
        return [(level * centre.float().sigmoid()[..., None]).sqrt() for level, centre in zip(scores, outputs.centerness, strict=True)]

    @torch.no_grad()
    def detect(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image: scores above 0.05, the best 1000 of a level, class-wise NMS at IoU 0.6, the best 100."""
        outputs = self.raw(images, image_sizes)
        scores = self.scores(outputs)
        found = []
        for image, size in enumerate(image_sizes.tolist()):
            boxes, values, labels = [], [], []
            for level, level_boxes in zip(scores, outputs.boxes, strict=True):
                flat = level[image].flatten()
                kept = (flat > self.score_threshold).nonzero().flatten()
                best, order = flat[kept].topk(min(len(kept), self.most_of_level))
                at = kept[order]
                boxes.append(level_boxes[image][at // self.num_classes].float())
                values.append(best)
                labels.append(at % self.num_classes)
            clipped = clip_boxes_to_image(torch.cat(boxes), (size[0], size[1]))
            all_values, all_labels = torch.cat(values), torch.cat(labels)
            keep = batched_nms(clipped, all_values, all_labels, self.nms_threshold)[: self.most]
            found.append(Detections(clipped[keep], all_values[keep], all_labels[keep]))
        return found

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """The raw answers alone, each per level: ``logits``, ``boxes`` and, where there are, ``bins``; padding counts as image."""
        sizes = torch.tensor(images.shape[-2:], device=images.device).expand(len(images), 2)
        outputs = self.raw(images, sizes)
        answers = {"logits": list(outputs.logits), "boxes": list(outputs.boxes)}
        return answers | ({"bins": list(outputs.bins)} if outputs.bins else {})
