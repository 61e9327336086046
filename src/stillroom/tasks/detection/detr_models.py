"""transformers' DETR family by name, built from a configuration or read from a folder; never from the network."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.engine.run.written import put, refuse_links
from stillroom.errors import InputError, near
from stillroom.tasks.detection.detr import ADAPTERS
from stillroom.tasks.detection.queries import QueryDetector

# He et al. 2016: blocks of each stage, their kind, channels of each stage.
_RESNETS: dict[str, dict[str, Any]] = {
    "r18": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "r34": {"depths": [3, 4, 6, 3], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "r50": {"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
    "r101": {"depths": [3, 4, 23, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
}
# What RT-DETR's authors scale with the backbone.
_RT_DETR: dict[str, dict[str, Any]] = {
    "r18": {"decoder_layers": 3, "hidden_expansion": 0.5},
    "r34": {"decoder_layers": 4, "hidden_expansion": 0.5},
    "r50": {},
    "r101": {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3},
}
_FAMILIES = ("detr", "deformable-detr", "rt-detr")
NAMES = tuple(f"{family}_{size}" for family in _FAMILIES for size in _RESNETS)


def build(name: str, num_classes: int, argument: str, *, untrained: bool = False) -> QueryDetector:
    """A detector of the DETR family.

    Args:
        name: ``detr``, ``deformable-detr`` or ``rt-detr``, with a ResNet after an underscore (``rt-detr_r18``; by default ``_r50``),
            random weights, all of them trained, though DETR's and Deformable DETR's batch norms stay as they are: these two want weights;
            or a folder that transformers' `save_pretrained` wrote.
        num_classes: C.
        argument: named in errors.
        untrained: of a folder the architecture alone, for so many classes: other weights will follow.

    Raises:
        InputError: an unknown name, a folder without a model of this family or of other classes, transformers is missing.
    """
    if is_folder(name):
        return _read(Path(name), num_classes, argument, untrained=untrained)
    family, _, size = name.partition("_")
    size = size or "r50"
    if f"{family}_{size}" not in NAMES:
        known = f"a detector such as {near(name, NAMES)}, or a folder with config.json and model.safetensors"
        raise InputError(argument, f"transformers/{name}", known)
    library = needed(argument, f"transformers/{name}")
    resnet = _RESNETS[size]
    if family == "rt-detr":
        backbone = library.RTDetrResNetConfig(**resnet, out_features=["stage2", "stage3", "stage4"])
        return rt_detr(backbone, num_classes, **_RT_DETR[size])
    if family == "detr":
        backbone = library.ResNetConfig(**resnet, out_features=["stage4"])
        return _trained(library.DetrForObjectDetection(library.DetrConfig(**_shared(backbone, num_classes))))
    backbone = library.ResNetConfig(**resnet, out_features=["stage2", "stage3", "stage4"])
    return deformable_detr(backbone, num_classes)


def rt_detr(backbone: Any, num_classes: int, **options: Any) -> QueryDetector:
    """RT-DETR over a backbone's configuration, with random weights that can be trained from."""
    library = importlib.import_module("transformers")
    stages = [backbone.stage_names.index(stage) - 1 for stage in backbone.out_features]
    made = library.RTDetrForObjectDetection(
        library.RTDetrConfig(
            **_shared(backbone, num_classes),
            encoder_in_channels=[backbone.hidden_sizes[stage] for stage in stages],
            freeze_backbone_batch_norms=False,  # frozen ones want statistics, which random weights have none of
            **options,
        )
    )
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # transformers draws them around 0, which no training recovers from
    return ADAPTERS["RTDetrForObjectDetection"](made)


def deformable_detr(backbone: Any, num_classes: int, **options: Any) -> QueryDetector:
    """Deformable DETR over a backbone's configuration, with random weights."""
    library = importlib.import_module("transformers")
    config = library.DeformableDetrConfig(**_shared(backbone, num_classes), **options)
    return _trained(library.DeformableDetrForObjectDetection(config))


def _trained(made: Any) -> QueryDetector:
    # transformers means to freeze the first stages, finds none of its own ResNets' names, and freezes them all.
    made.model.backbone.requires_grad_(True)
    return ADAPTERS[type(made).__name__](made)


def deliver(folder: Path, network: nn.Module, model: str, classes: Sequence[str]) -> None:
    """Writes, for a model of transformers, the folder `student`, which transformers itself loads (`from_pretrained`).

    Args:
        folder: of the run.
        network: the student.
        model: its specification; of others than transformers' nothing is written.
        classes: names, for the configuration.
    """
    if not (model.startswith("transformers/") and isinstance(network, QueryDetector)):
        return
    network.model.config.id2label = dict(enumerate(classes))
    network.model.config.label2id = {name: label for label, name in enumerate(classes)}
    part = folder / ".student.part"  # transformers writes in place: whoever reads or kills meanwhile would be left with half a file
    refuse_links(part / "any")
    network.model.save_pretrained(part)
    (folder / "student").mkdir(exist_ok=True)
    for file in part.iterdir():
        put(file, folder / "student" / file.name)
    part.rmdir()


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder with a model."""
    return (Path(name) / "config.json").is_file()


def needed(argument: str, spec: str) -> Any:
    """transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(argument, spec, "the package transformers beside: pip install 'stillroom[detection]'") from None


def _shared(backbone: Any, num_classes: int) -> dict[str, Any]:
    return {"backbone_config": backbone, "num_labels": num_classes, "auxiliary_loss": True}


def _read(folder: Path, num_classes: int, argument: str, *, untrained: bool) -> QueryDetector:
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(argument, str(folder / "config.json"), "JSON, as save_pretrained writes it") from error
    names = described.get("architectures") or () if isinstance(described, Mapping) else ()
    known = next((name for name in names if name in ADAPTERS), None)
    if known is None:
        raise InputError(argument, f"{folder} with {', '.join(map(str, names)) or 'no model'}", f"a folder with {' or '.join(ADAPTERS)}")
    library = needed(argument, f"transformers/{folder}")
    if not untrained and not (folder / "model.safetensors").is_file():
        raise InputError(argument, f"the folder '{folder}' without model.safetensors", "one that save_pretrained wrote")
    config = getattr(library, known).config_class.from_pretrained(folder, local_files_only=True)
    if not untrained and config.num_labels != num_classes:
        raise InputError(argument, f"{folder} with {config.num_labels} classes", f"a model of {num_classes}, as the data have")
    if getattr(config.backbone_config, "use_pretrained_backbone", False):
        config.backbone_config.use_pretrained_backbone = False  # its weights are in the folder; nothing is to be fetched
    if untrained:
        config.num_labels = num_classes
        return ADAPTERS[known](getattr(library, known)(config))
    return ADAPTERS[known](getattr(library, known).from_pretrained(folder, config=config, local_files_only=True))
