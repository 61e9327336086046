"""Scans cut into small pieces that belong together, without any label: cells of equal look, regions of equal slope, and the two merged.

`supervoxels` is what a scan without a segmentation of its own is given; its parts are those of the common toolboxes, in NumPy: VCCS
(cells that flow from seeds), region growing on normals, and the merge in which a region takes over the cells that are mostly its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError

_FLAT = 15  # neighbours by which a normal is found


@dataclass(frozen=True)
class SupervoxelSpec:
    """How scans are cut.

    Args:
        voxel: metres of a voxel's side.
        seed: metres between the seeds of cells.
        space, normal, colour: weights of the distance of a voxel from a cell.
        angle: degrees that the normals of neighbours in a region may differ by.
        rounds: of the cells' flow.

    Raises:
        InputError: a length that is not above 0.
    """

    voxel: float = 0.05
    seed: float = 0.5
    space: float = 0.4
    normal: float = 1.0
    colour: float = 0.2
    angle: float = 3.0
    rounds: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.voxel <= self.seed:
            raise InputError("supervoxel", [self.voxel, self.seed], "metres of a voxel, and more of them between seeds")


def supervoxels(points: np.ndarray, colours: np.ndarray | None, spec: SupervoxelSpec | None = None) -> np.ndarray:
    """The piece of each point, int64 [N], numbered from 0 without gaps.

    Args:
        points: float [N, 3], metres.
        colours: [N, 3] in [0, 1]; None where there are none.
        spec: how it is cut.
    """
    spec = spec or SupervoxelSpec()
    if not len(points):
        return np.zeros(0, np.int64)
    inverse = np.unique(np.floor(points / spec.voxel).astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(inverse)[:, None]
    centres = np.stack([np.bincount(inverse, points[:, axis]) for axis in range(3)], 1) / counts
    looks = None
    if colours is not None:
        looks = lab(np.stack([np.bincount(inverse, colours[:, axis]) for axis in range(3)], 1) / counts)
    slopes, bend, near = normals(centres)
    cells = vccs(centres, looks, slopes, bend, near, spec)
    regions = grown(slopes, bend, near, spec.angle)
    return merged(cells, regions)[inverse]


def normals(points: np.ndarray, neighbours: int = _FLAT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals [N, 3] by the principal axes of each point's nearest neighbours, how bent the surface is there [N] in [0, 1/3], and these
    neighbours, int64 [N, k], itself first."""
    from scipy.spatial import cKDTree

    count = min(neighbours, len(points))
    near = np.asarray(cKDTree(points).query(points, count)[1]).reshape(len(points), count)
    offsets = points[near] - points[near].mean(1, keepdims=True)
    values, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets) / count)
    return axes[:, :, 0], values[:, 0] / np.maximum(values.sum(1), 1e-12), near


def vccs(
    points: np.ndarray, looks: np.ndarray | None, slopes: np.ndarray, bend: np.ndarray, near: np.ndarray, spec: SupervoxelSpec
) -> np.ndarray:
    """Cells that flow from seeds over neighbouring voxels, int64 [N].

    The distance of a voxel from a cell is ``colour |dLab| / 100 + space |dp| / seed + normal (1 - |n n'|)``, from the cell's running mean.
    Every round starts from the means of the last one, and ends when no voxel changes its cell.

    Args:
        points: centres of voxels, [N, 3].
        looks: Lab colours [N, 3], or None.
        slopes, bend, near: of `normals`.
        spec: weights and seeds.
    """
    from scipy.spatial import cKDTree

    grid = np.floor(points / spec.seed).astype(np.int64)
    _, seed_of = np.unique(grid, axis=0, return_inverse=True)
    seed_of = seed_of.reshape(-1)
    order = np.lexsort((bend, seed_of))  # of each cell of the seeds' grid the flattest voxel
    seeds = order[np.unique(seed_of[order], return_index=True)[1]]
    step = 2 * spec.voxel * np.sqrt(3) / 2 * 1.05  # the diagonal of a voxel, a little more: 26 neighbours
    pairs = cKDTree(points).query_pairs(step * 1.2, output_type="ndarray")
    source, target = np.concatenate((pairs, pairs[:, ::-1])).T
    parts = [points * (spec.space / spec.seed)]
    parts += [] if looks is None else [looks * (spec.colour / 100)]
    flat = parts[0], (parts[1] if len(parts) > 1 else np.zeros((len(points), 1)))
    where, look, slope = flat[0][seeds], flat[1][seeds], slopes[seeds]
    label = np.full(len(points), -1, np.int64)
    for _ in range(spec.rounds):
        label = np.full(len(points), -1, np.int64)
        distance = np.full(len(points), np.inf)
        label[seeds], distance[seeds] = np.arange(len(seeds)), 0.0
        changed = np.zeros(len(points), bool)
        changed[seeds] = True
        while changed.any():
            edge = changed[source]
            at, cell = target[edge], label[source[edge]]
            away = np.linalg.norm(flat[0][at] - where[cell], axis=1) + np.linalg.norm(flat[1][at] - look[cell], axis=1)
            away += spec.normal * (1 - np.abs((slopes[at] * slope[cell]).sum(1)))
            best = np.lexsort((cell, away, at))
            at, cell, away = at[best], cell[best], away[best]
            first = np.unique(at, return_index=True)[1]
            at, cell, away = at[first], cell[first], away[first]
            better = away < distance[at] - 1e-9
            label[at[better]], distance[at[better]] = cell[better], away[better]
            changed = np.zeros(len(points), bool)
            changed[at[better]] = True
        reached = label >= 0
        counts = np.maximum(np.bincount(label[reached], minlength=len(seeds)), 1)[:, None]
        where, look, slope = (_means(values[reached], label[reached], len(seeds)) / counts for values in (flat[0], flat[1], slopes))
        slope = _oriented(slopes[reached], label[reached], slopes[seeds])
    return _numbered(np.where(label >= 0, label, len(seeds) + np.arange(len(points))))


def _means(values: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    return np.stack([np.bincount(label, values[:, axis], minlength=count) for axis in range(values.shape[1])], 1)


def _oriented(slopes: np.ndarray, label: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Mean directions of normals, whose signs mean nothing: each is turned to its seed's side."""
    signs = np.sign((slopes * seeds[label]).sum(1, keepdims=True))
    total = _means(slopes * np.where(signs == 0, 1, signs), label, len(seeds))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def grown(slopes: np.ndarray, bend: np.ndarray, near: np.ndarray, angle: float) -> np.ndarray:
    """Regions of neighbours whose normals differ by less than `angle` degrees, int64 [N]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    source, target = np.repeat(np.arange(len(near)), near.shape[1]), near.ravel()
    alike = np.abs((slopes[source] * slopes[target]).sum(1)) >= np.cos(np.deg2rad(angle))
    alike &= np.maximum(bend[source], bend[target]) < 0.1  # at an edge a normal is of neither side
    graph = coo_matrix((np.ones(int(alike.sum())), (source[alike], target[alike])), shape=(len(near), len(near)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def merged(cells: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Cells of which more than half lie in one region take that region's number, the others keep one of their own: int64 [N], numbered in
    the order of the points."""
    width = int(regions.max(initial=0)) + 1
    pairs, counts = np.unique(cells * width + regions, return_counts=True)
    cell, region = pairs // width, pairs % width
    order = np.lexsort((region, -counts, cell))
    top = order[np.unique(cell[order], return_index=True)[1]]
    size = np.bincount(cells)
    takes = np.full(len(size), -1, np.int64)
    takes[cell[top]] = np.where(2 * counts[top] > size[cell[top]], region[top], -1)
    return _numbered(np.where(takes[cells] >= 0, takes[cells], width + cells))


def _numbered(label: np.ndarray) -> np.ndarray:
    """The same parts, numbered from 0 in the order in which they first appear."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])


def lab(colours: np.ndarray) -> np.ndarray:
    """CIE Lab of sRGB colours [N, 3] in [0, 1] (D65)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours.clip(0, 1) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124564, 0.2126729, 0.0193339], [0.3575761, 0.7151522, 0.1191920], [0.1804375, 0.0721750, 0.9503041]])
    ratio = xyz / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), 1)
