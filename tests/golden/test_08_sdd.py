"""SDD against the reference vectors of ``08-sdd``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from stillroom.methods.sdd.gradient import guided_noise, injected, resized, sds_gradient
from stillroom.methods.sdd.hqs import gradient_entropy, gradient_l1, hybrid_quality, indicator_values, selected
from stillroom.methods.sdd.mapper import LevelsMapper, Mapper, StyleMapper, code_l2, edited
from stillroom.methods.sdd.regularisers import identity_loss
from stillroom.tasks.editing.diffusion import add_noise, alphas_cumprod
from tests.golden.check import HERE, Case, load_cases, run_case, with_gradients


def schedule(params: dict[str, Any]) -> Tensor:
    kind = params.get("schedule", "scaled_linear")
    return alphas_cumprod(params.get("T", 1000), params["beta_start"], params["beta_end"], kind)


def sds(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    image, abar = inputs["image"].requires_grad_(), schedule(params)[params["t"]]
    shown = resized(image, params["resize"], unit_range=params["input_01"])
    latents = params["latent_scale"] * conv2d(avg_pool2d(shown, params["pool"]), inputs["enc_weight"], inputs["enc_bias"])
    noise, weight = inputs["noise"], params["loss_weight"]
    noisy = add_noise(latents.detach(), noise, abar)
    eps_hat = guided_noise(inputs["eps_uncond"], inputs["eps_cond"], noisy, abar, params["guidance_scale"])
    gradient = sds_gradient(eps_hat, noise, abar, loss_weight=weight, top_k=params["topk"])
    grad_image, grad_latents = torch.autograd.grad(injected(gradient, latents), [image, latents])
    return {
        "latents": latents,
        "noisy_latents": noisy,
        "grad_latents": grad_latents,
        "grad_image": grad_image,
        "loss_value": weight * (eps_hat - noise).square().mean(),
    }


def alpha_bar(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    abar = schedule(params)[inputs["t"]]
    return {"alpha_bar": abar, "one_minus": 1 - abar}


def entropy(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    gradients = inputs["abs_grad"]
    found = gradient_entropy(gradients)
    return {"entropy": found, "mean_abs": gradient_l1(gradients) / gradients[0].numel(), "entropy_batch_sum": found.sum()}


def hqs(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    entropy_NT, l1_NT, grid = inputs["entropy"], inputs["l1"], inputs["timesteps"]
    values = hybrid_quality(entropy_NT, l1_NT)
    least = selected(indicator_values("entropy", entropy_NT, l1_NT), grid, "min")
    return {
        "hqs": values,
        "best_t": selected(values, grid, "max")[0],
        "t_set": selected(values, grid, "above", params["xi"]),
        "min_entropy_t": least[0],
    }


def select_rule(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    values = indicator_values(params["indicator"], inputs["entropy"], inputs["l1"])
    return {"indicator": values, "timesteps_selected": selected(values, inputs["timesteps"], params["rule"], params["threshold"])}


def hqs_gradients(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    entropy_NT, l1_NT = gradient_entropy(inputs["abs_grad"]), gradient_l1(inputs["abs_grad"])
    values = hybrid_quality(entropy_NT, l1_NT)
    return {"entropy": entropy_NT, "l1": l1_NT, "hqs": values, "best_t": selected(values, inputs["timesteps"], "max")[0]}


def mapper(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    codes = inputs["x"].requires_grad_()
    options = {"rate": params["lr_mul"], "slope": params["negative_slope"], "gain": params["act_gain"]}
    norm = {"norm_dim": params["norm_dim"], "norm_eps": params["norm_eps"]}
    levels = params["levels_coarse_medium_fine"]
    width = codes.shape[-1]
    network = (
        Mapper(width, **norm, **options)
        if levels is None
        else LevelsMapper(width, levels=levels, division=tuple(params["division"]), **norm, **options)
    )
    network.load_state_dict({key.removeprefix("param:"): value for key, value in inputs.items() if key.startswith("param:")})
    delta = network(codes)
    return {"delta": delta, "grad_x": torch.autograd.grad(delta, codes, inputs["grad_out"])[0]}


def identity(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    emb_edited = inputs["emb_edited"].requires_grad_()
    return with_gradients(identity_loss(emb_edited, inputs["emb_source"], params["loss_weight"]), emb_edited=emb_edited)


def v_teacher(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    abar, noise = schedule(params)[params["t"]], inputs["noise"]
    noisy = add_noise(inputs["latents"], noise, abar)
    eps_hat = guided_noise(inputs["v_uncond"], inputs["v_cond"], noisy, abar, params["guidance_scale"], "v_prediction")
    gradient = sds_gradient(eps_hat, noise, abar, loss_weight=params["loss_weight"], top_k=params["topk"])
    return {"noisy_latents": noisy, "eps_hat": eps_hat, "grad_latents": gradient}


def l2_of_codes(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    count = sum(name.startswith("before") for name in inputs)
    before = [inputs[f"before{k}"] for k in range(count)]
    offsets = {f"delta{k}": inputs[f"delta{k}"].requires_grad_() for k in range(count)}
    after = edited(before, list(offsets.values()), params["latent_weight"])
    codes = (before[0], after[0]) if params["space"] == "W+" else (before, after)
    loss = code_l2(*codes, params["weight"])
    return with_gradients(loss, **offsets) | {f"after{k}": value.detach() for k, value in enumerate(after)}


ADAPTERS = {
    "sds": sds,
    "alpha_bar": alpha_bar,
    "entropy": entropy,
    "hqs": hqs,
    "mapper": mapper,
    "id": identity,
    "select_rule": select_rule,
    "v_teacher": v_teacher,
    "code_l2": l2_of_codes,
    "hqs_gradients": hqs_gradients,
}


@pytest.mark.parametrize("case", load_cases(HERE / "08-sdd.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)


def test_style_mapper_leaves_skipped_vectors_as_they_are() -> None:
    offsets = StyleMapper([4, 6], skip=[1])([torch.randn(2, 4), torch.randn(2, 6)])
    assert offsets[0].any()
    assert not offsets[1].any()
