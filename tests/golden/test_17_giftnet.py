"""GiftNet, its baseline and its metrics against the reference vectors of ``17-giftnet``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.methods.giftnet.gift import Gift, global_vector, mask_at
from stillroom.methods.giftnet.relation import relation_losses
from stillroom.tasks.harmonization.metrics import foreground_mean, squared_errors
from stillroom.tasks.harmonization.recolouring import colour_map, mapped_colours
from stillroom.tasks.harmonization.supervised import foreground_mse
from stillroom.tasks.harmonization.unet import HarmonizationUNet, SeparatedAttention
from stillroom.tasks.images.quality import psnr, ssim_map
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def loaded(network: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """The network with those of the inputs that are its own, in eval mode; each of its tensors must be there, but for counters."""
    found = network.load_state_dict({name: inputs[name] for name in network.state_dict() if name in inputs}, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys), found.missing_keys
    return network.eval()


def fn_mse(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pred = inputs["pred"].requires_grad_()
    each = foreground_mse(pred, inputs["target"], inputs["mask"], params["min_area"])
    return {"loss_per_image": each.detach(), **with_gradients(each.mean(), pred=pred)}


def metrics(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    pred, target = (inputs[name].double().movedim(-1, 0)[None] for name in ("pred", "target"))
    mask = inputs["mask"].double()[None, None]
    mse, fmse = squared_errors(pred, target, mask)
    similar = ssim_map(pred, target, window=params["window"], sigma=params["sigma"], data_range=params.get("ssim_data_range"))
    found = {"mse": mse, "fmse": fmse, "psnr": psnr(pred, target), "ssim": similar.mean((1, 2, 3)), "fssim": foreground_mean(similar, mask)}
    return {name: value[0] for name, value in found.items()}


def polymap(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    mapped = mapped_colours(inputs["image"].numpy(), colour_map(inputs["src"].numpy(), inputs["tgt"].numpy()))
    return {"mapped": torch.from_numpy(mapped).to(torch.float32)}


def gift(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    feat, mask = inputs["feat"].requires_grad_(), inputs["mask"]
    blend, slope, epsilon = params.get("blend", "residual"), params["lrelu"], params["demod_eps"]
    module = Gift(feat.shape[1], inputs["bottleneck"].shape[1], blend=blend, slope=slope, epsilon=epsilon)
    names = {"w": "weight", "b": "bias", "A_w": "scale.weight", "A_b": "scale.bias"}
    state = {f"conv{number}.{name}": inputs[f"m{number}_{key}"] for number in (1, 2) for key, name in names.items()}
    module.load_state_dict({**state, "out.weight": inputs["out_w"][:, :, None, None], "out.bias": inputs["out_b"]})
    vector = global_vector(inputs["bottleneck"], mask, params.get("global_source", "all"))
    out = module(feat, vector, mask)
    grad_feat = torch.autograd.grad(out, feat, inputs["grad_out"])[0]
    return {"global": vector, "mask_level": mask_at(mask, feat), "out": out.detach(), "grad_feat": grad_feat}


def relation(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    levels = range(sum(name.startswith("student") for name in inputs))
    students = [inputs[f"student{level}"].requires_grad_() for level in levels]
    teachers = [inputs[f"teacher{level}"] for level in levels]
    each = relation_losses(students, teachers, inputs["mask"], grid=params["grid"], threshold=params["fg_threshold"])
    found = {f"loss_level{level}": each[level].detach() for level in levels}
    return found | with_gradients(each.mean(), **{f"student{level}": students[level] for level in levels})


def ssam_attention(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    feat = inputs["feat"].requires_grad_()
    out = loaded(SeparatedAttention(feat.shape[1], ratio=params["mid_ratio"]), inputs)(feat, inputs["mask"])
    return {"out": out.detach(), "grad_feat": torch.autograd.grad(out, feat, inputs["grad_out"])[0]}


def baseline_forward(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    network = loaded(HarmonizationUNet(params["width"], params["depth"], ratio=params["mid_ratio"]), inputs)
    picture, features = network.answer(torch.cat((inputs["image"], inputs["mask"]), 1))
    return {"out": picture, **{f"enc{level}": found for level, found in enumerate(features)}}


ADAPTERS = {
    "fn_mse": fn_mse,
    "metrics": metrics,
    "polymap": polymap,
    "gift": gift,
    "gift_options": gift,
    "relation": relation,
    "ssam_attention": ssam_attention,
    "baseline_forward": baseline_forward,
}


@pytest.mark.parametrize("case", load_cases(HERE / "17-giftnet.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
