"""SSD-Det - Spatial Self-Distillation for Object Detection with Inaccurate Bounding Boxes.

Classes are right, boxes are not. A refiner learns beside the detector, on the same features and from nothing but the boxes as they are,
to make a better box of each; the detector is trained on these:

    bag --SPSD-I--> B_I --MIL--> b_I, a --SPSD-II--> B_II --MIL, SISD--> b_II --> RPN and R-CNN

SPSD regresses every proposal of an object's bag towards its box, noise averages out over the set; SISD predicts each proposal's overlap
with its own object, and joins the class score in the choice. The network is its own teacher.

In the specification's order: `bags` the proposals and SPSD's losses, `mil` the scores and losses of both stages, `refiner` an iteration,
`distiller` with the detector, `recipe` the experiment; `noise`, `files` and `refining` are for people's own boxes.
"""

from stillroom.methods.ssd_det.distiller import SSDDet
from stillroom.methods.ssd_det.recipe import ROOM, recipe
from stillroom.methods.ssd_det.refiner import Refiner

__all__ = ["ROOM", "Refiner", "SSDDet", "recipe"]
