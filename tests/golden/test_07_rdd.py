"""RDD against the reference vectors of ``07-rdd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.methods.rdd.loss import Selection, anchor_logit_loss, pair_losses, pp_heatmap_loss
from stillroom.methods.rdd.proposals import anchor_proposals, proposal_regions, select_proposals
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.regions import crop_regions
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Inputs = dict[str, Tensor]
NAMES = {"mode": "mode", "lam": "sparsity", "ratio": "ratio", "steps": "steps", "eta": "rate", "m0": "start"}


def selected(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    found = select_proposals(inputs["heatmap"][None], threshold=params["score_threshold"], most=params["max_proposals"])
    return {"label": found.label, "row": found.row, "col": found.column, "score": found.score}


def regions(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    xy, size = inputs["boxes"].split(2, 1)
    return {"rect": proposal_regions(xy, size, params["cell"], overlap=params["overlap"], min_radius=params["min_radius"])}


def crops(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    bev = inputs["map"].float().requires_grad_()
    low, cell = (params["x_min"], params["y_min"]), params["cell"]
    x_range, y_range = ((low[axis], low[axis] + cell * bev.shape[3 - axis]) for axis in range(2))
    grid = BevGrid(x_range, y_range, cell)
    out = crop_regions(bev, inputs["rect"], inputs["sample"], grid, size=params["size"], sampling=params["sampling"])
    return {"crops": out.detach(), "grad_map": torch.autograd.grad((out * inputs["cotangent"]).sum(), bev)[0]}


def pairs(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    student, probs = inputs["student_regions"].requires_grad_(), inputs["student_probs"].requires_grad_()
    selection = Selection(**{NAMES[name]: value for name, value in params.items() if name in NAMES})
    found = pair_losses(student, inputs["teacher_regions"], probs, inputs["teacher_probs"], selection, params["tau"])
    total = params["alpha1"] * found.feature + params["alpha2"] * found.logit
    grads = with_gradients(total, student_regions=student, student_probs=probs)
    return grads | {"disparity": found.disparity, "weights": found.weights, "loss_feat": found.feature, "loss_logit": found.logit}


def anchors(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    cls, reg = inputs["student_cls"].requires_grad_(), inputs["student_reg"].requires_grad_()
    loss = anchor_logit_loss(cls, inputs["teacher_cls"], reg, inputs["teacher_reg"], inputs["weights"])
    return with_gradients(loss, student_cls=cls, student_reg=reg)


def proposed(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    limits = {"threshold": params["score_threshold"], "overlap": params["nms_iou"], "most": params["max_proposals"]}
    index, score, rect = anchor_proposals(inputs["boxes"], inputs["probs"], cell=params["cell"], **limits)
    return {"index": index, "score": score, "rect": rect}


def pivotal(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    probs = inputs["student_probs"].requires_grad_()
    return with_gradients(pp_heatmap_loss(probs, inputs["teacher_probs"], inputs["gt_heatmap"], params["weight"]), student_probs=probs)


ADAPTERS = {
    "select_proposals": selected,
    "proposal_regions": regions,
    "crop_regions": crops,
    "pair_losses": pairs,
    "anchor_logit_loss": anchors,
    "anchor_proposals": proposed,
    "pp_heatmap": pivotal,
}


@pytest.mark.parametrize("case", load_cases(HERE / "07-rdd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
