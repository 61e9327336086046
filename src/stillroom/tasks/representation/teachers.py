"""What teaches: networks of any library that answer with features, each given the images that it was trained on."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.engine import Lab, Networks, Teacher, Trained
from stillroom.engine.run.console import quiet_loggers
from stillroom.engine.specification import LIBRARIES, function_of
from stillroom.engine.task import WARNING
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError
from stillroom.tasks.images.architectures import GRAMMAR
from stillroom.tasks.images.classifiers import build_backbone, configurations, features_in
from stillroom.tasks.images.configurations import beside
from stillroom.tasks.images.foreign import teacher_inputs
from stillroom.tasks.images.layers import dense_layer
from stillroom.tasks.representation.data import RepresentationData


@dataclass(frozen=True)
class FeatureNetworks(Networks):
    """Which networks teach and learn, and with what of them.

    Args:
        teacher: network, with weights: ``timm/NAME@FILE``, ``torchvision/NAME@pretrained``, ``transformers/FOLDER`` (DINOv2, DINOv3, ViT,
            the image tower of a CLIP), ``nets.py:function``, a run's folder; its head is left out. Several with a + between them teach
            together. Without weights a run trains it first, on the labels of the data. Or ``cache:FOLDER``, stored answers.
        student: network, as above; its head is left out. Of a detector over a library's backbone (``gfl/resnet18``) that alone.
        teacher_epochs: epochs of the teacher, where it has to be trained; by default 20.
        teacher_lr: learning rate of the teacher, where it has to be trained; by default 0.1.
        accept_teacher: go on with a teacher that is no better than chance, where it had to be trained.
        teacher_size: pixels of the images that the teachers are given, resized from the student's crops; by default a teacher's own where
            it is made for one size, else the data's.
        dense_weight: weight of the distance of the last maps, place by place; 0 for none, which teachers are not asked for then.
    """

    teacher_size: int | None = None
    dense_weight: float = 0.0


Answers = dict[str, list[Tensor]]  # "pooled": [B, D] of each teacher; "dense": [B, D, H, W] likewise, where asked for


class Tower(nn.Module):
    """One teacher: images of the data to its pooled features and, where asked for, its last map.

    Args:
        network: images to features [B, D], or a vision model of transformers.
        inputs: makes its images of the data's; None where they are the same.
        layer: path of the module whose answer is the last map or the last tokens; None where the network tells (transformers).
        dense: whether the map is answered with.
    """

    def __init__(self, network: nn.Module, inputs: Renormalise | None, *, layer: str | None = None, dense: bool = False) -> None:
        super().__init__()
        self.network, self.inputs, self.layer, self.dense = network, inputs, layer, dense

    def extra_repr(self) -> str:
        """What its answers depend on besides its weights: it tells caches apart."""
        return f"inputs={self.inputs}, layer={self.layer}, dense={self.dense}"

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pooled features [B, D]; a map [B, D', H, W] or None."""
        images_BCHW = images_BCHW if self.inputs is None else self.inputs(images_BCHW)
        kept: list[Tensor] = []
        hook = None
        if self.dense and self.layer is not None:
            module = self.network.get_submodule(self.layer)
            hook = module.register_forward_hook(lambda module, inputs, answer: kept.append(answer))
        try:
            answer = self.network(images_BCHW)
        finally:
            if hook is not None:
                hook.remove()
        pooled_BD = pooled(answer)
        if not self.dense:
            return pooled_BD, None
        return pooled_BD, as_map(kept[-1] if kept else answer.last_hidden_state, self.network, images_BCHW.shape[-2:])


class Towers(nn.Module):
    """Several teachers as one network, whose answer a cache can hold: pooled features and maps, in the teachers' order."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, images_BCHW: Tensor) -> Answers:
        """See `Answers`."""
        answers = [tower(images_BCHW) for tower in self.towers]
        maps = [dense for _, dense in answers if dense is not None]
        return {"pooled": [pooled_BD for pooled_BD, _ in answers], **({"dense": maps} if maps else {})}


class SideBySide(nn.Module):
    """The teachers' pooled features alone, so that they can be scored: of several side by side, each of unit length."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, sum of D]."""
        found = [tower(images_BCHW)[0] for tower in self.towers]
        return found[0] if len(found) == 1 else torch.cat([normalize(features_BD.float(), dim=1) for features_BD in found], 1)


@dataclass(frozen=True)
class Opened:
    """A teacher that was opened.

    Attributes:
        tower: ready to answer.
        spec: what was typed.
        trained: whether it has weights, or is somebody's module that brings its own.
        weights: the file or folder that they are from; None for none.
        notes: what a user should know, a clause each.
    """

    tower: Tower
    spec: str
    trained: bool
    weights: str | None
    notes: tuple[str, ...] = ()


class Teachers:
    """Those of a specification ``A+B``, opened.

    Attributes:
        opened: one by one, in their order.
    """

    def __init__(self, opened: Sequence[Opened]) -> None:
        self.opened = tuple(opened)

    @property
    def network(self) -> Towers:
        """All of them as one, whose answer teaches."""
        return Towers([one.tower for one in self.opened])

    def frozen(self, lab: Lab) -> Teacher:
        """What teaches. Not folded: a tower reads the map of a module that folding might change."""
        return Teacher(self.network, precision=lab.options.torch_precision, compile=lab.options.teacher_compile, fold=False)

    def scored(self, lab: Lab, data: RepresentationData) -> Trained:
        """A stage `teacher`, whose pooled features are scored as a student's are, with what teaches."""
        told = [(one.spec, note) for one in self.opened for note in one.notes]
        loud = [f"{spec}: {note.removeprefix(WARNING)}" for spec, note in told if note.startswith(WARNING)]
        for note in loud:
            lab.say("teacher", f"{WARNING}{note}")
        quiet = "; ".join(note for _, note in told if not note.startswith(WARNING))
        model = " + ".join(one.spec.partition("@")[0] for one in self.opened)
        network = SideBySide([one.tower for one in self.opened])
        files = {one.weights for one in self.opened}
        weights = self.opened[0].weights if None not in files else None  # which lie on disk already: they may be large
        scored = lab.evaluate(network, data, name="teacher", model=f"{model} (features)", origin=quiet, weights=weights)
        return replace(scored, teacher=self.frozen(lab), notes=tuple(f"{WARNING}{note}." for note in loud))


def open_teachers(data: RepresentationData, networks: FeatureNetworks, *, trust_pickle: bool) -> Teachers:
    """The teachers that are named, with maps where these weigh something; see `open_teacher`.

    Raises:
        InputError: one cannot be opened, or is named twice.
    """
    options: dict[str, Any] = {"dense": networks.dense_weight > 0, "trust_pickle": trust_pickle}
    return Teachers([open_teacher(spec, data, networks.teacher_size, **options) for spec in named_teachers(networks.teacher)])


def named_teachers(teacher: str) -> list[str]:
    """The specifications of ``A+B+C``.

    Raises:
        InputError: none, or one twice.
    """
    specs = [spec.strip() for spec in teacher.split("+")]
    if not all(specs) or len(set(specs)) < len(specs):
        raise InputError("teacher", teacher, "networks with a + between them, each once")
    return specs


def open_teacher(spec: str, data: RepresentationData, size: int | None, *, dense: bool, trust_pickle: bool) -> Opened:
    """A teacher by its specification: those of `images.classifiers` without their head, or ``transformers/FOLDER`` of any vision model.

    Args:
        spec: DINOv2, DINOv3, ViT, ... of transformers answer with their pooled token; a CLIP's folder with the image tower's embedding.
        data: whose images it is given.
        size: pixels of these; by default the teacher's own where it is made for one size of images, else the data's.
        dense: whether it answers with its last map, too.
        trust_pickle: read weights that can run code as they are read.

    Raises:
        InputError: it cannot be opened, or answers with nothing that can be learnt.
    """
    library, _, name = spec.partition("@")[0].partition("/")
    transformer = library == "transformers"
    found = beside(name) if transformer else configurations(spec, trust_pickle=trust_pickle, argument="teacher")
    own = next((one.size[0] for one in found if one.size), None)
    if size is None and own is not None and (transformer or (library == "timm" and _fixed(name))):
        size = own
    side = size or data.image_size
    asked = SimpleNamespace(
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        teacher_mean=data.teacher_mean,
        teacher_std=data.teacher_std,
        teacher_image_size=None if side == data.image_size else (side, side),
    )
    inputs, notes = teacher_inputs(asked, found, resized=False)
    if transformer:
        network, trained, weights = _transformer(name, trust_pickle=trust_pickle), True, name
    else:
        built = build_backbone(spec, image_size=side, trust_pickle=trust_pickle, argument="teacher")
        network, weights, notes = built.network, built.weights or "", [*built.notes, *notes]
        trained = built.weights is not None or _brings_its_own(spec)
        if built.weights is None and trained:
            notes.append(f"{WARNING}it is taken as the function gives it, with whatever weights that loaded")
    example = data.example_inputs()
    layer = None
    if dense and not transformer:
        shown = example if inputs is None else inputs(example)
        layer = dense_layer(network, shown, "teacher")
    return Opened(Tower(network.eval(), inputs, layer=layer, dense=dense), spec, trained, weights or None, tuple(notes))


def pooled(answer: Any) -> Tensor:
    """What a network or a model of transformers says of an image, [B, D]: a CLIP's embedding, the pooled or first token, else the mean.

    Raises:
        InputError: there is no such thing in the answer.
    """
    tokens = getattr(answer, "last_hidden_state", None)
    first = tokens[:, 0] if isinstance(tokens, Tensor) and tokens.ndim == 3 else None
    told = (getattr(answer, "image_embeds", None), getattr(answer, "pooler_output", None), first)
    found = next((one for one in told if isinstance(one, Tensor)), None)
    found = features_in(answer) if found is None else found
    if found is None:
        raise InputError("teacher", f"answers of type {type(answer).__name__}", "features [B, D]")
    return found.flatten(1)


def as_map(features: Tensor, network: nn.Module, size: Sequence[int]) -> Tensor:
    """The last features of a network as a map [B, D, H, W].

    Args:
        features: a map, with the channels last where the network says so; or tokens [B, N, D] of a grid, behind those that stand for no
            place (classes, registers).
        network: timm's and transformers' say how many these are, or how large a patch is.
        size: height and width of the images.

    Raises:
        InputError: tokens of no grid.
    """
    if features.ndim == 4:
        return features.movedim(-1, 1) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features
    count = features.shape[1]
    patch = getattr(getattr(network, "config", None), "patch_size", None)
    rows, columns = (int(side) // patch for side in size) if isinstance(patch, int) else (count + 1, 1)
    before = count - rows * columns
    if before < 0:  # no patch size, or one of a network whose grid shrinks on the way
        known = getattr(network, "num_prefix_tokens", None)
        before = count - math.isqrt(count) ** 2 if known is None else int(known)
        rows = columns = math.isqrt(count - before)
    if before + rows * columns != count:
        raise InputError("dense_weight", f"{count} tokens of {type(network).__name__}, which are no grid", "0: its features have no places")
    return features[:, before:].mT.unflatten(2, (rows, columns))


def _fixed(name: str) -> bool:
    """Whether a network of timm's is made for one size of images."""
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return config is not None and bool(config.fixed_input_size)


def _brings_its_own(spec: str) -> bool:
    """Whether a specification without weights is somebody's function that asks for no classes: there is no classifier to train then."""
    if spec.startswith(LIBRARIES) or Path(spec).is_dir():
        return False
    return "num_classes" not in inspect.signature(function_of(spec, "teacher", GRAMMAR)).parameters


def _transformer(name: str, *, trust_pickle: bool) -> nn.Module:
    """The vision model in a folder that `save_pretrained` wrote; of a CLIP or SigLIP its image tower."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError("teacher", f"transformers/{name}", "transformers/FOLDER, a folder that save_pretrained wrote")
    try:
        import transformers
    except ImportError as error:
        raise InputError("teacher", f"transformers/{name}", "transformers to be installed (pip install transformers)") from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind: Any = {
            "clip": transformers.CLIPVisionModelWithProjection,
            "clip_vision_model": transformers.CLIPVisionModelWithProjection,
            "siglip": transformers.SiglipVisionModel,
        }.get(config.model_type, transformers.AutoModel)
        if (vision := getattr(config, "vision_config", None)) is not None:
            vision.projection_dim = getattr(config, "projection_dim", None)  # else of CLIP's usual width, with new weights
            config = vision
        options: dict[str, Any] = {
            "config": config,
            "local_files_only": True,
            "trust_remote_code": False,
            "dtype": torch.float32,
            "output_loading_info": True,
        }
        with quiet_loggers(("transformers",), logging.ERROR):
            network, info = kind.from_pretrained(folder, use_safetensors=None if trust_pickle else True, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("teacher", f"transformers/{name} ({reason})", "a vision model of transformers with its weights") from error
    new = [str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])]
    if [key for key in new if not key.startswith("pooler.")]:
        raise InputError(
            "teacher", f"transformers/{name} without weights for {', '.join(new[:3])}", "a vision model with all of its weights"
        )
    if new:  # a classifier's: what stands in its pooler's place would be random
        network.pooler = None
    made: nn.Module = network
    return made
