"""UP-VL - Unsupervised 3D Perception with 2D Vision-Language Distillation for Autonomous Driving (Najibi et al., ICCV 2023).

Boxes, tracks and names of whatever takes part in traffic, from lidar sequences without a single label in three dimensions. What moves is
found by scene flow; what stands is told from the background by a frozen vision-language model whose pixel features cameras carry to the
points; what a track shows over time, put together, gives boxes that are whole. A lidar detector then learns these boxes, and for every
point the model's feature,

    L = L_det + lambda * mean over seen points ( 1 - cos(g_i, f_i) ),

so that it answers to any text, and needs no camera.

In the paper's order: `lifting` (A1, A3) from pixels to points, `flow` (A2) what moves, `proposals` (A4) clusters and boxes, `tracking`
(A5), `amodal` (A6) whole boxes, `labelling` all of it, `sequence` from the first frame to the last, `job` as a command of its own, which
writes `label_files`; `loss`, `detector` and `distiller` what the detector learns and how it names boxes (B, C), `standin` where no CLIP is
at hand, `targets` labels as training data, `metrics` and `recipe` the experiment.
"""

from stillroom.methods.upvl.distiller import UPVL
from stillroom.methods.upvl.recipe import ROOM, recipe

__all__ = ["ROOM", "UPVL", "recipe"]
