"""MDCS against the reference vectors of ``16-mdcs``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.engine import Progress, Training
from stillroom.methods.mdcs import MDCS, mdcs_terms, prior_shift
from stillroom.tasks.classification import ViewBatch
from stillroom.tasks.classification.subsets import long_tailed_counts
from stillroom.tasks.images.networks.experts import CosineClassifier, ExpertBasicBlock
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


class Answers(nn.Module):
    """A student that says the same whatever it is shown."""

    def __init__(self, logits_NEC: Tensor) -> None:
        super().__init__()
        self.logits_NEC = nn.Parameter(logits_NEC)

    def experts(self, images: Tensor) -> Tensor:
        assert len(images) == len(self.logits_NEC)
        return self.logits_NEC


def loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, labels = Answers(inputs["logits"]), inputs["targets"]
    numbers = {"consistency_weight": params["kl_weight"], "ramp_epochs": params["kl_warmup_epochs"], "temperature": params["temperature"]}
    distiller = MDCS(student, class_counts=inputs["class_counts"], lambdas=params["lambdas"], **numbers)
    distiller.shift_EC = prior_shift(inputs["class_counts"], params["lambdas"], epsilon=params["eps"])
    distiller.progress = Progress(epoch=params["epoch"], epochs=max(params["epoch"], 400))
    views = torch.empty(2, len(labels), 3, 1, 1).unbind()
    losses = distiller.losses(ViewBatch(views, labels, torch.arange(len(labels))))
    terms = mdcs_terms(student.logits_NEC, labels, distiller.shift_EC, temperature=params["temperature"])
    return {
        **with_gradients(losses.total, logits=student.logits_NEC),
        "ce_sum": losses.task["diversity"],
        "kl_sum": terms.consistency,
        "confident_mask": terms.confident_BE.long(),
        "grad_kl_sum_logits": with_gradients(terms.consistency, logits=student.logits_NEC)["grad_logits"],
    }


def cosine_head(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    head = CosineClassifier(*inputs["weight"].shape, scale=params["s"], epsilon=params["normalize_eps"])
    head.load_state_dict({"weight": inputs["weight"]})
    features = inputs["x"].requires_grad_()
    logits = head(features)
    return {"logits": logits, **with_gradients((logits * inputs["probe"]).sum(), x=features, weight=head.weight)}


def block(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    channels, in_channels = inputs["conv1_weight"].shape[:2]
    module = ExpertBasicBlock(in_channels, channels, params["stride"]).train(params["training"])
    names = {name.replace("_", ".", 1): tensor for name, tensor in inputs.items() if name != "x"}
    missing, unexpected = module.load_state_dict(names, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    for norm in (module.bn1, module.bn2):
        norm.eps = params["bn_eps"]
    return {"out": module(inputs["x"])}


def counts(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    shape = "reverse" if params["reverse"] and params["imb_type"] == "exp" else params["imb_type"]
    largest, ratio = params["total"] / params["num_classes"], 1 / params["imb_factor"]
    return {"counts": torch.from_numpy(long_tailed_counts(largest, params["num_classes"], ratio, shape))}


def lr(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    milestones = tuple(params[name] for name in sorted(params) if name.startswith("step") and params[name] is not None)
    plan = Training(epochs=1000, milestones=milestones, decay=params["gamma"], warmup_epochs=params["warmup_epoch"] or 0, step_per="epoch")
    distiller = MDCS(Answers(torch.zeros(2, 3, 2)), class_counts=[1, 1])
    distiller.plan = plan
    rates = []
    for epoch in inputs["epochs"].tolist():
        distiller.progress = Progress(epoch=epoch + 1, epochs=plan.epochs)
        rates.append(distiller.rate(1.0))
    return {"multiplier": torch.tensor(rates)}


ADAPTERS = {"loss": loss, "cosine_head": cosine_head, "block": block, "counts": counts, "lr": lr}


@pytest.mark.parametrize("case", load_cases(HERE / "16-mdcs.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)


def test_a_schedule_may_have_fewer_milestones_and_no_warm_up() -> None:
    """The paper's row for Places: a tenth at 10 and at 20, and no third step."""
    row = {"step1": 10, "step2": 20, "step3": None, "warmup_epoch": None, "gamma": 0.1}
    found = lr({"epochs": torch.tensor([0, 9, 10, 19, 20, 29])}, row)["multiplier"]
    torch.testing.assert_close(found, torch.tensor([1, 1, 0.1, 0.1, 0.01, 0.01]))
