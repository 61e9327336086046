"""BOSS's loss, selection and surrogate against the reference vectors of ``23-boss``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.engine import Progress, Training
from stillroom.methods.boss.distiller import BOSS, consistency
from stillroom.methods.boss.parzen import Dimension, Parzen, densities, split
from stillroom.methods.boss.selection import best_epoch, draw, draw_teacher, planned, ranked
from stillroom.methods.boss.space import plan_of
from stillroom.tasks.classification import TASK, Batch
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


class _Stored(nn.Module):
    """Answers with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"].requires_grad_(), inputs["teacher_logits"]
    batch = Batch(torch.zeros(len(student), 3, 1, 1), inputs["targets"], torch.arange(len(student)))
    made = TASK.supervised(_Stored(student)) if params["is_warmup"] else BOSS(_Stored(student), _Stored(teacher), alpha=params["alpha"])
    ce = TASK.supervised(_Stored(student)).losses(batch).total
    return {**with_gradients(made.losses(batch).total, student_logits=student), "ce": ce, "consistency": consistency(student, teacher)}


def select(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    scores = torch.cat([inputs["warmup_scores"], inputs["main_scores"]]).double().numpy()
    states = torch.cat([inputs["warmup_state"], inputs["main_state"]]) if "warmup_state" in inputs else torch.ones(len(scores))
    top = ranked(scores, params["k"], (states == 1).numpy())
    numbers = inputs["trial_numbers"].tolist()
    drawn = [draw(top, number) for number in numbers]
    return {
        "top_k": torch.from_numpy(top),
        "student_index": torch.tensor([one.student for one in drawn]),
        "teacher_index": torch.tensor([one.teacher for one in drawn]),
        "teacher_only_index": torch.tensor([draw_teacher(top, number).teacher for number in numbers]),
    }


def parzen(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    options = {name: params[name] for name in ("prior_weight", "magic_clip", "consider_endpoints") if name in params}
    dimension = Dimension(params["low"], params["high"], log=params["kind"].startswith("log"), integer=params["kind"].endswith("int"))
    made = Parzen.of(inputs["observations"].double().numpy(), dimension, **options)
    found = {"weights": made.weights, "mu": made.centres, "sigma": made.widths}
    return {
        name: torch.from_numpy(value) for name, value in {**found, "log_pdf": made.log_density(inputs["points"].double().numpy())}.items()
    }


def acquisition(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    kind = str(params.get("kind", ""))
    dimension = Dimension(params["low"], params["high"], log=params.get("log", kind.startswith("log")), integer=kind.endswith("int"))
    values = inputs["value"].double().numpy()
    below, above = split(values)
    good, rest = densities(inputs["x"].double().numpy(), values, dimension)
    candidates = inputs["candidates"].double().numpy()
    scores = good.log_density(candidates) - rest.log_density(candidates)
    return {
        "n_below": torch.tensor(len(below)),
        "below_numbers": torch.from_numpy(below),
        "above_numbers": torch.from_numpy(above),
        "scores": torch.from_numpy(scores),
        "best_candidate": torch.tensor(int(np.argmax(scores))),
    }


def cosine_lr(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    plan = plan_of(Training(epochs=params["epochs"], schedule="cosine", step_per="epoch"), {"lr": params["lr"]})
    places = [Progress(epoch + 1, params["epochs"], 5 * epoch, 5) for epoch in range(params["epochs"])]
    return {"lr": torch.tensor([plan.rate(plan.lr, place) for place in places], dtype=torch.float64)}


def sgd(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    weight = nn.Parameter(inputs["w0"].clone())
    optimizer = plan_of(Training(schedule="constant"), params).build_optimizer([{"params": [weight]}])
    for gradient in inputs["grads"]:
        weight.grad = gradient.clone()
        optimizer.step()
    return {"w": weight.detach()}


def study_plan(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    trials = planned(params["total"], params["warmup"], params["startup"])
    main = [int(trial.main) for trial in trials]
    columns = {"phase": main, "number": [trial.number for trial in trials], "random_proposal": [int(trial.random) for trial in trials]}
    return {name: torch.tensor(values) for name, values in {**columns, "has_alpha": main, "has_teacher": main}.items()}


def kept_epoch(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    score, epoch, kept = best_epoch(inputs["accuracy"].tolist())
    return {"score": torch.tensor(score), "epoch": torch.tensor(epoch), "checkpoint_written": torch.tensor(kept).long()}


ADAPTERS = {
    "loss": loss,
    "select": select,
    "select_states": select,
    "parzen": parzen,
    "acquisition": acquisition,
    "cosine_lr": cosine_lr,
    "sgd": sgd,
    "study_plan": study_plan,
    "best_epoch": kept_epoch,
}


@pytest.mark.parametrize("case", load_cases(HERE / "23-boss.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
