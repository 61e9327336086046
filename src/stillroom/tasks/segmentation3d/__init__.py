"""Segmentation of scans without any label: points of rooms, super-voxels, clusters in the place of classes.

- `sources`, `data`: what ``--data`` may be, and batches of voxels with their super-voxels;
- `backbone`, `segmenter`: a sparse pyramid, and the network that is left: features and the centres of clusters;
- `clustering`: k-means on inner products, and the cluster of every point;
- `metrics`, `pages`, `loaded`: scores by Hungarian matching, the report's own part, a run's student.
"""

from stillroom.tasks.segmentation3d.data import SceneBatch, Segmentation3dData
from stillroom.tasks.segmentation3d.task import TASK

__all__ = ["TASK", "SceneBatch", "Segmentation3dData"]
