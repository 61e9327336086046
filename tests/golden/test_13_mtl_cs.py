"""KDAM, the losses of dense targets, and their metrics against the reference vectors of ``13-mtl-cs``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.methods.mtl_cs.loss import Match, cs_divergence
from stillroom.tasks.images.label_maps import IGNORE
from stillroom.tasks.images.pixel_classes import confusion, mean_iou_of_all, pixel_cross_entropy
from stillroom.tasks.multitask.losses import depth_loss, edge_loss, negatives, normals_loss, saliency_loss
from stillroom.tasks.multitask.measures import angles, delta_m, edge_counts, max_f, ods_f, saliency_counts, squared_errors
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def divergence(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    p = inputs["p"].requires_grad_()
    found = cs_divergence(p, inputs["q"], eps=params["eps"])
    return {"divergence": found.detach(), "grad_p": torch.autograd.grad(found.sum(), p)[0]}


def kdam(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    chosen = {name: params[name] for name in ("divergence", "inter", "square") if name in params}
    match = Match(temperature=params["T"], beta=params["beta"], kappa=params["kappa"], **chosen)
    student = {name: inputs[f"student_{name}"].requires_grad_() for name in params["tasks"]}
    teacher = {name: inputs[f"teacher_{name}"] for name in params["tasks"]}
    maps = match.maps(student, teacher, dict(zip(params["tasks"], params["kinds"], strict=True)))
    terms = match.terms(list(maps.values()), inputs.get("valid"))
    answer = with_gradients(match.beta * sum(terms.values()), **{f"student_{name}": raw for name, raw in student.items()})
    found = {f"prob_{who}_{name}": pair[place].detach() for name, pair in maps.items() for place, who in enumerate(("student", "teacher"))}
    return answer | found | {name: term.detach() for name, term in terms.items()}


def without(values: Tensor, unknown: float) -> Tensor:
    """The truth with NaN where the file's number says that it is not known."""
    return torch.where(values == unknown, torch.nan, values)


def task_losses(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    edges = inputs["edge_gt"][:, 0].to(torch.uint8)
    return {
        "semseg_loss": pixel_cross_entropy(inputs["semseg"], inputs["semseg_gt"]),
        "depth_loss": depth_loss(inputs["depth"], without(inputs["depth_gt"], IGNORE)),
        "normals_loss": normals_loss(inputs["normals"], without(inputs["normals_gt"], IGNORE)),
        "edge_loss": edge_loss(inputs["edge"], edges, params["edge_pos_weight"]),
    }


def metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    squares, _, known = squared_errors(inputs["depth_pred"], without(inputs["depth_gt"], 0))
    found = {
        "miou": mean_iou_of_all(confusion(inputs["semseg_pred"], inputs["semseg_gt"], params["num_classes"])),
        "rmse": (squares / known) ** 0.5,
        "mean_angle": angles(inputs["normals_pred"], without(inputs["normals_gt"], IGNORE)).mean(),
        "max_f": max_f(saliency_counts(inputs["sal_prob"], inputs["sal_gt"])),
        "boundary_f": ods_f(edge_counts(inputs["edge_prob"], inputs["edge_gt"], params["edge_tolerance"])),
    }
    return {name: torch.as_tensor(value) for name, value in found.items()}


def relative_gain(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    lower = [bool(one) for one in inputs["lower_is_better"].tolist()]
    return {"delta": torch.tensor(delta_m(inputs["single"].tolist(), inputs["multi"].tolist(), lower))}


def saliency(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = inputs["logits"].requires_grad_()
    return with_gradients(saliency_loss(logits, inputs["labels"]), logits=logits) | {"positive_weight": negatives(inputs["labels"])}


ADAPTERS = {
    "cs_divergence": divergence,
    "kdam_loss": kdam,
    "kdam_options": kdam,
    "task_losses": task_losses,
    "metrics": metrics,
    "delta_m": relative_gain,
    "saliency_loss": saliency,
}


@pytest.mark.parametrize("case", load_cases(HERE / "13-mtl-cs.npz"), ids=str)
def test_reference_vectors(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, outcome
