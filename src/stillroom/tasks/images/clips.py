"""CLIPs at hand: opened from wherever they are, and ready to answer for images and for texts.

A CLIP is named by

- a folder of transformers' ``CLIPModel``;
- a run's folder or stage of the task imagetext, or its ``clip`` folder;
- a file of open_clip's weights, or a folder with ``open_clip_config.json``; behind a file may stand ``,activation=quick_gelu`` (OpenAI's
  weights, which do not say it), ``,head_width=64`` and ``,tokenizer=FOLDER``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.engine.card import NAME as CARD
from stillroom.engine.card import read_card
from stillroom.engine.run.written import write_atomic
from stillroom.engine.weights import load_weights, read_weights, save_weights
from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape
from stillroom.tasks.images.clip_formats import (
    STATISTICS,
    from_open_clip,
    from_transformers,
    read_statistics,
    shape_of,
    transformers_shape,
    write_transformers,
)
from stillroom.tasks.images.sources import split_options
from stillroom.tasks.images.tokens import Tokenizer, read_tokenizer

TASK = "imagetext"  # what `student.json` calls the task whose students are CLIPs
OWN = "clip.json"  # sizes and statistics, in a folder that no other program's form fits
TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "art of the {}.",
    "a {} in a video game.",
)
_CONFIG, _OPEN_CLIP = "config.json", "open_clip_config.json"
_OPTIONS = ("activation", "head_width", "tokenizer")
_MODEL_FILE = Path(__file__).with_name("small_clip.py")
_TOGETHER = 256  # texts that are encoded at a time


@dataclass(frozen=True)
class OpenedClip:
    """A CLIP and what belongs to it.

    Attributes:
        clip: the model, in eval mode, on the CPU.
        tokenizer: None where none is at hand.
        mean, std: of each channel, that its images are normalised with.
        source: where it was found, for messages and reports.
        notes: what had to be guessed, a clause each.
    """

    clip: Clip
    tokenizer: Tokenizer | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageText:
    """A CLIP, ready to answer.

    Attributes:
        image: normalised pixels [B, 3, H, W] -> embeddings [B, D], not of unit length.
        encode_texts: texts -> embeddings [n, D], not of unit length, on the device that `image` is on, without gradient.
        image_size: H and W.
        mean, std: that pixels in [0, 1] are normalised with.
        scale: what cosines are multiplied with.
        source: for messages.
    """

    image: nn.Module
    encode_texts: Callable[[Sequence[str]], Tensor]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    source: str


def open_clip(folder_or_spec: str | Path, *, trust_pickle: bool = False, argument: str = "clip") -> ImageText:
    """A CLIP that answers for images and texts; see the module's docstring for how it is named.

    Raises:
        InputError: none is there, its weights do not fit it, or it has no tokenizer; with `trust_pickle` pickles are read, too.
    """
    opened = read_clip(str(folder_or_spec), trust_pickle=trust_pickle, argument=argument)
    if opened.tokenizer is None:
        expected = "a tokenizer beside it (tokenizer.json, or vocab.json and merges.txt), or ,tokenizer=FOLDER"
        raise InputError(argument, str(folder_or_spec), expected)
    return ready(opened.clip, opened.tokenizer, opened.mean, opened.std, opened.source)


def ready(clip: Clip, tokenizer: Tokenizer, mean: tuple[float, ...], std: tuple[float, ...], source: str) -> ImageText:
    """A CLIP in memory, ready to answer."""

    @torch.no_grad()
    def encode_texts(texts: Sequence[str]) -> Tensor:
        device = clip.logit_scale.device
        tokens = tokenizer(list(texts)).to(device)
        return torch.cat([clip.text(part) for part in tokens.split(_TOGETHER)])

    return ImageText(clip.visual, encode_texts, clip.shape.image_size, mean, std, float(clip.scale.detach()), source)


def class_embeddings(clip: ImageText, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Where classes lie among the embeddings, [C, D] of unit length: each the mean over the templates of its texts' embeddings, which are
    brought to unit length before and after.

    Args:
        clip: whose texts.
        classes: their names.
        templates: texts with ``{}`` where the name goes.

    Raises:
        InputError: no class, one without a name, or a template without its place.
    """
    prompts = [prompt for name in checked_classes(classes) for prompt in filled(templates, name)]
    each_CPD = normalize(clip.encode_texts(prompts), dim=-1).unflatten(0, (len(classes), len(templates)))
    return normalize(each_CPD.mean(1), dim=-1)


def checked_classes(classes: Sequence[str], argument: str = "classes") -> Sequence[str]:
    """The classes' names; InputError for none at all, or an empty one."""
    if not classes or not all(name.strip() for name in classes):
        raise InputError(argument, f"{list(classes)}", "names of classes, none of them empty")
    return classes


def filled(templates: Sequence[str], name: str) -> list[str]:
    """A class's prompts; InputError for a template without a place for it, or none at all."""
    for template in templates or ("",):
        if "{}" not in template:
            raise InputError("templates", repr(template), "texts with {} where the class's name goes")
    return [template.replace("{}", name) for template in templates]


def write_clip(folder: Path, clip: Clip, tokenizer: Tokenizer | None, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Writes a CLIP for other programs, and for `read_clip`: a folder of transformers' where it has no ResNet and its layers are all alike;
    else our own form, ``clip.json`` beside ``model.safetensors``, with a small model file that reads it and needs nothing but torch and
    safetensors."""
    if clip.shape.ordinary:
        write_transformers(folder, clip, tokenizer, mean, std)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)
    write_atomic(folder / OWN, json.dumps({"shape": clip.shape.to_json(), "mean": list(mean), "std": list(std)}, indent=1))
    write_atomic(folder / _MODEL_FILE.name, _MODEL_FILE.read_text(encoding="utf-8"))
    save_weights(clip, folder / "model.safetensors")


# Reading --------------------------------------------------------------------------------------------------------------------------------


def names_clip(spec: str) -> bool:
    """Whether a specification names a CLIP that is at hand: by a file or a folder."""
    path = Path(split_options(spec, "clip")[0]).expanduser()
    return path.is_file() or any((path / name).is_file() for name in (CARD, OWN, _CONFIG, _OPEN_CLIP))


def read_clip(spec: str, *, trust_pickle: bool = False, argument: str = "clip") -> OpenedClip:
    """The model that a specification names, with its weights; see the module's docstring.

    Raises:
        InputError: none is there, an option that it has not, or weights that do not fit.
    """
    typed, options = split_options(spec, argument)
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise InputError(argument, f"{unknown[0]}={options[unknown[0]]}", f"one of the options {', '.join(_OPTIONS)}")
    path = Path(typed.removesuffix("@best")).expanduser()
    if (path / CARD).is_file():
        return _of_run(typed, trust_pickle, argument)
    if (path / OWN).is_file():
        return _of_own(path, trust_pickle, argument)
    if path.is_dir() and not (path / _OPEN_CLIP).is_file():
        return _of_transformers(path, trust_pickle, argument)
    if path.exists():
        return _of_open_clip(path, options, trust_pickle, argument)
    raise InputError(argument, spec, "a folder of a transformers CLIPModel or of a run, or a file of open_clip's weights, that exists")


def _of_transformers(folder: Path, trust_pickle: bool, argument: str) -> OpenedClip:
    config = _json(folder / _CONFIG, argument)
    context = (config.get("text_config") or {}).get("max_position_embeddings", 77)
    tokenizer = read_tokenizer(folder, context, argument)
    shape = transformers_shape(config, None if tokenizer is None else tokenizer.end, argument)
    state = from_transformers(read_weights(folder, trust_pickle=trust_pickle, argument=argument))
    return _opened(shape, state, tokenizer, read_statistics(folder), str(folder), [], argument)


def _of_open_clip(path: Path, options: dict[str, str], trust_pickle: bool, argument: str) -> OpenedClip:
    folder = path if path.is_dir() else path.parent
    config = _json(folder / _OPEN_CLIP, argument) if (folder / _OPEN_CLIP).is_file() else None
    state = from_open_clip(read_weights(path, trust_pickle=trust_pickle, argument=argument))
    notes, known = [], dict[str, Any](options)
    if (width := known.pop("head_width", None)) is not None:
        if not width.isdecimal() or not int(width):
            raise InputError(argument, f"head_width={width}", "a number of channels from 1")
        known["head_width"] = int(width)
    place = Path(known.pop("tokenizer", folder)).expanduser()
    positions = state.get("text.positional_embedding", torch.empty(2, 0))
    tokenizer = read_tokenizer(place, len(positions), argument)
    if tokenizer is not None:
        known["end"] = tokenizer.end
    if config is None and "activation" not in known:
        notes.append("the file does not say its activation: GELU is taken; with OpenAI's weights say ,activation=quick_gelu")
    shape = shape_of(state, argument, config=config, **known)
    statistics = (config or {}).get("preprocess_cfg", {})
    read = (tuple(statistics["mean"]), tuple(statistics["std"])) if {"mean", "std"} <= statistics.keys() else STATISTICS
    return _opened(shape, state, tokenizer, read, str(path), notes, argument)


def _of_own(folder: Path, trust_pickle: bool, argument: str) -> OpenedClip:
    content = _json(folder / OWN, argument)
    try:
        shape = ClipShape.from_json(content["shape"])
        statistics = tuple(map(float, content["mean"])), tuple(map(float, content["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(argument, str(folder / OWN), "JSON with shape, mean and std") from error
    tokenizer = read_tokenizer(folder, shape.context, argument)
    state = read_weights(folder / "model.safetensors", trust_pickle=trust_pickle, argument=argument)
    return _opened(shape, state, tokenizer, statistics, str(folder), [], argument)


def _of_run(folder: str, trust_pickle: bool, argument: str) -> OpenedClip:
    card = read_card(folder, trust_pickle=trust_pickle, argument=argument)
    if card.task != TASK:
        raise InputError(argument, f"{folder}, a student of {card.task}", f"one of {TASK}")
    shape = card.parsed(lambda content: ClipShape.from_json(content["shape"]), "shape")
    mean, std = card.parsed(lambda content: [tuple(map(float, content["transform"][name])) for name in ("mean", "std")], "transform")
    clip = Clip(shape)
    load_weights(clip, card.weights, trust_pickle=trust_pickle, argument=argument)
    tokenizer = read_tokenizer(card.folder, shape.context, argument)
    return OpenedClip(clip.eval(), tokenizer, mean, std, folder)


def _opened(
    shape: ClipShape,
    state: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
    source: str,
    notes: list[str],
    argument: str,
) -> OpenedClip:
    """The model with its weights, which must fit."""
    if tokenizer is not None and tokenizer.size > shape.vocabulary:
        raise InputError(argument, f"{source}, whose tokenizer has {tokenizer.size} tokens", f"at most the model's {shape.vocabulary}")
    clip = Clip(shape)
    own = clip.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong:
        said = f"{source}, in which {len(wrong)} tensors are missing or of another shape ({', '.join(wrong[:5])})"
        raise InputError(argument, said, "the weights of a whole CLIP, its image tower a vision transformer or CLIP's ResNet")
    if not all(bool(state[name].isfinite().all()) for name in own):
        raise InputError(argument, f"{source}, with weights that are not numbers", "finite weights")
    clip.load_state_dict({name: state[name].float() for name in own})
    if statistics is None:
        notes = [*notes, "it does not say how its images are normalised: by CLIP's usual mean and standard deviation"]
    mean, std = statistics or STATISTICS
    return OpenedClip(clip.eval(), tokenizer, mean, std, source, tuple(notes))


def _json(path: Path, argument: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(argument, f"{path}, which cannot be read ({error})", "a file of JSON") from None
    if not isinstance(content, dict):
        raise InputError(argument, str(path), "a JSON object")
    return content
