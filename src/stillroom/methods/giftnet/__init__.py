"""GiftNet - Deep Image Harmonization with Globally Guided Feature Transformation and Relation Distillation.

A foreground was cut from another photo and pasted: give it the light of its new background. New are two things. The foreground part of
the encoder's features is transformed by kernels that a global vector v of the image makes (GIFT); and the network's features of the
composite are to relate foreground and background as those of the real photo do:

    F'_l = F_l + M_l * delta_l(F_l, v)
    L = L_har + lambda_rel * mean_l mean_(p in fg, q in bg) ( <n(F'_p), n(F'_q)> - <n(G_p), n(G_q)> )^2

In the paper's order: `gift` the transformation, `network` the baseline with it, `relation` the distillation, `distiller` and `recipe`.
"""

from stillroom.methods.giftnet.distiller import GiftNet, Reconstruction
from stillroom.methods.giftnet.network import Gifted
from stillroom.methods.giftnet.recipe import ROOM, recipe

__all__ = ["ROOM", "GiftNet", "Gifted", "Reconstruction", "recipe"]
