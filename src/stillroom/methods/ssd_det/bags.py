"""Boxes around boxes: the noise of the benchmark, an object's bag of proposals, SPSD's code and losses, and negatives.

G are the objects of a batch, P the proposals of a bag. Boxes are (x1, y1, x2, y2), absolute; limits are what each object's image ends at,
(width, height) [G, 2].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32

_STDS = (0.1, 0.1, 0.2, 0.2)
_LARGEST_LOG = abs(math.log(16 / 1000))  # of a side's change, when deltas are decoded
_INSIDE = 0.7  # share of a proposal that must lie in the image


def noisy_boxes(boxes_G4: Tensor, uniforms_G4: Tensor, ratio: float, limits_G2: Tensor) -> Tensor:
    """Boxes moved and scaled at random, cut at their image; [G, 4]. One that nothing is left of stays as it was.

        cx' = cx + r w u1,  cy' = cy + r h u2,  w' = w (1 + r u3),  h' = h (1 + r u4)

    Args:
        boxes_G4: true boxes.
        uniforms_G4: u, in [-1, 1].
        ratio: r; 0 changes nothing but the cut.
        limits_G2: what x and y may be at most.

    Source: the noisy-box benchmark of OA-MIL, which the paper follows.
    """
    sizes_G2 = boxes_G4[:, 2:] - boxes_G4[:, :2]
    centres_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2 + ratio * sizes_G2 * uniforms_G4[:, :2]
    halves_G2 = sizes_G2 * (1 + ratio * uniforms_G4[:, 2:]) / 2
    corners = (centres_G2 - halves_G2).clamp_min(0), torch.minimum(centres_G2 + halves_G2, limits_G2)
    empty_G = (corners[1] <= corners[0]).any(1, keepdim=True)
    return torch.where(empty_G, boxes_G4, torch.cat(corners, 1))


def neighbourhood(boxes_G4: Tensor, ratios: Sequence[float], shakes: Sequence[float]) -> Tensor:
    """An object's bag, [G, P, 4], P = R^2 (1 + 4 S): every pair of a width's and a height's factor, at the box's centre and shaken to the
    left, right, top and bottom by shares of the new size. Not cut at the image. Sides below a pixel count as a pixel.

    Args:
        boxes_G4: noisy boxes.
        ratios: R factors.
        shakes: S shares.

    Source: section 2 of the specification; the release's order, [width's factor, height's factor, place].
    """
    boxes_G4 = at_least_float32(boxes_G4)
    factors = boxes_G4.new_tensor(list(ratios))
    pairs_K2 = torch.cartesian_prod(factors, factors).view(-1, 2)
    away = [(0.0, 0.0), *(move for o in shakes for move in ((-o, 0.0), (o, 0.0), (0.0, -o), (0.0, o)))]
    centres_G2, sizes_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2, (boxes_G4[:, 2:] - boxes_G4[:, :2]).clamp_min(1)
    sizes_GK12 = (sizes_G2[:, None] * pairs_K2)[:, :, None]
    centres_GKM2 = centres_G2[:, None, None] + sizes_GK12 * boxes_G4.new_tensor(away)
    return torch.cat((centres_GKM2 - sizes_GK12 / 2, centres_GKM2 + sizes_GK12 / 2), -1).flatten(1, 2)


def inside(bags_GP4: Tensor, limits_G2: Tensor) -> Tensor:
    """v, float [G, P]: 1 for proposals of which more than 0.7 lies in the image."""
    limits_G12 = limits_G2[:, None].to(bags_GP4.dtype)
    cut = torch.minimum(bags_GP4[..., 2:], limits_G12) - bags_GP4[..., :2].clamp_min(0)
    area = (bags_GP4[..., 2:] - bags_GP4[..., :2]).prod(-1)
    return (cut.clamp_min(0).prod(-1) > _INSIDE * area).to(bags_GP4.dtype)


def encode(proposals_GP4: Tensor, boxes_G4: Tensor) -> Tensor:
    """What leads from each proposal to its object's box, [G, P, 4]: (dx, dy, log dw, log dh) over the standard deviations."""
    (centres, sizes), (wanted, wanted_sizes) = (_centred(boxes) for boxes in (proposals_GP4, boxes_G4[:, None].expand_as(proposals_GP4)))
    return torch.cat(((wanted - centres) / sizes, (wanted_sizes / sizes).log()), -1) / proposals_GP4.new_tensor(_STDS)


def decode(proposals_GP4: Tensor, deltas_GP4: Tensor) -> Tensor:
    """The inverse of `encode`; a side changes 62-fold at most. Boxes may reach out of the image."""
    centres, sizes = _centred(proposals_GP4)
    deltas = at_least_float32(deltas_GP4) * proposals_GP4.new_tensor(_STDS)
    centres, sizes = centres + deltas[..., :2] * sizes, sizes * deltas[..., 2:].clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
    return torch.cat((centres - sizes / 2, centres + sizes / 2), -1)


def spsd_loss(
    deltas_GP4: Tensor, proposals_GP4: Tensor, boxes_G4: Tensor, count: Tensor | float, weights_G: Tensor | None = None
) -> Tensor:
    """sum over objects of a_g, and over proposals and coordinates, of |d - encode(proposal, box)|, over `count` * P.

    Args:
        deltas_GP4: d, the regressor's answer.
        proposals_GP4, boxes_G4: from where, and to what; without gradient.
        count: G, objects.
        weights_G: a, without gradient; by default 1.

    Source: sections 3 and 5 of the specification.
    """
    wanted_GP4 = encode(proposals_GP4.detach(), boxes_G4.detach())
    rows_G = (at_least_float32(deltas_GP4) - wanted_GP4).abs().sum((1, 2))
    return (rows_G if weights_G is None else weights_G.detach() * rows_G).sum() / (count * proposals_GP4.shape[1])


def negative_boxes(uniforms_4Q: Tensor, positives_N4: Tensor, limit_2: Tensor, most: float = 0.3) -> tuple[Tensor, Tensor]:
    """Random boxes [Q, 4] of an image, reaching over its border by up to a fifth, and which of them count, float [Q].

    Args:
        uniforms_4Q: in [0, 1), of x1, y1, x2 and y2.
        positives_N4: the proposals of all objects of the image; a box that has an IoU of `most` or more with one does not count.
        limit_2: the image's width and height.
        most: see above.

    Source: section 6 of the specification.
    """
    far_21 = 1.2 * limit_2.to(uniforms_4Q.dtype)[:, None]
    start_2Q = far_21 * uniforms_4Q[:2] - far_21 / 6
    boxes_Q4 = torch.cat((start_2Q, start_2Q + uniforms_4Q[2:] * (far_21 - start_2Q))).T
    return boxes_Q4, (box_iou(boxes_Q4, positives_N4) < most).all(1).to(uniforms_4Q.dtype)


def check_boxes(boxes: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int, ids: Sequence[int]) -> None:
    """Raises InputError for a box of a batch that is not finite or has no area, or a label that is no class; the sample is named."""
    for mine, named, sample in zip(boxes, labels, ids, strict=True):
        if not (torch.isfinite(mine).all() and (mine[:, 2:] > mine[:, :2]).all()):
            raise InputError("boxes", f"a box of sample {sample} without area, or not finite", "x1 < x2 and y1 < y2")
        if len(named) and not 0 <= int(named.min()) <= int(named.max()) < num_classes:
            raise InputError("labels", f"{named.tolist()[:5]} of sample {sample}", f"numbers from 0 to {num_classes - 1}")


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, [..., 2] each."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
