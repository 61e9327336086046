"""DOT and its host losses against the reference vectors of ``22-dot``."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stillroom.engine import Teacher, Training
from stillroom.engine.schedule import multistep_lr, warmup_factor
from stillroom.losses.logits import dkd_loss, kd_loss
from stillroom.methods.dot import DOT
from stillroom.methods.dot.optimizer import DISTILL_BUFFER, TASK_BUFFER, DOTOptimizer
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch
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
    student = nn.Sequential(nn.Linear(*inputs["W1"].T.shape), nn.ReLU(), nn.Linear(*inputs["W2"].T.shape)).to(inputs["W1"].dtype)
    student.load_state_dict(dict(zip(student.state_dict(), (inputs[name] for name in names), strict=True)))
    answers = inputs["teacher_logits"].flatten(0, 1)  # one row for each sample: a teacher's cache
    weights = {"temperature": params["temperature"], "task_weight": params["ce_weight"], "kd_weight": params["kd_weight"]}
    distiller = DOT(
        KD(student, cast("Teacher", lambda batch: answers[batch.ids]), **weights),
        delta=params["delta"],
        dampening=params.get("dampening", 0.0),
    )
    distiller.plan = Training(lr=params["lr"], momentum=params["momentum"], weight_decay=params["weight_decay"])
    optimizer = distiller.configure_optimizers()
    task_losses, distill_losses = [], []
    ids = torch.arange(len(answers)).reshape(inputs["target"].shape)
    for batch in map(Batch, inputs["x"], inputs["target"], ids):
        losses = distiller.losses(batch)
        task, distill = distiller.two_gradients(losses, optimizer.parameters())
        optimizer.step(task=task, distill=distill)
        task_losses.append(losses.task["ce"].detach())
        distill_losses.append(losses.distill["kd"].detach())
    return {
        "loss_task": torch.stack(task_losses),
        "loss_kd": torch.stack(distill_losses),
        **{f"{name}_final": parameter for name, parameter in zip(names, student.parameters(), strict=True)},
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
