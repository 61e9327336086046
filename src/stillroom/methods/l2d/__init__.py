"""L2D - Multi-Label Knowledge Distillation (Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang, ICCV 2023).

With several labels on an image ordinary distillation fails: a softmax over labels means nothing, and the features of a whole image are
those of its largest objects. L2D takes both label by label:

    L = BCE + lambda_logits * L_MLD + lambda_LE * ( lambda_CD * L_CD + lambda_ID * L_ID )

L_MLD matches every label's own two-way distribution; L_CD and L_ID match the relative distances between the label-wise embeddings of one
label's images, and of one image's labels.

`loss` holds the terms, `distiller` the objective, `recipe` the experiment; the head that has label-wise embeddings is the task's
(`stillroom.modules.ml_decoder`).
"""

from stillroom.methods.l2d.distiller import L2D
from stillroom.methods.l2d.loss import led_losses, mld_loss
from stillroom.methods.l2d.recipe import ROOM, build, recipe

__all__ = ["L2D", "ROOM", "build", "led_losses", "mld_loss", "recipe"]
