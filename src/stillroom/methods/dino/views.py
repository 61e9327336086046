"""The views of an image: two global ones, and as many local crops as are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stillroom.errors import InputError, at_least
from stillroom.tasks.images.views import Others
from stillroom.tasks.representation import FIRST, SECOND, Look, RepresentationData, crop_view, warp_view

Scale = tuple[float, float]


@dataclass(frozen=True)
class Crops:
    """Which views are shown of each image.

    Photographs are cropped, mirrored and their colours changed: the first global view is blurred, the second rarely so, but sometimes
    solarised; local crops are blurred half of the time. Scans of digits (data whose augmentation is ``digits``) are warped alike in both
    views, and have no local crops.

    Args:
        global_scale: smallest and largest share of the area in a global view.
        local_crops: how many local crops; the student alone sees them.
        local_scale: smallest and largest share of the area in a local crop.
        local_size: height and width of a local crop, in pixels.

    Raises:
        InputError: a share that is none, or a number out of its range.
    """

    global_scale: Scale = (0.4, 1.0)
    local_crops: int = 0
    local_scale: Scale = (0.05, 0.4)
    local_size: int = 96

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise InputError(name, (low, high), "two shares of the area, the smaller one first, above 0 and up to 1")
        at_least("local_crops", self.local_crops, 0)
        at_least("local_size", self.local_size, 1)

    def of(self, data: RepresentationData, others: Others | None = None) -> RepresentationData:
        """The data in these views; `others` says which image the second one shows.

        Raises:
            InputError: local crops of scans.
        """
        if data.augment == "digits":
            if self.local_crops:
                raise InputError("local_crops", self.local_crops, "0 for scans of digits: a part of a digit may be another digit")
            views = [warp_view(data), warp_view(data)]
        else:
            looks = [replace(look, scale=self.global_scale) for look in (FIRST, SECOND)]
            looks += [Look(self.local_scale, self.local_size, blur=0.5)] * self.local_crops
            views = [crop_view(data, look) for look in looks]
        return data.in_views(*views, said=repr(self), others=others)
