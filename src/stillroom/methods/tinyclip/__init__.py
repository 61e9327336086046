"""TinyCLIP - CLIP Distillation via Affinity Mimicking and Weight Inheritance.

A large CLIP is made a small one. New are three things: the student mimics the teacher's softmaxed similarities of all images and texts of
the batch, not its embeddings; its first weights are a part of the teacher's, by a fixed rule or by masks that are learnt; and strong
compression goes in stages:

    A = softmax_row(gamma I T^T),   L_distill = 1/2 (CE(A'_I2T, A_I2T) + CE(A'_T2I, A_T2I))
    L = L_distill + lambda_1 max(q - p, 0) + lambda_2 max(q - p, 0)^2        while masks are learnt, lambda ascending

In the paper's order: `affinity` the loss, `inheritance` the weights by a rule and by masks, `masks` how these are learnt, `distiller` and
`recipe`. The towers are `stillroom.modules.clip`'s.
"""

from stillroom.methods.tinyclip.affinity import affinity_loss
from stillroom.methods.tinyclip.distiller import Masking, TinyCLIP
from stillroom.methods.tinyclip.recipe import ROOM, recipe

__all__ = ["ROOM", "Masking", "TinyCLIP", "affinity_loss", "recipe"]
