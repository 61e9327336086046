"""A finished run's segmenter, ready to use: scans become clusters, in files of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stillroom.engine.card import Card, Described, read_card, write_card
from stillroom.engine.export import ExportSpec
from stillroom.engine.run.written import write_atomic
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError
from stillroom.tasks.images.loaded import accelerated
from stillroom.tasks.points.drawings import label_colours
from stillroom.tasks.points.folder import file_points, find_points
from stillroom.tasks.points.frames import Frame, FrameInputs, cleaned
from stillroom.tasks.points.rooms import COLUMNS
from stillroom.tasks.points.supervoxels import SupervoxelSpec, supervoxels
from stillroom.tasks.segmentation3d.backbone import Pyramid, PyramidSpec
from stillroom.tasks.segmentation3d.segmenter import SceneSegmenter

TASK = "segmentation3d"  # what `student.json` calls it


@dataclass(frozen=True)
class Segmented3d:
    """What was found in one scan.

    Attributes:
        file: of its points.
        labels: file of the cluster of each point, an int64 array [N].
        cloud: the same points in the colours of their clusters, a PLY file.
        counts: of the points of each cluster.
    """

    file: Path
    labels: Path
    cloud: Path
    counts: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Where the files are, and how many points each cluster has."""
        return {"labels": str(self.labels), "cloud": str(self.cloud), "points": list(self.counts)}

    def rows(self) -> list[list[str]]:
        """One row."""
        order = np.argsort(self.counts)[::-1]
        total = max(sum(self.counts), 1)
        told = ", ".join(f"cluster {k} {self.counts[k] / total:.0%}" for k in order[:3] if self.counts[k])
        return [[told or "no point", str(self.labels), str(self.cloud)]]


@dataclass(frozen=True)
class LoadedSegmenter3d:
    """A trained segmenter of scans.

    Args:
        network: in eval mode.
        pieces: how a scan is cut into super-voxels.
        card: what the run says about it.
    """

    network: SceneSegmenter
    pieces: SupervoxelSpec
    card: Card

    kind: ClassVar[str] = "a network that segments scans"
    options: ClassVar[dict[str, Any]] = {"out": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the clusters, which no label named: their numbers."""
        return tuple(f"cluster {number}" for number in range(len(self.network.centres)))

    @torch.no_grad()
    def segment(self, frame: Frame) -> np.ndarray:
        """The cluster of each point of a scan with the columns x, y, z and red, green, blue in [0, 1]: int64 [N].

        Raises:
            InputError: a point's place is no number.
        """
        whole = frame.with_columns(COLUMNS)
        if cleaned(whole).points:
            raise InputError("scan", f"{frame.name or 'one'} with points whose place is no number", "finite coordinates")
        if not len(whole.points):
            return np.zeros(0, np.int64)
        device = next(self.network.parameters()).device
        regions = torch.from_numpy(supervoxels(whole.points[:, :3], whole.points[:, 3:6], self.pieces)).to(device)
        points = torch.from_numpy(whole.points).to(device)
        inputs = FrameInputs(points, torch.zeros(len(points), dtype=torch.int64, device=device), 1)
        found = self.network.segment(inputs, regions)[0]
        return found.cpu().numpy()

    def columns(self, out: str | None = None) -> list[str]:
        """Of `Segmented3d.rows`."""
        return ["most of it", "labels", "cloud"]

    def find(self, places: Sequence[str]) -> tuple[list[Path], list[str]]:
        """The point files at files, folders and patterns, and the places that hold none."""
        return find_points(places)

    def predict(self, files: Sequence[Path], *, unreadable: Callable[[Any], None], out: str | None = None) -> Iterator[Segmented3d]:
        """The clusters of each scan, written into the folder `out`, by default the run's; see `Student`."""
        accelerated(self.network)
        folder = Path(out) if out is not None else self.card.folder
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            try:
                points, names = file_points(file, COLUMNS)
                labels = self.segment(Frame(points, names, name=file.name))
            except InputError as error:
                unreadable(error)
                continue
            written = folder / f"{file.stem}.labels.npy", folder / f"{file.stem}.clusters.ply"
            np.save(written[0], labels)
            write_atomic(written[1], _ply(points[:, :3], label_colours(labels)))
            yield Segmented3d(file, *written, tuple(np.bincount(labels, minlength=len(self.network.centres)).tolist()))

    def export_spec(self) -> ExportSpec:
        """Raises InputError: sparse convolutions are in none of the formats."""
        raise InputError("run", self.card.model, "another student: sparse convolutions cannot be exported; load it with stillroom.load")


def _ply(points: np.ndarray, colours: np.ndarray) -> bytes:
    rows = np.zeros(len(points), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for name, column in zip(rows.dtype.names or (), (*points.T, *colours.T), strict=True):
        rows[name] = column
    kinds = "".join(f"property {'float' if name in 'xyz' else 'uchar'} {name}\n" for name in rows.dtype.names or ())
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{kinds}end_header\n"
    return head.encode() + rows.tobytes()


def load(run: str | Path, *, trust_pickle: bool = False) -> LoadedSegmenter3d:
    """The student that a run shipped; see `engine.task.Task.load`."""
    card = read_card(run, trust_pickle=trust_pickle)

    def numbers(content: Mapping[str, Any]) -> tuple[float, float, int, int]:
        return float(content["voxel_size"]), float(content["supervoxel_size"]), int(content["clusters"]), int(content["aligned"])

    voxel, piece, clusters, aligned = card.parsed(numbers, "voxel_size, supervoxel_size, clusters and aligned")
    network = SceneSegmenter(Pyramid(PyramidSpec.parse(card.model, "run"), voxel), clusters, aligned)
    load_weights(network, card.weights, trust_pickle=trust_pickle, argument="run")
    return LoadedSegmenter3d(network.eval(), SupervoxelSpec(max(voxel, 0.05), piece, colour=2.0, angle=5.0), card)


def ship(folder: Path, network: Any, model: str, data: Described) -> None:
    """Writes `student.json`: the model and how scans are cut into voxels and super-voxels."""
    centres = getattr(network, "centres", torch.zeros(0, 0))
    write_card(folder, TASK, model, data, clusters=len(centres), aligned=centres.shape[1] if getattr(network, "aligned", False) else 0)
