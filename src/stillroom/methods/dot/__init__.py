"""DOT - DOT: A Distillation-Oriented Trainer (Zhao, Cui, Song, Liang, ICCV 2023).

"Task loss + distillation loss" under one momentum SGD lowers the distillation loss but leaves the task loss higher than plain training
does. The paper repairs this in the optimiser, not in the loss: each loss's gradient has a momentum buffer of its own, and the
distillation's gets the larger momentum:

    v_ce <- (mu - Delta) v_ce + g_ce        v_kd <- (mu + Delta) v_kd + g_kd        theta <- theta - gamma (v_ce + v_kd)

`optimizer` holds the update, `distiller` the training iteration around any host method, `recipe` the experiment.
"""

from stillroom.methods.dot.distiller import DOT
from stillroom.methods.dot.optimizer import DOTOptimizer
from stillroom.methods.dot.recipe import ROOM, build, recipe

__all__ = ["DOT", "ROOM", "DOTOptimizer", "build", "recipe"]
