"""BCKD - Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection (Yang et al., ICCV 2023).

A dense detector scores every class by a sigmoid; distilling its logits under a softmax forgives the student a constant added to all of
them, though its scores are then others. BCKD stays inside the sigmoid's protocol, and distils boxes by their overlap.

`loss` holds the two losses, `terms` their sums over a pyramid with the baselines', `distiller` the training step, `recipe` the experiment.
"""

from stillroom.methods.bckd.distiller import BCKD, LD, SoftmaxKD
from stillroom.methods.bckd.recipe import ROOM, build, recipe

__all__ = ["BCKD", "LD", "ROOM", "SoftmaxKD", "build", "recipe"]
