"""A network without a classifier of its own: a backbone, a connector into another network's features, and that network's classifier.

KD^3's student is made so. The parts are one ordinary network from images to logits, and its specification builds it again:

    shared:BACKBONE,layer=PATH,channels=C,size=HxW,factor=R[,classifier=NETWORK#PATH]

BACKBONE is the specification of a network (`build_classifier`) of which the map at `layer` is read and what comes behind it is taken off;
`channels` and `size` are what the connector answers with and the largest map that it is given; the classifier is linear unless
`classifier` says of which network it is a part. `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from torch.utils.hooks import RemovableHandle

from stillroom.engine.answers import with_own_answers
from stillroom.engine.tap import module_paths, tap
from stillroom.errors import InputError, at_least, near
from stillroom.modules.projectors import probe, probing

PREFIX = "shared:"
_GRAMMAR = re.compile(
    r"(?P<backbone>.+),layer=(?P<layer>[\w.]+),channels=(?P<channels>\d+),size=(?P<height>\d+)x(?P<width>\d+),factor=(?P<factor>\d+)"
    r"(,classifier=(?P<network>.+)#(?P<path>[\w.]+))?"
)


class Connector(nn.Module):
    """Maps a student's feature map to the teacher's channels: 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU. Sizes stay.

    The last ReLU is right because the map that it is to match is behind a ReLU. PyTorch's default initialisation.

    Args:
        in_channels: Cs.
        channels: Ct.
        factor: r; Ct // r channels in between.

    Raises:
        InputError: a number below 1, or a factor that leaves no channel.

    Source: KD^3's released code (the connector of SimKD, Chen et al. 2022).
    """

    def __init__(self, in_channels: int, channels: int, factor: int = 2) -> None:
        super().__init__()
        for name, number in (("in_channels", in_channels), ("channels", channels), ("factor", factor)):
            at_least(name, number, 1)
        self.in_channels, self.channels, self.factor = in_channels, channels, factor
        middle = channels // factor
        if middle < 1:
            raise InputError("factor", factor, f"a number up to {channels}, the channels of the teacher's map")
        self.conv1, self.bn1 = nn.Conv2d(in_channels, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, Cs, H, W] -> [B, Ct, H, W], nowhere below 0."""
        hidden = relu(self.bn1(self.conv1(map_BCHW)))
        hidden = relu(self.bn2(self.conv2(hidden)))
        return relu(self.bn3(self.conv3(hidden)))


def shrunk(map_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """A map averaged down to `size` (height, width) along the sides on which it is larger; one that is nowhere larger stays as it is."""
    height, width = map_BCHW.shape[2:]
    smaller = min(height, size[0]), min(width, size[1])
    return map_BCHW if smaller == (height, width) else adaptive_avg_pool2d(map_BCHW, smaller)


class SharedClassifier(nn.Module):
    """Images [B, 3, H, W] -> logits [B, K]: backbone, connector, global average pool, another network's classifier.

    The classifier is frozen: it needs no gradient and stays in eval mode.

    Args:
        backbone: its map at `layer` is read; nothing behind that should have parameters (see `headless`).
        layer: module path of a map [B, Cs, H, W].
        connector: [B, Cs, H, W] -> [B, Ct, H, W].
        classifier: [B, Ct] -> [B, K].
        size: (height, width) that larger maps are averaged down to before the connector.
        classifier_path: the classifier's module path in the network that it was taken from.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layer: str,
        connector: Connector,
        classifier: nn.Module,
        size: tuple[int, int],
        classifier_path: str = "",
    ) -> None:
        super().__init__()
        self.backbone, self.layer, self.size = backbone, layer, size
        self.connector = connector
        self.classifier, self.classifier_path = classifier.requires_grad_(False), classifier_path
        self._with_map = tap(backbone, layer, argument="student_layer")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.connected(self.map(images_BCHW))[1]

    def map(self, images_BCHW: Tensor) -> Tensor:
        """F_s, the backbone's map [B, Cs, Hs, Ws]."""
        features: Tensor = self._with_map(images_BCHW)[1][self.layer]
        return features

    def connected(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """m_s, the connector's answer to the map [B, Ct, H, W]; and z_s, what the classifier says of it [B, K]."""
        connected_BCHW = self.connector(shrunk(map_BCHW, self.size))
        return connected_BCHW, self.classifier(connected_BCHW.mean((2, 3)))

    def specification(self, student: str, teacher: str) -> str:
        """What builds this network again, given the specifications of the two that it was made of."""
        linear = type(self.classifier) is nn.Linear and self.classifier.bias is not None
        classifier = None if linear else (teacher, self.classifier_path)
        return str(Shared(student, self.layer, self.connector.channels, self.size, self.connector.factor, classifier))

    def train(self, mode: bool = True) -> SharedClassifier:
        """As every module's, but that the classifier stays as it is."""
        super().train(mode)
        self.classifier.eval()
        return self


def share_classifier(
    student: nn.Module,
    teacher: nn.Module,
    example: Tensor,
    *,
    student_layer: str,
    teacher_layer: str,
    teacher_classifier: str | None = None,
    factor: int = 2,
) -> SharedClassifier:
    """A student that ends in the teacher's classifier.

    Args:
        student: its parts behind `student_layer` are taken off.
        teacher: stays as it is; the student gets a copy of its classifier.
        example: a few inputs [B, 3, H, W], to learn shapes from.
        student_layer, teacher_layer: module paths of the last maps before the global pooling (see `layers.last_map`).
        teacher_classifier: module path of what makes the teacher's logits of its pooled map; by default its last linear layer.
        factor: r of the connector.

    Raises:
        InputError: a layer is no map, or the teacher's classifier does not make its logits of its pooled map.
    """
    path = teacher_classifier or _last_linear(teacher)
    classifier = copy.deepcopy(part(teacher, path, "teacher_classifier")).float()
    channels, *teacher_size = _checked_classifier(teacher, teacher_layer, classifier, path, example)
    width, *student_size = map_shape(student, student_layer, example, "student_layer")
    headless(student, student_layer, example, "student_layer")
    size = min(student_size[0], teacher_size[0]), min(student_size[1], teacher_size[1])
    return SharedClassifier(student, student_layer, Connector(width, channels, factor), classifier, size, path)


@dataclass(frozen=True)
class Shared:
    """Of which parts a `SharedClassifier` is made; its text form is the specification.

    Args:
        backbone: specification of the backbone's network.
        layer: module path of the map in it.
        channels: Ct, of the connector's answer.
        size: (height, width) of the largest map that the connector is given.
        factor: r of the connector.
        classifier: specification of the network whose part the classifier is, and its module path; None for one linear layer.
    """

    backbone: str
    layer: str
    channels: int
    size: tuple[int, int]
    factor: int
    classifier: tuple[str, str] | None = None

    def __str__(self) -> str:
        height, width = self.size
        own = f"{PREFIX}{self.backbone},layer={self.layer},channels={self.channels},size={height}x{width},factor={self.factor}"
        return own if self.classifier is None else f"{own},classifier={'#'.join(self.classifier)}"

    @classmethod
    def parse(cls, spec: str, argument: str) -> Shared:
        """Reads a specification.

        Raises:
            InputError: it is none.
        """
        found = _GRAMMAR.fullmatch(spec.removeprefix(PREFIX))
        if not spec.startswith(PREFIX) or found is None:
            raise InputError(argument, spec, "shared:BACKBONE,layer=PATH,channels=C,size=HxW,factor=R[,classifier=NETWORK#PATH]")
        classifier = None if found["network"] is None else (found["network"], found["path"])
        size = int(found["height"]), int(found["width"])
        return cls(found["backbone"], found["layer"], int(found["channels"]), size, int(found["factor"]), classifier)

    def parts(self) -> tuple[str, ...]:
        """The backbone's specification, and that of the classifier's network where there is one."""
        return (self.backbone,) if self.classifier is None else (self.backbone, self.classifier[0])

    def of(self, *parts: str) -> Shared:
        """The same of other networks."""
        return replace(self, backbone=parts[0], classifier=None if self.classifier is None else (parts[1], self.classifier[1]))

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> SharedClassifier:
        """The network, from random numbers, as `engine.specification.Composed` says.

        Raises:
            InputError: there is no such layer or classifier, or the layer has no map.
        """
        classifier: nn.Module
        if self.classifier is None:
            classifier, path = nn.Linear(self.channels, num_classes), ""
        else:
            spec, path = self.classifier
            classifier = part(make(spec, num_classes), path, argument)
        backbone = make(self.backbone, num_classes)
        width = map_shape(backbone, self.layer, example, argument)[0]
        headless(backbone, self.layer, example, argument)
        return SharedClassifier(backbone, self.layer, Connector(width, self.channels, self.factor), classifier, self.size, path)


parse = Shared.parse


def part(network: nn.Module, path: str, argument: str) -> nn.Module:
    """The module of a network at a path.

    Raises:
        InputError: there is none; the message lists the nearest.
    """
    modules = module_paths(network)
    if path not in modules:
        raise InputError(argument, path, f"a module path of {type(network).__name__}, e.g. {near(path, modules)}")
    return modules[path]


def map_shape(network: nn.Module, layer: str, example: Tensor, argument: str) -> tuple[int, int, int]:
    """(C, H, W) of the map at a layer.

    Raises:
        InputError: there is no such layer, or it does not answer with a map.
    """
    with probing(network, example):
        found: Any = tap(network, layer, argument=argument)(example)[1][layer]
    if not isinstance(found, Tensor) or found.ndim != 4:
        what = f"features of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(argument, f"{layer}, with {what}", "a map [B, C, H, W]")
    return found.shape[1], found.shape[2], found.shape[3]


def headless(network: nn.Module, layer: str, example: Tensor, argument: str) -> None:
    """Takes off, in place, what only works behind a layer: its parameters would neither learn nor be of use.

    Every module with parameters of its own that first runs after the layer has answered becomes `nn.Identity`. The layer's answer stays.

    Raises:
        InputError: the network does not run without them.
    """
    paths = module_paths(network)
    order: list[str] = []  # modules as they begin to run
    behind: list[int] = []  # how many had begun, each time that the layer had answered
    handles: list[RemovableHandle] = [
        *(module.register_forward_pre_hook(lambda _, inputs, path=path: order.append(path)) for path, module in paths.items()),
        paths[layer].register_forward_hook(lambda _, inputs, output: behind.append(len(order))),
    ]
    probe(network, example, handles)
    before, after = order[: behind[0]], order[behind[0] :]
    for path in dict.fromkeys(after):
        if path not in before and any(True for _ in paths[path].parameters(recurse=False)):
            network.set_submodule(path, nn.Identity())
    with_own_answers(network)
    try:
        with probing(network, example):
            network(example)
    except Exception as error:  # whatever a foreign network raises when its end is taken off
        raise InputError(argument, layer, f"a layer without whose followers {type(network).__name__} runs ({error})") from error


def _last_linear(network: nn.Module) -> str:
    found = [path for path, module in module_paths(network).items() if isinstance(module, nn.Linear)]
    if not found:
        raise InputError("teacher_classifier", "nothing", f"the module path of the classifier of {type(network).__name__}")
    return found[-1]


def _checked_classifier(teacher: nn.Module, layer: str, classifier: nn.Module, path: str, example: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of the teacher's map, of whose average over pixels its classifier makes its logits."""
    shape = map_shape(teacher, layer, example, "teacher_layer")
    with probing(teacher, example), torch.no_grad():
        logits, features = tap(teacher, layer)(example)
        expected = f"what makes the logits of the average over pixels of {layer} ({shape[0]} channels)"
        try:
            answer = classifier.eval()(features[layer].mean((2, 3)))
        except Exception as error:  # whatever a module raises that is given an input of another size
            raise InputError("teacher_classifier", path, f"{expected}; it fails ({error})") from error
    if not isinstance(answer, Tensor) or answer.shape != logits.shape or not torch.allclose(answer, logits, rtol=1e-3, atol=1e-4):
        raise InputError("teacher_classifier", path, f"{expected}; its answer to that is another than the network's")
    return shape
