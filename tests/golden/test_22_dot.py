"""DOT and its host losses against the reference vectors of ``22-dot``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from stillroom.engine.schedule import multistep_lr, warmup_factor
from stillroom.losses.logits import dkd_loss, kd_loss
from stillroom.methods.dot.optimizer import DISTILL_BUFFER, TASK_BUFFER, DOTOptimizer
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def kd(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"].requires_grad_()
    return with_gradients(kd_loss(student, teacher, params["temperature"]), student_logits=student, teacher_logits=teacher)


def dkd(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"].requires_grad_()
    weights = {name: params[name] for name in ("alpha", "beta", "temperature")}
    loss = dkd_loss(student, teacher, inputs["target"], **weights)
    warmup = params.get("warmup", params.get("warmup_epochs"))
    if warmup is not None:
        loss = warmup_factor(params["epoch"], warmup) * loss
    return with_gradients(loss, student_logits=student, teacher_logits=teacher)


def dot_optimizer(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    count = sum(name.startswith("param") and name.endswith("_init") for name in inputs)
    parameters = [inputs[f"param{i}_init"].requires_grad_() for i in range(count)]
    optimizer = _optimizer(parameters, params, lr=float(inputs["lr"][0]))
    trajectory: list[list[Tensor]] = [[] for _ in parameters]
    for step, lr in enumerate(inputs["lr"].tolist()):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step(
            task=[inputs[f"grad_task{i}"][step] if inputs["task_mask"][step, i] else None for i in range(count)],
            distill=[inputs[f"grad_kd{i}"][step] if inputs["kd_mask"][step, i] else None for i in range(count)],
        )
        for i, parameter in enumerate(parameters):
            trajectory[i].append(parameter.detach().clone())
    answer = {f"param{i}": torch.stack(steps) for i, steps in enumerate(trajectory)}
    for i, parameter in enumerate(parameters):
        for name, buffer in (("v_task", TASK_BUFFER), ("v_kd", DISTILL_BUFFER)):
            if buffer in optimizer.state[parameter]:
                answer[f"{name}{i}"] = optimizer.state[parameter][buffer]
    return answer


def dot_train_mlp(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    names = ("W1", "b1", "W2", "b2")
    w1, b1, w2, b2 = parameters = [inputs[name].requires_grad_() for name in names]
    optimizer = _optimizer(parameters, params, lr=params["lr"])
    task_losses, distill_losses = [], []
    for x, teacher, target in zip(inputs["x"], inputs["teacher_logits"], inputs["target"], strict=True):
        logits = linear(linear(x, w1, b1).relu(), w2, b2)
        task = params["ce_weight"] * cross_entropy(logits, target)
        distill = params["kd_weight"] * kd_loss(logits, teacher, params["temperature"])
        distill_gradients = torch.autograd.grad(distill, parameters, retain_graph=True)
        optimizer.step(task=torch.autograd.grad(task, parameters), distill=distill_gradients)
        task_losses.append(task.detach())
        distill_losses.append(distill.detach())
    return {
        "loss_task": torch.stack(task_losses),
        "loss_kd": torch.stack(distill_losses),
        **{f"{name}_final": parameter for name, parameter in zip(names, parameters, strict=True)},
    }


def lr_multistep(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    stages = inputs["stages"].tolist()
    return {"lr": torch.tensor([multistep_lr(epoch, params["lr"], stages, params["decay"]) for epoch in inputs["epoch"].tolist()])}


def _optimizer(parameters: list[Tensor], params: dict[str, Any], lr: float) -> DOTOptimizer:
    return DOTOptimizer(
        parameters,
        lr=lr,
        momentum=params["momentum"],
        delta=params["delta"],
        weight_decay=params["weight_decay"],
        dampening=params.get("dampening", 0.0),
    )


ADAPTERS = {"kd": kd, "dkd": dkd, "dot_optimizer": dot_optimizer, "dot_train_mlp": dot_train_mlp, "lr_multistep": lr_multistep}


@pytest.mark.parametrize("case", load_cases(HERE / "22-dot.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
