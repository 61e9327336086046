"""The student: a masked encoder, the segmentation head, and a projection into the space of the teacher's embeddings.

    h_i = LN(segment token i),   g_i = F(h_i),   z = F( mean_i h_i ),   F one MLP for both

A run's `student.json` names it by its sizes, see `ZeroSegSpec`; `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.zeroseg.decoding import class_probabilities, pixel_scores, resized_assignment, with_vocabulary
from stillroom.methods.zeroseg.grouping import SegmentationHead, composed, initialise
from stillroom.methods.zeroseg.masking import Encoder, Mask
from stillroom.tasks.segmentation import Vocabulary

PREFIX = "zeroseg:"
_VIT = re.compile(r"vit(?P<width>\d+)_(?P<depth>\d+)_(?P<patch>\d+)")
_GRAMMAR = re.compile(
    r"zeroseg:(?P<vit>vit\d+_\d+_\d+),(?P<groups>\d+\+\d+),(?P<layers>\d+\+\d+\+\d+),(?P<dim>\d+),(?P<hidden>\d+),(?P<norm>none|batch)"
)
_HEAD_WIDTH = 64  # channels of an attention head; of narrow networks a quarter of the width


def heads_of(width: int) -> int:
    """Attention heads of a network of that width: of 64 channels each, or four."""
    return max(width // _HEAD_WIDTH, 4)


def sizes_of(spec: str, argument: str) -> tuple[int, int, int]:
    """Width, blocks and the last number of ``vitWIDTH_BLOCKS_PATCH``.

    Raises:
        InputError: something else.
    """
    match = _VIT.fullmatch(spec)
    if match is None or int(match["width"]) % 16:
        raise InputError(argument, spec, "vitWIDTH_BLOCKS_PATCH such as vit64_4_8, optionally with @WEIGHTS, its width a multiple of 16")
    return int(match["width"]), int(match["depth"]), int(match["patch"])


class Segmented(NamedTuple):
    """What the student makes of images.

    Attributes:
        maps: of each patch that was seen to each segment, probabilities [B, N, m].
        segments: g, [B, m, D].
        image: z, [B, D].
        cls: the encoder's class token, [B, 1, C].
        tokens: its tokens of the patches that were seen, [B, N, C].
    """

    maps: Tensor
    segments: Tensor
    image: Tensor
    cls: Tensor
    tokens: Tensor


class Projector(nn.Module):
    """F: linear, batch norm over all rows with ReLU, or GELU without norm, linear; [..., C] to [..., D]."""

    def __init__(self, width: int, hidden: int, dim: int, norm: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.norm = nn.BatchNorm1d(hidden) if norm == "batch" else None
        self.activation = nn.GELU() if self.norm is None else nn.ReLU()
        initialise(self, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of the last axis."""
        hidden = self.fc1(x)
        if self.norm is not None:
            hidden = self.norm(hidden.flatten(0, -2)).view_as(hidden)
        found: Tensor = self.fc2(self.activation(hidden))
        return found


class ZeroSegNetwork(nn.Module):
    """Images [B, 3, H, W] to scores [B, C, H, W] of the classes of its vocabulary.

    Args:
        spec: its sizes.
        tau: temperature of the assignments in training.
    """

    def __init__(self, spec: ZeroSegSpec, *, tau: float = 1.0) -> None:
        super().__init__()
        width, depth, patch = sizes_of(spec.vit, "student")
        self.encoder = Encoder(width, depth, heads_of(width), patch)
        self.head = SegmentationHead(width, heads_of(width), spec.layers, spec.groups, tau=tau)
        self.norm, self.projector = nn.LayerNorm(width, 1e-5), Projector(width, spec.hidden, spec.dim, spec.norm)
        self.vocabulary = Vocabulary((), torch.empty(0, spec.dim), "", 1.0, ())

    def segmented(self, images_B3HW: Tensor, mask: Mask | None = None) -> Segmented:
        """Segments of the patches that are seen; of all without a mask."""
        cls, tokens = self.encoder(images_B3HW, mask)
        found, groupings = self.head(tokens)
        h_BMC = self.norm(found)
        both = self.projector(torch.cat((h_BMC, h_BMC.mean(1, keepdim=True)), 1))
        return Segmented(composed([one.soft for one in groupings]), both[:, :-1], both[:, -1], cls, tokens)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Y of the vocabulary's classes, in its order.

        Raises:
            InputError: it has no vocabulary yet.
        """
        vocabulary = self.vocabulary
        if not vocabulary.classes:
            raise InputError("classes", "none", "names of classes to find")
        found, size = self.segmented(images_B3HW), (int(images_B3HW.shape[2]), int(images_B3HW.shape[3]))
        u_BMC = class_probabilities(found.segments, found.image, vocabulary.text, vocabulary.scale)
        scores_BCHW = pixel_scores(resized_assignment(found.maps, self.encoder.grid(images_B3HW), size), u_BMC)
        return with_vocabulary(scores_BCHW, u_BMC, vocabulary)

    def parts(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What knows no classes, see `OpenVocabulary`."""
        found = self.segmented(images_B3HW)
        return found.maps.mT.unflatten(2, self.encoder.grid(images_B3HW)), found.segments, found.image

    def finding(self, vocabulary: Vocabulary) -> ZeroSegNetwork:
        """The same weights for other classes."""
        other = copy.copy(self)
        other.vocabulary = vocabulary
        return other

    def begin_with(self, weights: str, *, trust_pickle: bool) -> None:
        """Gives the encoder the weights of a masked autoencoder's; its positions and its decoder are left out.

        Raises:
            InputError: some are missing, or have another shape.
        """
        found = read_weights(Path(weights), trust_pickle=trust_pickle, argument="student")
        wanted = self.encoder.state_dict()
        wrong = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
        if wrong:
            raise InputError("student", f"{weights}, without a fitting {wrong[0]}", "weights of a masked autoencoder of these sizes")
        self.encoder.load_state_dict({name: found[name] for name in wanted})


@dataclass(frozen=True)
class ZeroSegSpec:
    """What builds a student again; as text, the specification that its card has.

    Attributes:
        vit: of the encoder, ``vitWIDTH_BLOCKS_PATCH``.
        groups: G_1 and G_2, group tokens and segments of the stages.
        layers: blocks of the head's three stages.
        dim: D, of the teacher's embeddings.
        hidden: width of the projection's hidden layer.
        norm: of the projection: ``none`` or ``batch``.
    """

    vit: str
    groups: tuple[int, ...]
    layers: tuple[int, ...]
    dim: int
    hidden: int
    norm: str

    def __str__(self) -> str:
        groups, layers = ("+".join(map(str, numbers)) for numbers in (self.groups, self.layers))
        return f"{PREFIX}{self.vit},{groups},{layers},{self.dim},{self.hidden},{self.norm}"

    def parts(self) -> tuple[str, ...]:
        """None: it is of one piece."""
        return ()

    def of(self, *parts: str) -> ZeroSegSpec:
        """Itself."""
        return self

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> nn.Module:
        """See `engine.specification.Composed`; it knows no classes."""
        return ZeroSegNetwork(self)


def parse(source: str, argument: str) -> ZeroSegSpec:
    """The inverse of `ZeroSegSpec.__str__`.

    Raises:
        InputError: it is none.
    """
    match = _GRAMMAR.fullmatch(source)
    if match is None:
        raise InputError(
            argument,
            source,
            f"{PREFIX}VIT,GROUP TOKENS,LAYERS,D,HIDDEN,NORM as a run records it, e.g. {PREFIX}vit64_4_8,8+4,1+1+1,64,256,none",
        )
    groups, layers = (tuple(int(number) for number in match[name].split("+")) for name in ("groups", "layers"))
    return ZeroSegSpec(match["vit"], groups, layers, int(match["dim"]), int(match["hidden"]), match["norm"])
