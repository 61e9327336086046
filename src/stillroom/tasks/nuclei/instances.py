"""From maps to nuclei: where a network sees nuclei, cut where the distances to their centres jump.

    blob = P(nucleus) >= 0.5;   edge = max of 1 - S(distances), each scaled to [0, 1], S a wide Sobel filter across the distance's direction
    markers = opened(filled(blob without edge >= 0.4));   nuclei = watershed of -blurred((1 - edge) blob) from the markers, inside the blob

The watershed is a minimum spanning forest rooted in the markers, of the pixels' graph.

Source: HoVer-Net (Graham et al. 2019), section 2.3, with the filters of its code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_EDGE = 0.4
_BLUR = np.array([0.25, 0.5, 0.25])
_WIDE = 15  # pixels of a Sobel filter from which on markers are opened by a disc of 5, else of 3


class Outlining(NamedTuple):
    """How nuclei are made of maps.

    Attributes:
        edge_kernel: side of the Sobel filter in pixels, odd.
        least: pixels of the smallest nucleus.
        threshold: probability from which on a pixel belongs to a nucleus.
    """

    edge_kernel: int = 21
    least: int = 10
    threshold: float = 0.5


def instances_of(probability_HW: np.ndarray, distances_2HW: np.ndarray, outlining: Outlining) -> np.ndarray:
    """The nuclei of a picture, int32 [H, W]: 1 to K, 0 for background.

    Args:
        probability_HW: of a nucleus.
        distances_2HW: horizontal and vertical.
        outlining: see there.
    """
    from scipy import ndimage

    blob_HW = _large(probability_HW >= outlining.threshold, outlining.least)
    if not blob_HW.any():
        return np.zeros(blob_HW.shape, np.int32)
    slopes = [_unit(_sobel(_unit(one), outlining.edge_kernel, along)) for one, along in zip(distances_2HW, (1, 0), strict=True)]
    edge_HW = np.maximum(*(1 - one for one in slopes)) * blob_HW
    markers_HW = ndimage.binary_fill_holes(blob_HW & (edge_HW < _EDGE))
    markers_HW = ndimage.binary_opening(markers_HW, _disc(5 if outlining.edge_kernel >= _WIDE else 3))
    depth_HW = (1 - edge_HW) * blob_HW
    for axis in (0, 1):
        depth_HW = ndimage.correlate1d(depth_HW, _BLUR, axis, mode="mirror")
    return watershed(-depth_HW, _large(markers_HW, outlining.least), blob_HW)


def painted(instances_HW: np.ndarray, pixel_types_HW: np.ndarray) -> np.ndarray:
    """The type of each nucleus, int64 [K + 1], the background's 0 first: that of most of its pixels, the second where that is background;
    1 where every pixel is background."""
    count, classes = int(instances_HW.max(initial=0)) + 1, int(pixel_types_HW.max(initial=0)) + 2
    votes = np.bincount((instances_HW * classes + pixel_types_HW).ravel(), minlength=count * classes).reshape(count, classes)
    types = 1 + votes[:, 1:].argmax(1)
    types[0] = 0
    return types.astype(np.int64)


def watershed(height_HW: np.ndarray, markers_HW: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    """Basins of a surface, int32 [H, W]: each connected marker floods what it reaches over the lowest passes; 0 where none does.

    Args:
        height_HW: float.
        markers_HW, inside_HW: bool; pixels outside are never flooded.
    """
    from scipy import ndimage
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    marked_HW, count = ndimage.label(markers_HW & inside_HW)
    number_HW = np.cumsum(inside_HW).reshape(inside_HW.shape) - 1
    pixels = int(inside_HW.sum())
    if not count:
        return np.zeros(inside_HW.shape, np.int32)
    raised_HW = height_HW - height_HW.min() + 1
    ends: list[list[np.ndarray]] = [[], [], []]
    for a, b in (((slice(None), slice(1, None)), (slice(None), slice(None, -1))), ((slice(1, None),), (slice(None, -1),))):
        both = inside_HW[a] & inside_HW[b]
        same = (marked_HW[a] == marked_HW[b]) & (marked_HW[a] > 0)
        weights = np.where(same, 0.25, np.maximum(raised_HW[a], raised_HW[b]))[both]  # a marker is one basin before anything floods
        for part, values in zip(ends, (number_HW[a][both], number_HW[b][both], weights), strict=True):
            part.append(values)
    # a root below every marker, so that no path joins two of them
    seeds = ndimage.maximum_position(np.where(inside_HW, 1.0, 0.0), marked_HW, np.arange(1, count + 1))
    seeded = np.array([number_HW[place] for place in seeds])
    rows, columns, weights = (np.concatenate(part) for part in ends)
    rows, columns = np.concatenate((rows, np.full(count, pixels))), np.concatenate((columns, seeded))
    weights = np.concatenate((weights, np.full(count, 0.5)))
    tree: Any = minimum_spanning_tree(coo_matrix((weights, (rows, columns)), shape=(pixels + 1, pixels + 1)).tocsr()).tocoo()
    kept = (tree.row < pixels) & (tree.col < pixels)
    forest = coo_matrix((tree.data[kept], (tree.row[kept], tree.col[kept])), shape=(pixels, pixels))
    _, component = connected_components(forest, directed=False)
    of_component = np.zeros(int(component.max()) + 1, np.int32)
    of_component[component[seeded]] = np.arange(1, count + 1)
    found = np.zeros(inside_HW.shape, np.int32)
    found[inside_HW] = of_component[component]
    return found


def _large(mask_HW: np.ndarray, least: int) -> np.ndarray:
    """The connected parts of so many pixels."""
    from scipy import ndimage

    parts_HW, _ = ndimage.label(mask_HW)
    kept = np.bincount(parts_HW.ravel()) >= least
    kept[0] = False
    found: np.ndarray = kept[parts_HW]
    return found


def _unit(values_HW: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]; a constant to 0."""
    low, high = float(values_HW.min()), float(values_HW.max())
    return (values_HW - low) / (high - low) if high > low else np.zeros_like(values_HW)


def _sobel(values_HW: np.ndarray, size: int, along: int) -> np.ndarray:
    """Derivative along an axis by binomial filters of that size, as OpenCV's."""
    from scipy import ndimage

    smooth = np.ones(1)
    for _ in range(size - 2):
        smooth = np.convolve(smooth, (0.5, 0.5))
    derived = ndimage.correlate1d(values_HW.astype(np.float64), np.convolve(smooth, (-0.5, 0.5)), along, mode="mirror")
    found: np.ndarray = ndimage.correlate1d(derived, np.convolve(smooth, (0.5, 0.5)), 1 - along, mode="mirror")
    return found


def _disc(size: int) -> np.ndarray:
    """An ellipse's pixels in a square of 3 or 5, as OpenCV's."""
    rows = np.ones((size, size), bool)
    rows[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    if size == 5:
        rows[[0, 0, -1, -1], [1, 3, 1, 3]] = False
    return rows
