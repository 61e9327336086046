"""Classifiers that know some classes by their labels and have found others: a backbone, a known head, a novel head.

A run's `student.json` names such a network by its backbone and its heads, see `NovelSpec`; `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from stillroom.engine.answers import with_own_answers
from stillroom.errors import InputError, at_least, positive

PREFIX = "novel:"
_GRAMMAR = re.compile(
    r"novel:(?P<backbone>.+),known=(?P<known>\d+),hidden=(?P<hidden>\d+),projection=(?P<projection>\d+),layers=(?P<layers>\d+)"
    r",temperature=(?P<temperature>[\d.e-]+)"
)


class Prototypes(nn.Linear):
    """Features [B, D] to their cosines [B, C] with a prototype of each class; cosines once the prototypes have unit length.

    They learn as free vectors: whoever trains them calls `normalise` before each forward pass, so that a step of the optimiser may leave
    them a little off. In float32 whatever autocast says.

    Args:
        features: D.
        classes: C.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, bias=False)

    @torch.no_grad()
    def normalise(self) -> None:
        """Divides each prototype by its length, in place."""
        self.weight.copy_(normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Features are normalised here, prototypes are not."""
        with torch.autocast(features.device.type, enabled=False):
            return linear(normalize(features.float(), dim=1), self.weight.float())


class NovelHead(nn.Module):
    """Features [B, D] to cosines [B, U] with the prototypes of novel classes in a space of its own.

    The projector is Linear(D, M) - BatchNorm - ReLU, K - 1 times Linear(M, M) - BatchNorm - ReLU, and Linear(M, P).

    Args:
        features: D.
        classes: U.
        hidden: M.
        projection: P.
        layers: K, at least 1.
    """

    def __init__(self, features: int, classes: int, *, hidden: int = 2048, projection: int = 256, layers: int = 1) -> None:
        super().__init__()
        for name, number in (("hidden", hidden), ("projection", projection), ("layers", layers)):
            at_least(name, number, 1)
        widths = [features, *[hidden] * layers]
        blocks = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)]
        self.projector = nn.Sequential(*[module for block in blocks for module in block], nn.Linear(hidden, projection))
        self.prototypes = Prototypes(projection, classes)
        self.prototypes.normalise()

    def forward(self, features: Tensor) -> Tensor:
        """The features come as they are, not normalised."""
        cosines: Tensor = self.prototypes(self.projector(features))
        return cosines


class KnownClassifier(nn.Module):
    """Images to logits [B, L] of the known classes: cosines of the features with prototypes, divided by the temperature.

    Args:
        backbone: images [B, 3, H, W] -> features [B, D].
        known: D -> L.
        temperature: tau of the softmax that the cosines are trained with.
    """

    def __init__(self, backbone: nn.Module, known: Prototypes, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.known = backbone, known
        self.temperature = positive("temperature", temperature)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, L]."""
        logits: Tensor = self.known(self.backbone(images)) / self.temperature
        return logits


class NovelClassifier(nn.Module):
    """Images to logits [B, L + U]: known classes first, then the novel ones, in one softmax.

    Args:
        backbone: images [B, 3, H, W] -> features [B, D].
        known: D -> L.
        novel: D -> U.
        temperature: tau, which both heads' cosines are divided by.
    """

    def __init__(self, backbone: nn.Module, known: Prototypes, novel: NovelHead, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.known, self.novel = backbone, known, novel
        self.temperature = positive("temperature", temperature)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, L + U]."""
        features = self.backbone(images)
        return torch.cat([self.known(features), self.novel(features)], dim=1) / self.temperature


def headless(network: nn.Module, classes: int, argument: str) -> tuple[nn.Module, int]:
    """A classifier without its head, and the number of features D that it now answers with. The network itself is changed.

    Args:
        network: a classifier whose last layer is a linear one.
        classes: how many it answers with.
        argument: what the user calls it.

    Raises:
        InputError: the network has no linear layer of so many classes.
    """
    heads = [(path, module) for path, module in network.named_modules() if type(module) is nn.Linear and module.out_features == classes]
    if not heads or not heads[-1][0]:
        raise InputError(argument, type(network).__name__, "a classifier that ends in a linear layer behind its features")
    path, head = heads[-1]
    with_own_answers(network).set_submodule(path, nn.Identity())
    return network, head.in_features


@dataclass(frozen=True)
class NovelSpec:
    """What a `NovelClassifier`, or a `KnownClassifier` where all classes are known, is built from again; as text
    ``novel:BACKBONE,known=L,hidden=M,projection=P,layers=K,temperature=TAU``.

    Args:
        backbone: specification of a classifier, without weights; its last linear layer is left out.
        known: L, how many of the classes are known; they come first.
        hidden, projection, layers: see `NovelHead`.
        temperature: tau.
    """

    backbone: str
    known: int
    hidden: int = 2048
    projection: int = 256
    layers: int = 1
    temperature: float = 0.1

    def __str__(self) -> str:
        options = {name: value for name, value in vars(self).items() if name != "backbone"}
        return f"{PREFIX}{self.backbone}" + "".join(f",{name}={value}" for name, value in options.items())

    @classmethod
    def parse(cls, text: str, argument: str) -> NovelSpec:
        """The inverse of `str`.

        Raises:
            InputError: the text is not of this form.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None:
            raise InputError(argument, text, f"{PREFIX}BACKBONE,known=L,hidden=M,projection=P,layers=K,temperature=TAU")
        known, hidden, projection, layers = (int(found[name]) for name in ("known", "hidden", "projection", "layers"))
        return cls(found["backbone"], known, hidden, projection, layers, float(found["temperature"]))

    def parts(self) -> tuple[str, ...]:
        """The backbone's specification."""
        return (self.backbone,)

    def of(self, *parts: str) -> NovelSpec:
        """The same with another backbone."""
        return replace(self, backbone=parts[0])

    def build(
        self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str
    ) -> NovelClassifier | KnownClassifier:
        """An untrained network, as `engine.specification.Composed` says.

        Raises:
            InputError: the backbone has no head to leave out, or there are fewer than L classes.
        """
        if not 0 < self.known <= num_classes:
            raise InputError(argument, f"{self.known} known classes", f"from 1 to {num_classes}, since there are {num_classes} classes")
        backbone, features = headless(make(self.backbone, self.known), self.known, argument)
        if self.known == num_classes:
            return KnownClassifier(backbone, Prototypes(features, self.known), temperature=self.temperature)
        head = NovelHead(features, num_classes - self.known, hidden=self.hidden, projection=self.projection, layers=self.layers)
        return NovelClassifier(backbone, Prototypes(features, self.known), head, temperature=self.temperature)


parse = NovelSpec.parse
