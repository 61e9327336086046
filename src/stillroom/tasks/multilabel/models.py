"""Multi-label networks by name: `torchvision/resnet101@pretrained`, `timm/convnext_tiny`, `stillroom/strided24@student.safetensors`.

A spec is `BACKBONE[#LAYER][@WEIGHTS]`, or the folder of a run:

- BACKBONE is `timm/NAME`, `torchvision/NAME`, `stillroom/NAME`, `package.module:function` or `file.py:function`: a classifier, of which
  everything behind the last feature map is taken away, for an ML-Decoder to take its place;
- LAYER is the module path of that map; needed of functions only;
- WEIGHTS is a file or folder of weights of the whole network, or the word `pretrained`: what timm and torchvision publish for the backbone.
"""

from __future__ import annotations

from stillroom.engine.card import Card, read_specification
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.modules.ml_decoder import HeadOptions, MLDecoder, MultiLabelNetwork
from stillroom.tasks.images.architectures import PRETRAINED
from stillroom.tasks.images.feature_maps import feature_maps

TASK = "multilabel"  # what `student.json` calls it


def build_multilabel(
    spec: str,
    *,
    num_classes: int,
    image_size: int,
    head: HeadOptions | None = None,
    trust_pickle: bool = False,
    argument: str = "model",
) -> Built:
    """Build the network that a spec names, and load its weights if the spec gives some.

    Args:
        spec: see the module's docstring.
        num_classes: K, the labels of the data.
        image_size: side of the images in pixels; the network is tried on one of them.
        head: the head's sizes; a run's folder has its own.
        trust_pickle: see `build_classifier`.
        argument: what the user calls this argument; named in errors.

    Raises:
        InputError: the spec is none of these, a name is unknown, weights are missing or do not fit, or there is no feature map.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument)
    if named.card is not None:
        image_size, head = _recorded(named.card, num_classes)
    pretrained = named.weights == PRETRAINED  # a published backbone is a start, not a trained network: its head is fresh
    backbone, channels = feature_maps(
        named.source, num_classes, image_size, pretrained=pretrained, trust_pickle=trust_pickle, argument=argument
    )
    network = MultiLabelNetwork(backbone, MLDecoder(channels, num_classes, head))
    if named.weights and not pretrained:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, None if pretrained else named.weights or None, named.classes)


def _recorded(card: Card, num_classes: int) -> tuple[int, HeadOptions]:
    """Image size and head of the student of a run, if it knows so many labels."""
    if card.task != TASK:
        raise InputError(card.argument, f"{card.folder}, a student of {card.task}", "a multi-label student")
    size, head = card.parsed(
        lambda content: (int(content["image_size"]), HeadOptions.from_json(content["head"])), "model, classes, image_size and head"
    )
    if card.num_classes != num_classes:
        got = f"{card.folder}, a student of {card.num_classes} labels"
        raise InputError(card.argument, got, f"a network of {num_classes} labels, as the data has")
    return size, head
