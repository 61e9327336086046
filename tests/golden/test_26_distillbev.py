"""DistillBEV against the reference vectors of its released code and of the specification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.distillbev.loss import TapLoss, Upsampled, Weights
from stillroom.methods.distillbev.regions import Regions, mistaken_cells, regions_of
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.lift_splat import depth_grid
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients

Inputs = dict[str, Tensor]


def regions_in(inputs: Inputs, params: dict[str, Any]) -> Regions:
    grid = BevGrid(tuple(params["x_range"]), tuple(params["y_range"]), params["cell"])
    assert (grid.ny, grid.nx) == (params["H"], params["W"])
    boxes = [inputs["boxes_xydxdyyaw"][inputs["box_sample"] == sample] for sample in range(params["batch"])]
    return regions_of(boxes, grid, sample="corner" if "corner" in params["sample_point"] else "center")


def masks(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    found = regions_in(inputs, params)
    return {"fg_mask": found.foreground, "fg_scale": found.foreground_scale, "bg_scale": found.background_scale}


def fp_region(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    foreground = inputs["fg_mask"].float()
    size = (foreground.shape[-2], foreground.shape[-1])
    heatmaps = (inputs["gt_heatmap"], inputs["teacher_heatmap_logits"], inputs.get("student_heatmap_logits"))
    cells = mistaken_cells(*heatmaps, size, mode=params["fp_mode"], threshold=params["fp_threshold"])
    blank = torch.zeros_like(foreground)
    found = Regions(foreground, blank, blank).with_mistaken(cells, params["fp_scale"])
    assert found.mistaken is not None
    assert found.mistaken_scale is not None
    return {"fp_mask": found.mistaken, "fp_scale": found.mistaken_scale, "bg_scale": found.background_scale}


def adapter_of(inputs: Inputs, params: dict[str, Any]) -> nn.Module:
    student, teacher = inputs["student_feat"].shape[1], inputs["teacher_feat"].shape[1]
    if "adapt_weight" in inputs:
        made: nn.Module = nn.Conv2d(student, teacher, 1)
        made.load_state_dict({"weight": inputs["adapt_weight"], "bias": inputs["adapt_bias"]})
        return made
    made = Upsampled(student, teacher, inputs["teacher_feat"].shape[-1] // inputs["student_feat"].shape[-1])
    layers = {place: layer for place, layer in enumerate(made) if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)}
    named = iter(f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "norm"))
    for layer, name in zip(layers.values(), named, strict=True):
        layer.weight.data.copy_(inputs[f"{name}_weight"])
        layer.bias.data.copy_(inputs[f"{name}_bias"])
    return made.train()


def loss(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    regions = regions_in(inputs, params)
    if params["fp_mode"] != "none":
        size = (params["H"], params["W"])
        heatmaps = (inputs["gt_heatmap"], inputs["teacher_heatmap_logits"], inputs.get("student_heatmap_logits"))
        cells = mistaken_cells(*heatmaps, size, mode=params["fp_mode"], threshold=params["fp_threshold"])
        regions = regions.with_mistaken(cells, params["fp_scale"])
    weights = Weights(params["w_fg"], params["w_bg"], params["w_fp"], params["w_spatial"], params.get("w_channel", 0.0))
    tap = TapLoss(
        weights,
        attention=params["attention"],
        temperature=params["tau_spatial"],
        channel_temperature=params["tau_channel"],
        channel_mask=params["channel_mask"],
    )
    tap.convolution.load_state_dict({"weight": inputs["spatial_weight"], "bias": inputs["spatial_bias"]})
    student = inputs["student_feat"].requires_grad_()
    terms = tap(adapter_of(inputs, params)(student), inputs["teacher_feat"], regions)
    total = sum(terms.values(), torch.zeros(()))
    answer = {"grad_student_feat": with_gradients(total, student=student)["grad_student"], "total": total}
    names = {"foreground": "kd_fg", "background": "kd_bg", "attention": "kd_spatial", "mistaken": "kd_fp", "channels": "kd_channel"}
    answer |= {names[name]: term for name, term in terms.items()}
    if regions.mistaken is not None and regions.mistaken_scale is not None:
        answer |= {"fp_mask": regions.mistaken, "fp_scale": regions.mistaken_scale}
    # The released code's sums are written as [1], those of the page, whose samples may be empty, as [].
    empty = len(inputs["box_sample"].unique()) < params["batch"]
    return {name: value.detach().reshape(1) if not empty and value.ndim == 0 else value.detach() for name, value in answer.items()}


def depth(inputs: Inputs, params: dict[str, Any]) -> Inputs:
    size = (params["rows"], params["cols"])
    return {"grid": depth_grid(inputs["uv"], inputs["depth"], size, params["stride"], least=params["min_depth"], most=params["max_depth"])}


ADAPTERS = {
    "masks": masks,
    "fp_region": fp_region,
    "loss": loss,
    "loss_bevformer": loss,
    "loss_head_fp": loss,
    "loss_tap_upsample3": loss,
    "depth_grid": depth,
}


@pytest.mark.parametrize("case", load_cases(HERE / "26-distillbev.npz"), ids=str)
def test_reference_vectors(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
