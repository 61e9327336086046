"""Boxes that were found, as other programs read them: nuScenes' and KITTI's forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def nuscenes_entries(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes [M, 7 or 9] as entries of a nuScenes submission, but for the sample's token, in the frame's own coordinates.

    ``translation`` is the centre, ``size`` width, length and height, ``rotation`` a quaternion (w, x, y, z), ``velocity`` x and y or null.
    """
    entries = []
    for box, score, label in zip(boxes.astype(float), scores.astype(float), labels.tolist(), strict=True):
        velocity = box[7:9].tolist() if len(box) >= 9 and np.isfinite(box[7:9]).all() else None
        entries.append(
            {
                "translation": _rounded(box[:3]),
                "size": _rounded(box[[4, 3, 5]]),
                "rotation": _rounded([np.cos(box[6] / 2), 0.0, 0.0, np.sin(box[6] / 2)]),
                "velocity": None if velocity is None else _rounded(velocity),
                "detection_name": classes[label],
                "detection_score": round(float(score), 4),
                "attribute_name": "",
            }
        )
    return entries


def kitti_entries(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], velo2rect: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Boxes [M, 7 or more] by KITTI's measures: ``dimensions`` height, width, length; ``location`` the bottom's middle.

    Args:
        boxes, scores, labels: what was found, in the lidar's coordinates.
        classes: their names.
        velo2rect: [4, 4], the lidar to the rectified camera; without it the location stays in the lidar's coordinates (``frame`` says so).
    """
    entries = []
    for box, score, label in zip(boxes.astype(float), scores.astype(float), labels.tolist(), strict=True):
        bottom = box[:3] - [0, 0, box[5] / 2]
        place = bottom if velo2rect is None else velo2rect[:3, :3] @ bottom + velo2rect[:3, 3]
        turned = (-box[6] - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
        entries.append(
            {
                "type": classes[label],
                "dimensions": _rounded(box[[5, 4, 3]]),
                "location": _rounded(place),
                "rotation_y": round(float(turned), 4),
                "score": round(float(score), 4),
                "frame": "lidar" if velo2rect is None else "camera",
            }
        )
    return entries


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
