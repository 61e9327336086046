"""The two adaptive knowledge extractors (AKE): what is in a detector's maps (content), and where it is (position)."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine.run.written import write_atomic
from stillroom.engine.weights import load_weights, save_weights
from stillroom.errors import InputError, at_least
from stillroom.losses.precision import at_least_float32
from stillroom.methods.unikd.attention import ExtractorLayer, Maps, Padding, in_full_precision

NAME = "extractors.json"
WEIGHTS = "student.safetensors"  # beside it
_EPS = 1e-5


def decoded(delta_BN4: Tensor, reference_BNR: Tensor) -> Tensor:
    """Boxes (centre x, centre y, width, height): sigmoid(delta + logit(reference)); of a reference point the sides are delta's alone."""
    delta_BN4, reference_BNR = at_least_float32(delta_BN4), at_least_float32(reference_BNR)
    start = (reference_BNR.clamp_min(_EPS) / (1 - reference_BNR).clamp_min(_EPS)).log()
    return (delta_BN4 + nn.functional.pad(start, (0, 4 - start.shape[-1]))).sigmoid()


@dataclass(frozen=True)
class Sizes:
    """What a pair of extractors was made for; `extractors.json` beside their weights.

    Attributes:
        strides: of the maps that they read.
        channels: of the teacher's maps.
        classes: names, in the order of the data.
        queries, width, heads, points: N, C, H and K.
        teacher, kind: its specification and its class.
        weights: digest of the teacher's weights.
    """

    strides: tuple[int, ...]
    channels: int
    classes: tuple[str, ...]
    queries: int = 200
    width: int = 256
    heads: int = 8
    points: int = 4
    teacher: str = ""
    kind: str = ""
    weights: str = ""


class Extractor(nn.Module):
    """One AKE: a generator makes queries of the teacher's maps, a reader answers them from anybody's, and two heads detect by the answers.

    Args:
        sizes: what it is made for.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        layer = sizes.width, sizes.heads, len(sizes.strides), sizes.points
        self.generator, self.reader = ExtractorLayer(*layer), ExtractorLayer(*layer)
        self.classify = nn.Linear(sizes.width, len(sizes.classes))
        nn.init.constant_(self.classify.bias, -math.log(99))
        hidden = [part for _ in range(2) for part in (nn.Linear(sizes.width, sizes.width), nn.ReLU())]
        self.locate = nn.Sequential(*hidden, last := nn.Linear(sizes.width, 4))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @abstractmethod
    def start(self, boxes_BN4: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries are before they have seen a map, [B, N, C], and their references [B, N, 2 or 4]; `boxes_BN4` is B~."""

    @in_full_precision
    def ask(self, boxes_BN4: Tensor, maps: Maps, padding: Padding) -> tuple[Tensor, Tensor]:
        """The queries q and their references: of the teacher's maps, in both stages."""
        start_BNC, reference_BNR = self.start(boxes_BN4)
        return self.generator(start_BNC, reference_BNR, maps, padding), reference_BNR

    def read(self, query_BNC: Tensor, reference_BNR: Tensor, maps: Maps, padding: Padding) -> Tensor:
        """The embeddings z that answer the queries: of the teacher's maps, or of what an adapter made of the student's."""
        answered: Tensor = self.reader(query_BNC, reference_BNR, maps, padding)
        return answered

    @in_full_precision
    def detect(self, embedding_BNC: Tensor, reference_BNR: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, N, K] and boxes [B, N, 4] by the embeddings."""
        return self.classify(embedding_BNC), decoded(self.locate(embedding_BNC), reference_BNR)


class ContentExtractor(Extractor):
    """What: queries learnt once, each around a point of its own."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.content = nn.Parameter(torch.randn(sizes.queries, sizes.width))
        self.reference = nn.Linear(sizes.width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def start(self, boxes_BN4: Tensor) -> tuple[Tensor, Tensor]:
        """E and sigmoid(E W_r + b_r), the same for every image."""
        batch = boxes_BN4.shape[0]
        return self.content.expand(batch, -1, -1), self.reference(self.content).sigmoid().expand(batch, -1, -1)


class PositionExtractor(Extractor):
    """Where: a query for each box of B~, around that box."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.embed = nn.Linear(4, sizes.width)

    def start(self, boxes_BN4: Tensor) -> tuple[Tensor, Tensor]:
        """B~ W_b + b_b, and B~ itself."""
        return self.embed(boxes_BN4), boxes_BN4


class Extractors(nn.Module):
    """Both AKEs, and where the teacher's maps have other channels the linear map that brings them to theirs.

    Args:
        sizes: what they are made for.

    Raises:
        InputError: a number that cannot be used.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        for name in ("queries", "width", "heads", "points"):
            at_least(name, getattr(sizes, name), 1)
        self.sizes = sizes
        self.entry = nn.Identity() if sizes.channels == sizes.width else nn.Conv2d(sizes.channels, sizes.width, 1)
        self.content, self.position = ContentExtractor(sizes), PositionExtractor(sizes)

    @in_full_precision
    def enter(self, maps: Maps) -> list[Tensor]:
        """The teacher's maps [B, C_t, h, w] in the extractors' width."""
        return [self.entry(level) for level in maps]

    def both(self) -> Iterator[tuple[str, Extractor]]:
        """``content`` and ``position``."""
        yield "content", self.content
        yield "position", self.position

    def save(self, folder: Path) -> None:
        """Writes `extractors.json`, and the weights beside it unless they are there: a stage of their own has them."""
        write_atomic(folder / NAME, json.dumps(asdict(self.sizes), indent=1))
        if not (folder / WEIGHTS).exists():
            save_weights(self, folder / WEIGHTS)


def load_extractors(folder: str | Path, argument: str = "extractors") -> Extractors:
    """The extractors of a finished stage, or those beside stored answers.

    Raises:
        InputError: there are none in the folder, or they are damaged.
    """
    place = Path(folder)
    try:
        told = json.loads((place / NAME).read_text())
        lists: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
        sizes = Sizes(**lists)
        extractors = Extractors(sizes)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(argument, str(folder), f"a folder with {NAME} and {WEIGHTS}: the stage extractors of a run of unikd") from error
    load_weights(extractors, place / WEIGHTS, argument=argument)
    return extractors


def check_fits(sizes: Sizes, wanted: Sizes, *, any_teacher: bool) -> None:
    """Refuses extractors that were made for another teacher, or for other classes.

    Args:
        sizes: theirs.
        wanted: what the teacher and the data are, at these strides.
        any_teacher: whether a teacher with other weights will do.

    Raises:
        InputError: what differs.
    """
    for name in ("channels", "classes"):
        mine, theirs = getattr(sizes, name), getattr(wanted, name)
        if mine != theirs:
            raise InputError("extractors", f"extractors for {name} {mine}", f"such as are made for {theirs}")
    if sizes.weights != wanted.weights and not any_teacher:
        got = f"extractors that were trained on {sizes.teacher} with other weights than this teacher's"
        raise InputError("extractors", got, "this teacher's own, or --any-teacher true to use them all the same")
