"""SSD-Det against the reference vectors of ``01-ssd-det``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.ssd_det.bags import decode, encode, inside, negative_boxes, neighbourhood, noisy_boxes, spsd_loss
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
from stillroom.methods.ssd_det.refiner import Refiner, predicted_overlaps, sisd_loss, sisd_targets
from tests.golden.check import HERE, Case, load_cases, run_case

Inputs, Params = dict[str, Tensor], dict[str, Any]
_LAYERS = {
    "shared_fc0": "shared.1",
    "shared_fc1": "shared.3",
    "sisd_fc0": "identity.1",
    "sisd_fc1": "identity.3",
    "fc_cls0": "cls1",
    "fc_cls1": "cls2",
    "fc_ins0": "ins1",
    "fc_ins1": "ins2",
    "spsd1": "spsd1",
    "spsd2": "spsd2",
    "fc_iou": "overlap",
}


def _limits(params: Params, rows: int) -> Tensor:
    return torch.tensor([params["image_wh"]], dtype=torch.float32).expand(rows, 2)


def noise(inputs: Inputs, params: Params) -> Inputs:
    limits = _limits(params, len(inputs["boxes"])) - 1  # the benchmark counts pixels from 0
    return {"noisy": noisy_boxes(inputs["boxes"], inputs["u"], params["noise_level"], limits)}


def sampler(inputs: Inputs, params: Params) -> Inputs:
    bags = neighbourhood(inputs["boxes"], params["base_ratios"], params["shake_ratio"])
    return {"proposals": bags, "valid": inside(bags, _limits(params, len(bags)))}


def spsd(inputs: Inputs, params: Params) -> Inputs:
    deltas, count = inputs["deltas"].requires_grad_(), len(inputs["target"])
    first, second = (
        params["loss_weight"] * spsd_loss(deltas, inputs["proposals"], inputs["target"], count, weights)
        for weights in (None, inputs["weights_II"])
    )
    return {
        "decoded": decode(inputs["proposals"], deltas).detach(),
        "encoded_target": encode(inputs["proposals"], inputs["target"]),
        "loss_I": first.detach(),
        "grad_deltas_I": torch.autograd.grad(first, deltas)[0],
        "loss_II": second.detach(),
        "grad_deltas_II": torch.autograd.grad(second, deltas)[0],
    }


def _bags(inputs: Inputs, *, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """S_cls, S_ins and which proposals count."""
    valid = inputs["valid"].squeeze(-1).float()
    classes = inputs["cls_logits"].softmax(2) if first else inputs["cls_logits"].sigmoid()
    return classes, instance_scores(inputs["ins_logits"], valid), valid


def _accuracy(bags: Tensor, labels: Tensor) -> Tensor:
    return 100 * (bags.argmax(1) == labels).float().mean(0, keepdim=True)


def mil_stage1(inputs: Inputs, params: Params) -> Inputs:
    logits = [inputs[name].requires_grad_() for name in ("cls_logits", "ins_logits")]
    classes, instances, valid = _bags(inputs, first=True)
    bags = bag_scores(classes, instances)
    count = (valid > 0).any(1).sum().clamp_min(1)
    loss = params["loss_weight"] * stage1_loss(bags, inputs["labels"], count, inputs["weights"])
    grads = torch.autograd.grad(loss, logits)
    answer = {"bag_score": bags.detach(), "mil_loss": loss.detach(), "bag_acc": _accuracy(bags, inputs["labels"])}
    return {**answer, "grad_cls_logits": grads[0], "grad_ins_logits": grads[1]}


def mil_stage2(inputs: Inputs, params: Params) -> Inputs:
    logits = [inputs[name].requires_grad_() for name in ("cls_logits", "ins_logits", "neg_logits")]
    classes, instances, valid = _bags(inputs, first=False)
    bags, weights, objects = bag_scores(classes, instances), inputs["weights"], len(classes)
    count = (valid > 0).any(1).sum().clamp_min(1)
    loss = params["loss_weight"] * stage2_loss(bags, inputs["labels"], count, weights, valid)
    keep = inputs["neg_valid"].float()
    negative = params["neg_weight"] * negative_loss(inputs["neg_logits"], keep, weights.mean(), objects)
    grads = torch.autograd.grad(loss + negative, logits)
    answer = {"bag_score": bags.detach(), "mil_loss": loss.detach(), "neg_loss": negative.detach()}
    names = ("grad_cls_logits", "grad_ins_logits", "grad_neg_logits")
    return {**answer, "bag_acc": _accuracy(bags, inputs["labels"]), **dict(zip(names, grads, strict=True))}


def _merge(inputs: Inputs, params: Params, *, first: bool) -> Inputs:
    classes, instances, valid = _bags(inputs, first=first)
    classes, instances = (of_label(scores, inputs["labels"]) for scores in (classes, instances))
    scores = chosen = valid * classes * instances
    identity = "iou_pred" in inputs
    if identity:
        u = identity_scores(inputs["iou_pred"].squeeze(-1))
        scores, chosen = scores * u, valid * classes * u
    boxes = merged(inputs["proposals"], chosen, params["topk"])
    boxes = boxes if identity else cut(boxes, _limits(params, len(boxes)))
    return {"refined": boxes, "dynamic_weight": scores, "bag_weight": scores.sum(1)}


def sisd(inputs: Inputs, params: Params) -> Inputs:
    regions, bags, boxes = inputs["roi_features"].requires_grad_(), inputs["proposals"], inputs["refined_I"]
    layers = []
    for name in ("fc1", "fc2", "fc_iou"):
        weight = inputs[f"{name}_w"]
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": inputs[f"{name}_b"]})
    identity = nn.Sequential(nn.Flatten(-3), layers[0], nn.ReLU(), layers[1], nn.ReLU())
    overlaps = predicted_overlaps(regions.unflatten(0, bags.shape[:2]), identity, layers[2])
    loss = params["loss_weight"] * sisd_loss(overlaps, bags, boxes, len(bags))
    grads = torch.autograd.grad(loss, (regions, layers[2].weight))
    answer = {"iou_pred": overlaps.detach()[..., None], "iou_target": sisd_targets(bags, boxes), "loss": loss.detach()}
    return {**answer, "grad1000_roi_features": 1000 * grads[0], "grad_fc_iou_w": grads[1]}


def negatives(inputs: Inputs, params: Params) -> Inputs:
    limit = torch.tensor(params["image_wh"], dtype=torch.float32)
    boxes, keep = negative_boxes(inputs["u"], inputs["positives"], limit, params["iou_thr"])
    return {"boxes": boxes, "keep": keep}


def refiner_step(inputs: Inputs, params: Params) -> Inputs:
    features = [inputs[f"feat_stride{stride}"].requires_grad_() for stride in params["strides"]]
    images = range(len(features[0]))
    hidden, classes = inputs["fc_cls1_w"].shape[::-1]
    weights = params["loss_weights"]
    refiner = Refiner(
        features[0].shape[1],
        classes,
        size=params["roi_size"],
        hidden=hidden,
        finest_scale=params["finest_scale"],
        ratios=params["base_ratios"],
        shakes=params["shake_ratio"],
        sisd=params["with_sisd"],
        mil_weight=weights["mil"],
        spsd_weight=weights["spsd"],
        sisd_weight=weights["sisd"],
        negative_weight=weights["neg"],
        negative_iou=params["iou_thr"],
        top_boxes=params["topk"],
    )
    layers = {name: place for name, place in _LAYERS.items() if place in dict(refiner.named_modules())}
    refiner.load_state_dict(
        {f"{place}.{part}": inputs[f"{name}_{part[0]}"] for name, place in layers.items() for part in ("weight", "bias")}
    )
    noisy, labels = ([inputs[f"{name}{image}"] for image in images] for name in ("noisy_boxes", "labels"))
    sizes = torch.tensor([params["image_wh"][::-1]] * len(images))
    refined = refiner(features, params["strides"], noisy, labels, sizes, uniforms_B4Q=inputs["neg_u"])
    total = torch.stack(list(refined.losses.values())).sum()
    total.backward()
    answer = {f"{name}_loss": loss.detach() for name, loss in refined.losses.items()}
    answer |= {f"grad1000_feat_stride{stride}": _grad(level) for stride, level in zip(params["strides"], features, strict=True)}
    answer |= {f"grad1000_{name}_w": _grad(refiner.get_submodule(place).weight) for name, place in layers.items()}
    answer |= {"total": total.detach(), "refined_I": refined.stage1, "bag_weight_I": refined.weights, "refined_II": refined.boxes}
    return answer | {"bag_I": refined.bags[0], "bag_II": refined.bags[1]}


def _grad(tensor: Any) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else 1000 * tensor.grad


ADAPTERS = {
    "noise": noise,
    "sampler": sampler,
    "spsd": spsd,
    "mil_stage1": mil_stage1,
    "mil_stage2": mil_stage2,
    "merge_stage1": lambda inputs, params: _merge(inputs, params, first=True),
    "merge_stage2": lambda inputs, params: _merge(inputs, params, first=False),
    "sisd": sisd,
    "negatives": negatives,
    "refiner_step": refiner_step,
}


@pytest.mark.parametrize("case", load_cases(HERE / "01-ssd-det.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
