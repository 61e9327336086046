"""MemKD's memory, losses, maps and metrics against the reference vectors of ``18-memkd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.methods.memkd.loss import distances, distillation_loss, memorisation_loss, orthogonal_loss
from stillroom.methods.memkd.memory import read
from stillroom.tasks.anomaly.maps import MapOptions, blurred, combined, image_scores, level_maps
from stillroom.tasks.anomaly.scores import aupro, detection
from tests.golden.check import HERE, Case, load_cases, run_case


def numbered(inputs: dict[str, Tensor], name: str, *, learning: bool = False) -> list[Tensor]:
    """The tensors name0, name1, ... ."""
    found = [inputs[f"{name}{i}"] for i in range(sum(key.startswith(name) and key[len(name) :].isdigit() for key in inputs))]
    return [tensor.requires_grad_() for tensor in found] if learning else found


def recall(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x, keys, values = (inputs[name].requires_grad_() for name in ("x", "keys", "values"))
    recalled = read(x, keys, values, params.get("temperature", 1.0))
    return {"recalled": recalled, **upstream(recalled, inputs["grad_out"], x=x, keys=keys, values=values)}


def embed(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x, values = (inputs[name].requires_grad_() for name in ("x", "values"))
    recalled = read(x, values, values, params.get("temperature", 1.0))
    return {"recalled": recalled, **upstream(recalled, inputs["grad_out"], x=x, values=values)}


def upstream(answer: Tensor, gradient: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(answer, list(inputs.values()), gradient)
    return {f"grad_{name}": value for name, value in zip(inputs, found, strict=True)}


def kd_cos(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    students, teachers = numbered(inputs, "student", learning=True), numbered(inputs, "teacher", learning=True)
    return summed(students, distillation_loss(students, teachers, reduction="sum_batch"), distillation_loss(students, teachers))


def nm(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    read_outs, features = numbered(inputs, "student", learning=True), numbered(inputs, "teacher", learning=True)
    return summed(read_outs, memorisation_loss(read_outs, features, reduction="sum_batch"), memorisation_loss(read_outs, features))


def summed(students: list[Tensor], loss: Tensor, mean: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, students)
    return {"loss_sum_batch": loss, "loss_mean_batch": mean, **{f"grad_student{i}": gradient for i, gradient in enumerate(gradients)}}


def kd_flat(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    students, teachers = numbered(inputs, "student", learning=True), numbered(inputs, "teacher", learning=True)
    loss = distillation_loss(students, teachers, kd="flat")
    gradients = {f"grad_student{i}": gradient for i, gradient in enumerate(torch.autograd.grad(loss, students))}
    return {"per_level": distances(students, teachers, "flat").mean(1), "loss": loss, **gradients}


def orth(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    keys, values = numbered(inputs, "keys", learning=True), numbered(inputs, "values")
    answer: dict[str, Tensor] = {}
    for form in ("signed", "squared"):
        answer[form] = orthogonal_loss(keys, values, form)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(answer[form], keys)
        answer |= {f"grad_keys{i}_{form}": gradient for i, gradient in enumerate(gradients)}
    return answer


def maps(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    students, teachers = numbered(inputs, "student"), numbered(inputs, "teacher")
    size = params["size"]
    height, width = size if isinstance(size, list) else (size, size)
    options = MapOptions(align_corners=params["align_corners"], blur=params["sigma"])
    raw = combined(level_maps(students, teachers, (height, width), options), options)
    weighted = MapOptions(level_weight="inv_area", align_corners=params["align_corners"], blur=params["sigma"])
    map_BHW = blurred(raw, params["sigma"], params["truncate"])
    return {
        "map_raw": raw,
        "map": map_BHW,
        "map_hw_weighted": blurred(
            combined(level_maps(students, teachers, (height, width), weighted), weighted), params["sigma"], params["truncate"]
        ),
        "image_score": image_scores(map_BHW),
    }


def metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    scores, masks = inputs["scores"].numpy(), inputs["masks"].numpy()
    images = detection(image_scores(inputs["scores"]).numpy(), inputs["labels"].numpy())
    pixels = detection(scores, masks != 0)
    found = {"image_auroc": images["auroc"], "image_ap": images["ap"], "pixel_auroc": pixels["auroc"]}
    found["aupro"] = aupro(scores, masks, params["fpr_limit"])
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


ADAPTERS = {
    "recall": recall,
    "embed": embed,
    "kd_cos": kd_cos,
    "nm": nm,
    "kd_flat": kd_flat,
    "orth": orth,
    "map": maps,
    "map_align": maps,
    "metrics": metrics,
}


@pytest.mark.parametrize("case", load_cases(HERE / "18-memkd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
