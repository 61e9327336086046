"""Detection in three dimensions: frames of points, pictures or both, and boxes in metres.

- `sources`, `data`: what ``--data`` may be, and batches of it;
- `networks`, `models`: detectors that look from above, and how they are named;
- `supervised`: plain training, and what all training of such detectors has in common;
- `loaded`, `pages`: a run's student, ready to use, and the report's own part.
"""

from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs
from stillroom.tasks.detection3d.supervised import Detection3dDistiller
from stillroom.tasks.detection3d.task import TASK

__all__ = ["TASK", "Detection3dData", "Detection3dDistiller", "MapDetector", "MapOutputs"]
