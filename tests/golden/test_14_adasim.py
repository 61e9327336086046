"""DINO's loss, head, schedules, clipping and LARS, AdaSim's memory, window and vote, and weighted k-NN against ``14-adasim``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.engine.schedule import cosine_between
from stillroom.methods.adasim.memory import NeighbourMemory
from stillroom.methods.adasim.selection import vote
from stillroom.methods.adasim.window import Window
from stillroom.methods.dino.gradients import clip_each
from stillroom.methods.dino.head import ProjectionHead, through
from stillroom.methods.dino.loss import DINOLoss
from stillroom.modules.lars import LARS
from stillroom.tasks.representation import weighted_knn
from tests.golden.check import HERE, Case, load_cases, run_case


def loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    made = DINOLoss(
        params["out_dim"],
        student_temperature=params["student_temp"],
        teacher_temperature=params["teacher_temp"],
        warmup_teacher_temperature=params["warmup_teacher_temp"],
        warmup_teacher_epochs=params["warmup_teacher_temp_epochs"],
        center_momentum=params["center_momentum"],
    )
    made.center = inputs["center"]
    answer = {"teacher_temp": torch.tensor(made.teacher_temperature(params["epoch"]), dtype=torch.float64)}
    steps = [name.removeprefix("student_out") for name in inputs if name.startswith("student_out")]
    for step in steps:
        student = inputs[f"student_out{step}"].requires_grad_()
        value = made(student, inputs[f"teacher_out{step}"], epoch=params["epoch"])
        answer |= {f"loss{step}": value.detach(), f"grad_student_out{step}": torch.autograd.grad(value, student)[0]}
        answer[f"center_after{step}"] = made.center
    return answer


def select(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    image = torch.tensor([params["image_index"]])
    found = vote(inputs["window_indices"][None], inputs["window_similarities"][None], image)
    many = int((found.candidates[0] >= 0).sum())
    probabilities = found.probabilities(params["window"], params["sampling_temperature"]) * found.gate[:, None]
    return {
        "candidate_indices": found.candidates[0, :many],
        "candidate_sums": found.sums[0, :many],
        "gate_open": found.gate[0].long(),
        "sampling_prob": probabilities[0, :many],
    }


def memory(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    made = NeighbourMemory(params["num_images"], params["dim"], topk=params["topk"], representation=params["representation"])
    made.features, made.ids, made.similarities = inputs["memory"], inputs["neighbour_ids"].int(), inputs["neighbour_sims"]
    made.update(inputs["batch_indices"], inputs["teacher_backbone"])
    return {"memory_after": made.features, "neighbour_ids_after": made.ids, "neighbour_sims_after": made.similarities}


def window_push(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    images, slots, neighbours = inputs["window_indices"].shape
    made = Window(images, neighbours, slots)
    for slot in range(slots):
        made.push(slot, inputs["window_indices"][:, slot], inputs["window_similarities"][:, slot])
    made.push(slots, inputs["neighbour_ids"], inputs["neighbour_sims"])
    ids, similarities = made.rows(np.arange(images))
    return {"window_indices_after": ids, "window_similarities_after": similarities}


def head(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x = inputs["x"].requires_grad_()
    sizes = {"hidden": params["hidden"], "bottleneck": params["bottleneck"], "layers": params["nlayers"]}
    made = ProjectionHead(x.shape[1], params["out_dim"], **sizes).to(x.dtype)
    weights = {name.removeprefix("w."): value for name, value in inputs.items() if name.startswith("w.")}
    names = {"last_layer.weight_v": "last_layer.direction", "last_layer.weight_g": "last_layer.gain"}
    names |= {"mlp.weight": "mlp.0.weight", "mlp.bias": "mlp.0.bias"}  # of a single layer
    made.load_state_dict({names.get(name, name): value for name, value in weights.items()})
    y = made(x)
    return {"y": y.detach(), "grad_x": torch.autograd.grad(y, x, inputs["upstream"])[0]}


def schedule(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    steps, warmup = params["epochs"] * params["niter_per_ep"], params["warmup_epochs"] * params["niter_per_ep"]
    values = [cosine_between(params["base_value"], params["final_value"], step=step, steps=steps, warmup=warmup) for step in range(steps)]
    return {"values": torch.tensor(values, dtype=torch.float64)}


def clip(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    parameters = {}
    for name, gradient in inputs.items():
        parameters[name] = nn.Parameter(torch.zeros_like(gradient))
        parameters[name].grad = gradient
    clip_each(parameters.values(), params["clip"])
    return {name.replace("grad.", "clipped."): parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def lars(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    learning = {name: nn.Parameter(value) for name, value in inputs.items() if not name.startswith("grad_")}
    options = {name: params[name] for name in ("lr", "weight_decay", "momentum", "eta")}
    optimizer = LARS(learning.values(), **options)
    answer: dict[str, Tensor] = {}
    for step in sorted({int(name.rpartition("_")[2]) for name in inputs if name.startswith("grad_")}):
        for name, parameter in learning.items():
            parameter.grad = inputs[f"grad_{name}_{step}"]
        optimizer.step()
        answer |= {f"{name}_{step}": parameter.detach().clone() for name, parameter in learning.items()}
    return answer


def multicrop_order(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    crops = [inputs[f"crop{number}"] for number in range(len(inputs))]
    return {"features": through(lambda pixels: pixels.mean((2, 3)), crops)}


def knn(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    features = inputs["train_features"], inputs["train_labels"], inputs["test_features"]
    scores, ranked = weighted_knn(*features, params["classes"], params["k"], params["temperature"])
    return {"scores": scores, "prediction": ranked[:, 0]}


ADAPTERS = {
    "loss": loss,
    "select": select,
    "memory": memory,
    "window_push": window_push,
    "head": head,
    "schedule": schedule,
    "clip": clip,
    "lars": lars,
    "multicrop_order": multicrop_order,
    "knn": knn,
}


@pytest.mark.parametrize("case", load_cases(HERE / "14-adasim.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
