"""PointDC against the reference vectors of ``28-pointdc``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.methods.pointdc.lifting import lifted, region_targets, sampled, seen
from stillroom.methods.pointdc.loss import cmd_loss, cosine_logits, fixed_logits, pseudo_label_loss
from stillroom.tasks.points.point_metrics import SegmentationMetric
from stillroom.tasks.points.supervoxels import merged
from stillroom.tasks.segmentation3d.clustering import kmeans, lloyd_steps, pseudo_labels, region_features, without_small
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Tensors = dict[str, Tensor]


def scalar_loss(loss: Tensor, **inputs: Tensor) -> Tensors:
    """A loss as the files have it, [1], and its gradients."""
    return {**with_gradients(loss, **inputs), "loss": loss.reshape(1)}


def cmd(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    student = inputs["student"].requires_grad_()
    kept = inputs["region"] >= 0 if "region" in inputs else None
    loss = cmd_loss(student, inputs["target"], kept)
    return scalar_loss(loss, student=student)


def supervoxel_labels(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    features = inputs["voxel_feat"][inputs["inverse_map"]]
    means, clustered = region_features(features, inputs["region"], inputs["label"] >= 0)
    return {"sp_feat": means[clustered], "pseudo": pseudo_labels(features, inputs["region"], inputs["centroids"])}


def classifier(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    features, centres = inputs["feat"].requires_grad_(), inputs["centres"].requires_grad_()
    logits = cosine_logits(features, centres)
    loss = pseudo_label_loss(logits, inputs["pseudo"])
    return {"logits": logits, **scalar_loss(loss, feat=features, centres=centres)}


def classifier_fixed(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    features = inputs["feat"].requires_grad_()
    logits = fixed_logits(features, inputs["weight"])
    loss = pseudo_label_loss(logits, inputs["pseudo"])
    return {"logits": logits, **scalar_loss(loss, feat=features)}


def separable(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = kmeans(inputs["x"], params["k"], seed=0, iterations=params["iters"])
    rows = sorted(found.tolist())
    return {"centroids": torch.tensor(rows)}


def steps(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    return {"means": lloyd_steps(inputs["x"], inputs["init"], params["iters"])}


def metrics(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    metric = SegmentationMetric(params["classes"], matched=True)
    metric.update(inputs["pred"], inputs["label"])
    found = metric.compute()
    matched = torch.empty_like(found["assignment"])
    matched[found["assignment"]] = torch.arange(params["classes"])  # the cluster of each class
    return {**{name: 100 * found[name].reshape(-1) for name in ("oAcc", "mAcc", "iou", "mIoU")}, "assignment": matched}


def lift(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    size = tuple(inputs["depth"].shape[1:])
    views, visible = [], []
    for intrinsics, pose, depth, features in zip(*(inputs[k] for k in ("intrinsics", "world2cam", "depth", "features")), strict=True):
        sees, uv = seen(inputs["points"], intrinsics, pose, depth, size, tolerance=params["tolerance"], relative=params["relative"])
        visible.append(sees)
        views.append((sees, sampled(features, uv[sees], size)))
    found = lifted(views, len(inputs["points"]), inputs["features"].shape[1])
    some = torch.stack(visible, 1)
    return {"visible": some, "point_feature": found, "target": region_targets(found, some.any(1), inputs["region"])}


def merge(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    return {"label": torch.from_numpy(merged(inputs["supervoxel"].numpy(), inputs["region"].numpy()))}


def small_left_out(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    region = without_small(inputs["region"], params["min_points"])
    means, clustered = region_features(inputs["point_feat"], region)
    return {"region_kept": region, "sp_feat": means[clustered], "pseudo": pseudo_labels(inputs["point_feat"], region, inputs["centroids"])}


ADAPTERS = {
    "cmd_loss": cmd,
    "cmd_loss_s3dis": cmd,
    "sv_features_pseudo": supervoxel_labels,
    "classifier": classifier,
    "classifier_fixed": classifier_fixed,
    "kmeans_separable": separable,
    "kmeans_steps": steps,
    "metrics": metrics,
    "lift_targets": lift,
    "sv_merge": merge,
    "sv_pseudo_points": small_left_out,
}


@pytest.mark.parametrize("case", load_cases(HERE / "28-pointdc.npz"), ids=str)
def test_reference_vectors(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
