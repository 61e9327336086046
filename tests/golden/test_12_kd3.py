"""KD^3's schedule, selection, views and losses against the reference vectors of ``12-kd3``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.losses.contrast import nt_xent
from stillroom.methods.kd3.loss import disagreement_weight, weighted_feature_loss
from stillroom.methods.kd3.mixdistribution import mix_distribution
from stillroom.methods.kd3.selection import blended_prediction, keep_confident, teacher_weight
from stillroom.methods.kd3.shared_classifier import Connector, SharedClassifier, shrunk
from stillroom.modules.projectors import LinearEmbedding
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def alpha_schedule(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    options = {"switch_off": params["max_epoch"], "offset": params["offset"], "steepness": params["steepness"]}
    return {"alpha": torch.tensor([teacher_weight(epoch, **options) for epoch in inputs["epochs"].tolist()])}


def mixdist(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    images = inputs["x"].requires_grad_()
    mixed = mix_distribution(images, inputs["lam"].flatten(), inputs["perm"].long(), params.get("eps", 1e-6))
    return {"y": mixed.detach(), "grad_x": torch.autograd.grad(mixed, images, inputs["grad_out"])[0]}


def contrast(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    clean, mixed = inputs["z"].requires_grad_(), inputs["z_mix"].requires_grad_()
    return with_gradients(nt_xent(clean, mixed, params["temperature"]), z=clean, z_mix=mixed)


def align(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["feat_s"].requires_grad_(), inputs["feat_t"]
    connector = Connector(student.shape[1], teacher.shape[1], params.get("factor", 2))
    names = [name for name in connector.state_dict() if not name.endswith("num_batches_tracked")]
    connector.load_state_dict({name: inputs[name.replace(".", "_")] for name in names}, strict=False)
    classifier = nn.Linear(*inputs["cls_weight"].T.shape)
    classifier.load_state_dict({"weight": inputs["cls_weight"], "bias": inputs["cls_bias"]})
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    network = SharedClassifier(nn.Sequential(nn.Identity()), "0", connector, classifier, size)
    network.train(params["bn_mode"].startswith("train"))

    connected, logits = network.connected(network.map(student))
    target = shrunk(teacher, connected.shape[2:])
    distance, weight = disagreement_weight(logits, inputs["logit_t"])
    loss = weighted_feature_loss(connected, target, weight)
    gradients = torch.autograd.grad(loss, (student, connector.conv3.weight))
    return {
        "trans_feat_s": connected,
        "target": target,
        "logit_s": logits,
        "dist": distance,
        "weight": weight,
        "loss": loss,
        "grad_feat_s": gradients[0],
        "grad_conv3_weight": gradients[1],
    }


def select(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    confidence, labels = blended_prediction(inputs["logit_t"], inputs["logit_s"], params["alpha"])
    selection = keep_confident(confidence, labels, params.get("num_classes", inputs["logit_t"].shape[1]), cutoff=params["p_cutoff"])
    return {
        "confidence": confidence,
        "pseudo_label": labels,
        "class_threshold": selection.thresholds_K,
        "selected": selection.kept,
    }


def embed(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features = inputs["x"].requires_grad_()
    head = LinearEmbedding(*inputs["weight"].T.shape)
    head.linear.load_state_dict({"weight": inputs["weight"], "bias": inputs["bias"]})
    embedding = head(features)
    return {"y": embedding.detach(), "grad_x": torch.autograd.grad(embedding, features, inputs["grad_out"])[0]}


ADAPTERS = {
    "alpha_schedule": alpha_schedule,
    "mixdist": mixdist,
    "contrast": contrast,
    "align": align,
    "select": select,
    "embed": embed,
}


@pytest.mark.parametrize("case", load_cases(HERE / "12-kd3.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
