"""A finished run's detector, ready to use: point files become boxes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stillroom.engine.card import Card, read_card
from stillroom.engine.export import ExportSpec
from stillroom.errors import InputError
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.networks import DensePart, LidarDetector, MapDetector
from stillroom.tasks.images.export_parts import description
from stillroom.tasks.images.loaded import accelerated
from stillroom.tasks.points.answers import kitti_entries, nuscenes_entries
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.folder import file_points, find_points
from stillroom.tasks.points.frames import Frame, cleaned, collate

logger = logging.getLogger(__name__)

THRESHOLD = 0.3  # of a score, for people to look at
_CHECKED = 3  # made-up maps that an export is compared on


@dataclass(frozen=True)
class Detected3d:
    """What was found in one file.

    Attributes:
        file: of points.
        boxes: float32 [M, 7 or 9], best first, in the file's own coordinates.
        scores: float32 [M].
        labels: int64 [M].
        classes: their names.
    """

    file: Path
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The boxes as ``nuscenes`` and as ``kitti`` measure them (`points.answers`)."""
        found = self.boxes, self.scores, self.labels, self.classes
        return {"nuscenes": nuscenes_entries(*found), "kitti": kitti_entries(*found)}

    def rows(self) -> list[list[str]]:
        """A row for each box, or one for nothing."""
        told = zip(self.boxes, self.scores, self.labels, strict=True)
        rows = [[self.classes[k], f"{score:.2f}", ", ".join(f"{value:.2f}" for value in box[:7])] for box, score, k in told]
        return rows or [["nothing", "", ""]]


@dataclass(frozen=True)
class LoadedDetector3d:
    """A trained detector of points.

    Args:
        network: in eval mode.
        wanted: what it reads and answers.
        card: what the run says about it.
    """

    network: MapDetector
    wanted: Wanted
    card: Card

    kind: ClassVar[str] = "a detector in three dimensions"
    options: ClassVar[dict[str, Any]] = {"threshold": THRESHOLD, "query": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of labels."""
        return self.wanted.classes.names

    @torch.no_grad()
    def detect(
        self, frame: Frame, *, threshold: float = THRESHOLD, texts: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [M, 7 or 9], scores and labels of a frame, of scores above the threshold, best first.

        Args:
            frame: its pictures are not looked at.
            threshold: of the scores.
            texts: of `texts`; then labels are places among the queries, and a score is that of the box times how probable its query is.
        """
        batch = collate([cleaned(replace(frame, views=()).with_columns(self.wanted.columns)).frame], [0])
        device = next(self.network.parameters()).device
        inputs = batch.inputs._replace(points=batch.points.to(device), batch_index=batch.batch_index.to(device))
        outputs = self.network.raw(inputs)
        (found,) = self.network.head.detect(outputs.predictions)
        if texts is not None:
            ((label, share),) = self.network.naming.named(outputs, inputs, [found], texts.to(device))
            order = (found.scores * share).argsort(descending=True, stable=True)
            found = Detections(found.boxes[order], (found.scores * share)[order], label[order])
        kept = found.scores > threshold
        boxes, scores, labels = (value[kept].cpu().numpy() for value in found)
        return boxes, scores, labels

    def texts(self, queries: Sequence[str]) -> torch.Tensor:
        """What `detect` compares points with, for any words.

        Raises:
            InputError: a detector that knows its classes only, or a query without a word, or one that the run's language does not know.
        """
        if self.network.naming is None:
            raise InputError("query", ", ".join(queries), f"none: this student finds {', '.join(self.classes[:5])}, and reads no words")
        if not queries or not all(query.strip() for query in queries):
            raise InputError("query", list(queries), "a word or phrase")
        found: torch.Tensor = self.network.naming.texts(queries, self.card.content)
        return found

    def columns(self, threshold: float = THRESHOLD, query: Sequence[str] | None = None) -> list[str]:
        """Of `Detected3d.rows`."""
        return ["class", "score", "box (x, y, z, dx, dy, dz, yaw)"]

    def find(self, places: Sequence[str]) -> tuple[list[Path], list[str]]:
        """The point files at files, folders and patterns, and the places that hold none."""
        return find_points(places)

    def predict(
        self,
        files: Sequence[Path],
        *,
        unreadable: Callable[[Any], None],
        threshold: float = THRESHOLD,
        query: Sequence[str] | None = None,
    ) -> Iterator[Detected3d]:
        """The boxes of each file; see `Student`. Raw numbers (.bin) are read with the columns that the network was trained on.

        Args:
            files: of points.
            unreadable: is called with the error of a file that cannot be read.
            threshold: least score.
            query: words for what is looked for, of a detector that reads words (`texts`).

        Raises:
            InputError: see `texts`; or a detector of pictures.
        """
        if not isinstance(self.network, LidarDetector):
            raise InputError("run", self.card.model, "a detector of points: one of pictures needs their cameras; use its network on frames")
        texts, names = (None, self.classes) if query is None else (self.texts(query), tuple(query))
        accelerated(self.network)
        for file in files:
            try:
                points, columns = file_points(file, self.wanted.columns)
            except InputError as error:
                unreadable(error)
                continue
            if lacking := [name for name in self.wanted.columns if name not in columns]:
                logger.warning("%s: without %s, which the network was trained with: it is taken for 0", file, ", ".join(lacking))
            low, high = np.array(self.wanted.reach[:3]), np.array(self.wanted.reach[3:])
            if not ((points[:, :3] >= low) & (points[:, :3] <= high)).all(1).any():
                logger.warning("%s: none of its %d points is within reach: %s", file, len(points), list(self.wanted.reach))
            yield Detected3d(file, *self.detect(Frame(points, columns), threshold=threshold, texts=texts), names)

    def export_spec(self) -> ExportSpec:
        """The file begins behind the encoder of points: ``map`` float32 [batch, C, ny, nx], and answers with ``heatmap`` and ``codes``.

        Raises:
            InputError: the network is no detector of points.
        """
        if not isinstance(self.network, LidarDetector):
            raise InputError("run", self.card.model, "a detector of points; what reads pictures and cameras cannot be exported yet")
        grid = self.network.voxel_grid.bev
        scale = 8 if self.network.spec.voxels else 1
        shape = _CHECKED, self.network.input_channels, grid.ny // scale, grid.nx // scale
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(shape, generator=generator)
        maps *= torch.rand((*shape[:1], 1, *shape[2:]), generator=generator) < 0.1  # mostly empty, as maps of points are
        told = {**self.card.content, "transform": {name: self.card.content[name] for name in ("reach", "columns")}}
        note = "the file begins behind the encoder of points, whose pillars and sparse voxels other runtimes do not have: it reads a map"
        metadata = description(replace(self.card, content=told))
        return ExportSpec(DensePart(self.network).eval(), maps, ("map", "heatmap", "codes"), metadata, note=note)


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedDetector3d:
    """The student that a run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)
    wanted = card.parsed(Wanted.of, "classes, groups, columns and reach")
    built = build_detector(card.spec, wanted, trust_pickle=trust_pickle, argument="run")
    return LoadedDetector3d(built.network.eval(), wanted, card)
