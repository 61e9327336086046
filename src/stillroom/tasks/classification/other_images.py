"""Training images of another kind in the place of a set's own, everything else being the set's."""

from __future__ import annotations

from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.other_training import OtherTraining


class WithOtherTrainingImages(OtherTraining[ImageData]):
    """Base of data that train on other images, or on the same in another way, and are measured as `data` are."""
