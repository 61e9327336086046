"""UniKD - Universal Knowledge Distillation for Mimicking Homogeneous or Heterogeneous Object Detectors.

Two small extractors with deformable attention read a detector's maps with a fixed number of queries: one asks what is in the image
(content), one what is in given boxes (position). They learn on a frozen teacher, by detecting objects (absorb). Then they are frozen
themselves and read the teacher's maps F_t and the student's F_s by the same queries q, which the teacher's maps have made, and the student
learns that the answers z are equal (inject):

    z_t = f_e(q, r, F_t)     z_s = f_e(q, r, phi(F_s))
    L = L_det + lambda1 D(z_s, z_t; content) + lambda2 D(z_s, z_t; position)

Detectors of any two kinds share such answers, where pixels of their maps would not mean the same. Nothing is added at inference.

In the order of the method: `attention` one layer, `extractors` both networks, `boxes` what they are asked about and the matching, `loss`
both stages' losses, `teaching` what a teacher answers, `distillers` the two stages, `recipe` the experiment.
"""

from stillroom.methods.unikd.distillers import Absorb, UniKD
from stillroom.methods.unikd.extractors import Extractors
from stillroom.methods.unikd.recipe import ROOM, recipe

__all__ = ["ROOM", "Absorb", "Extractors", "UniKD", "recipe"]
