"""CrKD against the reference vectors of ``10-crkd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.engine import Progress, Training
from stillroom.losses.assignment import sinkhorn as balanced
from stillroom.methods.crkd.loss import discovery_targets, joint_logits, relation_loss, relation_weight, swapped_prediction
from stillroom.methods.crkd.metrics import Matching, clustering, split_clustering
from stillroom.methods.crkd.networks import DiscoveryNetwork
from stillroom.methods.crkd.novel import KnownClassifier, NovelHead, Prototypes
from tests.golden.check import HERE, Case, load_cases, run_case

MATCHING: dict[str, Matching] = {"all classes": "all", "novel classes only": "novel"}


def sinkhorn(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"assignments": balanced(inputs["logits"], epsilon=params["epsilon"], iterations=params["num_iters"])}


def relation_kd(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"]
    labelled, known = inputs["mask_labeled"].bool(), params["num_labeled_classes"]
    tau, softening = params["temperature"], params["kd_temperature"]
    loss = relation_loss(student, teacher, labelled, cosine_temperature=tau, temperature=softening)
    mass, weight = relation_weight(student, labelled, known, tau * softening)
    (gradient,) = torch.autograd.grad(loss.mean(), [student])
    return {
        "loss_per_head": loss,
        "known_mass": mass[..., ~labelled],
        "weight": weight[..., ~labelled],
        "grad_student_logits": gradient,
    }


def swapped(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    views = params["num_crops"]
    logits = inputs["logits"].requires_grad_()
    loss = swapped_prediction(logits[:views], inputs["targets"][: params["num_large_crops"]], params["temperature"])
    return {"loss_per_head": loss, "grad_logits": torch.autograd.grad(loss.mean(), [logits])[0]}


def discovery_step(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    known, novel = inputs["logits_lab"].requires_grad_(), inputs["logits_unlab"].requires_grad_()
    logits, large = joint_logits(known, novel), params["num_large_crops"]
    labelled, tau = inputs["mask_labeled"].bool(), params["temperature"]
    targets = discovery_targets(
        novel[:large],
        inputs["labels"],
        labelled,
        known.shape[-1],
        epsilon=params["sinkhorn_epsilon"],
        iterations=params["sinkhorn_iters"],
    )
    cluster = swapped_prediction(logits, targets, tau)
    teacher = inputs["teacher_logits_lab"][:large, None]
    relation = relation_loss(logits[:large], teacher, labelled, cosine_temperature=tau, temperature=params["kd_temperature"])
    loss = cluster.mean() + params["alpha"] * relation.mean()
    by_known, by_novel = torch.autograd.grad(loss, [known, novel])
    return {
        "targets": targets,
        "cluster_loss_per_head": cluster,
        "kd_per_head": relation,
        "loss": loss,
        "grad_logits_lab": by_known,
        "grad_logits_unlab": by_novel,
    }


def heads(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features, known_weight = inputs["feats"], inputs["w_head_lab_prototypes_weight"]
    novel_classes = len(inputs["w_head_unlab_prototypes_0_prototypes_weight"])
    known = Prototypes(features.shape[1], len(known_weight))
    network = DiscoveryNetwork(
        KnownClassifier(nn.Identity(), known),
        novel_classes,
        novel_heads=params["num_heads"],
        hidden=params["hidden_dim"],
        projection=params["proj_dim"],
        layers=params["num_hidden_layers"],
    )
    weights = {"known.weight": known_weight}
    for name, value in inputs.items():
        if name.startswith("w_head_unlab_projectors_"):
            head, _, layer, kind = name.removeprefix("w_head_unlab_projectors_").split("_")
            weights[f"novel.{head}.projector.{layer}.{kind}"] = value
        elif name.startswith("w_head_unlab_prototypes_"):
            weights[f"novel.{name.removeprefix('w_head_unlab_prototypes_').split('_')[0]}.prototypes.weight"] = value
    unknown = network.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    assert set(weights) == {name for name, _ in network.named_parameters()}
    network.normalise_prototypes()
    logits_lab, logits_unlab = network.train().cosines(features)
    projected = [head.projector(features) for head in network.novel if isinstance(head, NovelHead)]
    return {
        "logits_lab": logits_lab,
        "logits_unlab": logits_unlab,
        "proj_feats_unlab": nn.functional.normalize(torch.stack(projected), dim=-1),
    }


def cluster_metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    found = clustering(inputs["predictions"].numpy(), inputs["labels"].numpy())
    return {name: torch.tensor(getattr(found, name)) for name in ("accuracy", "nmi", "ari")}


def split_cluster_accuracy(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    matching = MATCHING[params["matching"]]
    found = split_clustering(inputs["predictions"].numpy(), inputs["labels"].numpy(), params["num_known"], matching)
    return {("seen" if name == "known" else name): torch.tensor(value) for name, value in vars(found).items()}


def learning_rates(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    epochs = params["max_epochs"]
    options = {"lr": params["lr"], "lr_floor": params["min_lr"], "warmup_epochs": params["warmup_epochs"]}
    plan = Training(epochs=epochs, schedule="cosine", step_per="epoch", **options)
    return {"lr": torch.tensor([plan.rate(plan.lr, Progress(epoch, epochs)) for epoch in range(1, epochs + 1)])}


ADAPTERS = {
    "sinkhorn": sinkhorn,
    "relation_kd": relation_kd,
    "swapped_prediction": swapped,
    "discovery_step": discovery_step,
    "heads": heads,
    "cluster_metrics": cluster_metrics,
    "split_cluster_accuracy": split_cluster_accuracy,
    "learning_rate": learning_rates,
}


@pytest.mark.parametrize("case", load_cases(HERE / "10-crkd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
