"""BOSS - Bayesian Optimization Meets Self-Distillation.

A search for hyper-parameters trains many networks and throws all but one away. BOSS hands them on: after a warm-up of ordinary trials,
each new one starts from the weights of one good earlier trial and is taught by another of the same architecture,

    L = alpha * CE(z, y) + (1 - alpha) * MSE(z, z_T)

with alpha searched, too. In the paper's order: `search` the outer loop, `selection` who is handed on, `distiller` the loss, `space` what is
searched, `parzen` and `sampler` what proposes, `trial` one training, `recipe` the experiment.
"""

from stillroom.methods.boss.distiller import BOSS
from stillroom.methods.boss.recipe import ROOM, recipe
from stillroom.methods.boss.search import Search, run_search

__all__ = ["BOSS", "ROOM", "Search", "recipe", "run_search"]
