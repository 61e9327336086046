"""L2D's losses, head and metrics against the reference vectors of ``25-l2d``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.l2d import L2D, led_losses, mld_loss
from stillroom.methods.l2d.loss import distances, partial_softmax_loss, structure_losses
from stillroom.tasks.multilabel import Batch, HeadOptions, MLDecoder, summed_bce
from stillroom.tasks.multilabel.metrics import MultiLabelEvaluator
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def mld(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"].requires_grad_()
    options = {name: params[name] for name in ("reduction", "eps") if name in params}
    return with_gradients(mld_loss(student, teacher, **options), student_logits=student, teacher_logits=teacher)


def structure(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student"].requires_grad_(), inputs["teacher"].requires_grad_()
    eps, beta = params.get("eps", 1e-12), params.get("smooth_l1_beta", 1.0)
    (loss,) = structure_losses(student[None], teacher[None], eps=eps, beta=beta)
    found = {f"phi_{name}": distances(rows[None], eps=eps)[0] for name, rows in (("student", student), ("teacher", teacher))}
    return {**with_gradients(loss, student=student, teacher=teacher), **found}


def led(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_emb"].requires_grad_(), inputs["teacher_emb"].requires_grad_()
    cd, id_ = led_losses(student, teacher, inputs["targets"])
    terms = {"cd": cd, "id": id_, "led": params["lambda_cd"] * cd + params["lambda_id"] * id_}
    gradients = {}
    for name, term in terms.items():
        (gradients[f"grad_{name}"],) = torch.autograd.grad(term, student, retain_graph=True)
    return {**terms, **gradients}


class Answers(nn.Module):
    """A network that gives the same answers to whatever it is asked."""

    def __init__(self, logits: Tensor, embeddings: Tensor) -> None:
        super().__init__()
        self.logits, self.embeddings = nn.Parameter(logits), nn.Parameter(embeddings)
        self.head = nn.Module()
        self.head.decoder = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        self.head.decoder(self.embeddings)
        return self.logits


def total(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student = Answers(inputs["student_logits"], inputs["student_emb"])
    distiller = L2D(
        student,
        Answers(inputs["teacher_logits"], inputs["teacher_emb"]),
        logits_weight=params["lambda_logits"],
        embedding_weight=params["lambda_le"],
        class_aware_weight=params["lambda_cd"],
        instance_aware_weight=params["lambda_id"],
    )
    count = len(inputs["targets"])
    losses = distiller.losses(Batch(torch.zeros(count, 3, 2, 2), inputs["targets"], torch.arange(count)))
    answer = with_gradients(losses.total, student_emb=student.embeddings, student_logits=student.logits)
    assert losses.distill_total is not None
    return {**answer, "bce": losses.task["bce"], "soft": losses.distill_total}


def psm(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"].requires_grad_()
    loss = partial_softmax_loss(student, teacher, inputs["targets"])
    return with_gradients(loss, student_logits=student, teacher_logits=teacher)


def bce_sum(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = inputs["logits"].requires_grad_()
    return with_gradients(summed_bce(logits, inputs["targets"], eps=params.get("eps", 1e-8)), logits=logits)


_WEIGHTS = {
    "duplicate_pooling": "classifier.weight",
    "duplicate_pooling_bias": "classifier.bias",
    "query_embed_weight": "decoder.queries",
    "embed_standart_weight": "decoder.embed.weight",
    "embed_standart_bias": "decoder.embed.bias",
    **{f"layers_0_norm{n}_{kind}": f"decoder.norm{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")},
    **{f"layers_0_linear{n}_{kind}": f"decoder.linear{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
    **{f"layers_0_multihead_attn_in_proj_{kind}": f"decoder.attention.in_proj_{kind}" for kind in ("weight", "bias")},
    **{f"layers_0_multihead_attn_out_proj_{kind}": f"decoder.attention.out_proj.{kind}" for kind in ("weight", "bias")},
}


def ml_decoder(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    weights = {mine: inputs[f"decoder_{theirs}"] for theirs, mine in _WEIGHTS.items()}
    queries, embed_dim = weights["decoder.queries"].shape
    options = HeadOptions(embed_dim, params["heads"], len(weights["decoder.linear1.weight"]), groups=queries)
    head = MLDecoder(inputs["feature_map"].shape[1], params["num_classes"], options).eval()
    assert head.classifier.weight.shape[2] == params["duplicate_factor"]
    head.load_state_dict(weights)
    for norm in (head.decoder.norm1, head.decoder.norm2, head.decoder.norm3):
        norm.eps = params.get("ln_eps", 1e-5)
    return {"embeddings": head.decoder(inputs["feature_map"]), "logits": head(inputs["feature_map"])}


def metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    scores, targets = inputs["scores"], inputs["targets"]
    evaluator = MultiLabelEvaluator(scores.shape[1])
    evaluator.update(scores.double().logit(), Batch(scores, targets, torch.arange(len(scores))))
    figures = {name: torch.tensor(value / 100) for name, value in evaluator.compute().items()}
    return {"ap": evaluator.precisions(), "mAP": figures["mAP"], "of1": figures["OF1"], "cf1": figures["CF1"]}


ADAPTERS = {
    "mld": mld,
    "structure": structure,
    "led": led,
    "total": total,
    "psm": psm,
    "ml_decoder": ml_decoder,
    "metrics": metrics,
    "bce_sum": bce_sum,
}


@pytest.mark.parametrize("case", load_cases(HERE / "25-l2d.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
