"""The teacher cache: answers of a teacher on disk, per sample and view, in the place of the teacher.

`build_cache` makes one, `CachedTeacher` reads it. What random augmentation shows is reduced to a number of `Views`, which a cache has
answers to and which training then replays.
"""

from stillroom.engine.cache.build import build_cache
from stillroom.engine.cache.formats import Dtype, Rest, Storage
from stillroom.engine.cache.store import CacheFolder
from stillroom.engine.cache.teacher import CACHE, CachedTeacher
from stillroom.engine.cache.views import EveryView, ReplayedBatches, Views

__all__ = [
    "CACHE",
    "CacheFolder",
    "CachedTeacher",
    "Dtype",
    "EveryView",
    "ReplayedBatches",
    "Rest",
    "Storage",
    "Views",
    "build_cache",
]
