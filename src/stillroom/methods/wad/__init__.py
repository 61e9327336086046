"""WAD - Semi-Supervised Learning via Weight-Aware Distillation under Class Distribution Mismatch.

Among the unlabelled images many are of no target class. A teacher that learned without labels says which target class each of them is
most like, and by how much more than the next; the student learns from the labels, and from what the teacher says by these weights:

    S[u, k] = max_{a in A_k} <z_u, a>      yhat_u = argmax_k S[u, k]      w_u = s1 - s2

    L = mean_i CE(f(x_i), y_i) + mean_u [ w_u CE(f(u), yhat_u) ]

After each round the images with the least surprising pseudo-labels join the labelled ones.

In the paper's order: `split` and `pool` the data, `views`, `networks` and `contrast` the teacher, `knowledge` what it says and who is
promoted, `distiller` the student, `rounds` and `recipe` the experiment.
"""

from stillroom.methods.wad.contrast import Contrast
from stillroom.methods.wad.distiller import WAD
from stillroom.methods.wad.recipe import ROOM, recipe

__all__ = ["ROOM", "WAD", "Contrast", "recipe"]
