"""Detectors by name: `stillroom/gfl_24`, `gfl/resnet50@teacher.safetensors`, `torchvision/retinanet_resnet50_fpn`, `nets.py:build`.

A spec is `SOURCE[,backbone=WEIGHTS][@WEIGHTS]`, or the folder of a run:

- `stillroom/NAME`: small detectors for small images (`SMALL`);
- `gfl/BACKBONE`: GFL over any timm backbone, as the papers build it (strides 8 to 128, 256 channels);
- `atss/BACKBONE`: RetinaNet with one anchor for each cell and ATSS, over the same;
- `retinanet/BACKBONE`, `fcos/BACKBONE`: torchvision's heads and anchors over the same;
- `torchvision/retinanet_resnet50_fpn`, `torchvision/fcos_resnet50_fpn`, `torchvision/fasterrcnn_resnet50_fpn`;
- `transformers/detr`, `transformers/deformable-detr`, `transformers/rt-detr`, with a ResNet after an underscore (`rt-detr_r18`), and random
  weights; `transformers/FOLDER`, a folder that `save_pretrained` wrote, with its weights;
- `package.module:function` or `file.py:function`, called with the number of classes, returning a `Detector`, torchvision's Faster R-CNN,
  RetinaNet or FCOS, or transformers' DETR, Deformable DETR or RT-DETR;
- `onnx:FILE` and `openvino:FILE.xml`: a teacher that is only a file, such as `stillroom export` writes (`file_detector`);
- WEIGHTS: a file or folder of weights; for the backbone of `gfl/`, of its like and of `torchvision/` a classifier's, or the word
  `pretrained` for those that its library publishes: its first stages are then frozen (`backbones.adopt_backbone`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torchvision
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet

from stillroom.engine.card import Card, read_specification
from stillroom.engine.specification import function_of
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError, at_least, near
from stillroom.tasks.detection.backbones import PyramidMaps, adopt_backbone
from stillroom.tasks.detection.detector import Detector
from stillroom.tasks.detection.detr import ADAPTERS
from stillroom.tasks.detection.detr_models import build as build_detr
from stillroom.tasks.detection.detr_models import is_folder
from stillroom.tasks.detection.file_detector import build_file_detector
from stillroom.tasks.detection.gfl import GFL
from stillroom.tasks.detection.small import SMALL
from stillroom.tasks.detection.two_stage import TwoStageDetector
from stillroom.tasks.detection.wrapped import ATSSDetector, FCOSDetector, RetinaNetDetector, one_square
from stillroom.tasks.images.file_networks import file_of
from stillroom.tasks.images.timm_backbone import TimmBackbone

TASK = "detection"
_KINDS = (
    "stillroom/NAME, gfl/BACKBONE (or atss/, retinanet/, fcos/), torchvision/NAME, transformers/NAME or FOLDER, file.py:function, or the "
    "folder of a run"
)
_OVER_TIMM = ("gfl", "atss", "retinanet", "fcos")
_TORCHVISION = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn")


def build_detector(spec: str, *, num_classes: int, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the detector that a spec names (see the module's docstring), and load its weights if the spec gives some.

    Args:
        spec: what to build.
        num_classes: C, the classes of the data.
        trust_pickle: read weights that are pickles, which can run code as they are read; of a run's folder, also run the code that its
            `student.json` names.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, a name is unknown, or weights are missing or do not fit.
    """
    at_least("num_classes", num_classes, 1)
    if (file := file_of(spec)) is not None:
        return build_file_detector(spec, file, num_classes=num_classes, argument=argument)
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument)
    if named.card is not None:
        _check(named.card, num_classes)
    source, given, backbone = named.source.partition(",backbone=")
    network = _untrained(source, num_classes, argument, weights=bool(named.weights))
    notes = (adopt_backbone(network, backbone, trust_pickle=trust_pickle, argument=argument),) if given else ()
    weights = named.weights
    if weights:
        # A wrapped model is looked at without its adapter: so fit its own checkpoints, and ours, whose keys begin with "model.".
        load_weights(getattr(network, "model", network), weights, trust_pickle=trust_pickle, argument=argument)
    library, _, name = source.partition("/")
    if library == "transformers" and is_folder(name):
        weights = weights or name
    return Built(network, replace(named, source=source).spec, weights or None, named.classes, notes=notes)


def backbone_of(spec: str) -> str | None:
    """A detector's backbone as a network of its own: `timm/resnet18@FILE` of ``gfl/resnet18,backbone=FILE``.

    None for a specification that is no detector's, or one whose backbone has no such name: `stillroom/gfl_24`, transformers', a function.

    Raises:
        InputError: with the weights of a whole detector.
    """
    source, at, weights = spec.partition("@")
    source, given, start = source.partition(",backbone=")
    library, _, name = source.partition("/")
    if library in _OVER_TIMM:
        backbone = f"timm/{name}"
    elif library == "torchvision" and name in _TORCHVISION:
        backbone = "torchvision/resnet50"
    else:
        return None
    if at:
        raise InputError("student", spec, f"{source} without the weights of a detector, or with a backbone's: {source},backbone={weights}")
    return f"{backbone}@{start}" if given else backbone


def _untrained(source: str, num_classes: int, argument: str, *, weights: bool) -> Detector[Any, Any]:
    library, _, name = source.partition("/")
    if library == "stillroom" and name in SMALL:
        return SMALL[name](num_classes)
    if library == "stillroom":
        raise InputError(argument, source, f"a detector of Stillroom, such as {near(name, SMALL)}")
    if library == "gfl":
        return GFL(TimmBackbone(name, argument=argument), num_classes)
    if library == "atss":
        maps = PyramidMaps(TimmBackbone(name, argument=argument), extra=2)
        return ATSSDetector(RetinaNet(maps, num_classes, anchor_generator=one_square((8, 16, 32, 64, 128))))
    if library in ("retinanet", "fcos"):
        maps = PyramidMaps(TimmBackbone(name, argument=argument), extra=2)
        return RetinaNetDetector(RetinaNet(maps, num_classes)) if library == "retinanet" else FCOSDetector(FCOS(maps, num_classes))
    if library == "torchvision":
        if name not in _TORCHVISION:
            raise InputError(argument, source, f"a detector of torchvision: {', '.join(_TORCHVISION)}")
        background = int(name.startswith("fasterrcnn"))  # which torchvision counts as a class
        made = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes + background)
        return _wrapped(made, source, argument)
    if library == "transformers":
        return build_detr(name, num_classes, argument, untrained=weights)
    return _wrapped(function_of(source, argument, _KINDS)(num_classes), source, argument)


def _wrapped(made: Any, source: str, argument: str) -> Detector[Any, Any]:
    if isinstance(made, Detector):
        return made
    adapters: dict[Any, Any] = {RetinaNet: RetinaNetDetector, FCOS: FCOSDetector, FasterRCNN: TwoStageDetector, **ADAPTERS}
    for kind in type(made).__mro__:
        if adapter := adapters.get(kind) or adapters.get(kind.__name__):
            wrapped: Detector[Any, Any] = adapter(made)
            return wrapped
    expected = f"a Detector, torchvision's FasterRCNN, RetinaNet or FCOS, or transformers' {', '.join(ADAPTERS)}"
    raise InputError(argument, f"{source}, which gives {type(made).__name__}", expected)


def _check(card: Card, num_classes: int) -> None:
    """Raises InputError unless the student of a run detects so many classes."""
    if card.task != TASK:
        raise InputError(card.argument, str(card.folder), f"the folder of a detection run; this one is of {card.task}")
    if card.num_classes != num_classes:
        raise InputError(card.argument, f"{card.folder} with {card.num_classes} classes", f"a run of {num_classes} classes")
