"""The layer under the methods on point clouds against the reference vectors of ``points-base``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.tasks.points.boxes import bev_iou, circle_nms, rotated_nms
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.center_head import center_targets, decode, gaussian_focal_loss, gaussian_radius
from stillroom.tasks.points.grid import BevGrid, ClassList
from stillroom.tasks.points.lift_splat import DepthBins, LiftSplat, depth_loss, warp_bev
from stillroom.tasks.points.metrics import NuScenesMetric
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Inputs = dict[str, Tensor]


def pair(values: list[float]) -> tuple[float, float]:
    return values[0], values[1]


def named(tasks: list[int]) -> ClassList:
    names = [[f"{task}.{place}" for place in range(count)] for task, count in enumerate(tasks)]
    return ClassList(tuple(name for task in names for name in task), tuple(tuple(task) for task in names))


def radius(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    return {"radius": gaussian_radius(inputs["size"], params["min_overlap"])}


def targets(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    grid = BevGrid(pair(params["x_range"]), pair(params["y_range"]), params["cell"])
    assert (grid.ny, grid.nx) == (params["H"], params["W"])
    limits = {"overlap": params["gaussian_overlap"], "min_radius": params["min_radius"], "max_objects": params["max_objs"]}
    made = center_targets([inputs["boxes"]], [inputs["labels"]], named(params["tasks"]), grid, **limits)
    return {"heatmap": made.heatmap[0], "anno": made.codes[:, 0], "index": made.index[:, 0], "mask": made.mask[:, 0].long()}


def focal(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    assert (params["alpha"], params["gamma"]) == (2, 4)
    logits = inputs["logits"].requires_grad_()
    answer = with_gradients(gaussian_focal_loss(logits, inputs["heatmap"]), logits=logits)
    return answer | {"loss": answer["loss"].view(1)}


def decoded(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    heat = inputs["heat"]
    low = (params["x_min"], params["y_min"])
    x_range, y_range = ((low[axis], low[axis] + params["cell"] * heat.shape[3 - axis]) for axis in range(2))
    parts = ("reg", "height", "logdim", "rot", "vel")
    codes = torch.cat([inputs[name] for name in parts if name in inputs], 1)
    limits = {"max_boxes": params["max_num"], "threshold": params["score_threshold"], "centre_range": params["centre_range"]}
    found = decode(heat, codes, BevGrid(x_range, y_range, params["cell"]), **limits)
    joined = {name: torch.cat([getattr(sample, name) for sample in found]) for name in ("boxes", "scores", "labels")}
    return joined | {"count": torch.tensor([len(sample.boxes) for sample in found])}


def circle(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    xy, scores = inputs["xy_score"][:, :2], inputs["xy_score"][:, 2]
    return {"keep": circle_nms(xy, scores, params["thresh"], max_kept=params["post_max_size"])}


def overlaps(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    boxes = inputs["boxes"]
    return {"iou": bev_iou(boxes, boxes), "keep": rotated_nms(boxes, inputs["scores"], params["iou_thresh"])}


def lift(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    batch, count = params["B"], params["N"]
    cam2ego = torch.eye(4).repeat(batch, count, 1, 1)
    cam2ego[..., :3, :3], cam2ego[..., :3, 3] = inputs["cam2ego_rot"], inputs["cam2ego_trans"]
    cameras = Cameras(inputs["intrinsics"], cam2ego, inputs["img_aug_rot"], inputs["img_aug_trans"])
    grid = BevGrid(pair(params["xbound"]), pair(params["ybound"]), params["xbound"][2])
    bins = DepthBins(*params["dbound"])
    module = LiftSplat(grid, bins, tuple(params["input_size"]), params["downsample"], z_range=pair(params["zbound"]))
    logits, features = inputs["depth_logits"].requires_grad_(), inputs["features"].requires_grad_()
    bev = module(logits.unflatten(0, (batch, count)), features.unflatten(0, (batch, count)), cameras)
    grads = torch.autograd.grad((bev * inputs["bev_weight"]).sum(), (logits, features))
    geometry = cameras.frustum(module.input_size, module.stride, bins.values())
    return {"geometry": geometry, "bev": bev, "grad_depth_logits": grads[0], "grad_features": grads[1]}


def shift(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    motion = torch.eye(4).repeat(len(inputs["prev_bev"]), 1, 1)
    motion[:, :3, :3], motion[:, :3, 3] = inputs["adj2cur_rot"], inputs["adj2cur_trans"]
    grid = BevGrid(pair(params["xbound"]), pair(params["ybound"]), params["xbound"][2])
    return {"aligned": warp_bev(inputs["prev_bev"], motion.inverse(), grid, position="corner")}


def depth(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    logits = inputs["depth_logits"].requires_grad_()
    loss = depth_loss(logits, inputs["depth_gt"], DepthBins(*params["dbound"]), weight=params["weight"])
    answer = with_gradients(loss, depth_logits=logits)
    return {"loss": answer["loss"].view(1), "grad": answer["grad_depth_logits"]}


def nuscenes(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    names = params["class_names"]
    metric = NuScenesMetric(
        ClassList(tuple(names)),
        distances=params["dist_ths"],
        tp_distance=params["dist_th_tp"],
        min_recall=params["min_recall"],
        min_precision=params["min_precision"],
    )
    columns = [2, 3, 4, 5, 6, 7, 8, 9, 10]
    truth, found = inputs["gt"], inputs["pred"]
    for sample in torch.cat((truth[:, 0], found[:, 0])).unique():
        mine, theirs = found[found[:, 0] == sample], truth[truth[:, 0] == sample]
        metric.update(
            [{"boxes": mine[:, columns], "labels": mine[:, 1].long(), "attributes": mine[:, 11].long(), "scores": mine[:, 12]}],
            [{"boxes": theirs[:, columns], "labels": theirs[:, 1].long(), "attributes": theirs[:, 11].long()}],
        )
    answer = metric.compute()
    return {"ap": answer["ap"], "tp": answer["tp"], "mAP": answer["mAP"].view(1), "NDS": answer["NDS"].view(1)}


ADAPTERS = {
    "gaussian_radius": radius,
    "center_targets": targets,
    "gaussian_focal": focal,
    "decode": decoded,
    "circle_nms": circle,
    "bev_iou": overlaps,
    "lss": lift,
    "bev_shift": shift,
    "depth_loss": depth,
    "nuscenes_metrics": nuscenes,
}


@pytest.mark.parametrize("case", load_cases(HERE / "points-base.npz"), ids=str)
def test_golden(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, outcome
