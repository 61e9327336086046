"""What every dense detector answers, whatever its head: scores and boxes at each position of each pyramid level; and their targets.

Labels are 0 .. C-1 and C is background, in every detector; a wrapped one that counts otherwise is converted by its adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillroom.engine.distributed import averaged, world_size
from stillroom.tasks.detection.boxes import centres
from stillroom.tasks.detection.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class DenseOutputs(Outputs):
    """Raw answers of a dense detector to a batch of B images, level after level; a level has N_l positions (row, column, anchor).

    Attributes:
        logits: per level float [B, N_l, C], before the sigmoid.
        boxes: per level float [B, N_l, 4], decoded, absolute (x1, y1, x2, y2) in pixels of the padded batch.
        anchors: per level [N_l, 4], absolute; for detectors of points the square that stands for one.
        valid: per level bool [B, N_l], the positions that take part; those on an image's padding may not.
        bins: per level [B, N_l, 4 * (n + 1)], logits over the distances of the sides; empty where the detector has none.
        centerness: per level [B, N_l]; empty where the detector has none.
        head: what a wrapped detector's own head answered, for its own loss.
    """

    logits: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    bins: tuple[Tensor, ...] = field(default=())
    centerness: tuple[Tensor, ...] = field(default=())
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """N_l of each level."""
        return tuple(anchors.shape[0] for anchors in self.anchors)


def on_image(anchors: Sequence[Tensor], image_sizes: Tensor) -> tuple[Tensor, ...]:
    """Which positions have their centre on their image, not on its padding; per level bool [B, N_l]."""
    height_B1, width_B1 = image_sizes[:, :1], image_sizes[:, 1:]
    return tuple((centre[:, 1] < height_B1) & (centre[:, 0] < width_B1) for centre in map(centres, anchors))


@dataclass(frozen=True)
class DenseTargets:
    """What the positions of a batch are to answer.

    Attributes:
        labels: per level int64 [B, N_l]; C for background.
        boxes: per level [B, N_l, 4], absolute, of the object that a positive answers for; zeros elsewhere.
        weights: per level float [B, N_l], m: 1 for every position that took part in the assignment, 0 for padding and the ignored.
        positives: scalar, N_pos_total: at least one for each image, averaged over processes.
        present: bool [L], whether a level has a positive anywhere in the batch, on whatever process.
        regions: per level float [B, N_l], weight in LD's valuable localisation region.
        matched: int64 [B, A] over all levels: index of the image's object, -1 for background, -2 for ignored.
        objects: of each image, boxes [G, 4] and labels [G].
    """

    labels: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    positives: Tensor
    present: Tensor
    regions: tuple[Tensor, ...]
    matched: Tensor
    objects: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class ImageTargets:
    """What the valid positions [A] of one image are to answer: an assigner's result.

    Attributes:
        matched: int64 [A], index of the object; -1 for background, -2 for ignored.
        regions: float [A], see `DenseTargets`; None where nobody asked for them.
    """

    matched: Tensor
    regions: Tensor | None = None


Assigner = Callable[[Tensor, Sequence[int], Tensor], ImageTargets]


@torch.no_grad()
def dense_targets(
    outputs: DenseOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor], assign: Assigner, num_classes: int
) -> DenseTargets:
    """Assigns the positions of every image of a batch.

    Args:
        outputs: whose anchors and padding.
        boxes, labels: of each image's objects, [G, 4] absolute and int64 [G]; G may be 0.
        assign: called with an image's valid anchors [A, 4], their number in each level, and its boxes.
        num_classes: C.
    """
    anchors_A4, sizes = torch.cat(outputs.anchors), outputs.level_sizes
    valid_BA = torch.cat(outputs.valid, 1)
    batch, count = valid_BA.shape
    labels_BA = torch.full((batch, count), num_classes, dtype=torch.long, device=anchors_A4.device)
    boxes_BA4, regions_BA = anchors_A4.new_zeros(batch, count, 4), anchors_A4.new_zeros(batch, count)
    weights_BA, matched_BA = valid_BA.to(anchors_A4.dtype), torch.full_like(labels_BA, -2)
    for image, (boxes_G4, labels_G) in enumerate(zip(boxes, labels, strict=True)):
        at = valid_BA[image].nonzero().flatten()
        found = assign(anchors_A4[at], [int(part.sum()) for part in valid_BA[image].split(sizes)], boxes_G4)
        matched_BA[image, at] = found.matched
        positive = found.matched >= 0
        which, objects = at[positive], found.matched[positive]
        labels_BA[image, which] = labels_G[objects]
        boxes_BA4[image, which] = boxes_G4[objects].to(boxes_BA4.dtype)
        weights_BA[image, at[found.matched == -2]] = 0
        if found.regions is not None:
            regions_BA[image, at] = found.regions.to(regions_BA.dtype)
    positive_BA = labels_BA < num_classes
    counts = [positive_BA.sum(1).clamp_min(1).sum(), *(level.sum() for level in positive_BA.split(sizes, 1))]
    normalisers = averaged(torch.stack(counts).to(anchors_A4.dtype))
    return DenseTargets(
        labels_BA.split(sizes, 1),
        boxes_BA4.split(sizes, 1),
        weights_BA.split(sizes, 1),
        normalisers[0],
        normalisers[1:] > 0,
        regions_BA.split(sizes, 1),
        matched_BA,
        tuple(zip(boxes, labels, strict=True)),
    )


def averaged_count(count: Tensor) -> Tensor:
    """`averaged` numbers of objects or samples to divide by: at least one in all processes together, as one process would have it."""
    return averaged(count).clamp_min(1 / world_size())
