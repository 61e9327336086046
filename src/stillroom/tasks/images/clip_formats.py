"""CLIPs of other programs: transformers' ``CLIPModel`` folders and open_clip's state dicts, read and written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.engine.run.written import write_atomic
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape, TowerShape
from stillroom.modules.clip_resnet import CELL, ResNetShape
from stillroom.tasks.images.tokens import Tokenizer

State = dict[str, Tensor]
STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # that OpenAI's and open_clip's weights read
HEAD_WIDTH = 64  # of every CLIP whose file does not say it
_OLD_END = 2  # a configuration's word for the end token that transformers itself does not believe

# transformers' names ---------------------------------------------------------------------------------------------------------------------

_TOWERS = (("visual.", "vision_model."), ("text.", "text_model."))
_OUTSIDE = {  # ours: theirs
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TURNED = ("visual.proj", "text.text_projection")  # they keep the matrix of a linear layer
# What a configuration means where it says nothing.
_IMAGE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 32,
          "image_size": 224, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
_TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 49408,
         "max_position_embeddings": 77, "eos_token_id": 49407, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip


def transformers_shape(config: Mapping[str, Any], end: int | None, argument: str) -> ClipShape:
    """The sizes that the ``config.json`` of a CLIPModel says.

    Args:
        config: its content.
        end: the end token's id, where a tokenizer knows it.
        argument: what errors call the model.

    Raises:
        InputError: it is of another kind of model, or one that these towers are not.
    """
    if config.get("model_type") != "clip":
        raise InputError(argument, f"a configuration of the kind {config.get('model_type')}", "a CLIPModel of transformers (kind clip)")
    image = {**_IMAGE, **(config.get("vision_config") or {})}
    text = {**_TEXT, **(config.get("text_config") or {})}
    for name in ("hidden_act", "layer_norm_eps"):
        if image[name] != text[name]:
            raise InputError(argument, f"{name} {image[name]} and {text[name]}", "one for both towers")
    if end is None:
        end = text["vocab_size"] - 1 if text["eos_token_id"] in (_OLD_END, None) else text["eos_token_id"]

    def tower(of: Mapping[str, Any]) -> TowerShape:
        return TowerShape.of(of["hidden_size"], of["num_hidden_layers"], of["num_attention_heads"], of["intermediate_size"])

    return ClipShape(
        image=tower(image),
        text=tower(text),
        embedding=config.get("projection_dim", 512),
        image_size=image["image_size"],
        patch=image["patch_size"],
        context=text["max_position_embeddings"],
        vocabulary=text["vocab_size"],
        end=int(end),
        activation=image["hidden_act"],
        norm_eps=image["layer_norm_eps"],
    )


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """A CLIPModel's tensors by our names. Those that are missing are missing in the answer, too."""
    found = {ours: state[theirs].T if ours in _TURNED else state[theirs] for ours, theirs in _OUTSIDE.items() if theirs in state}
    for ours, theirs in _TOWERS:
        layers = {int(match[1]) for name in state if (match := re.match(rf"{re.escape(theirs)}encoder\.layers\.(\d+)\.", name))}
        for layer in layers:
            own, other = f"{ours}transformer.resblocks.{layer}.", f"{theirs}encoder.layers.{layer}."
            for kind in ("weight", "bias"):
                found |= {f"{own}{a}.{kind}": state[f"{other}{b}.{kind}"] for a, b in _INSIDE.items() if f"{other}{b}.{kind}" in state}
                parts = [state[name] for part in "qkv" if (name := f"{other}self_attn.{part}_proj.{kind}") in state]
                if len(parts) == 3:
                    found[f"{own}attn.in_proj_{kind}"] = torch.cat(parts)
    return found


def to_transformers(clip: Clip) -> State:
    """Our tensors by the names of a CLIPModel, whose layers are all alike."""
    state = {name: value.detach() for name, value in clip.state_dict().items()}
    found = {theirs: state[ours].T.contiguous() if ours in _TURNED else state[ours] for ours, theirs in _OUTSIDE.items()}
    for (ours, theirs), tower in zip(_TOWERS, clip.shape.transformers, strict=True):
        for layer in range(tower.layers):
            own, other = f"{ours}transformer.resblocks.{layer}.", f"{theirs}encoder.layers.{layer}."
            for kind in ("weight", "bias"):
                found |= {f"{other}{b}.{kind}": state[f"{own}{a}.{kind}"] for a, b in _INSIDE.items()}
                parts = state[f"{own}attn.in_proj_{kind}"].chunk(3)
                found |= {f"{other}self_attn.{part}_proj.{kind}": value for part, value in zip("qkv", parts, strict=True)}
    return found


def transformers_config(shape: ClipShape, start: int | None) -> dict[str, Any]:
    """The ``config.json`` of a CLIPModel of these sizes, whose layers are all alike."""

    def tower(of: TowerShape) -> dict[str, Any]:
        sizes = {"hidden_size": of.width, "num_hidden_layers": of.layers, "num_attention_heads": of.heads[0]}
        more = {"hidden_act": shape.activation, "layer_norm_eps": shape.norm_eps, "projection_dim": shape.embedding}
        return {**sizes, "intermediate_size": of.neurons[0], **more}

    ends = {"bos_token_id": start, "eos_token_id": shape.end, "pad_token_id": shape.end}
    image, text = shape.transformers
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": shape.embedding,
        "vision_config": {**tower(image), "patch_size": shape.patch, "image_size": shape.image_size},
        "text_config": {**tower(text), "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context, **ends},
    }


def write_transformers(folder: Path, clip: Clip, tokenizer: Tokenizer | None, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Writes a folder that ``CLIPModel.from_pretrained`` and ``CLIPProcessor.from_pretrained`` read.

    Raises:
        InputError: its image tower is a ResNet, its layers differ in heads or neurons, or its heads do not fill the width: that is no
            CLIPModel.
    """
    shape = clip.shape
    if not shape.ordinary:
        raise InputError("clip", "a ResNet, or layers of unlike heads or neurons", "an ordinary CLIP, for transformers")
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)
    start = None if tokenizer is None else tokenizer.start
    write_atomic(folder / "config.json", json.dumps(transformers_config(shape, start), indent=1))
    side = shape.image_size
    prepared = {"image_processor_type": "CLIPImageProcessor", "image_mean": list(mean), "image_std": list(std), "resample": 3}
    prepared |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    prepared |= dict.fromkeys(("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb"), True)
    write_atomic(folder / "preprocessor_config.json", json.dumps(prepared, indent=1))
    save_weights(to_transformers(clip), folder / "model.safetensors")


def read_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel that ``preprocessor_config.json`` says; None where there is none."""
    try:
        content = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return tuple(map(float, content["image_mean"])), tuple(map(float, content["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


# open_clip's names -----------------------------------------------------------------------------------------------------------------------

_POOLED = "visual.attnpool.positional_embedding"  # that a ResNet has
_IN_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


def from_open_clip(state: Mapping[str, Tensor]) -> State:
    """The tensors of open_clip's ``CLIP`` or ``CustomTextCLIP``, or of OpenAI's, by our names; what is no weight is left out."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    renamed = {f"text.{name}" if name.startswith(_IN_TEXT) else name: value for name, value in plain.items()}
    return {name: value for name, value in renamed.items() if name.startswith(("visual.", "text.")) or name == "logit_scale"}


def to_open_clip(clip: Clip) -> State:
    """Our tensors by the names of open_clip's ``CLIP``."""
    return {name.removeprefix("text."): value.detach() for name, value in clip.state_dict().items()}


def shape_of(state: Mapping[str, Tensor], argument: str, *, config: Mapping[str, Any] | None = None, **known: Any) -> ClipShape:
    """The sizes that tensors by our names have.

    Args:
        state: the weights.
        argument: what errors call them.
        config: of open_clip (``open_clip_config.json``), which knows the heads and the activation.
        known: of `ClipShape`, in the place of what is guessed: ``activation``, ``end``; and ``head_width``.

    Raises:
        InputError: they are no CLIP's whose image tower is a vision transformer or CLIP's ResNet.
    """
    of = (config or {}).get("model_cfg", {})
    try:
        vocabulary, text_width = state["text.token_embedding.weight"].shape
        head_width = known.get("head_width", HEAD_WIDTH)
        of_image = of.get("vision_cfg", {}).get("head_width", head_width)
        of_text = text_width // heads if (heads := of.get("text_cfg", {}).get("heads")) else head_width

        def tower(prefix: str, width: int, head_width: int) -> TowerShape:
            blocks = f"{prefix}.transformer.resblocks."
            layers = 1 + max(int(name[len(blocks) :].partition(".")[0]) for name in state if name.startswith(blocks))
            heads = [len(state[f"{blocks}{layer}.attn.in_proj_bias"]) // 3 // head_width for layer in range(layers)]
            return TowerShape(width, head_width, tuple(heads), tuple(len(state[f"{blocks}{i}.mlp.c_fc.bias"]) for i in range(layers)))

        image: TowerShape | ResNetShape
        if _POOLED in state:
            image, patch, places = _resnet_shape(state, of_image), CELL, len(state[_POOLED])
        else:
            places, width = state["visual.positional_embedding"].shape
            image, patch = tower("visual", width, of_image), state["visual.conv1.weight"].shape[-1]
        return ClipShape(
            image=image,
            text=tower("text", text_width, of_text),
            embedding=state["text.text_projection"].shape[1],
            image_size=math.isqrt(places - 1) * patch,
            patch=patch,
            context=len(state["text.positional_embedding"]),
            vocabulary=vocabulary,
            end=known.get("end", vocabulary - 1),
            activation=known.get("activation") or ("quick_gelu" if of.get("quick_gelu") else "gelu"),
        )
    except InputError as error:
        raise InputError(argument, f"weights whose {error.argument} is {error.got}", error.expected) from None
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(argument, f"weights without {error}", "those of a CLIP with a transformer or CLIP's ResNet for images") from None


def _resnet_shape(state: Mapping[str, Tensor], head_width: int) -> ResNetShape:
    """Of CLIP's ResNet, by its tensors; KeyError where one is missing."""
    blocks = [len({name.split(".")[2] for name in state if name.startswith(f"visual.layer{stage}.")}) for stage in range(1, 5)]
    return ResNetShape(len(state["visual.layer1.0.conv1.weight"]), tuple(blocks), head_width)
