"""Incremental detection against the reference vectors of ``02-iod``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from stillroom.methods.iod.groups import class_slices, increment_metrics, step_data
from stillroom.methods.iod.loss import (
    distance_matrix_distillation,
    foreground,
    instance_pairs,
    interactive_feature_distillation,
    pseudo_objects,
)
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Inputs = dict[str, Tensor]


def pseudo(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    found = pseudo_objects(inputs["logits"].sigmoid()[None], inputs["boxes"][None], [inputs["new_boxes"]], **params)
    return {"query": found.queries, "label": found.labels, "score": found.scores, "box": found.boxes}


def regions(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    maps = [inputs[f"map{level}"].requires_grad_() for level in range(sum(name.startswith("map") for name in inputs))]
    found = foreground(maps, inputs["boxes"], inputs["sample"], **params)
    gradients = torch.autograd.grad((found * inputs["cotangent"]).sum(), maps)
    return {"features": found.detach(), **{f"grad_map{level}": gradient for level, gradient in enumerate(gradients)}}


def both(inputs: Inputs) -> Inputs:
    return {name: inputs[name].requires_grad_() for name in ("student_queries", "student_features")}


def dmd(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    student, options = both(inputs), {"distance": params["distance"], "normalise": params["normalize"]}
    semantic, feature = (
        distance_matrix_distillation(inputs[f"student_{kind}"].flatten(1), inputs[f"teacher_{kind}"].flatten(1), inputs["label"], **options)
        for kind in ("queries", "features")
    )
    told = {
        "semantic": semantic.loss,
        "feature": feature.loss,
        "student_distances": semantic.student,
        "teacher_distances": semantic.teacher,
    }
    return {**told, **with_gradients(semantic.loss + feature.loss, **student)}


def ifd(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    student = both(inputs)
    pairs = [inputs[f"{who}_{kind}"] for kind in ("queries", "features") for who in ("student", "teacher")]
    found = interactive_feature_distillation(*pairs, interaction=params["mode"])
    return {"semantic_difference": found.semantic, "feature_difference": found.feature, **with_gradients(found.loss, **student)}


def metrics(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    found = increment_metrics(inputs["seen_map"].tolist(), inputs["joint_map"].tolist())
    return {name: torch.tensor(value) for name, value in (("abs_gap", found.absolute), ("rel_gap", found.relative), ("omega", found.omega))}


def slices(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    found = class_slices(inputs["class_ids"].numpy(), params["base"], params["increments"], order=params["order"], seed=params["seed"])
    return {name: torch.from_numpy(value) for name, value in found._asdict().items()}


def steps(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    order, step, image, label = (inputs[name].numpy() for name in ("order", "step", "annotation_image", "annotation_class"))
    found = step_data(order, step, image, label, params["images"])
    return {name: torch.from_numpy(value.astype("int64")) for name, value in found._asdict().items()}


def pairs(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    labels, boxes = (torch.cat((inputs[f"new_{name}"], inputs[f"pseudo_{name}"])) for name in ("labels", "boxes"))
    matcher = DeformableDetrHungarianMatcher(params["cost_class"], params["cost_l1"], params["cost_giou"])
    answers = {"logits": inputs["logits"][None], "pred_boxes": inputs["boxes"][None]}
    ((queries, objects),) = matcher(answers, [{"class_labels": labels, "boxes": boxes}])
    _, student, pseudo_objects = instance_pairs([(queries, objects)], [len(inputs["new_labels"])])
    return {"target_query": queries[objects.argsort()], "student_query": student[pseudo_objects.argsort()]}


ADAPTERS = {
    "pseudo_objects": pseudo,
    "region_features": regions,
    "dmd_loss": dmd,
    "ifd_loss": ifd,
    "increment_metrics": metrics,
    "class_slices": slices,
    "step_data": steps,
    "instance_pairs": pairs,
}


@pytest.mark.parametrize("case", load_cases(HERE / "02-iod.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
