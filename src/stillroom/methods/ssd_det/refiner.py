"""The box refiner: from noisy boxes to better ones in two stages of MIL, each with a bag that SPSD moves; SISD chooses in the second.

Heads on RoI features, all linear, told in the order of an iteration (sections 2 to 9 of the specification). G are the objects of the whole
batch, image after image, P the proposals of a bag. What the refiner reads is the detector's own pyramid; nothing of it is needed later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from stillroom.engine.distributed import averaged
from stillroom.errors import InputError, at_least, at_least_zero, one_of
from stillroom.losses.precision import at_least_float32
from stillroom.methods.ssd_det.bags import decode, inside, negative_boxes, neighbourhood, spsd_loss
from stillroom.methods.ssd_det.mil import (
    bag_scores,
    cut,
    identity_scores,
    instance_scores,
    merged,
    negative_loss,
    of_label,
    stage1_loss,
    stage2_loss,
)
from stillroom.tasks.detection.boxes import paired_iou
from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.regions import region_features

COCO_RATIOS, COCO_SHAKES = (1.0, 1.2, 1.3, 0.8, 0.7), (0.2,)
SpsdInput = Literal["stage1_bag", "resample"]
SisdScore = Literal["cls", "cls_ins"]


@dataclass(frozen=True)
class Refined:
    """What became of G noisy boxes; all but the losses without gradient.

    Attributes:
        boxes: b_II [G, 4], absolute; with SISD they may reach out of the image.
        scores: [G], the predicted score of the label's bag in stage II, in 0 .. 1; of a refiner without MIL 1.
        stage1: b_I [G, 4].
        weights: a_g [G], the same score in stage I.
        bags: B_I and B_II, [G, P, 4] each.
        losses: scalars by name, with their weights inside.
    """

    boxes: Tensor
    scores: Tensor
    stage1: Tensor
    weights: Tensor
    bags: tuple[Tensor, Tensor]
    losses: dict[str, Tensor]


class Refiner(nn.Module):
    """Makes noisy boxes better, and learns it from them alone.

    Args:
        channels: of the maps.
        num_classes: C.
        size: bins of a region's side.
        hidden: D, width of the heads.
        finest_scale: pixels, see `regions.region_levels`.
        ratios: factors of the width and of the height of an object's box that its bag is made of, every pair.
        shakes: shares of that size by which each is moved to the left, right, top and bottom.
        mil: choose among the proposals; without it SPSD's first step is all, and the box is the mean of the bag that it moved (the
            control that tells how much is averaging).
        spsd: move the bags; without it stage I chooses among a bag around the noisy box, stage II around stage I's.
        sisd: let a predicted IoU with the own object join the choice of stage II.
        spsd_input: what SPSD's second step moves: the bag of stage I (the release), or a fresh one around stage I's box (as the paper
            can be read).
        sisd_score: what joins the predicted IoU: the class score (the release), or also the instance score (the paper).
        mil_weight: of each stage's loss.
        spsd_weight: of each step's loss.
        sisd_weight: lambda; 5 in the release, 0.25 in the paper's text.
        negative_weight: of the negatives' loss.
        negative_boxes: Q, random boxes of an image that are nothing.
        negative_iou: what a negative's overlap with every proposal of its image must be below.
        top_boxes: proposals of the best scores that are merged into a box.
        prior: what class scores begin at; 0.01 in the paper, which takes longer trainings.
        hidden_std: standard deviation of the hidden layers' first weights; 0.01 in the paper, for its 1024 units. By default He's.

    Raises:
        InputError: a number that cannot be used.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        size: int = 7,
        hidden: int = 1024,
        finest_scale: float = 56,
        ratios: tuple[float, ...] = COCO_RATIOS,
        shakes: tuple[float, ...] = COCO_SHAKES,
        mil: bool = True,
        spsd: bool = True,
        sisd: bool = True,
        spsd_input: SpsdInput = "stage1_bag",
        sisd_score: SisdScore = "cls",
        mil_weight: float = 0.25,
        spsd_weight: float = 0.25,
        sisd_weight: float = 5.0,
        negative_weight: float = 0.75,
        negative_boxes: int = 500,
        negative_iou: float = 0.3,
        top_boxes: int = 7,
        prior: float = 0.5,
        hidden_std: float | None = None,
    ) -> None:
        super().__init__()
        if not (len(ratios) and min(ratios) > 0):
            raise InputError("ratios", list(ratios), "at least one factor above 0")
        if not 0 < prior < 1:
            raise InputError("prior", prior, "a number above 0 and below 1")
        one_of("spsd_input", spsd_input, get_args(SpsdInput))
        one_of("sisd_score", sisd_score, get_args(SisdScore))
        self.size, self.finest_scale, self.ratios, self.shakes = size, finest_scale, tuple(ratios), tuple(shakes)
        self.top_boxes, self.negative_boxes = at_least("top_boxes", top_boxes, 1), at_least("negative_boxes", negative_boxes, 1)
        self.negative_iou = negative_iou
        self.mil, self.spsd, self.sisd = mil, spsd, sisd and mil
        self.spsd_input, self.sisd_score = spsd_input, sisd_score
        self.mil_weight, self.spsd_weight = at_least_zero("mil_weight", mil_weight), at_least_zero("spsd_weight", spsd_weight)
        self.sisd_weight = at_least_zero("sisd_weight", sisd_weight)
        self.negative_weight = at_least_zero("negative_weight", negative_weight)
        inputs = channels * size**2
        self.shared = _fcs(inputs, hidden, hidden_std)
        self.spsd1, self.spsd2 = (_linear(hidden, 4) if wanted else None for wanted in (spsd or not mil, spsd and mil))
        if mil:
            bias = -math.log((1 - prior) / prior)
            self.cls1, self.cls2 = _linear(hidden, num_classes + 1, bias), _linear(hidden, num_classes, bias)
            self.ins1, self.ins2 = _linear(hidden, num_classes + 1), _linear(hidden, num_classes)
        if self.sisd:
            self.identity, self.overlap = _fcs(inputs, hidden, hidden_std), _linear(hidden, 1)

    def extra_repr(self) -> str:
        """The options that no layer shows: a stage's result depends on them."""
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_") and name != "training")

    def forward(
        self,
        features: Sequence[Tensor],
        strides: Sequence[int],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        sizes: Tensor,
        *,
        uniforms_B4Q: Tensor | None = None,
    ) -> Refined:
        """Refined boxes, and the losses that teach it.

        Args:
            features, strides: the pyramid's maps, per level [B, channels, h, w].
            boxes, labels: of each image, noisy boxes [G_b, 4] and labels int64 [G_b]; G_b may be 0: such an image has no part in it.
            sizes: int64 [B, 2], height and width of each image.
            uniforms_B4Q: of the negatives, in [0, 1); drawn here while training, and no negatives are asked for otherwise.
        """
        counts = [len(mine) for mine in boxes]
        pool = partial(_pooled, features, strides, counts, size=self.size, finest_scale=self.finest_scale)
        noisy_G4, labels_G = torch.cat(list(boxes)).float(), torch.cat(list(labels))
        limits_G2 = sizes.flip(1).repeat_interleave(torch.tensor(counts, device=sizes.device), 0)
        objects = averaged_count(noisy_G4.new_tensor(len(noisy_G4)))
        losses: dict[str, Tensor] = {}

        # Sections 2 and 3: the bag, and SPSD-I.
        bag1_GP4 = neighbourhood(noisy_G4, self.ratios, self.shakes)
        valid_GP = inside(bag1_GP4, limits_G2)
        if self.spsd1 is not None:
            deltas_GP4 = self.spsd1(self.shared(pool(bag1_GP4)))
            losses["spsd1"] = self.spsd_weight * spsd_loss(deltas_GP4, bag1_GP4, noisy_G4, objects)
            bag1_GP4 = decode(bag1_GP4, deltas_GP4).detach()
        if not self.mil:
            mean_G4, sure_G = cut(bag1_GP4.mean(1), limits_G2), noisy_G4.new_ones(len(noisy_G4))
            return Refined(mean_G4, sure_G, mean_G4, sure_G, (bag1_GP4, bag1_GP4), losses)

        # Section 4: stage I.
        hidden1_GPD = self.shared(pool(bag1_GP4))
        classes_GPK, instances_GPK = at_least_float32(self.cls1(hidden1_GPD)).softmax(2), instance_scores(self.ins1(hidden1_GPD), valid_GP)
        counted = averaged_count((valid_GP > 0).any(1).sum().to(noisy_G4.dtype))
        losses["mil1"] = self.mil_weight * stage1_loss(bag_scores(classes_GPK, instances_GPK), labels_G, counted)
        scores_GP = valid_GP * of_label(classes_GPK, labels_G).detach() * of_label(instances_GPK, labels_G).detach()
        stage1_G4 = cut(merged(bag1_GP4, scores_GP, self.top_boxes), limits_G2)
        weights_G = scores_GP.sum(1)

        # Section 5: SPSD-II. Its second bag counts in full, wherever it lies.
        bag2_GP4, hidden_GPD = bag1_GP4, hidden1_GPD
        if not self.spsd or self.spsd_input == "resample":
            bag2_GP4 = neighbourhood(stage1_G4, self.ratios, self.shakes)
            valid_GP = inside(bag2_GP4, limits_G2)
        if self.spsd2 is not None:
            if self.spsd_input == "resample":
                hidden_GPD = self.shared(pool(bag2_GP4))
            deltas_GP4 = self.spsd2(hidden_GPD)
            losses["spsd2"] = self.spsd_weight * spsd_loss(deltas_GP4, bag2_GP4, _at_least_a_pixel(stage1_G4), objects, weights_G)
            bag2_GP4 = decode(bag2_GP4, deltas_GP4).detach()
            valid_GP = torch.ones_like(valid_GP)

        # Section 7: stage II, with the negatives of section 6.
        regions_GP = pool(bag2_GP4)
        hidden2_GPD = self.shared(regions_GP)
        classes_GPC, instances_GPC = at_least_float32(self.cls2(hidden2_GPD)).sigmoid(), instance_scores(self.ins2(hidden2_GPD), valid_GP)
        counted = averaged_count((valid_GP > 0).any(1).sum().to(noisy_G4.dtype))
        losses["mil2"] = self.mil_weight * stage2_loss(bag_scores(classes_GPC, instances_GPC), labels_G, counted, weights_G, valid_GP)
        if self.training:
            logits_QC, keep_Q = self._negatives(features, strides, bag2_GP4, counts, sizes, uniforms_B4Q)
            losses["neg"] = self.negative_weight * negative_loss(logits_QC, keep_Q, averaged(weights_G.sum()) / objects, objects)

        # Sections 8 and 9: SISD, and the choice.
        classes_GP, instances_GP = of_label(classes_GPC, labels_G).detach(), of_label(instances_GPC, labels_G).detach()
        if not self.sisd:
            scores_GP = valid_GP * classes_GP * instances_GP
            stage2_G4 = cut(merged(bag2_GP4, scores_GP, self.top_boxes), limits_G2)
            return Refined(stage2_G4, scores_GP.sum(1), stage1_G4, weights_G, (bag1_GP4, bag2_GP4), losses)
        overlaps_GP = predicted_overlaps(regions_GP, self.identity, self.overlap)
        losses["sisd"] = self.sisd_weight * sisd_loss(overlaps_GP, bag2_GP4, stage1_G4, objects)
        u_GP = identity_scores(overlaps_GP.detach())
        chosen_GP = valid_GP * classes_GP * u_GP * (instances_GP if self.sisd_score == "cls_ins" else 1)
        stage2_G4 = merged(bag2_GP4, chosen_GP, self.top_boxes)
        return Refined(stage2_G4, (classes_GP * instances_GP * u_GP).sum(1), stage1_G4, weights_G, (bag1_GP4, bag2_GP4), losses)

    def _negatives(
        self,
        features: Sequence[Tensor],
        strides: Sequence[int],
        bags_GP4: Tensor,
        counts: Sequence[int],
        sizes: Tensor,
        uniforms_B4Q: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits of stage II for negatives of all images with an object, and which of them count."""
        if uniforms_B4Q is None:
            uniforms_B4Q = torch.rand(len(sizes), 4, self.negative_boxes, device=bags_GP4.device)
        found, kept = [], [bags_GP4.new_zeros(0)]
        for uniforms_4Q, bags, size in zip(uniforms_B4Q, bags_GP4.split(list(counts)), sizes, strict=True):
            found.append(bags.new_zeros(0, 4))
            if len(bags):
                found[-1], keep_Q = negative_boxes(uniforms_4Q, bags.flatten(0, 1), size.flip(0), self.negative_iou)
                kept.append(keep_Q)
        regions = region_features(features, strides, found, self.size, finest_scale=self.finest_scale)
        return self.cls2(self.shared(regions)), torch.cat(kept)


def predicted_overlaps(regions_GP: Tensor, identity: nn.Module, overlap: nn.Module) -> Tensor:
    """U, [G, P], float32: what SISD thinks of each proposal's IoU with its own object, less 0.5 and over 0.5.

    The mean of the bag is added to each proposal's features, so that one box in two bags gets two answers (ORE).

    Args:
        regions_GP: [G, P, channels, size, size].
        identity, overlap: its own two layers, and the last one.

    Source: section 8 of the specification.
    """
    features_GPD = identity(regions_GP)
    related_GPD = features_GPD + features_GPD.mean(1, keepdim=True)
    return at_least_float32(overlap(related_GPD)).squeeze(2)


def sisd_targets(bags_GP4: Tensor, boxes_G4: Tensor) -> Tensor:
    """T, [G, P]: IoU of each proposal with its object's box of stage I."""
    pairs_GP4 = boxes_G4[:, None].expand_as(bags_GP4)
    return paired_iou(bags_GP4.flatten(0, 1), pairs_GP4.flatten(0, 1)).view(bags_GP4.shape[:2])


def sisd_loss(overlaps_GP: Tensor, bags_GP4: Tensor, boxes_G4: Tensor, count: Tensor | float) -> Tensor:
    """Smooth L1 of U against (T - 0.5) / 0.5, summed over `count` * P (section 8); no gradient reaches the boxes."""
    wanted_GP = (sisd_targets(bags_GP4, boxes_G4).detach() - 0.5) / 0.5
    return smooth_l1_loss(overlaps_GP, wanted_GP, beta=1.0, reduction="sum") / (count * bags_GP4.shape[1])


def _pooled(
    features: Sequence[Tensor], strides: Sequence[int], counts: Sequence[int], bags_GP4: Tensor, *, size: int, finest_scale: float
) -> Tensor:
    """RoI features of bags, [G, P, channels, size, size]."""
    per_object = bags_GP4.shape[1]
    boxes = bags_GP4.flatten(0, 1).split([count * per_object for count in counts])
    return region_features(features, strides, boxes, size, finest_scale=finest_scale).unflatten(0, bags_GP4.shape[:2])


def _at_least_a_pixel(boxes_G4: Tensor) -> Tensor:
    """Boxes of which none is a line, as one that was cut at the image's rim may be: they are taken logarithms of."""
    return torch.cat((boxes_G4[:, :2], torch.maximum(boxes_G4[:, 2:], boxes_G4[:, :2] + 1)), 1)


def _fcs(inputs: int, hidden: int, std: float | None) -> nn.Sequential:
    """RoI features [..., channels, size, size] -> [..., D]."""
    first, second = (_linear(count, hidden, std=math.sqrt(2 / count) if std is None else std) for count in (inputs, hidden))
    return nn.Sequential(nn.Flatten(-3), first, nn.ReLU(), second, nn.ReLU())


def _linear(inputs: int, outputs: int, bias: float = 0.0, *, std: float = 0.01) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, 0, std)
    nn.init.constant_(layer.bias, bias)
    return layer
