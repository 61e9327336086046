"""Weights for the student from the teacher: by a fixed rule, or those that the learned masks leave."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape, ImageTower, Masks, TextTower, TowerShape
from stillroom.modules.clip_resnet import ResNetShape

State = Mapping[str, Tensor]
_LAYER = re.compile(r"^(?P<stage>.*\b(?:resblocks|layer\d+))\.(?P<layer>\d+)\.(?P<rest>.*)$")
_FUSED = ("attn.in_proj_weight", "attn.in_proj_bias")


# By a fixed rule ------------------------------------------------------------------------------------------------------------------------


def inherited(teacher: State, student: State, head_width: int | Mapping[str, int]) -> dict[str, Tensor]:
    """The student's tensors, from the teacher's (manual inheritance).

    Depth: student layer i has teacher layer i floor(L_teacher / L_student), in each stage of layers by itself. Width: the leading slice of
    every dimension; of the fused matrix of queries, keys and values the leading heads of each. Separate matrices have whole heads in
    their leading rows.

    Args:
        teacher: its state.
        student: tensors by name, for their shapes.
        head_width: d_h of both; by the beginnings of names where towers differ.

    Raises:
        InputError: a tensor that the teacher does not have, or that is larger than the teacher's.
    """
    depths, own_depths = _depths(teacher), _depths(student)
    found: dict[str, Tensor] = {}
    for name, wanted in student.items():
        source = name
        if match := _LAYER.match(name):
            stage, layer = match["stage"], int(match["layer"])
            step = depths.get(stage, 0) // own_depths[stage]
            source = f"{stage}.{layer * step}.{match['rest']}"
            if not step:
                raise InputError("student", f"{own_depths[stage]} layers in {stage}", f"at most the teacher's {depths.get(stage, 0)}")
        if source not in teacher:
            raise InputError("student", f"the tensor {name}", "tensors that the teacher has, too")
        given = teacher[source]
        if name.endswith(_FUSED):
            width = head_width if isinstance(head_width, int) else next(w for start, w in head_width.items() if name.startswith(start))
            given, shape = given.view(3, -1, width, *given.shape[1:]), (3, wanted.shape[0] // 3 // width, width, *wanted.shape[1:])
        else:
            shape = tuple(wanted.shape)
        if given.ndim != len(shape) or any(own > has for own, has in zip(shape, given.shape, strict=True)):
            raise InputError("student", f"{name} {list(wanted.shape)}", f"nothing larger than the teacher's {list(teacher[source].shape)}")
        found[name] = given[tuple(slice(size) for size in shape)].reshape(wanted.shape).clone()
    return found


def _depths(state: State) -> dict[str, int]:
    """Layers of each stage."""
    places = [match for match in map(_LAYER.match, state) if match]
    return {stage: 1 + max(int(m["layer"]) for m in places if m["stage"] == stage) for stage in {m["stage"] for m in places}}


def inherit(teacher: Clip, student: Clip) -> None:
    """Gives the student its weights from the teacher, by `inherited`.

    Raises:
        InputError: an image tower of another kind, heads of another width, another patch, vocabulary or activation, or as `inherited`.
    """
    of_teacher, of_student = teacher.shape, student.shape
    wanted, own = ("a ResNet" if isinstance(shape.image, ResNetShape) else "a transformer" for shape in (of_teacher, of_student))
    if own != wanted:
        raise InputError("student", f"{own} as the image tower", f"the teacher's, {wanted}")
    for name in ("patch", "vocabulary", "activation", "end", "image_size"):
        if getattr(of_teacher, name) != getattr(of_student, name):
            raise InputError("student", f"{name} {getattr(of_student, name)}", f"the teacher's, {getattr(of_teacher, name)}")
    for tower in ("image", "text"):
        width, of_heads = (getattr(shape, tower).head_width for shape in (of_student, of_teacher))
        if width != of_heads:
            raise InputError("student", f"heads of width {width} in the {tower} tower", f"the teacher's width, {of_heads}")
    widths = {"visual.": of_teacher.image.head_width, "text.": of_teacher.text.head_width}
    student.load_state_dict(inherited(teacher.state_dict(), student.state_dict(), widths))


# By masks -------------------------------------------------------------------------------------------------------------------------------


def pruned_shape(shape: TowerShape, masks: Masks) -> TowerShape:
    """What is left of a tower where masks are not 0."""
    heads, neurons = (tuple(int(z.count_nonzero()) for z in family) for family in (masks.heads, masks.neurons))
    return TowerShape(int(masks.hidden_D.count_nonzero()), shape.head_width, heads, neurons)


def pruned(clip: Clip, image_masks: Masks, text_masks: Masks, *, released: bool = False) -> Clip:
    """A smaller CLIP that answers as this one does under the masks: dropped channels, heads and neurons are gone, and what masks are left
    is in the weights.

    Args:
        clip: stays as it is.
        image_masks, text_masks: decided ones.
        released: as the released code: the projections are multiplied by the mask, which the masked forward pass does not do, so that
            embeddings move; and a layer without heads loses its attention's bias, too.
    """
    of = clip.shape
    image, text = of.transformers
    shapes = pruned_shape(image, image_masks), pruned_shape(text, text_masks)
    shape = ClipShape(*shapes, **{name: getattr(of, name) for name in of.__dataclass_fields__ if name not in ("image", "text")})
    small = Clip(shape)
    states: dict[str, Tensor] = {"logit_scale": clip.logit_scale.detach().clone()}
    for prefix, tower, masks in zip(("visual.", "text."), _towers(clip), (image_masks, text_masks), strict=True):
        states |= {f"{prefix}{name}": value for name, value in pruned_state(tower, masks, released=released).items()}
    if released:
        for tower in _towers(small):
            drop_empty_attention(tower)
    small.load_state_dict(states)
    return small.train(clip.training)


def _towers(clip: Clip) -> list[ImageTower | TextTower]:
    """Of images and texts, which have masks and so are transformers."""
    assert isinstance(clip.visual, ImageTower)
    return [clip.visual, clip.text]


def drop_empty_attention(tower: ImageTower | TextTower) -> None:
    """Takes the attention, with its bias, from layers that have no head."""
    for block in tower.transformer.blocks:
        if block.attn is not None and not block.attn.heads:
            block.attn = None


@torch.no_grad()
def pruned_state(tower: ImageTower | TextTower, masks: Masks, *, released: bool = False) -> dict[str, Tensor]:
    """The tensors of a tower after pruning, by their names; see `pruned`."""
    state, head_width = tower.state_dict(), tower.shape.head_width
    kept = masks.hidden_D.nonzero().flatten()
    z = masks.hidden_D[kept]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        match = _LAYER.match(name)
        if match is None:
            if name in ("proj", "text_projection"):
                found[name] = value[kept] * z[:, None] if released else value[kept]
            elif name == "conv1.weight":
                found[name] = value[kept] * z[:, None, None, None]
            elif name in ("class_embedding", "positional_embedding", "token_embedding.weight"):
                found[name] = value[..., kept] * z
            else:  # norms
                found[name] = value[kept]
            continue
        layer, rest = int(match["layer"]), match["rest"]
        z_H, z_F = masks.heads[layer], masks.neurons[layer]
        heads, neurons = z_H.nonzero().flatten(), z_F.nonzero().flatten()
        if rest in _FUSED:
            by_head = value.view(3, -1, head_width, *value.shape[1:])[:, heads].flatten(0, 2)
            found[name] = by_head[:, kept] if rest == "attn.in_proj_weight" else by_head
        elif rest == "attn.out_proj.weight":
            by_head = value.view(value.shape[0], -1, head_width)[kept][:, heads] * z[:, None, None] * z_H[heads, None]
            found[name] = by_head.flatten(1)
        elif rest == "mlp.c_fc.weight":
            found[name] = value[neurons][:, kept]
        elif rest == "mlp.c_fc.bias":
            found[name] = value[neurons]
        elif rest == "mlp.c_proj.weight":
            found[name] = value[kept][:, neurons] * z[:, None] * z_F[neurons]
        elif rest in ("attn.out_proj.bias", "mlp.c_proj.bias"):
            found[name] = value[kept] * z
        else:  # norms
            found[name] = value[kept]
        if released and rest.startswith("attn.") and not len(heads):
            del found[name]
    return found


# Into the next stage --------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def widen(state: State, full: nn.Module) -> None:
    """Writes a pruned model into the leading slices of a full-size one, in which all else becomes 0.

    Args:
        state: of the pruned model or tower.
        full: of the size that it had before it was pruned; its tensors are overwritten.
    """
    widths = {name: module.head_width for name, module in full.named_modules() if hasattr(module, "head_width")}
    for name, value in full.state_dict().items():
        value.zero_()
        if name not in state:
            continue
        given, place = state[name], value
        if name.endswith(_FUSED):
            width = widths[name.rpartition(".")[0]]
            given, place = (tensor.view(3, -1, width, *tensor.shape[1:]) for tensor in (given, value))
        place[tuple(slice(size) for size in given.shape)] = given
