"""ORC's roles, losses and whole iterations against the reference vectors of ``27-orc``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.orc import ORC
from stillroom.methods.orc.loss import group_loss, intensive_loss, private_loss, student_loss
from stillroom.methods.orc.roles import evaluate_group as evaluated
from stillroom.tasks.classification import Batch
from tests.golden.check import HERE, Case, load_cases, run_case

# The references were computed in double precision; so are the answers, because quotas are whole numbers.


def evaluate_group(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits_KNC, size = inputs["logits"].double(), params.get("feedback_size", "N")
    found = evaluated(
        logits_KNC,
        inputs["target"],
        feedback_temperature=params.get("tau_feedback", 1.0),
        size=logits_KNC.shape[1] if size == "N" else int(size),
    )
    return {
        "mean_ce": found.mean_ce_K,
        "error": found.error_KN.long(),
        "ratio": found.ratio_K,
        "quota": found.quota_K,
        "feedback_index": found.feedback_M[: int(found.quota_K.sum())],
        "promoted": found.ranking_K[: params.get("k", 1)],
    }


def losses(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    learning = {name: inputs[name].double().requires_grad_() for name in ("pivot_logits_mixed", "temp_logits", "student_logits")}
    pivot_NC, labels_N = inputs["pivot_logits"].double().requires_grad_(), inputs["target"]
    beta, temperature = params["beta"], params["temperature"]
    intensive = intensive_loss(learning["pivot_logits_mixed"], labels_N, inputs["target_feedback"], torch.tensor(params["lam"]).double())
    private = [private_loss(z_NC, pivot_NC, labels_N, beta=beta, temperature=temperature) for z_NC in learning["temp_logits"]]
    teachers = [*learning["temp_logits"], pivot_NC]
    taught = {"temperature": temperature, "teaching": params.get("teaching", "individual")}
    group = [group_loss(z_NC, teachers, **taught) for z_NC in learning["student_logits"]]
    student = [student_loss(z_NC, teachers, labels_N, beta=beta, **taught) for z_NC in learning["student_logits"]]
    answer = {"loss_intensive": intensive}
    for name, terms in (("private", private), ("group", group), ("student", student)):
        answer[f"loss_{name}"] = torch.stack(terms) if terms else torch.zeros(0)
    total = intensive + answer["loss_private"].sum() + answer["loss_student"].sum()
    # All at once: whoever teaches in one term and learns in another gets the gradient of what it learns from alone.
    gradients = torch.autograd.grad(total, list(learning.values()), allow_unused=True, materialize_grads=True)
    return answer | {f"grad_{name}": gradient for name, gradient in zip(learning, gradients, strict=True)}


class Given(ORC):
    """With lambda and the shuffling from outside; remembers the partners."""

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.lam, self.permutation_N


def iterations(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    networks = [nn.Linear(weight.shape[1], weight.shape[0], bias=False).double() for weight in inputs["W_init"]]
    for network, weight in zip(networks, inputs["W_init"], strict=True):
        network.weight.data = weight.double()
    pivot, *group, student = networks
    distiller = Given(
        student,
        pivot,
        group,
        balance=params["beta"],
        temperature=params["temperature"],
        num_promoted=params["k"],
        feedback_temperature=params.get("tau_feedback", 1.0),
    )
    distiller.lam = torch.tensor(params["lam"]).double()
    optimizers = [torch.optim.SGD(network.parameters(), lr=params["lr"]) for network in distiller.members]
    optimizers.append(torch.optim.SGD(pivot.parameters(), lr=params["pivot_lr"]))
    promoted, feedback, intensive = [], [], []
    for x, labels_N, distiller.permutation_N in zip(inputs["x"].double(), inputs["target"], inputs["feedback_perm"], strict=True):
        done = distiller.iterate(Batch(x, labels_N, torch.arange(len(x))), optimizers)
        assert done.intensive is not None
        promoted.append(done.evaluation.ranking_K[: params["k"]])
        feedback.append(done.evaluation.feedback_M[distiller.permutation_N])
        intensive.append(done.intensive.detach())
        assert promoted[-1].tolist() == list(done.private)
    return {
        "promoted": torch.stack(promoted),
        "feedback_index": torch.stack(feedback),
        "loss_intensive": torch.stack(intensive),
        "W_final": torch.stack([network.weight for network in networks]),
    }


ADAPTERS = {"evaluate_group": evaluate_group, "losses": losses, "iterations": iterations}


@pytest.mark.parametrize("case", load_cases(HERE / "27-orc.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
