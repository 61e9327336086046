"""OTD's gradients, banks, streams and losses, and the figures of nuclei, against the reference vectors of ``05-otd``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from stillroom.methods.otd.bank import GradientBank, history_sizes, statistics_sizes
from stillroom.methods.otd.gradients import MovingAverage, head_gradients
from stillroom.methods.otd.history import History, reinforced
from stillroom.methods.otd.mixing import Mixed, mix, pseudo_labels
from stillroom.methods.otd.terms import Answers, few_loss, mixed_losses, source_loss
from stillroom.methods.otd.trajectory import CrossClass, CrossDomain
from stillroom.tasks.nuclei.losses import cross_entropy, dice_loss, distance_mse, distance_msge
from stillroom.tasks.nuclei.measures import Counts, counted, dice, panoptic_quality
from tests.golden.check import HERE, Case, load_cases, run_case

FINE = (0, 2, 1, 2, 2, 2, 3)


def pixel_losses(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits, hv = inputs["logits"].requires_grad_(), inputs["hv_pred"].requires_grad_()
    truth = inputs["hv_true"].movedim(-1, 1)
    terms = {
        "cross_entropy": cross_entropy(logits, inputs["labels"], clamp=params["clamp"]),
        "dice": dice_loss(logits, inputs["labels"], smooth=params["dice_smooth"]),
        "hv_mse": distance_mse(hv.movedim(-1, 1), truth),
        "hv_msge": distance_msge(hv.movedim(-1, 1), truth, inputs["focus"], kernel=params["msge_kernel"]),
    }
    (grad_logits,) = torch.autograd.grad(terms["cross_entropy"] + terms["dice"], logits)
    (grad_hv,) = torch.autograd.grad(terms["hv_mse"] + terms["hv_msge"], hv)
    return {**terms, "grad_logits": grad_logits, "grad_hv": grad_hv}


def pseudo_label_and_mix(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    types = pseudo_labels(inputs["target_type_logits"], params["type_threshold"])
    nuclei = pseudo_labels(inputs["target_nucleus_logits"], params["nucleus_threshold"])
    shown = inputs["few_type"] * torch.isin(inputs["few_type"], torch.tensor(params["paste_classes"]))
    found = mix(Mixed(inputs["target_image"], nuclei, types), Mixed(inputs["few_image"], inputs["few_nucleus"], shown))
    mapped = {0: 0, **{int(fine): coarse for fine, coarse in params["taxonomy"].items()}}
    return {
        "pseudo_type": types,
        "pseudo_nucleus": nuclei,
        "mixed_image": found.images,
        "mixed_type": found.types,
        "mixed_nucleus": found.nuclei,
        "mixed_type_source": torch.tensor([mapped[fine] for fine in range(len(mapped))])[found.types],
    }


def gradient_ema(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    average = MovingAverage(tuple(inputs["values"].shape[1:]), params["momentum"])
    return {"averages": torch.stack([average(value) for value in inputs["values"]])}


def gradient_bank(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    sizes = {"statistics": statistics_sizes, "history": history_sizes}[params["kind"]](inputs["vectors"].shape[1])
    bank = GradientBank(
        inputs["vectors"].shape[1], params.get("capacity", sizes[0]), params.get("refresh_every", sizes[1]), params["energy"]
    )
    ready = []
    for vector in inputs["vectors"]:
        bank.update(vector)
        ready.append(bank.basis is not None)
    projector = bank(torch.eye(inputs["vectors"].shape[1], dtype=inputs["vectors"].dtype))
    return {"projector": projector, "rank": torch.tensor(bank.rank), "ready": torch.tensor(ready).long()}


def trajectory(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    width = inputs["np_weight"].shape[1]

    def bank(d: int) -> GradientBank:
        return GradientBank(d, *statistics_sizes(d), energy=0.98)

    options: dict[str, Any] = {"momentum": params["momentum"], "bank": bank}
    detach = params.get("detach_teacher", False)
    nuclei = CrossDomain(len(inputs["np_bias"]), width, detach=detach, **options)
    coarse = CrossDomain(len(inputs["type_source_bias"]), width, detach=detach, **options)
    fine = CrossClass(len(inputs["type_bias"]), width, params["reliable_classes"], params["new_classes"], **options)
    for stream, name in ((nuclei, "np"), (coarse, "tp_3"), (fine, "tp_6")):
        for moment in ("mean", "var"):
            stream.banks[moment].basis = inputs.get(f"projector_source_{name}_{moment}")
    mapping = params.get("taxonomy")
    tax = torch.tensor(FINE if mapping is None else [mapping.get(str(i), 0) for i in range(len(inputs["type_bias"]))])
    answer: dict[str, list[Tensor]] = {"terms": [], "grad_features_np": [], "grad_features_type": []}
    first: dict[str, Tensor] = {}
    for step in range(len(inputs["features_np"])):
        features_np, features_type = (inputs[f"features_{name}"][step].requires_grad_() for name in ("np", "type"))
        np_logits, coarse_logits, fine_logits = (
            conv2d(features, inputs[f"{head}_weight"][:, :, None, None], inputs[f"{head}_bias"])
            for features, head in ((features_np, "np"), (features_type, "type_source"), (features_type, "type"))
        )
        half = len(features_np) // 2
        np_labels = torch.cat((inputs["np_source"][step], inputs["np_mix"][step]))
        type_labels = torch.cat((inputs["type_source"][step], tax[inputs["type_mix"][step]]))
        terms = params["weight"] * torch.stack(
            (
                nuclei(features_np, np_logits, np_labels),
                coarse(features_type, coarse_logits, type_labels),
                fine(features_type[half:], fine_logits[half:], inputs["type_mix"][step]),
            )
        )
        if not step:
            first["per_sample_np_gradient"] = head_gradients(features_np, np_logits, np_labels)[0].flatten(1)
            for moment, scale in (("mean", 1), ("var", 1000)):
                value = nuclei.averages[f"source_{moment}"].value
                first[f"np_source_{moment}"] = scale * nuclei.projected(moment, value, update=False)
        gradients = torch.autograd.grad(terms.sum(), (features_np, features_type))
        for name, value in zip(answer, (terms.detach(), *gradients), strict=True):
            answer[name].append(value)
    return {**first, **{name: torch.stack(values) for name, values in answer.items()}}


def history_gradient(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    return {"new_grad": reinforced(inputs["grad"], inputs["basis"], params["weight"])}


def history_steps(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    parameter = nn.Parameter(torch.zeros_like(inputs["grads"][0]))
    history = History([("w", parameter)], weight=params["weight"], energy=params["energy"])
    bank = history.banks["w"]
    assert isinstance(bank, GradientBank)
    found, ranks = [], []
    for gradient in inputs["grads"]:
        parameter.grad = gradient.clone()
        history.reinforce()
        found.append(parameter.grad)
        ranks.append(bank.rank)
    return {"new_grads": torch.stack(found), "rank": torch.tensor(ranks), "capacity": torch.tensor(bank.capacity)}


def bank_sizes(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    rule = {"statistics": statistics_sizes, "history": history_sizes}[params["kind"]]
    sizes = torch.tensor([rule(d) for d in inputs["size"].tolist()])
    return {"capacity": sizes[:, 0], "refresh_every": sizes[:, 1]}


def task_loss(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits = {name: inputs[name].requires_grad_() for name in inputs if name.startswith("logits")}
    none, tax = torch.empty(0), torch.tensor(FINE)
    hv = {name: inputs[f"hv_{name}"].movedim(-1, 1) for name in ("source", "source_true", "few", "few_true")}
    source = Answers(logits["logits_np_source"], hv["source"], logits["logits_type_source"], none)
    few = Answers(logits["logits_np_few"], hv["few"], logits["logits_type_coarse_few"], logits["logits_type_few"])
    mixed = Answers(logits["logits_np_mix"], none, logits["logits_type_coarse_mix"], logits["logits_type_mix"])
    supervised = source_loss(source, inputs["np_source"], inputs["type_source"], hv["source_true"])
    of_few = params["few_weight"] * few_loss(few, inputs["np_few"], inputs["type_few"], hv["few_true"])
    terms = mixed_losses(mixed, inputs["np_mix"], inputs["type_mix"], few, inputs["type_few"], tax)
    of_mix = params["mix_weight"] * sum(terms.values())
    loss = supervised + of_few + of_mix
    gradients = torch.autograd.grad(loss, list(logits.values()))
    return {
        "supervised_source": supervised,
        "supervised_few": of_few,
        "mixed": of_mix,
        "loss": loss,
        **{f"grad_{name}": gradient for name, gradient in zip(logits, gradients, strict=True)},
    }


def nuclei_metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    maps = [inputs[name].numpy() for name in ("true_instance", "true_type", "pred_instance", "pred_type")]
    options = {"match_iou": params["match_iou"], "radius": params["pair_radius"]}
    images = [counted(*one, params["classes"], **options) for one in zip(*maps, strict=True)]
    total = Counts(*(np.sum(parts, 0) for parts in zip(*(one.columns() for one in images), strict=True)))
    class_pq, class_dice, type_f1 = (np.nan_to_num(found) for found in (total.class_pq(), total.class_dice(), total.type_f1()))
    found = {
        "pq": np.mean([panoptic_quality(one.match) for one in images]),
        "class_pq": class_pq,
        "multi_pq": class_pq.mean(),
        "dice": np.mean([dice(one.pixels) for one in images]),
        "class_dice": class_dice,
        "detection_f1": total.detection_f1(),
        "type_accuracy": total.type_accuracy(),
        "type_f1": type_f1,
    }
    return {name: torch.as_tensor(value) for name, value in found.items()}


ADAPTERS = {
    "pixel_losses": pixel_losses,
    "pseudo_label_and_mix": pseudo_label_and_mix,
    "gradient_ema": gradient_ema,
    "gradient_bank": gradient_bank,
    "trajectory_distillation": trajectory,
    "trajectory_detached": trajectory,
    "history_gradient": history_gradient,
    "history_steps": history_steps,
    "bank_sizes": bank_sizes,
    "task_loss": task_loss,
    "nuclei_metrics": nuclei_metrics,
}


@pytest.mark.parametrize("case", load_cases(HERE / "05-otd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
