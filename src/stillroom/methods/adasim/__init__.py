"""AdaSim - Adaptive Similarity Bootstrapping for Self-Distillation Based Representation Learning (Lebailly et al., ICCV 2023).

Self-distillation compares two views of one image. To take the second view from a *neighbour* helps contrastive learning, but harms here,
where nothing pushes wrong pairs apart. AdaSim takes it only from neighbours that a window of past epochs has shown, and only for images
that recognise themselves over that window:

    w_j = sum over the last V epochs of cos(image, j), 0 where j was not among the k nearest;    P(j) = softmax( w_j / (V T_p) )

and the image itself, where it does not win its own vote.

In the paper's order: `memory` what is known of every image, `window` what was found in the last epochs, `selection` the vote, the gate and
the draw, `bootstrap` the three as one block for any self-distiller, `arms` what it is compared with, `recipe` the experiment.
"""

from stillroom.methods.adasim.bootstrap import AdaSim
from stillroom.methods.adasim.memory import NeighbourMemory
from stillroom.methods.adasim.recipe import ROOM, recipe
from stillroom.methods.adasim.selection import vote
from stillroom.methods.adasim.window import Window

__all__ = ["ROOM", "AdaSim", "NeighbourMemory", "Window", "recipe", "vote"]
