"""UP-VL against the reference vectors of ``11-upvl``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.methods.upvl.amodal import constrained_icp
from stillroom.methods.upvl.flow import flow_consistency, flow_loss, local_targets, static_points
from stillroom.methods.upvl.lifting import background, lift
from stillroom.methods.upvl.loss import box_labels, feature_loss
from stillroom.methods.upvl.proposals import clusters, fitted_box, judged, space_time
from stillroom.methods.upvl.tracking import TrackerSpec, tracked
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Tensors = dict[str, Tensor]


def lifted(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    features, views = lift(
        inputs["points"], inputs["lidar2cam"], inputs["intrinsics"], inputs["feature_maps"], tuple(params["image_wh"]), params["stride"]
    )
    return {"point_feat": features, "views": views}


def prior(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    flow, back = inputs["flow"].requires_grad_(), inputs["back"].requires_grad_()
    loss = flow_loss(inputs["pc1"], inputs["pc2"], flow, back)
    return {**with_gradients(loss, flow=flow, back=back), "loss": loss.reshape(1)}


def filtered(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = background(inputs["point_feat"], inputs["seen"], inputs["bg_text"], params["eps_bg"])
    cluster, speed, seen = (inputs[name].numpy() for name in ("cluster", "speed", "seen"))
    told = judged(cluster, speed, seen, found.numpy(), moving=params["eps_sf"], ratio=params["r_bg"])
    named = {"mean_speed": told.speed, "bg_ratio": told.background, "moving": told.moving.astype(int), "keep": told.keep.astype(int)}
    return {"is_bg": found.long(), **{name: torch.from_numpy(value) for name, value in named.items()}}


def clustered(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    points = space_time(inputs["xyz"].numpy(), inputs["frame"].numpy())
    return {"label": torch.from_numpy(clusters(points, params["eps"], params["min_samples"]))}


def box_fit(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = fitted_box(inputs["points"].double().numpy())
    return {"box": torch.from_numpy(found.box), "score": torch.tensor([found.score])}


def tracker(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    spec = TrackerSpec(params["gate"], params["max_miss"], params["process_std"], params["meas_std"])
    found = tracked(inputs["det"].double().numpy(), inputs["frame"].numpy(), params["dt"], spec)
    return {name: torch.from_numpy(getattr(found, own)) for name, own in (("track_id", "track"), ("hits", "hits"), ("state", "state"))}


def icp(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = constrained_icp(
        inputs["src"].double().numpy(),
        inputs["dst"].double().numpy(),
        yaw=params["init_yaw"],
        shift=inputs["init_t"].double().numpy(),
        steps=params["iters"],
        most_yaw=np.deg2rad(params["max_yaw_deg"]),
        most_shift=params["max_shift"],
        reach=params["max_pair_distance"],
    )
    return {"yaw": torch.tensor([found.yaw]), "t": torch.from_numpy(found.shift)}


def distilled(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    predicted = inputs["pred"].requires_grad_()
    loss = feature_loss(predicted, inputs["target"])
    return {**with_gradients(loss, pred=predicted), "loss": loss.reshape(1)}


def labelled(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    probability, label = box_labels(
        inputs["point_feat"], inputs["inside"], inputs["text"], params["background_columns"], params["temperature"]
    )
    return {"prob": probability, "label": label}


def targets(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = local_targets(*(inputs[name].numpy() for name in ("points", "cluster", "next_points")), params["expansion"])
    masks = {"inside": found.inside, "target": found.target, "fitted": found.fitted}
    return {"grown_box": torch.from_numpy(found.grown), **{name: torch.from_numpy(value).long() for name, value in masks.items()}}


def consistency(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    flow = inputs["flow"].requires_grad_()
    return with_gradients(flow_consistency(flow, params["weight"]), flow=flow)


def static(inputs: Tensors, params: dict[str, Any]) -> Tensors:
    found = static_points(inputs["points"].numpy(), inputs["next_points"].numpy(), near=params["near"], radius=params["radius"])
    return {"static": torch.from_numpy(found).long()}


ADAPTERS = {
    "lift": lifted,
    "flow_loss": prior,
    "proposal_filter": filtered,
    "st_cluster": clustered,
    "box_fit": box_fit,
    "tracker": tracker,
    "constrained_icp": icp,
    "feature_distill": distilled,
    "box_label": labelled,
    "local_flow_targets": targets,
    "flow_consistency": consistency,
    "static_points": static,
}


@pytest.mark.parametrize("case", load_cases(HERE / "11-upvl.npz"), ids=str)
def test_reference_vectors(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
