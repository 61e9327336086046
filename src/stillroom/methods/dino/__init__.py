"""DINO - Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021), as the baseline of AdaSim's paper has it.

A student predicts, from one view of an image, the output of its own exponential moving average on another view. Two things keep the
answer from collapsing: it is centred by the mean of past answers, and sharpened by a low temperature:

    L = 1/2 [ CE( softmax((t_2 - c)/tau_t), softmax(s_1/tau_s) ) + CE( softmax((t_1 - c)/tau_t), softmax(s_2/tau_s) ) ]

In the order of the specification: `backbone` and `head`, `loss`, `gradients` what is done to them, `views`, `distiller` the iteration,
`recipe` the experiment.
"""

from stillroom.methods.dino.distiller import DINO
from stillroom.methods.dino.loss import DINOLoss, self_distillation_loss
from stillroom.methods.dino.recipe import ROOM, build, recipe

__all__ = ["DINO", "ROOM", "DINOLoss", "build", "recipe", "self_distillation_loss"]
