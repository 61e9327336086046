"""A detector of objects that says of every point what it is like, in the space of texts (B.3), and names its boxes by any words (C).

A run's `student.json` names it by the detector that it is built around, see `OpenSpec`; `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, one_of
from stillroom.methods.upvl.loss import box_labels
from stillroom.methods.upvl.standin import OWN, WORDS, embedded
from stillroom.methods.upvl.vision import BACKGROUND
from stillroom.tasks.detection3d.networks import LidarDetector, MapOutputs
from stillroom.tasks.images.clips import class_embeddings, open_clip
from stillroom.tasks.points.boxes import points_in_boxes
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.frames import FrameInputs
from stillroom.tasks.points.lift_splat import sample_rows
from stillroom.tasks.points.voxels import PillarEncoder, RowNorm

LANGUAGES = (OWN, "clip")
_GRAMMAR = re.compile(r"upvl:(?P<base>.+),features=(?P<features>[1-9]\d*),language=(?P<language>\w+)")


@dataclass(frozen=True)
class OpenSpec:
    """What such a detector is; as text ``upvl:BASE,features=512,language=clip``.

    Args:
        base: specification of a detector on pillars, without weights.
        features: C, of the vision-language model.
        language: what reads texts: ``own``, the stand-in's words, which are kept among the weights; or ``clip``, of the card.
    """

    base: str
    features: int
    language: str

    def __str__(self) -> str:
        return f"upvl:{self.base},features={self.features},language={self.language}"

    def parts(self) -> tuple[str, ...]:
        """The base's specification."""
        return (self.base,)

    def of(self, *parts: str) -> OpenSpec:
        """The same around another base."""
        return replace(self, base=parts[0])

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> LidarDetector:
        """An untrained detector, as `engine.specification.Composed` says.

        Raises:
            InputError: the base has no pillars.
        """
        network = make(self.base, num_classes)
        if not isinstance(network, LidarDetector) or not isinstance(network.encoder, PillarEncoder):
            raise InputError(
                argument, self.base, "a lidar detector on pillars, such as stillroom/centerpoint-pillar or stillroom/pillar-small"
            )
        network.naming = PointFeatures(network, self.features, self.language)
        return network


def parse(text: str, argument: str) -> OpenSpec:
    """The inverse of `str` of an `OpenSpec`.

    Raises:
        InputError: the text is not of this form.
    """
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        raise InputError(argument, text, "upvl:DETECTOR,features=C,language=own or clip")
    return OpenSpec(found["base"], int(found["features"]), one_of(argument, found["language"], LANGUAGES))


class PointFeatures(nn.Module):
    """The feature head: what a point's pillar read of it, the pillar's features and the neck's map at the point, through an MLP, [n, C].

    Args:
        network: the detector, on pillars.
        features: C.
        language: see `OpenSpec`.

    Attributes:
        clip: where the CLIP was whose features were learnt, for the card; empty for the stand-in.
    """

    def __init__(self, network: LidarDetector, features: int, language: str) -> None:
        super().__init__()
        self.grid, self.language, self.clip = network.grid, language, ""
        wide, hidden = network.head.in_channels + network.input_channels + len(network.columns) + 5, 4 * network.spec.head
        layers: list[nn.Module] = []
        for before in (wide, hidden):
            layers += [nn.Linear(before, hidden, bias=False), RowNorm(hidden, momentum=network.spec.momentum), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, features))
        self.register_buffer("words", torch.zeros(len(WORDS) if language == OWN else 0, features))

    def forward(self, outputs: MapOutputs, inputs: FrameInputs, rows: Tensor) -> Tensor:
        """Features [n, C].

        Args:
            outputs, inputs: of the detector.
            rows: int64 [n], places among the points that fall into a pillar (``outputs.extra["kept"]``).
        """
        extra, point = outputs.extra, outputs.extra["kept"][rows]
        around = sample_rows(outputs.neck, inputs.points[point, :2], inputs.batch_index[point], self.grid)
        found: Tensor = self.layers(torch.cat((around, extra["pillars"][extra["voxel"][rows]], extra["told"][rows]), 1))
        return found

    def card(self) -> dict[str, Any]:
        """Where the CLIP is that reads queries."""
        return {"clip": self.clip} if self.language != OWN else {}

    def texts(self, queries: Sequence[str], card: Mapping[str, Any]) -> Tensor:
        """Queries and, behind them, the background's prompts, [Q, C]; see `Naming`."""
        if self.language == OWN:
            return embedded([*queries, *BACKGROUND], self.words)  # type: ignore[arg-type]
        return class_embeddings(open_clip(str(card["clip"]), argument="clip"), [*queries, *BACKGROUND]).float()

    def named(self, outputs: MapOutputs, inputs: FrameInputs, found: Sequence[Detections], texts: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See `Naming`. Only points in boxes are asked."""
        kept = outputs.extra["kept"]
        answers = []
        for number, boxes in enumerate(found):
            mine = (inputs.batch_index[kept] == number).nonzero().squeeze(1)
            inside = points_in_boxes(inputs.points[kept[mine], :3], boxes.boxes)
            some = inside.any(0)
            answers.append(named_by(self(outputs, inputs, mine[some]), inside[:, some], texts))
        return answers


def named_by(features_NC: Tensor, inside_MN: Tensor, texts_QC: Tensor) -> tuple[Tensor, Tensor]:
    """Of each box which prompt it is, the background's at the end of `texts_QC` being no answers, int64 [M], and how probable, [M]."""
    background = range(len(texts_QC) - len(BACKGROUND), len(texts_QC))
    share_MQ, label_M = box_labels(features_NC, inside_MN, texts_QC, background)
    return label_M, share_MQ.gather(1, label_M[:, None]).squeeze(1)
