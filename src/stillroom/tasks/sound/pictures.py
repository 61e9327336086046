"""Pictures of what cannot be seen: depth, classes, voxels, and sounds."""

from __future__ import annotations

import numpy as np
from PIL import Image

# From near (dark blue) over green to far (yellow): even steps of brightness.
_NEAR_TO_FAR = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
_CLASSES = np.array(
    [[0, 0, 0], [201, 191, 160], [140, 100, 75], [225, 230, 240], [90, 140, 205], [190, 90, 90], [110, 170, 110], [150, 110, 190],
     [230, 160, 80], [90, 190, 190]],
    np.uint8,
)  # fmt: skip


def shaded(values_HW: np.ndarray, high: float) -> Image.Image:
    """Values from 0 to `high` as colours; those of 0, which are not known, are black."""
    place = np.clip(values_HW.astype(np.float64) / max(high, 1e-9), 0, 1) * (len(_NEAR_TO_FAR) - 1)
    steps = np.arange(len(_NEAR_TO_FAR))
    colours = np.stack([np.interp(place, steps, channel) for channel in _NEAR_TO_FAR.T], -1)
    return Image.fromarray(np.where((values_HW > 0)[..., None], colours, 0).astype(np.uint8))


def coloured(labels_HW: np.ndarray) -> Image.Image:
    """Classes as colours; 0, which is not known, is black."""
    found = np.where(labels_HW > 0, (labels_HW - 1) % (len(_CLASSES) - 1) + 1, 0)
    return Image.fromarray(_CLASSES[found])


def from_above(solid_XYZ: np.ndarray, cut: float = 0.7) -> Image.Image:
    """Voxels from above, without the ceiling: the brighter, the higher; ahead is up, left is left.

    Args:
        solid_XYZ: probabilities from 0 to 1.
        cut: share of the height that is shown.
    """
    shown = solid_XYZ[:, :, : round(cut * solid_XYZ.shape[2])]
    height = np.linspace(0.15, 1, shown.shape[2])
    highest = np.where(shown >= 0.5, height, 0).max(2)
    return shaded(highest[::-1, ::-1], 1.0)


def spectrogram_picture(magnitudes_EFT: np.ndarray) -> Image.Image:
    """What every channel heard, one above the other: low frequencies below, time to the right, the louder the brighter."""
    loud = np.log1p(np.maximum(magnitudes_EFT, 0) / (magnitudes_EFT.mean() + 1e-9))
    rows = [np.pad(channel[::-1], ((0, 1), (0, 0))) for channel in loud]
    return shaded(np.concatenate(rows)[:-1] + 1e-6, float(loud.max()))
