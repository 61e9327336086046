"""SDD - Not All Steps are Created Equal: Selective Diffusion Distillation for Image Manipulation.

A frozen text-conditional diffusion model teaches a small network that edits pictures for one prompt, in a single pass. What it teaches is a
gradient at the student's pictures; at most time steps it has little to do with the edit, so that a score picks the step before training:

    L = sum( sg[ (1 - abar_t) (eps_hat(z_t, t, prompt) - eps) ] * z ) + regularisers,   z = E(f(x0)),   t = argmax HQS

In the paper's order: `mapper` a student of a generator's codes (that of pictures is the task's `Editor`), `gradient` and `regularisers` the
loss, `hqs` and `search` the time steps, `distiller` the training, `recipe` the experiment.
"""

from stillroom.methods.sdd.distiller import SDD
from stillroom.methods.sdd.mapper import LatentEditor, LevelsMapper, Mapper, StyleMapper
from stillroom.methods.sdd.recipe import ROOM, recipe
from stillroom.methods.sdd.search import search

__all__ = ["ROOM", "SDD", "LatentEditor", "LevelsMapper", "Mapper", "StyleMapper", "recipe", "search"]
