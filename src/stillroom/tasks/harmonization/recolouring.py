"""Other colours for a part of a photo, as another light would give it: what composites are made with, and what harmonization takes back."""

from __future__ import annotations

import numpy as np

_LOST = float(np.finfo(np.float32).eps)  # share of the largest singular value; smaller ones are dropped

Patches = np.ndarray  # colours of a chart's patches, [P, 3], 0 .. 255


def colour_terms(colours_N3: np.ndarray) -> np.ndarray:
    """[r, g, b, rg, rb, gb, r^2, g^2, b^2, rgb, 1] of each colour, float64 [N, 11]."""
    r, g, b = colours_N3.astype(np.float64).T
    return np.stack([r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, r * g * b, np.ones_like(r)], axis=1)


def colour_map(source: Patches, target: Patches) -> np.ndarray:
    """The polynomial that turns a chart's colours under one light into those under another: coefficients [11, 3], by least squares.

    Args:
        source, target: the same patches under both lights, values on the scale of 0 to 255.

    Source: ccHarmony's construction. The solution is that of minimum norm without singular values under float32's epsilon.
    """
    return np.linalg.lstsq(colour_terms(source), target.astype(np.float64), rcond=_LOST)[0]


def mapped_colours(colours: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The colours [..., 3] under the other light, clipped to 0 .. 255 and truncated to whole numbers, uint8."""
    found = colour_terms(colours.reshape(-1, 3)) @ coefficients
    return found.clip(0, 255).astype(np.uint8).reshape(colours.shape)
