"""FerKD, its label bank and the replay of its crops against the reference vectors of ``15-ferkd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine import Training
from stillroom.methods.ferkd import FerKD
from stillroom.methods.ferkd.adaptation import Thresholds, adapt
from stillroom.methods.ferkd.bank.labels import LabelFormat
from stillroom.methods.ferkd.crops import cut, pixel_boxes
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.mixing import Box, Mix, cutmix, cutmix_box, mixed, mixup, partner_rows
from stillroom.methods.ferkd.replay import CropEpochs
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def quant(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    form = LabelFormat.of(params["label_type"], params["num_classes"], "fp32")
    released = form.to_released(form.encode(inputs["probs"]))
    return {"quantised": released, "recovered": form.dense(form.from_released(released))}


def soft_ce(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    logits, labels = inputs["student_logits"].requires_grad_(), inputs["soft_label"].requires_grad_()
    loss = soft_cross_entropy(logits, labels, params.get("temperature", 1.0))
    return with_gradients(loss, student_logits=logits, soft_label=labels)


def crop_replay(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pixels = inputs["image"].to(torch.uint8)
    boxes, flips = inputs["coords"].numpy(), inputs["flip"].bool().numpy()
    image = to_pil_image(pixels.permute(2, 0, 1))
    crops = cut(image, boxes, flips, params["size"], params.get("interpolation", "bilinear"))
    sizes = torch.tensor(pixels.shape[:2]).expand(len(boxes), 2).numpy()
    return {"crops": crops.permute(0, 2, 3, 1), "box": torch.from_numpy(pixel_boxes(boxes, sizes))}


def cross_image(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    images, labels, partners = inputs["images"], inputs["soft_label"], inputs["perm"]
    box = None
    if params.get("mode", "cutmix" if "center_dim2" in params else "mixup") == "cutmix":
        box = cutmix_box((images.shape[2], images.shape[3]), params["lam"], (params["center_dim2"], params["center_dim3"]))
    images, labels = mixed(images, labels, partners, Mix(params["lam"], box))
    return {"mixed_images": images, "mixed_label": labels}


def adaptation(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    released = inputs["quantised"]
    form = LabelFormat.of(params.get("label_type", f"marginal_smoothing_k{released.shape[-1]}"), params["num_classes"], "fp32")
    thresholds = Thresholds(params["T_low"], params["T_mid"], params["T_top"])
    score = "max" if params.get("score", "max") == "max" else "truth"
    new = adapt(form.from_released(released), form, inputs["target"], thresholds, epsilon=params["epsilon"], score=score)
    return {
        "score": new.score,
        "category": new.categories,
        "keep": new.keep,
        "adapted": new.format.dense(new.labels),
        "adapted_quantised": new.format.to_released(new.labels),
    }


def selfmix(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    images, labels, partners = inputs["images"], inputs["soft_label"], partner_rows(inputs["partner"])
    share = params.get("lam")
    if params["mode"] == "mixup":
        images, labels = mixup(images, labels, partners, share)
    else:
        top, bottom, left, right = params["box_top_bottom_left_right"]
        images, labels, share = cutmix(images, labels, partners, Box(top, bottom, left, right))
    return {"mixed_images": images, "mixed_label": labels, "lam_used": torch.tensor(share)}


def epochs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    warmup = params.get("warmup_epochs", 0)
    passes = CropEpochs(params["epochs"], params["num_crops"], warmup).passes()
    distiller = FerKD(nn.Identity(), None, num_crops=params["num_crops"], single_first=warmup)
    distiller.plan = Training(epochs=params["epochs"], lr=params["lr"], schedule="cosine")
    rates = []
    for visit in passes:  # asked for at the end of each pass, which began with it
        distiller.at(10 * (visit.epoch + visit.crops) - 1, steps_per_epoch=10, epochs=params["epochs"])
        rates.append(distiller.rate(params["lr"]))
    return {
        "epoch": torch.tensor([visit.epoch for visit in passes]),
        "single_crop": torch.tensor([visit.single for visit in passes]),
        "lr": torch.tensor(rates),
    }


ADAPTERS = {
    "quant": quant,
    "soft_ce": soft_ce,
    "crop_replay": crop_replay,
    "mixup": cross_image,
    "cutmix": cross_image,
    "adapt": adaptation,
    "selfmix": selfmix,
    "epochs": epochs,
}


@pytest.mark.parametrize("case", load_cases(HERE / "15-ferkd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
