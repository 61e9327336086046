"""MTL with Cauchy-Schwarz divergence (KDAM): one network of several dense targets teaches a light one of the same targets.

`loss.py` holds the divergence, the probability map of every kind of target, and the match by rows (inter-task) and columns (intra-task);
`distiller.py` the student's loss; `recipe.py` the experiment.
"""

from stillroom.methods.mtl_cs.distiller import MTLCS
from stillroom.methods.mtl_cs.loss import Match, collected, cs_divergence, inter_match, intra_match, kl_match, probability_maps
from stillroom.methods.mtl_cs.recipe import PRESETS, ROOM, build, recipe

__all__ = [
    "MTLCS",
    "PRESETS",
    "ROOM",
    "Match",
    "build",
    "collected",
    "cs_divergence",
    "inter_match",
    "intra_match",
    "kl_match",
    "probability_maps",
    "recipe",
]
