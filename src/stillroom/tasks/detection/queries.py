"""Detectors that ask a fixed number of queries what is in an image (the DETR family): their record, targets and losses.

Boxes of a query are (centre x, centre y, width, height) relative to a frame: the image without its padding where the network is told what
is padding, else the padded batch. Each query answers for at most one object, by bipartite matching.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from stillroom.tasks.detection.boxes import paired_iou
from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.metrics import Detections
from stillroom.tasks.detection.outputs import Outputs

# Of each image, which queries answer for which objects: two int64 [P] of one length.
Matches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """Answers of the queries that a detector was given noised copies of the objects with, in training.

    Attributes:
        logits, relative_boxes: per decoder layer [B, N, C] and [B, N, 4].
        matches: which of them started from which object.
        labels, boxes: the objects, of each image int64 [G] and relative [G, 4].
        groups: copies of every object.
    """

    logits: tuple[Tensor, ...]
    relative_boxes: tuple[Tensor, ...]
    matches: Matches
    labels: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    groups: int


@dataclass(frozen=True, kw_only=True)
class QueryOutputs(Outputs):
    """What Q queries of each image answer, after each decoder layer; the last layer's are the detector's answers.

    Attributes:
        queries: per decoder layer [B, Q, d], what the class head reads.
        logits: per decoder layer float32 [B, Q, C], before the sigmoid; or [B, Q, C + 1] before a softmax, where C is "no object".
        relative_boxes: per decoder layer float32 [B, Q, 4], relative to the frames.
        frames: float32 [B, 2], height and width of each image's frame.
        proposed: logits [B, Q, C] and relative boxes [B, Q, 4] that the encoder started the queries from, where it is trained to.
        denoising: of the noised objects, if the detector was given any.
    """

    queries: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    relative_boxes: tuple[Tensor, ...]
    frames: Tensor
    proposed: tuple[Tensor, Tensor] | None = None
    denoising: Denoising | None = None

    @property
    def boxes(self) -> tuple[Tensor, ...]:
        """Per decoder layer [B, Q, 4], absolute (x1, y1, x2, y2) in pixels of the padded batch."""
        scale_B14 = self.frames.flip(1).repeat(1, 2)[:, None]
        return tuple(_corners(layer) * scale_B14 for layer in self.relative_boxes)


@dataclass(frozen=True, kw_only=True)
class QueryTargets:
    """What the queries of a batch are to answer.

    Attributes:
        labels, boxes: the objects, of each image int64 [G] and [G, 4] relative to its frame.
        matches: who answers for them, by the layer's suffix in the names of losses; "" is the last decoder layer.
        count: scalar, objects of the batch, averaged over processes; at least one in all of them.
    """

    labels: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    matches: Mapping[str, Matches]
    count: Tensor


class QueryDetector(Detector[QueryOutputs, QueryTargets]):
    """Base of the adapters of transformers' DETR family.

    Args:
        model: transformers' ``...ForObjectDetection``.
    """

    model: Any
    most = 100

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_classes = int(model.config.num_labels)
        self.strides = self.levels()

    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """Strides of the encoder's maps."""

    @abstractmethod
    def frames(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Height and width that an image's boxes are relative to, float32 [B, 2]."""

    @abstractmethod
    def matcher(self) -> Any:
        """The model's own bipartite matcher."""

    @abstractmethod
    def layers(self, outputs: QueryOutputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits and relative boxes of each layer that is trained, by its suffix in the names of losses."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Weights of the losses, by name without suffix: the class loss, then ``loss_bbox`` and ``loss_giou``."""

    @abstractmethod
    def class_loss(self, logits: Tensor, pairs: Pairs, count: Tensor) -> Tensor:
        """The class loss of a layer, of logits [B, Q, C or C + 1]."""

    @abstractmethod
    def projections(self) -> list[nn.Module]:
        """What brings each of the backbone's maps to the encoder's width; each runs once."""

    @abstractmethod
    def class_layers(self) -> list[nn.Linear | nn.Embedding]:
        """All layers that have a row for each class; further rows come after."""

    def targets(self, outputs: QueryOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> QueryTargets:
        """Who answers for which object, by the model's own matcher, in every layer that is trained."""
        relative = relative_boxes(boxes, outputs.frames)
        objects = [{"class_labels": label, "boxes": box} for label, box in zip(labels, relative, strict=True)]
        matcher = self.matcher()
        matches = {}
        for suffix, (logits, guessed) in self.layers(outputs).items():
            # Numbers that are not finite shall show in the loss, where training says what happened, and not here.
            matches[suffix] = matcher({"logits": logits.detach(), "pred_boxes": guessed.detach().nan_to_num(0.5)}, objects)
        total = outputs.frames.new_tensor(float(sum(map(len, labels))))
        return QueryTargets(labels=tuple(labels), boxes=relative, matches=matches, count=averaged_count(total))

    def task_losses(self, outputs: QueryOutputs, targets: QueryTargets) -> dict[str, Tensor]:
        """The wrapped model's own, under its own names, times its own weights: what it sums."""
        losses: dict[str, Tensor] = {}
        for suffix, (logits, boxes) in self.layers(outputs).items():
            losses |= self.layer_losses(suffix, logits, boxes, targets.matches[suffix], targets.labels, targets.boxes, targets.count)
        if not self.model.config.auxiliary_loss:
            # Several processes wait for the gradients of every parameter, of the layers that are not trained too.
            first, idle = next(iter(losses)), (*outputs.logits[:-1], *outputs.relative_boxes[:-1], *(outputs.proposed or ()))
            losses[first] = losses[first] + sum(0 * answer.sum() for answer in idle)
        return losses

    def layer_losses(
        self,
        suffix: str,
        logits: Tensor,
        boxes: Tensor,
        matches: Matches,
        labels: Sequence[Tensor],
        wanted: Sequence[Tensor],
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Class loss, L1 and 1 - GIoU of one layer's matched boxes; sums divided by `count`, times their weights."""
        pairs = Pairs(boxes, matches, labels, wanted)
        terms = (
            self.class_loss(logits, pairs, count),
            F.l1_loss(pairs.boxes_P4, pairs.wanted_P4, reduction="sum") / count,
            (1 - pairs.overlap("giou")).sum() / count,
        )
        return {f"{name}{suffix}": weight * term for (name, weight), term in zip(self.weights().items(), terms, strict=True)}

    def scores(self, logits: Tensor) -> Tensor:
        """[B, Q, C] in [0, 1], by which detections are ranked."""
        return logits.sigmoid()

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, queries and labels [B, N], best first: the best of all queries times classes."""
        scores_BN, at_BN = self.scores(logits).flatten(1).topk(min(self.most, logits.shape[1] * self.num_classes))
        return scores_BN, at_BN // self.num_classes, at_BN % self.num_classes

    @torch.no_grad()
    def detect(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """The best 100 answers of each image, as the wrapped model's own image processor ranks them."""
        outputs = self.raw(images, image_sizes)
        scores_BN, queries_BN, labels_BN = self.ranked(outputs.logits[-1])
        boxes_BN4 = outputs.boxes[-1].gather(1, queries_BN[..., None].expand(-1, -1, 4))
        return [Detections(*found) for found in zip(boxes_BN4, scores_BN, labels_BN, strict=True)]

    def answers(self, outputs: QueryOutputs) -> dict[str, list[Tensor]]:
        """Per decoder layer ``logits``, absolute ``boxes`` and ``queries``."""
        return {"logits": list(outputs.logits), "boxes": list(outputs.boxes), "queries": list(outputs.queries)}


class Pairs:
    """The P queries of a batch that answer for an object, and what they are to answer.

    Args:
        boxes: of all queries, relative [B, Q, 4].
        matches: who answers for what.
        labels, wanted: of each image's objects.
    """

    def __init__(self, boxes: Tensor, matches: Matches, labels: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        device = boxes.device
        images_P = torch.cat([torch.full_like(queries, image) for image, (queries, _) in enumerate(matches)]).to(device)
        queries_P = torch.cat([queries for queries, _ in matches]).to(device)
        objects = [which.to(device) for _, which in matches]
        self.labels_P = torch.cat([label[which] for label, which in zip(labels, objects, strict=True)])
        self.wanted_P4 = torch.cat([box[which] for box, which in zip(wanted, objects, strict=True)])
        self.boxes_P4 = boxes[images_P, queries_P]
        self.at = images_P, queries_P, self.labels_P  # where their labels stand among the logits

    def overlap(self, kind: Any = "iou") -> Tensor:
        """Of each answered box with the object's; [P]."""
        # Relative boxes of a few pixels have areas of 1e-6: the least divisor is far below.
        return paired_iou(_corners(self.boxes_P4), _corners(self.wanted_P4), kind, eps=1e-12)

    def one_hot(self, logits: Tensor) -> Tensor:
        """1 at each pair's label, 0 elsewhere; of the logits' shape."""
        target = torch.zeros_like(logits)
        target[self.at] = 1
        return target


def in_float32(*modules: nn.Module) -> None:
    """Lets modules answer in float32 under reduced precision too, where the model computes positions from their answers, in their type.

    Relative coordinates in bfloat16 are off by up to 1/512: 2.6 pixels of 1333.
    """
    for module in modules:
        module.register_forward_hook(_float32)


def _float32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def relative_boxes(boxes: Sequence[Tensor], frames: Tensor) -> tuple[Tensor, ...]:
    """Absolute (x1, y1, x2, y2) of each image [G, 4] -> centre and size relative to its frame, of `frames` [B, 2] (height, width)."""
    scales_B4 = frames.flip(1).repeat(1, 2)
    return tuple(box_convert(part.float(), "xyxy", "cxcywh") / scale for part, scale in zip(boxes, scales_B4, strict=True))


def _corners(boxes: Tensor) -> Tensor:
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)
