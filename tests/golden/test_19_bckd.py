"""GFL and BCKD against the reference vectors of ``19-bckd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.losses.detection import distribution_focal_loss, mean_kl, quality_focal_loss
from stillroom.methods.bckd import (
    bckd_terms,
    binary_classification_distillation,
    gap_weights,
    iou_localisation_distillation,
    ld_terms,
    softmax_terms,
)
from stillroom.tasks.detection.atss import atss, valuable_region
from stillroom.tasks.detection.boxes import boxes_from_distances, expected_distances
from stillroom.tasks.detection.dense import dense_targets
from stillroom.tasks.detection.gfl import GFLWeights, assign_atss, gfl_losses, gfl_outputs
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def bcd(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = inputs["student_logits"].requires_grad_()
    rows = binary_classification_distillation(student, inputs["teacher_logits"], beta=params["beta"])
    loss = params["loss_weight"] * (rows * inputs["label_weights"]).sum() / (params["avg_factor"] + torch.finfo(torch.float32).eps)
    return {"per_position": rows.detach(), **with_gradients(loss, student_logits=student)}


def kl(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = inputs["student"].requires_grad_()
    rows = mean_kl(student, inputs["teacher"], params["T"])
    return with_gradients(params["loss_weight"] * (rows * inputs["weight"]).sum() / params["avg_factor"], student=student)


def gfl_parts(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits, bins = inputs["cls_logits"].requires_grad_(), inputs["dist_logits"].requires_grad_()
    qfl = quality_focal_loss(logits, inputs["labels"], inputs["quality"], params["qfl_beta"]).sum() / params["qfl_avg_factor"]
    dfl = (distribution_focal_loss(bins, inputs["dist_target"]) * inputs["dist_weight"]).sum() / params["dfl_avg_factor"]
    dfl = params["dfl_loss_weight"] * dfl
    grads = torch.autograd.grad(qfl, logits)[0], torch.autograd.grad(dfl, bins)[0]
    integral = expected_distances(bins.detach().reshape(-1, 4 * (params["reg_max"] + 1)))
    return {"qfl": qfl, "dfl": dfl, "grad_cls_logits": grads[0], "grad_dist_logits": grads[1], "integral": integral}


def iou_ld(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = inputs["student_dist"].requires_grad_()
    boxes_s, boxes_t = (boxes_from_distances(inputs["points"], expected_distances(d)) for d in (student, inputs["teacher_dist"]))
    weight = inputs["label_weights"] * gap_weights(inputs["student_logits"], inputs["teacher_logits"])
    rows = iou_localisation_distillation(boxes_s, boxes_t, weight, eps=params["giou_eps"])
    loss = params["loss_weight"] * rows.sum() / (params["avg_factor"] + torch.finfo(torch.float32).eps)
    return {"student_boxes": boxes_s, "teacher_boxes": boxes_t, "weight": weight, **with_gradients(loss, student_dist=student)}


def assigned(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = atss(inputs["anchors"], inputs["level_sizes"].tolist(), inputs["gt_boxes"], params["topk"])
    labels = inputs["gt_labels"][found.matched] if len(inputs["gt_labels"]) else found.matched
    return {
        "assigned_gt": found.matched + 1,
        "max_overlaps": found.overlaps,
        "labels": torch.where(found.matched < 0, -1, labels),
        "vlr": valuable_region(inputs["anchors"], inputs["gt_boxes"], found),
    }


def head(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    levels, weights = range(len(params["strides"])), params["weights"]
    batch = len(inputs["student_cls0"])
    sizes = torch.tensor([params["image_wh"][::-1]] * batch)
    maps = {f"student_{kind}{level}": inputs[f"student_{kind}{level}"].requires_grad_() for kind in ("cls", "reg") for level in levels}
    inputs = {**inputs, **maps}
    student, teacher = (
        gfl_outputs([inputs[f"{who}_cls{i}"] for i in levels], [inputs[f"{who}_reg{i}"] for i in levels], params["strides"], sizes)
        for who in ("student", "teacher")
    )
    boxes, labels = ([inputs[f"gt_{name}{image}"] for image in range(batch)] for name in ("boxes", "labels"))
    targets = dense_targets(student, boxes, labels, assign_atss(params["topk"], regions="ld" in weights), params["num_classes"])
    own = GFLWeights(weights["qfl"], weights["giou"], weights["dfl"], quality_weight_offset=2e-4, clamp_normaliser=False)
    task = gfl_losses(student, targets, own)
    terms = {"loss_cls": task["qfl"], "loss_bbox": task["giou"], "loss_dfl": task["dfl"]}
    if "bcd" in weights:
        found = bckd_terms(student, teacher, targets, cls_weight=weights["bcd"], loc_weight=weights["iou_ld"])
        terms |= {"loss_kd": found["cls"], "loss_score_kd": found["loc"]}
    if "ld" in weights:
        options = {"weight": weights["ld"], "region_weight": weights["ld_vlr"], "temperature": weights["ld_T"]}
        found = ld_terms(student, teacher, targets, **options, quality_weight_offset=2e-4)
        terms |= {"loss_ld": found["ld"], "loss_ld_vlr": found["ld_vlr"]}
    if "softmax_kd" in weights:
        terms["loss_kd"] = softmax_terms(student, teacher, targets, weight=weights["softmax_kd"], temperature=weights["softmax_kd_T"])
    total = torch.stack([term for levels in terms.values() for term in levels]).sum()
    total.backward()
    answer = {name: torch.stack(levels).detach() for name, levels in terms.items()}
    return {**answer, "total": total.detach(), **{f"grad_{name}": value.grad for name, value in maps.items() if value.grad is not None}}


ADAPTERS = {"bcd": bcd, "kl": kl, "gfl_losses": gfl_parts, "iou_ld": iou_ld, "atss": assigned, "head": head}


@pytest.mark.parametrize("case", load_cases(HERE / "19-bckd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
