"""DistillBEV: a lidar detector teaches a camera detector on the map seen from above, cell by cell, each region with a weight of its own.

Wang, Li, Luo, Xie and Yang, "DistillBEV: Boosting Multi-Camera 3D Object Detection with Cross-Modal Knowledge Distillation", ICCV 2023.
`regions.py` where objects, mistaken places and background are, and what a cell counts; `loss.py` attention and the four terms of a tap;
`distiller.py` the whole; `recipe.py` the experiment.
"""

from stillroom.methods.distillbev.distiller import DistillBEV
from stillroom.methods.distillbev.recipe import ROOM, build, recipe

__all__ = ["ROOM", "DistillBEV", "build", "recipe"]
