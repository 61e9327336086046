"""IOD - incremental object detection via within-class and between-class distillation (ICCV 2023).

A detector of the DETR family learns classes in steps; in a step the new classes alone are annotated, and objects of the old ones look like
background. The detector of the step before teaches: what it finds are further targets (pseudo objects), and the student keeps the
distances between its class means (DMD) and every single instance (IFD), of queries and of the maps inside the objects.

`loss` has the equations, `groups` the order and the protocols of classes, `data` the images of each step, `distiller` a step's training,
`pages` what is measured over the steps, and `recipe` the experiment.
"""

from stillroom.methods.iod.distiller import IOD
from stillroom.methods.iod.recipe import ROOM, recipe

__all__ = ["IOD", "ROOM", "recipe"]
