"""Multi-label networks by name: `torchvision/resnet101@pretrained`, `timm/convnext_tiny`, `stillroom/strided24@student.safetensors`.

A spec is `BACKBONE[#LAYER][@WEIGHTS]`, or the folder of a run:

- BACKBONE is `timm/NAME`, `torchvision/NAME`, `stillroom/NAME`, `package.module:function` or `file.py:function`: a classifier, of which
  everything behind the last feature map is taken away, for an ML-Decoder to take its place;
- LAYER is the module path of that map; needed of functions only;
- WEIGHTS is a file or folder of weights of the whole network, or the word `pretrained`: what timm and torchvision publish for the backbone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from stillroom.engine.weights import load_weights
from stillroom.errors import InputError, near
from stillroom.tasks.classification.models import LIBRARIES, PRETRAINED, BuiltModel, build_classifier
from stillroom.tasks.classification.networks import Taps
from stillroom.tasks.multilabel.head import HeadOptions, MLDecoder
from stillroom.tasks.multilabel.networks import BACKBONES, FeatureMap, MultiLabelNetwork

TASK = "multilabel"  # what `student.json` calls it
_MAPS = ("permute", "layer4", "features", "trunk_output", "conv5", "layers", "blocks", "inception5b", "Mixed_7c")  # torchvision's names
_MAP = "map"


def build_multilabel(
    spec: str,
    *,
    num_classes: int,
    image_size: int,
    head: HeadOptions | None = None,
    trust_pickle: bool = False,
    argument: str = "model",
) -> BuiltModel:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        num_classes: K, the labels of the data.
        image_size: side of the images in pixels; the network is tried on one of them.
        head: the head's sizes; a run's folder has its own.
        trust_pickle: see `stillroom.tasks.classification.build_classifier`.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, a name is unknown, weights are missing or do not fit, or there is no feature map.
    """
    if spec and not spec.startswith(LIBRARIES) and Path(spec).is_dir():
        return _from_run(Path(spec), num_classes, trust_pickle, argument)
    source, at, weights = spec.partition("@")
    if at and not weights:
        raise InputError(argument, spec, f"after @ a file or folder of weights, or the word {PRETRAINED}")
    network = _assembled(source, num_classes, image_size, head or HeadOptions(), weights == PRETRAINED, trust_pickle, argument)
    if weights and weights != PRETRAINED:
        load_weights(network, weights, trust_pickle=trust_pickle, argument=argument)
    # A published backbone is a start, not a trained network: its head is fresh.
    return BuiltModel(network, _anywhere(source), weights if weights != PRETRAINED else None)


def _from_run(folder: Path, num_classes: int, trust_pickle: bool, argument: str) -> BuiltModel:
    """The student that a run left in its folder."""
    card = read_card(folder, argument)
    try:
        classes = tuple(str(name) for name in card["classes"])
        source, size, head = str(card["model"]), int(card["image_size"]), HeadOptions(**card["head"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(argument, str(folder / "student.json"), "JSON with the student's model, classes, image_size and head") from error
    if len(classes) != num_classes:
        raise InputError(argument, f"{folder}, a student of {len(classes)} labels", f"a network of {num_classes} labels, as the data has")
    file = source.partition("#")[0].rpartition(":")[0]
    if file.endswith(".py") and Path(file).resolve().is_relative_to(folder.resolve()) and not trust_pickle:
        expected = f"a run whose network is not code of the folder itself ({file}); trust_pickle=True runs that code"
        raise InputError(argument, str(folder), expected)
    network = _assembled(source, num_classes, size, head, False, trust_pickle, argument)
    weights = folder / "student.safetensors"
    load_weights(network, weights, trust_pickle=trust_pickle, argument=argument)
    return BuiltModel(network, source, str(weights), classes)


def read_card(folder: Path, argument: str) -> dict[str, Any]:
    """A multi-label run's `student.json`.

    Raises:
        InputError: there is none, it cannot be read, or it is of another task.
    """
    path = folder / "student.json"
    if not path.is_file():
        raise InputError(argument, str(folder), "the folder of a finished run, which holds student.json and student.safetensors")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        task = card.get("task", "classification")
    except (ValueError, AttributeError) as error:
        raise InputError(argument, str(path), "JSON that describes a student") from error
    if task != TASK:
        raise InputError(argument, f"{folder}, a student of {task}", "a multi-label student")
    return dict(card)


def _anywhere(source: str) -> str:
    """A specification that means the same in another working directory: the path of a Python file made absolute."""
    file, colon, name = source.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") else source


def _assembled(
    source: str, num_classes: int, image_size: int, head: HeadOptions, pretrained: bool, trust_pickle: bool, argument: str
) -> MultiLabelNetwork:
    backbone = _backbone(source, num_classes, image_size, pretrained, trust_pickle, argument)
    maps = _tried(backbone, source, image_size, argument)
    return MultiLabelNetwork(backbone, MLDecoder(maps.shape[1], num_classes, head))


def _backbone(source: str, num_classes: int, image_size: int, pretrained: bool, trust_pickle: bool, argument: str) -> nn.Module:
    plain, hash_, layer = source.partition("#")
    library, _, name = plain.partition("/")
    if library == "stillroom" and name in BACKBONES and not hash_ and not pretrained:
        return BACKBONES[name]()
    classifier: Any = build_classifier(
        f"{plain}@{PRETRAINED}" if pretrained else plain,
        num_classes=num_classes,
        image_size=image_size,
        trust_pickle=trust_pickle,
        argument=argument,
    ).network
    if library == "timm" and not hash_:
        classifier.reset_classifier(0, "")
        return FeatureMap(classifier, int(classifier.num_features))
    paths = dict(classifier.named_modules())
    if not hash_:
        layer = _last_map(classifier, source, argument)
    elif layer not in paths:
        raise InputError(argument, source, f"behind # a layer of {plain}, such as {near(layer, filter(None, paths))}")
    return _cut(classifier, layer, source, image_size, argument)


def _last_map(classifier: nn.Module, source: str, argument: str) -> str:
    taps = getattr(classifier, "taps", None)
    found = taps() if callable(taps) else None
    if isinstance(found, Taps):
        return found.feats[-1]
    for name in _MAPS:
        if name in classifier._modules:
            return name
    raise InputError(argument, source, f"behind # the module path of the last feature map, e.g. {source}#layer4")


def _cut(classifier: nn.Module, layer: str, source: str, image_size: int, argument: str) -> nn.Module:
    """The part of a classifier up to a layer, without the parameters of the rest."""
    try:
        cut = create_feature_extractor(classifier, {layer: _MAP})
    except Exception as error:  # whatever the tracer meets in a foreign network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(argument, source, f"a network that torch.fx can trace up to {layer} ({reason[:200]})") from error
    with torch.no_grad():
        features = cut.eval()(torch.zeros(1, 3, image_size, image_size))[_MAP]
    cut.train()
    if not isinstance(features, Tensor) or features.ndim != 4:
        answer = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(argument, source, f"a layer that gives a feature map [B, C, h, w]; {layer} gives {answer}")
    return FeatureMap(cut, features.shape[1], _MAP)


def _tried(backbone: nn.Module, source: str, image_size: int, argument: str) -> Tensor:
    """The feature map of one black image."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            maps: Tensor = backbone(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            argument, source, f"a network that reads images of {image_size} pixels ({' '.join(str(error).split())})"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if maps.ndim != 4 or 0 in maps.shape:
        raise InputError(argument, source, f"a backbone that gives feature maps [B, C, h, w], not {list(maps.shape)}")
    return maps
