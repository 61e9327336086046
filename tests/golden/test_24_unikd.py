"""UniKD against the reference vectors of ``24-unikd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.unikd.attention import ExtractorLayer, offset_bias, valid_ratio
from stillroom.methods.unikd.boxes import box_roles, match_roles
from stillroom.methods.unikd.distillers import injected
from stillroom.methods.unikd.extractors import Extractors, Sizes, decoded
from stillroom.methods.unikd.loss import WEIGHTS, absorb_terms, embedding_distance
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Inputs = dict[str, Tensor]
LAYER = {
    "offset": "attention.offset",
    "attn": "attention.weight",
    "value": "attention.value",
    "out": "attention.out",
    **{name: name for name in ("norm1", "norm2", "ffn1", "ffn2")},
}
ENDS = {"w": "weight", "b": "bias"}


def maps_of(inputs: Inputs, name: str) -> list[Tensor]:
    return [inputs[f"{name}{level}"] for level in range(sum(key.startswith(name) and key[len(name) :].isdigit() for key in inputs))]


def load(module: nn.Module, weights: Inputs) -> None:
    module.load_state_dict({f"{LAYER[key[:-2]]}.{ENDS[key[-1]]}": value for key, value in weights.items()})


def unpadded(maps: list[Tensor]) -> list[Tensor]:
    return [torch.zeros(len(level), *level.shape[2:], dtype=torch.bool) for level in maps]


def layer(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    maps = [level.requires_grad_() for level in maps_of(inputs, "map")]
    padding = [level.bool() for level in maps_of(inputs, "padding")]
    made = ExtractorLayer(inputs["query"].shape[-1], params["heads"], params["levels"], params["points"])
    load(made, {key[2:]: value for key, value in inputs.items() if key.startswith("w_")})
    out = made(inputs["query"], inputs["ref"], maps, padding or unpadded(maps))
    grads = torch.autograd.grad((out * inputs["cotangent"]).sum(), maps)
    answer = {"out": out.detach(), **{f"grad_map{level}": grad for level, grad in enumerate(grads)}}
    return answer | ({"valid_ratio": torch.stack([valid_ratio(level) for level in padding], 1)} if padding else {})


def roles(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    return {"role": box_roles(inputs["boxes"][None], inputs["gt"][None], alpha=params["alpha"], beta=params["beta"])[0][0]}


def distance(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    student = inputs["student"].requires_grad_()
    return with_gradients(embedding_distance(student, inputs["teacher"], inputs["positive"].bool()), student=student)


def pretrain(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    logits, boxes, role = inputs["logits"].requires_grad_(), inputs["boxes"].requires_grad_(), inputs["role"]
    positive, at = role >= 0, role.clamp_min(0)
    labels, wanted = torch.zeros_like(role), torch.zeros_like(boxes)
    if len(inputs["target_labels"]):
        labels, wanted = inputs["target_labels"][at], inputs["target_boxes"][at]
    count = positive.sum().clamp_min(1)
    terms = absorb_terms(logits, boxes, labels, wanted, positive, count=count, alpha=params["alpha"], gamma=params["gamma"])
    weights = {"class": params["w_cls"], "l1": params["w_l1"], "giou": params["w_giou"]}
    assert weights.keys() == WEIGHTS.keys()
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    found = {"cls": terms["class"].detach(), "l1": terms["l1"].detach(), "giou": terms["giou"].detach()}
    return {**found, **with_gradients(loss, logits=logits, boxes=boxes)}


def whole_pass(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    teacher, student = maps_of(inputs, "teacher_map"), [level.requires_grad_() for level in maps_of(inputs, "student_map")]
    count, width = inputs["w_content"].shape
    sizes = Sizes(tuple(2**level for level in range(len(teacher))), width, ("thing",), count, width, params["heads"], params["points"])
    extractors = Extractors(sizes)
    for prefix, extractor in (("w_ct_", extractors.content), ("w_pos_", extractors.position)):
        for part, module in (("gen_", extractor.generator), ("ext_", extractor.reader)):
            load(module, {key[len(prefix + part) :]: value for key, value in inputs.items() if key.startswith(prefix + part)})
    with torch.no_grad():
        extractors.content.content.copy_(inputs["w_content"])
        for module, name in ((extractors.content.reference, "ref"), (extractors.position.embed, "box")):
            module.weight.copy_(inputs[f"w_{name}_w"])
            module.bias.copy_(inputs[f"w_{name}_b"])
    told: Inputs = {}
    answer: Inputs = {}
    for name in ("content", "position"):
        extractor = getattr(extractors, name)
        q, r = extractor.ask(inputs["boxes"], teacher, unpadded(teacher))
        z = extractor.read(q, r, teacher, unpadded(teacher))
        told |= {f"{name}_query": q, f"{name}_reference": r, f"{name}_embedding": z}
        told[f"{name}_positive"] = inputs[f"positive_{name}"]
        answer |= {f"q_{name}": q, f"z_{name}_teacher": z, f"z_{name}_student": extractor.read(q, r, student, unpadded(student))}
    terms = injected(extractors, told, student, unpadded(student), content=params["lambda1"], position=params["lambda2"])
    total = torch.stack(list(terms.values())).sum()
    grads = torch.autograd.grad(total, student)
    answer = {name: value.detach() for name, value in answer.items()}
    return {**answer, "loss": total.detach(), **{f"grad_student_map{level}": grad for level, grad in enumerate(grads)}}


def first_places(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    return {"offset_bias": offset_bias(params["heads"], params["levels"], params["points"])}


def boxes(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    delta = inputs["delta"].requires_grad_()
    found = decoded(delta, inputs["reference"])
    return {"boxes": found.detach(), "grad_delta": torch.autograd.grad((found * inputs["cotangent"]).sum(), delta)[0]}


def matched(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    return {"role": match_roles(inputs["logits"], inputs["boxes"], inputs["gt_labels"], inputs["gt_boxes"])}


ADAPTERS = {
    "ake_layer": layer,
    "ake_layer_padded": layer,
    "box_roles": roles,
    "decoupled_mse": distance,
    "pretrain_loss": pretrain,
    "kd_pass": whole_pass,
    "offset_init": first_places,
    "ake_boxes": boxes,
    "match_roles": matched,
}


@pytest.mark.parametrize("case", load_cases(HERE / "24-unikd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
