"""TinyCLIP's losses, masks, pruning and inheritance against the reference vectors of ``06-tinyclip``."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.engine.schedule import Schedule
from stillroom.methods.tinyclip.affinity import mimicry
from stillroom.methods.tinyclip.inheritance import drop_empty_attention, inherited, pruned_state, widen
from stillroom.methods.tinyclip.masks import TowerMasks, keep_probability, sparsity_loss, target_sparsity
from stillroom.modules.clip import Clip, ClipShape, ImageTower, Masks, TextTower, TowerShape, Transformer, masked_norm
from stillroom.tasks.imagetext.contrast import own_among_all
from tests.golden.check import HERE, Case, load_cases, run_case

Inputs = dict[str, Tensor]
Params = dict[str, Any]


def below(inputs: Inputs, prefix: str) -> Inputs:
    return {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}


def gradients(total: Tensor, **of: Tensor) -> Inputs:
    found = torch.autograd.grad(total, list(of.values()), allow_unused=True, materialize_grads=True)
    return {f"grad_{name}": gradient for name, gradient in zip(of, found, strict=True)}


# Losses ---------------------------------------------------------------------------------------------------------------------------------


def affinity(inputs: Inputs, params: Params) -> Inputs:
    image, text = inputs["student_image"].requires_grad_(), inputs["student_text"].requires_grad_()
    log_scale = torch.tensor(math.log(params["student_scale"]), requires_grad=True)
    teacher, scales = (inputs["teacher_image"], inputs["teacher_text"]), (log_scale.exp(), params["teacher_scale"])
    first = mimicry(image, text, *teacher, *scales)
    second = mimicry(text, image, *teacher[::-1], *scales)
    loss = (first + second) / 2
    found = gradients(loss, student_image=image, student_text=text, log_student_scale=log_scale)
    return {"loss": loss, "image_to_text": first, "text_to_image": second, **found}


def contrastive(inputs: Inputs, params: Params) -> Inputs:
    image, text = inputs["image"].requires_grad_(), inputs["text"].requires_grad_()
    log_scale = torch.tensor(math.log(params["scale"]), requires_grad=True)
    loss = (own_among_all(image, text, 0, log_scale.exp()) + own_among_all(text, image, 0, log_scale.exp())) / 2
    return {"loss": loss, **gradients(loss, image=image, text=text, log_scale=log_scale)}


def over_ranks(inputs: Inputs, params: Params, *, mimic: bool) -> Inputs:
    """Each rank's loss of its own rows among everybody's; the gradients are of the sum."""
    world, rows = params["world_size"], params["rows_per_rank"]
    image, text = inputs["student_image"].requires_grad_(), inputs["student_text"].requires_grad_()
    log_scales = [torch.tensor(math.log(params["scale"]), requires_grad=True) for _ in range(world)]
    losses = []
    for rank in range(world):
        own, scale = slice(rank * rows, (rank + 1) * rows), log_scales[rank].exp()
        if mimic:
            teachers = inputs["teacher_image"], inputs["teacher_text"]
            there = mimicry(image[own], text, teachers[0][own], teachers[1], scale, params["scale"])
            back = mimicry(text[own], image, teachers[1][own], teachers[0], scale, params["scale"])
        else:
            there, back = own_among_all(image[own], text, rank * rows, scale), own_among_all(text[own], image, rank * rows, scale)
        losses.append((there + back) / 2)
    total = torch.stack(losses).sum()
    of_scales = torch.autograd.grad(total, log_scales, retain_graph=True)
    found = gradients(total, student_image=image, student_text=text)
    return {"loss_per_rank": torch.stack(losses), **found, "grad_log_scale_per_rank": torch.stack(of_scales)}


# Masks ----------------------------------------------------------------------------------------------------------------------------------

FAMILIES = {"hidden": "hidden_D", "heads": "heads_LH", "intermediate": "neurons_LF"}


def tower_masks(inputs: Inputs, params: Params, prefix: str = "") -> TowerMasks:
    shape = TowerShape.of(params["hidden"], params["layers"], params["heads"], params["intermediate"])
    masks = TowerMasks(shape)
    with torch.no_grad():
        for family, name in FAMILIES.items():
            getattr(masks, name).copy_(inputs[f"{prefix}{family}_loga"])
        for name in ("lambda_1", "lambda_2"):
            if f"{prefix}{name}" in inputs:
                getattr(masks, name).copy_(inputs[f"{prefix}{name}"])
    return masks


def as_released(masks: Masks, prefix: str) -> Inputs:
    """The released module's shapes."""
    heads, neurons = torch.stack(list(masks.heads)), torch.stack(list(masks.neurons))
    return {
        f"{prefix}_hidden_z": masks.hidden_D,
        f"{prefix}_heads_z": heads[:, None, :, None, None],
        f"{prefix}_intermediate_z": neurons[:, None, None, :],
    }


def masks(inputs: Inputs, params: Params) -> Inputs:
    tower = tower_masks(inputs, params)
    assert tower.full_size == params["prunable_size"]
    a = {family: getattr(tower, name) for family, name in FAMILIES.items()}
    wanted = target_sparsity(params["step"], params["start_sparsity"], params["target_sparsity"], params["sparsity_warmup"])
    loss, sparsity = sparsity_loss([tower], wanted)
    learned = {"lambda_1": tower.lambda_1, "lambda_2": tower.lambda_2, **{f"{family}_loga": value for family, value in a.items()}}
    found = {f"score_{family}": keep_probability(value) for family, value in a.items()}
    found |= {"expected_params": tower.expected_size(), "lagrangian": loss, "expected_sparsity": sparsity}
    found |= {"target_sparsity": torch.tensor(wanted), **gradients(loss, **learned), **as_released(tower.decide(), "eval")}
    drawn = tower.sample([inputs[f"u_{family}"] for family in FAMILIES])
    found |= as_released(drawn, "train")
    for family, z in zip(FAMILIES, (drawn.hidden_D, torch.stack(list(drawn.heads)), torch.stack(list(drawn.neurons))), strict=True):
        upstream = torch.linspace(-1, 1, z.numel()).view_as(z)
        found |= gradients((z * upstream).sum(), **{f"sampled_{family}_loga": a[family]})
    tower.clamp_()
    return {**found, **{f"{family}_loga_clamped": value.detach() for family, value in a.items()}}


def joint_sparsity(inputs: Inputs, params: Params) -> Inputs:
    towers, wanted = {}, []
    for side in ("image", "text"):
        of = params[side]
        towers[side] = tower_masks(below(inputs, f"{side}_"), of)
        with torch.no_grad():
            for multiplier, value in zip(towers[side].multipliers, params[f"{side}_lambda"], strict=True):
                multiplier.fill_(value)
        wanted.append(target_sparsity(params["step"], of["start"], of["target"], of["warmup"]))
    target = sum(wanted) / 2
    loss, sparsity = sparsity_loss(list(towers.values()), target)
    learned = {f"{side}_{family}_loga": getattr(tower, name) for side, tower in towers.items() for family, name in FAMILIES.items()}
    learned |= {f"{side}_{name}": getattr(tower, name) for side, tower in towers.items() for name in ("lambda_1", "lambda_2")}
    return {"loss": loss, "expected_sparsity": sparsity, "target_sparsity": torch.tensor(target), **gradients(loss, **learned)}


def masked_of_norm(inputs: Inputs, params: Params) -> Inputs:
    x = inputs["x"].requires_grad_()
    y = masked_norm(x, inputs["weight"], inputs["bias"], inputs["mask"], params["eps"])
    return {"y": y.detach(), **gradients((y * inputs["upstream"]).sum(), x=x)}


# Towers under masks, and pruned ---------------------------------------------------------------------------------------------------------


def clip_shape(image: TowerShape, text: TowerShape, **sizes: int) -> ClipShape:
    return ClipShape(image, text, **{"embedding": 6, "image_size": 8, "patch": 4, "context": 7, "vocabulary": 20, "end": 19, **sizes})


def fits_widths(state: Inputs, width: int, layers: int, head_width: int) -> TowerShape:
    """The shape that tensors of a tower say; a layer without attention has no head."""
    of = "transformer.resblocks.{}."
    heads = [state.get(of.format(i) + "attn.in_proj_bias", torch.empty(0)).numel() // 3 // head_width for i in range(layers)]
    return TowerShape(width, head_width, tuple(heads), tuple(len(state[of.format(i) + "mlp.c_fc.bias"]) for i in range(layers)))


class LargestId(TextTower):
    """Pools as the released code does."""

    def ends(self, tokens_BT: Tensor) -> Tensor:
        return tokens_BT.argmax(-1)


def masked_and_pruned(tower: ImageTower | TextTower, x: Tensor, masks: TowerMasks, small: Any) -> Inputs:
    z = masks.decide()
    state = pruned_state(tower, z, released=True)
    layers, width = tower.shape.layers, int(z.hidden_D.count_nonzero())
    less = small(fits_widths(state, width, layers, tower.shape.head_width))
    drop_empty_attention(less)
    less.load_state_dict(state)
    with torch.no_grad():
        found = {"features_masked": tower(x, z), "features_pruned": less(x)}
    return {**as_released(z, "mask"), **found, **{f"pruned.{name}": value for name, value in state.items()}}


def masked_vit(inputs: Inputs, params: Params) -> Inputs:
    neurons = int(params["width"] * params["mlp_ratio"])
    shape = TowerShape.of(params["width"], params["layers"], params["width"] // params["head_dim"], neurons)
    sizes = {"embedding": params["embed_dim"], "image_size": params["image"], "patch": params["patch"]}
    tower = ImageTower(clip_shape(shape, shape, **sizes))
    tower.load_state_dict(below(inputs, "w."))
    of = {"hidden": params["width"], "layers": params["layers"], "heads": shape.heads[0], "intermediate": neurons}
    return masked_and_pruned(tower, inputs["image"], tower_masks(inputs, of), lambda small: ImageTower(clip_shape(small, small, **sizes)))


def masked_text(inputs: Inputs, params: Params) -> Inputs:
    neurons = len(inputs["w.transformer.resblocks.0.mlp.c_fc.bias"])
    shape = TowerShape.of(params["width"], params["layers"], params["heads"], neurons)
    sizes = {"embedding": params["embed_dim"], "context": params["context"], "vocabulary": params["vocab"], "end": 0}
    tower = LargestId(clip_shape(shape, shape, **sizes))
    tower.load_state_dict({name: value for name, value in below(inputs, "w.").items() if not name.startswith("l0_module")})
    of = {"hidden": params["width"], "layers": params["layers"], "heads": params["heads"], "intermediate": neurons}
    masks = tower_masks(inputs, of, "w.l0_module.")
    return masked_and_pruned(tower, inputs["tokens"], masks, lambda small: LargestId(clip_shape(small, small, **sizes)))


# Inheritance ----------------------------------------------------------------------------------------------------------------------------


def inherit(inputs: Inputs, params: Params) -> Inputs:
    width, head_width = params["student_width"], params["head_dim"]
    heads = params.get("student_heads", width // head_width)
    shape = TowerShape(
        width, head_width, (heads,) * params["student_layers"], (int(width * params["mlp_ratio"]),) * params["student_layers"]
    )
    student = Transformer(shape, causal=False, activation="gelu")
    return {f"student.{name}": value for name, value in inherited(below(inputs, "teacher."), student.state_dict(), head_width).items()}


def inherit_vit(inputs: Inputs, params: Params) -> Inputs:
    width, layers = params["student_width"], params["student_layers"]
    shape = TowerShape.of(width, layers, width // params["head_dim"], int(width * params["mlp_ratio"]))
    sizes = {"embedding": params["embed_dim"], "image_size": params["image"], "patch": params["patch"]}
    student = {f"visual.{name}": value for name, value in ImageTower(clip_shape(shape, shape, **sizes)).state_dict().items()}
    found = inherited(below(inputs, "teacher."), student, params["head_dim"])
    return {f"student.{name}": value for name, value in found.items()}


def next_stage(inputs: Inputs, params: Params) -> Inputs:
    layers, head_width = params["layers"], params["head_dim"]
    full = TowerShape(params["full_width"], head_width, (params["heads"],) * layers, (params["intermediate"],) * layers)
    images, texts = below(inputs, "pruned._image_encoder.visual."), below(inputs, "pruned._text_encoder.")
    places, patches = len(texts["positional_embedding"]), len(images["positional_embedding"]) - 1
    patch = images["conv1.weight"].shape[-1]
    sizes = {"embedding": images["proj"].shape[1], "context": places, "vocabulary": len(texts["token_embedding.weight"]), "end": 0}
    clip = Clip(clip_shape(full, full, **sizes, image_size=patch * math.isqrt(patches), patch=patch))
    state = {f"visual.{name}": value for name, value in images.items()} | {f"text.{name}": value for name, value in texts.items()}
    widen(state, clip)
    found = {}
    for side, own in (("image", images), ("text", texts)):
        tower = TowerMasks(full)
        tower.start_from(fits_widths(own, len(own["positional_embedding"][0]), layers, head_width))
        found |= {f"{side}_{family}_loga": getattr(tower, name).detach() for family, name in FAMILIES.items()}
    for side, prefix in (("image", "visual."), ("text", "text.")):
        for name, value in below(clip.state_dict(), prefix).items():
            layer = re.match(r"transformer\.resblocks\.(\d+)\.(?:attn|mlp)\.(\w+)[._]weight", name)
            found[f"{side}_{layer[2]}_layer{layer[1]}" if layer else f"{side}_{name.removesuffix('_embedding')}"] = value
    return found


# Schedules ------------------------------------------------------------------------------------------------------------------------------


def rates(inputs: Inputs, params: Params) -> Inputs:
    start, warmup = params.get("start_steps", 0), params.get("warmup_length", 0)
    schedule, steps = Schedule("cosine", warmup_epochs=warmup), params["steps"] - start
    found = [schedule.rate(params["base_lr"], step=step - start, steps_per_epoch=1, epochs=steps) for step in inputs["steps"].tolist()]
    return {"lr": torch.tensor(found)}


ADAPTERS = {
    "affinity": affinity,
    "contrastive": contrastive,
    "affinity_multi_rank": lambda inputs, params: over_ranks(inputs, params, mimic=True),
    "contrastive_multi_rank": lambda inputs, params: over_ranks(inputs, params, mimic=False),
    "masks": masks,
    "joint_sparsity": joint_sparsity,
    "masked_norm": masked_of_norm,
    "masked_vit": masked_vit,
    "masked_text": masked_text,
    "inherit": inherit,
    "inherit_vit": inherit_vit,
    "next_stage": next_stage,
    "lr": rates,
    "lr_after_prune": rates,
}


@pytest.mark.parametrize("case", load_cases(HERE / "06-tinyclip.npz"), ids=str)
def test_reference(case: Case) -> None:
    outcome = run_case(case, ADAPTERS)
    assert outcome.passed, str(outcome)
