"""DAPS-SAM - Dense 2D-3D Indoor Prediction with Sound via Aligned Cross-Modal Distillation.

A network hears what a room does to a sound and answers for all of its surroundings. A frozen network that sees teaches it, though no pixel
belongs to any instant of the sound: on the skips between the student's encoder and decoder, blocks choose among learnt maps by what was
heard (SAM), and a loose triplet loss draws the features to the teacher's without saying which belongs where:

    T^k(l) = max_j p^k(l)^T W a(j),    p_hat(l) = sum_k softmax_k(T^k(l)) p^k(l),    p_bar = MultiHead(p_hat, a, a) + p_hat
    L = L_p + lambda sum_i L_f^i

In the paper's order: `matching` the block, `network` the student with it, `loss` the triplet, `distiller` and `recipe`.
"""

from stillroom.methods.daps_sam.distiller import DAPS
from stillroom.methods.daps_sam.matching import SpatialAlignment
from stillroom.methods.daps_sam.network import Aligned
from stillroom.methods.daps_sam.recipe import ROOM, recipe

__all__ = ["DAPS", "ROOM", "Aligned", "SpatialAlignment", "recipe"]
