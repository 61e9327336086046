"""transformers' DETR, Deformable DETR and RT-DETR behind our record: their own networks and matchers, our record and losses.

Importing this module does not import transformers; whoever has one of its models has it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from stillroom.engine.distributed import averaged
from stillroom.errors import InputError
from stillroom.tasks.detection.backbones import shown
from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.outputs import Objects
from stillroom.tasks.detection.queries import Denoising, Pairs, QueryDetector, QueryOutputs, QueryTargets, in_float32, relative_boxes


class _Masked(QueryDetector):
    """What DETR and Deformable DETR have in common: they are told which pixels are padding, and losses have the same names."""

    def frames(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """The images without their padding."""
        return image_sizes.to(images.device, torch.float32)

    def layers(self, outputs: QueryOutputs) -> dict[str, tuple[Tensor, Tensor]]:
        """The last decoder layer, and the others where the model is configured to train them."""
        pairs = list(zip(outputs.logits, outputs.relative_boxes, strict=True))
        others = enumerate(pairs[:-1]) if self.model.config.auxiliary_loss else ()
        return {"": pairs[-1]} | {f"_{layer}": pair for layer, pair in others}

    def weights(self) -> dict[str, float]:
        """As the model's configuration says."""
        config = self.model.config
        return {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}


class DetrDetector(_Masked):
    """DETR: one map, classes and "no object" under a softmax (Carion et al. 2020)."""

    def levels(self) -> tuple[int, ...]:
        """The stride of the backbone's last map."""
        return _backbone_strides(self.model.model.backbone)[-1:]

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> QueryOutputs:
        """See `Detector`."""
        found = self.model.model(images, pixel_mask=shown(images, image_sizes).long())
        # The model's own answer is of the last state, which is normalised once more than the last of the intermediate ones.
        earlier = () if found.intermediate_hidden_states is None else tuple(found.intermediate_hidden_states[:-1])
        states = (*earlier, found.last_hidden_state)
        return QueryOutputs(
            features=_as_maps(found.encoder_last_hidden_state, images, self.strides),
            strides=self.strides,
            image_sizes=image_sizes,
            queries=states,
            logits=tuple(self.model.class_labels_classifier(layer).float() for layer in states),
            relative_boxes=tuple(self.model.bbox_predictor(layer).float().sigmoid() for layer in states),
            frames=self.frames(images, image_sizes),
        )

    def matcher(self) -> nn.Module:
        """Costs: -probability of the class, L1, -GIoU."""
        from transformers.loss.loss_for_object_detection import HungarianMatcher

        config = self.model.config
        return HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)

    def class_loss(self, logits: Tensor, pairs: Pairs, count: Tensor) -> Tensor:
        """Cross-entropy of all queries, those of "no object" weighted 0.1 by default; divided by the sum of the weights."""
        labels_BQ = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        labels_BQ[pairs.at[:2]] = pairs.labels_P
        weights_C = logits.new_ones(self.num_classes + 1)
        weights_C[-1] = self.model.config.eos_coefficient
        total = F.cross_entropy(logits.flatten(0, 1), labels_BQ.flatten(), weights_C, reduction="sum")
        return total / averaged(weights_C[labels_BQ].sum())

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities, without that of "no object"."""
        return logits.softmax(-1)[..., :-1]

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each query with its likeliest class."""
        scores_BQ, labels_BQ = self.scores(logits).max(-1)
        scores_BN, queries_BN = scores_BQ.topk(min(self.most, scores_BQ.shape[1]))
        return scores_BN, queries_BN, labels_BQ.gather(1, queries_BN)

    def projections(self) -> list[nn.Module]:
        """One, of the last map."""
        return [self.model.model.input_projection]

    def class_layers(self) -> list[nn.Linear | nn.Embedding]:
        """One classifier for all layers."""
        return [self.model.class_labels_classifier]


class DeformableDetrDetector(_Masked):
    """Deformable DETR: several maps, read at a few points around each query; classes by sigmoids (Zhu et al. 2021)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        inner = model.model
        in_float32(*inner.input_proj)
        if model.config.with_box_refine:
            in_float32(*inner.decoder.bbox_embed)
        if not model.config.two_stage:
            in_float32(inner.reference_points)
        else:
            # No loss of the model reaches what it chooses its proposals by: several processes would wait for gradients that never come.
            for idle in (inner.enc_output, inner.enc_output_norm, inner.decoder.class_embed[-1], inner.decoder.bbox_embed[-1]):
                idle.requires_grad_(False)

    def levels(self) -> tuple[int, ...]:
        """Those of the backbone's maps, and of further ones by convolutions of stride 2."""
        count, strides = self.model.config.num_feature_levels, _backbone_strides(self.model.model.backbone)
        strides = strides if count > 1 else strides[-1:]
        return (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(count - len(strides))))

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> QueryOutputs:
        """See `Detector`."""
        from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

        found = self.model.model(images, pixel_mask=shown(images, image_sizes).long())
        states = found.intermediate_hidden_states.unbind(1)
        starts = (found.init_reference_points, *found.intermediate_reference_points.unbind(1)[:-1])
        boxes = []
        for state, start, head in zip(states, starts, self.model.bbox_embed, strict=False):  # one head more where boxes are proposed
            start_BQK = inverse_sigmoid(start.float())
            boxes.append((head(state).float() + F.pad(start_BQK, (0, 4 - start_BQK.shape[-1]))).sigmoid())
        return QueryOutputs(
            features=_as_maps(found.encoder_last_hidden_state, images, self.strides),
            strides=self.strides,
            image_sizes=image_sizes,
            queries=states,
            logits=tuple(head(state).float() for state, head in zip(states, self.model.class_embed, strict=False)),
            relative_boxes=tuple(boxes),
            frames=self.frames(images, image_sizes),
        )

    def matcher(self) -> nn.Module:
        """Costs: focal of the class, L1, -GIoU."""
        from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

        config = self.model.config
        return DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)

    def class_loss(self, logits: Tensor, pairs: Pairs, count: Tensor) -> Tensor:
        """Focal loss with gamma 2, summed over all queries and classes, divided by the number of objects."""
        return sigmoid_focal_loss(logits, pairs.one_hot(logits), self.model.config.focal_alpha, 2, reduction="sum") / count

    def projections(self) -> list[nn.Module]:
        """One for each level."""
        return list(self.model.model.input_proj)

    def class_layers(self) -> list[nn.Linear | nn.Embedding]:
        """One for each decoder layer; they may share their weights."""
        return [*self.model.class_embed, *(self.model.model.decoder.class_embed or ())]


class RTDetrDetector(QueryDetector):
    """RT-DETR: maps mixed by convolutions, queries from the maps' likeliest places (Zhao et al. 2024). It is not told what is padding."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        in_float32(*model.model.decoder_input_proj)

    def levels(self) -> tuple[int, ...]:
        """Those of the backbone's maps."""
        return _backbone_strides(self.model.model.backbone)

    def frames(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """The padded batch."""
        return torch.tensor(images.shape[-2:], device=images.device, dtype=torch.float32).expand(images.shape[0], 2)

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> QueryOutputs:
        """See `Detector`; in training, given objects, with `denoising` where the model is configured for it.

        Raises:
            InputError: images so small that their maps have fewer places than there are queries.
        """
        config = self.model.config
        places = sum(-(-images.shape[-2] // stride) * -(-images.shape[-1] // stride) for stride in self.strides)
        if places < config.num_queries:
            got = f"{images.shape[-1]} x {images.shape[-2]} pixels, on which this RT-DETR has {places} places to look at"
            raise InputError("images", got, f"larger ones, or a detector with fewer queries than its {config.num_queries}")
        frames, labels = self.frames(images, image_sizes), None
        if self.training and objects is not None and config.num_denoising > 0:
            relative = relative_boxes(objects[0], frames)
            labels = [{"class_labels": label, "boxes": box} for label, box in zip(objects[1], relative, strict=True)]
        found = self.model.model(images, labels=labels)
        meta = found.denoising_meta_values
        extra = 0 if meta is None else meta["dn_num_split"][0]
        tensors = found.intermediate_hidden_states, found.intermediate_logits.float(), found.intermediate_reference_points.float()
        queries, logits, boxes = (tuple(layer[:, extra:] for layer in tensor.unbind(1)) for tensor in tensors)
        denoising = None
        if labels is not None and meta is not None:
            denoising = Denoising(
                logits=tuple(layer[:, :extra] for layer in tensors[1].unbind(1)),
                relative_boxes=tuple(layer[:, :extra] for layer in tensors[2].unbind(1)),
                matches=[
                    (which, torch.arange(len(label["boxes"]), device=which.device).repeat(meta["dn_num_group"]))
                    for which, label in zip(meta["dn_positive_idx"], labels, strict=True)
                ],
                labels=tuple(label["class_labels"] for label in labels),
                boxes=tuple(label["boxes"] for label in labels),
                groups=meta["dn_num_group"],
            )
        return QueryOutputs(
            features=tuple(found.encoder_last_hidden_state),
            strides=self.strides,
            image_sizes=image_sizes,
            queries=queries,
            logits=logits,
            relative_boxes=boxes,
            frames=frames,
            proposed=(found.enc_topk_logits.float(), found.enc_topk_bboxes.float()),
            denoising=denoising,
        )

    def layers(self, outputs: QueryOutputs) -> dict[str, tuple[Tensor, Tensor]]:
        """The last decoder layer, and where the model is configured to train them the others and the encoder's proposals."""
        pairs = list(zip(outputs.logits, outputs.relative_boxes, strict=True))
        others = pairs[:-1] + ([outputs.proposed] if outputs.proposed is not None else [])
        return {"": pairs[-1]} | {f"_aux_{layer}": pair for layer, pair in enumerate(others) if self.model.config.auxiliary_loss}

    def weights(self) -> dict[str, float]:
        """As the model's configuration says."""
        config = self.model.config
        return {"loss_vfl": config.weight_loss_vfl, "loss_bbox": config.weight_loss_bbox, "loss_giou": config.weight_loss_giou}

    def matcher(self) -> nn.Module:
        """Costs: focal of the class, L1, -GIoU."""
        from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

        return RTDetrHungarianMatcher(self.model.config)

    def class_loss(self, logits: Tensor, pairs: Pairs, count: Tensor) -> Tensor:
        """Varifocal loss: a matched query's class is to score the box's overlap; summed, divided by the number of objects."""
        config, one_hot = self.model.config, pairs.one_hot(logits)
        quality = one_hot.clone()
        quality[pairs.at] = pairs.overlap().detach()
        scores = logits.detach().sigmoid()
        weights = config.focal_loss_alpha * scores.pow(config.focal_loss_gamma) * (1 - one_hot) + quality
        return F.binary_cross_entropy_with_logits(logits, quality, weights, reduction="sum") / count

    def ranked(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best of all queries times classes, as many as there are queries."""
        scores_BN, queries_BN, labels_BN = super().ranked(logits)
        most = logits.shape[1]
        return scores_BN[:, :most], queries_BN[:, :most], labels_BN[:, :most]

    def task_losses(self, outputs: QueryOutputs, targets: QueryTargets) -> dict[str, Tensor]:
        """See `QueryDetector`; with those of the noised objects."""
        losses = super().task_losses(outputs, targets)
        noised, config = outputs.denoising, self.model.config
        if not self.training or config.num_denoising == 0:
            return losses
        # Every process takes part in the count, with objects or without.
        total = averaged_count(outputs.frames.new_tensor(float(0 if noised is None else sum(map(len, noised.labels)))))
        if noised is not None and config.auxiliary_loss:
            for layer, (logits, boxes) in enumerate(zip(noised.logits, noised.relative_boxes, strict=True)):
                given = (logits, boxes, noised.matches, noised.labels, noised.boxes)
                losses |= self.layer_losses(f"_dn_{layer}", *given, total * noised.groups)
        else:
            # A batch without objects gives the embedding of noised classes a gradient of 0: other processes may have objects.
            losses["loss_vfl"] = losses["loss_vfl"] + 0 * self.model.model.denoising_class_embed.weight.sum()
        return losses

    def projections(self) -> list[nn.Module]:
        """One for each map, before the encoder."""
        return list(self.model.model.encoder_input_proj)

    def class_layers(self) -> list[nn.Linear | nn.Embedding]:
        """One for each decoder layer, the encoder's, and the embedding of noised classes."""
        inner = self.model.model
        noised = [inner.denoising_class_embed] if self.model.config.num_denoising > 0 else []
        return [*inner.decoder.class_embed, inner.enc_score_head, *noised]


# transformers' classes, by name: to know one takes no import of transformers.
ADAPTERS: dict[str, type[QueryDetector]] = {
    "DetrForObjectDetection": DetrDetector,
    "DeformableDetrForObjectDetection": DeformableDetrDetector,
    "RTDetrForObjectDetection": RTDetrDetector,
}


@torch.no_grad()
def grow_classes(detector: QueryDetector, num_classes: int) -> None:
    """Lets a detector know further classes, in place: those it knows keep their labels, their weights and (sigmoids) their scores.

    New rows of class layers are drawn from N(0, 0.01), with a bias of -log(99), a score of 0.01; they come before DETR's "no object".
    Layers that share their weights go on sharing. Optimisers made before do not know the new weights.

    Args:
        detector: of the DETR family.
        num_classes: C, more than it has.

    Raises:
        InputError: not more classes than it has.
    """
    old, more = detector.num_classes, num_classes - detector.num_classes
    if more < 1:
        raise InputError("num_classes", num_classes, f"more than the detector's {old}")
    grown: dict[nn.Parameter, nn.Parameter] = {}
    for layer in detector.class_layers():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter not in grown:
                rows = parameter.new_empty(more, *parameter.shape[1:])
                rows = rows.fill_(-math.log(99)) if name == "bias" else rows.normal_(0, 0.01)
                together = torch.cat((parameter[:old], rows, parameter[old:]))
                grown[parameter] = nn.Parameter(together, requires_grad=parameter.requires_grad)
            setattr(layer, name, grown[parameter])
        if isinstance(layer, nn.Linear):
            layer.out_features += more
        else:
            layer.num_embeddings += more
            layer.padding_idx = num_classes
    detector.model.config.num_labels = num_classes
    detector.num_classes = num_classes


def _as_maps(sequence_BND: Tensor, images: Tensor, strides: tuple[int, ...]) -> tuple[Tensor, ...]:
    """An encoder's sequence, level after level and row by row, as maps [B, d, h, w]."""
    shapes = [(-(-images.shape[-2] // stride), -(-images.shape[-1] // stride)) for stride in strides]
    parts = sequence_BND.split([height * width for height, width in shapes], 1)
    return tuple(part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True))


def _backbone_strides(backbone: nn.Module) -> tuple[int, ...]:
    """Strides of the maps of a backbone in transformers' manner, by asking it once."""
    side, training = 128, backbone.training
    weight = next(backbone.parameters())
    with torch.no_grad():
        maps = backbone.eval()(weight.new_zeros(1, 3, side, side), weight.new_ones(1, side, side))
    backbone.train(training)
    return tuple(round(side / level.shape[-1]) for level, _ in maps)
