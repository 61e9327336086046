"""ZeroSeg, the grouping blocks that it is built on, and its metric against the reference vectors of ``04-zeroseg``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.zeroseg.decoding import class_probabilities, pixel_scores, resized_assignment, with_background
from stillroom.methods.zeroseg.grouping import GroupingBlock, SegmentationHead, assign, composed
from stillroom.methods.zeroseg.loss import first_local, matching_loss, multi_scale_loss, nearest_views
from stillroom.methods.zeroseg.masking import random_mask, reconstruction_loss, reconstruction_targets
from stillroom.methods.zeroseg.views import boxes, views
from stillroom.tasks.images.pixel_classes import class_ious, confusion, mean_iou
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def with_weights(network: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """The network with the case's weights, every one of them, in evaluation mode."""
    network.load_state_dict({name.removeprefix("w."): value for name, value in inputs.items() if name.startswith("w.")})
    return network.eval()


def assignment(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = inputs["logits"].requires_grad_()
    found = assign(logits, inputs.get("gumbel_noise"), params.get("tau") or 1.0)
    return {"assignment": found.detach(), "grad_logits": torch.autograd.grad(found, logits, inputs["upstream"])[0]}


def grouping(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    tokens, group_tokens = inputs["tokens"].requires_grad_(), inputs["group_tokens"].requires_grad_()
    block = GroupingBlock(params["dim"], params["heads"], params["group_tokens"], params["output_groups"], out_width=params["out_dim"])
    noise = inputs.get("gumbel_noise")
    found = with_weights(block, inputs)(tokens, group_tokens, None if noise is None else noise[:, 0])
    gradients = torch.autograd.grad(found.segments, (tokens, group_tokens), inputs["upstream"])
    return {
        "new_tokens": found.segments.detach(),
        "assignment_hard": found.hard[:, None].detach(),
        "assignment_soft": found.soft[:, None].detach(),
        "grad_tokens": gradients[0],
        "grad_group_tokens": gradients[1],
    }


def seg_head_eval(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    tokens, weights = inputs["tokens"], {f"w.stages.{name[2:]}": value for name, value in inputs.items() if name.startswith("w.")}
    groups = [count for count in params["group_tokens"] if count]
    head = SegmentationHead(params["dim"], params["heads"], params["depths"], groups, segments=params["output_groups"])
    head = with_weights(head, weights)
    segments, found = head(tokens)
    soft = [grouped.soft for grouped in found]
    answers = {f"soft_{number}": one[:, None] for number, one in enumerate(soft, 1)}
    return {"segment_tokens": segments, **answers, "composed_soft": composed(soft)[:, None]}


def decode(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    soft = [inputs["soft_1"][:, 0], inputs["soft_2"][:, 0]]
    pixels = resized_assignment(composed(soft), tuple(params["token_grid"]), tuple(params["image_size"]))
    u = class_probabilities(inputs["segment_features"], inputs["image_feature"], inputs["text_embedding"], params["logit_scale"])
    scores = pixel_scores(pixels, u)
    if params["with_background"]:
        scores = with_background(scores, u, params["bg_threshold"])
    return {"resized_assignment": pixels.movedim(1, -1), "pred_logits": scores, "pred_label": scores.argmax(1)}


def losses(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    seen, z, g = inputs["view_features"], inputs["global_feature"].requires_grad_(), inputs["segment_features"].requires_grad_()
    local, found = first_local(params["scales"]), {}
    multi_scale, match = multi_scale_loss(z, seen), g.sum() * 0
    if seen.shape[1] > local:
        match, found["match_index"] = matching_loss(g, seen, local), nearest_views(g, seen, local)
    answer = with_gradients(params["weight_multiscale"] * multi_scale + params["weight_match"] * match, **{"global": z, "segments": g})
    return found | answer | {"loss_total": answer["loss"], "loss_multiscale": multi_scale.detach(), "loss_match": match.detach()}


def multi_scale_views(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    image = inputs["image"]
    cut = boxes(image.shape[2], image.shape[3], params["scales"])
    return {"boxes": torch.tensor(cut), "views": views(image, params["scales"], params["out_size"])[0]}


def mask(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = random_mask(inputs["noise"], params["mask_ratio"])
    return {"ids_keep": found.keep, "ids_restore": found.restore, "mask": found.removed, "visible": found.visible(inputs["tokens"])}


def reconstruct(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    prediction = inputs["prediction"].requires_grad_()
    target = reconstruction_targets(inputs["image"], params["patch"], normalise_pixels=params["normalise_pixels"])
    return {"target": target, **with_gradients(reconstruction_loss(prediction, target, inputs["mask"]), prediction=prediction)}


def miou(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    truth = inputs["target"].clone()
    truth[inputs["target"] == params["ignore"]] = 255
    counts = confusion(inputs["pred"], truth, params["classes"])
    return {"confusion": counts, "iou": class_ious(counts).nan_to_num(-1), "miou": torch.tensor(mean_iou(counts))}


ADAPTERS = {
    "hard_assign": assignment,
    "gumbel_assign": assignment,
    "grouping": grouping,
    "grouping_train": grouping,
    "seg_head_eval": seg_head_eval,
    "decode": decode,
    "losses": losses,
    "views": multi_scale_views,
    "mask": mask,
    "reconstruct": reconstruct,
    "miou": miou,
}


@pytest.mark.parametrize("case", load_cases(HERE / "04-zeroseg.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
