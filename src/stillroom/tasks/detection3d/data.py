"""The data of a run of detection in three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillroom.engine.run.recorder import Evaluator
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.detection3d.metrics import Evaluator3d
from stillroom.tasks.detection3d.sources import open_source
from stillroom.tasks.points.augment import BevAugment, ImageAugment, ObjectBank
from stillroom.tasks.points.data import PointSetData

AUGMENTATIONS = ("turn", "none")
# The papers' of nuScenes; a seventh of a quarter turn is what detectors of one direction of driving bear.
_TURN = BevAugment(rotation=0.3925, scale=(0.95, 1.05), mirror_x=0.5, mirror_y=0.5)
_AHEAD = BevAugment(rotation=0.7854, scale=(0.95, 1.05), mirror_y=0.5)  # of a lidar that looks ahead only
_IMAGES = {"resize": (-0.06, 0.11), "mirror": 0.5, "rotation": 5.4}
_LOOKED_AT = 4  # frames whose points are looked at before a run
_BANKED = 2000  # frames that objects are cut from


class Detection3dData(PointSetData):
    """A training and a validation set of frames with boxes.

    Args:
        data: where the images are (frames, with pictures or without): ``streets`` (made up from a seed; ``streets:train=300,cameras=4``),
            ``nuscenes:ROOT``, ``kitti:ROOT`` or ``points:FOLDER``; options follow after commas, see `sources.open_source`.
        batch_size: images in a batch (frames here), of all processes together.
        reach: metres that detectors look at: least x, y, z, then most x, y, z; by default the data's own.
        image_size: pixels of the images that the network is given: of their shorter side, the longer one in proportion; by default as they
            are.
        augment: random changes of training images (frames here): ``turn`` (the default) turns, scales and mirrors points, boxes and
            cameras alike, and crops pictures; or ``none``.
        paste: objects of each class that a training frame is to hold, cut out of other frames; 0 (the default) for none. Not for cameras.
        resample: repeat training frames so that every class has an equal share of them (CBGS).
        look_back: batches also hold the frame before each.
        options: those of all data of points, see `PointSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    def __init__(
        self,
        data: str = "streets",
        *,
        batch_size: int = 8,
        reach: tuple[float, float, float, float, float, float] | None = None,
        image_size: int | None = None,
        augment: str | None = None,
        paste: int = 0,
        resample: bool = False,
        look_back: bool = False,
        **options: Any,
    ) -> None:
        one_of("augment", augment or "turn", AUGMENTATIONS)
        source = open_source(data)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.reach = tuple(reach or source.reach)
        ordered = len(self.reach) == 6 and all(low < high for low, high in zip(self.reach[:3], self.reach[3:], strict=True))
        if not ordered or not np.isfinite(self.reach).all():
            raise InputError("reach", list(self.reach), "six numbers of metres: least x, y, z, then greater ones")
        changed = (augment or "turn") == "turn"
        self.augment = (_AHEAD if self.reach[0] >= 0 else _TURN) if changed else None
        pictures: dict[str, Any] = _IMAGES if changed and image_size is not None else {}
        self.image_augment = None if image_size is None else ImageAugment(self._fitting(image_size), **pictures)
        self.look_back = look_back
        self._identify(self.reach, image_size, changed, paste, resample, look_back)
        if resample:
            self._shown = self._shown[0].take(self._balanced()), self._shown[1]
        self._check_reach()
        if at_least("paste", paste, 0):
            frames = [self.train_frame(index) for index in range(min(self.train_size, _BANKED))]
            self.bank = ObjectBank(frames, self.num_classes, [paste] * self.num_classes)

    def _check_reach(self) -> None:
        """Raises InputError where of some frames that have points none has one within reach: metres, or axes, are others."""
        looked = [self.train_frame(index).points[:, :3] for index in range(min(self.train_size, _LOOKED_AT))]
        there = [points for points in looked if len(points)]
        low, high = np.array(self.reach[:3]), np.array(self.reach[3:])
        if there and not any(((points >= low) & (points <= high)).all(1).any() for points in there):
            every = np.concatenate(there)
            got = f"{len(there)} frames whose points lie from {every.min(0).tolist()} to {every.max(0).tolist()}"
            raise InputError("data", got, f"points in metres, some within reach: {list(self.reach)}")

    def _fitting(self, side: int) -> tuple[int, int]:
        """Height and width of pictures whose shorter side is so long; the longer one is a multiple of 8."""
        views = self.train_frame(0).views
        if not views:
            raise InputError("image_size", side, "none: these frames have no pictures")
        height, width = views[0].image.shape[:2]
        longer = max(8, round(at_least("image_size", side, 8) * max(height, width) / min(height, width) / 8) * 8)
        return (side, longer) if height <= width else (longer, side)

    def _balanced(self) -> np.ndarray:
        """Training frames, repeated so that as many hold each class; frames without an object come once."""
        holds_NC = np.zeros((self.train_size, self.num_classes), bool)
        for index in range(self.train_size):
            holds_NC[index, self.train_frame(index).labels] = True
        counts_C = holds_NC.sum(0)
        most = int(counts_C.max())
        empty = np.flatnonzero(~holds_NC.any(1))
        parts = [np.resize(np.flatnonzero(holds_NC[:, k]), most) for k in range(self.num_classes) if counts_C[k]]
        return np.sort(np.concatenate((*parts, empty)))

    def evaluator(self) -> Evaluator:
        """Average precision, as the data are measured."""
        return Evaluator3d(self.source.classes, self.source.measure)

    def _described(self) -> dict[str, Any]:
        size = None if self.image_augment is None else list(self.image_augment.size or ())
        groups = [list(group) for group in self.source.classes.tasks]
        return {"reach": list(self.reach), "image_size": size, "groups": groups, "velocity": self.velocity}

    @property
    def velocity(self) -> bool:
        """Whether boxes have one."""
        return self.source.name in ("streets", "nuscenes")
