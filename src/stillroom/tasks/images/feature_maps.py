"""Backbones by name, for tasks whose heads read feature maps: any classifier up to its last map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from stillroom.errors import InputError, near
from stillroom.modules.convolutions import Taps
from stillroom.modules.projectors import probing
from stillroom.tasks.images.architectures import PRETRAINED
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.networks import BACKBONES

_MAPS = ("permute", "layer4", "features", "trunk_output", "conv5", "layers", "blocks", "inception5b", "Mixed_7c")  # torchvision's names
_MAP = "map"


class FeatureMap(nn.Module):
    """Any network's features as maps [B, C, h, w]; tokens [B, N, C] become a map [B, C, N, 1].

    Args:
        network: images -> maps, channels first or last, or tokens.
        channels: C.
        name: if the network answers with a dict, what the maps are called in it.
    """

    def __init__(self, network: nn.Module, channels: int, name: str | None = None) -> None:
        super().__init__()
        self.network, self.channels, self.name = network, channels, name

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        features = self.network(images)
        features = features if self.name is None else features[self.name]
        if features.ndim == 3:
            features = features.transpose(1, 2).unsqueeze(-1)
        elif features.shape[1] != self.channels:
            features = features.permute(0, 3, 1, 2)
        return features


def feature_maps(
    source: str, num_classes: int, image_size: int, *, pretrained: bool, trust_pickle: bool, argument: str
) -> tuple[nn.Module, int]:
    """A backbone by name, images [B, 3, H, W] -> maps [B, C, h, w], and C.

    Args:
        source: a backbone of Stillroom (`networks.BACKBONES`); or a classifier without weights, see `build_classifier`, of which all that
            is behind its last feature map is taken off, and after a `#`, which functions need, the module path of the map.
        num_classes: of the data; a classifier is built for as many.
        image_size: side of the images in pixels; the backbone is tried on one of them.
        pretrained: with the weights that its library publishes.
        trust_pickle, argument: see `build_classifier`.

    Raises:
        InputError: no such backbone, or it has no such map.
    """
    library, _, name = source.partition("/")
    if library == "stillroom" and name in BACKBONES and not pretrained:
        backbone = BACKBONES[name]()
    else:
        backbone = _headless(source, num_classes, image_size, pretrained, trust_pickle, argument)
    image = torch.zeros(1, 3, image_size, image_size)
    try:
        with probing(backbone, image):
            shape = backbone(image).shape
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        expected = f"a network that reads images of {image_size} pixels ({' '.join(str(error).split())})"
        raise InputError(argument, source, expected) from error
    if len(shape) != 4 or 0 in shape:
        raise InputError(argument, source, f"a backbone that gives feature maps [B, C, h, w], not {list(shape)}")
    return backbone, int(shape[1])


def _headless(source: str, num_classes: int, image_size: int, pretrained: bool, trust_pickle: bool, argument: str) -> FeatureMap:
    plain, hash_, layer = source.partition("#")
    spec = f"{plain}@{PRETRAINED}" if pretrained else plain
    classifier: Any = build_classifier(
        spec, num_classes=num_classes, image_size=image_size, trust_pickle=trust_pickle, argument=argument
    ).network
    if plain.startswith("timm/") and not hash_:
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


def _cut(classifier: nn.Module, layer: str, source: str, image_size: int, argument: str) -> FeatureMap:
    """The part of a classifier up to a layer, without the parameters of the rest."""
    try:
        cut = create_feature_extractor(classifier, {layer: _MAP})
    except Exception as error:  # whatever the tracer meets in a foreign network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(argument, source, f"a network that torch.fx can trace up to {layer} ({reason[:200]})") from error
    example = torch.zeros(1, 3, image_size, image_size)
    with probing(cut, example):
        features = cut(example)[_MAP]
    if not isinstance(features, Tensor) or features.ndim != 4:
        answer = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(argument, source, f"a layer that gives a feature map [B, C, h, w]; {layer} gives {answer}")
    return FeatureMap(cut, features.shape[1], _MAP)
