"""WAD against the reference vectors of ``21-wad``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.losses.contrast import nt_xent
from stillroom.methods.wad.distiller import weighted_cross_entropy
from stillroom.methods.wad.knowledge import knowledge as know
from stillroom.methods.wad.knowledge import promoted_share, reliable
from stillroom.methods.wad.split import unknown_count as count_unknown
from stillroom.tasks.images.networks.whitening import contrast_normalised
from stillroom.tasks.images.networks.whitening import zca as whitening_of
from stillroom.tasks.images.networks.wrn import PreActivationBlock
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def ntxent(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    projections = inputs["projections"].requires_grad_()
    loss = nt_xent(*projections.chunk(2), params["temperature"], epsilon=params.get("log_eps", 1e-8))
    return with_gradients(loss, projections=projections)


def knowledge(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    labels = inputs["memory_labels"]
    found = know(inputs["unlabeled"], inputs["memory"], labels, params.get("num_classes", int(labels.max()) + 1))
    return {"scores": found.scores, "pseudo_label": found.labels, "weight": found.weights}


def student_loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    labeled, unlabeled = inputs["labeled_logits"].requires_grad_(), inputs["unlabeled_logits"].requires_grad_()
    labeled_loss = torch.nn.functional.cross_entropy(labeled, inputs["labels"])
    unlabeled_loss = weighted_cross_entropy(unlabeled, inputs["pseudo_labels"], inputs["weights"])
    parts = {"labeled_loss": labeled_loss.detach(), "unlabeled_loss": unlabeled_loss.detach()}
    return with_gradients(labeled_loss + unlabeled_loss, labeled_logits=labeled, unlabeled_logits=unlabeled) | parts


def select(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pseudo_labels = inputs["scores"].argmax(1)
    ids, labels = reliable(inputs["student_logits"], inputs["logit_ids"], pseudo_labels, inputs["score_ids"], params["alpha"])
    return {"selected_ids": ids, "selected_labels": labels}


def alpha_schedule(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    settings = {"start": params["alpha0"], "rounds": params["split"], "power": params.get("power", 2)}
    return {"alpha": torch.tensor([promoted_share(number, **settings) for number in inputs["rounds"].tolist()])}


def zca(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    images = inputs["images"]
    rows = contrast_normalised(images.flatten(1).double(), multiplier=params["gcn_multiplier"], epsilon=params["gcn_eps"])
    mean, matrix = whitening_of(rows.split(7), scale=params["zca_scale"], epsilon=params["zca_eps"])
    return {"gcn": rows.view(images.shape), "zca_mean": mean, "zca": ((rows - mean) @ matrix).view(images.shape)}


def wrn_block(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    out_channels, in_channels = inputs["conv1_weight"].shape[:2]
    block = PreActivationBlock(in_channels, out_channels, params.get("stride", 1), slope=0.1)
    names = {name.replace(".", "_").replace("projection", "convShortcut"): name for name in block.state_dict()}
    block.load_state_dict({names[key]: value for key, value in inputs.items() if key in names}, strict=False)
    block.bn1.eps = block.bn2.eps = params.get("bn_eps", 1e-5)
    return {"out": block.train(params.get("training", False))(inputs["x"])}


def unknown_count(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"unknown_number": torch.tensor(count_unknown(int(inputs["target_number"]), params["mismatch"]))}


ADAPTERS = {
    "ntxent": ntxent,
    "knowledge": knowledge,
    "student_loss": student_loss,
    "select": select,
    "alpha_schedule": alpha_schedule,
    "zca": zca,
    "wrn_block": wrn_block,
    "unknown_count": unknown_count,
}


@pytest.mark.parametrize("case", load_cases(HERE / "21-wad.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
