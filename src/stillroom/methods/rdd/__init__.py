"""RDD - Representation Disparity-aware Distillation for 3D Object Detection (Li et al., ICCV 2023).

A large lidar detector teaches a compact one of its kind. Where the two see alike, ordinary distillation works; where they do not, it does
little, and there the student's false positives are. RDD compares regions: every proposal of the teacher with the same ground in the
student's map, and every proposal of the student with the same ground in the teacher's. The disparity d_i of a pair is the distance of its
features after a softmax over channels (section 5); an inner problem under an L1 budget picks the disparate pairs,

    m* = argmin over 0 <= m <= 1 of sum_i m_i (lambda - d_i),        that is m_i = 1 where d_i > lambda,

and the student minimises, beside its own losses, over the n pairs of a batch

    alpha1 1/n sum_i m_i d_i + alpha2 1/n sum_i m_i sum_k mean |p_k^S - p_k^T|.

In the paper's order: `proposals` which regions (2, 3), `loss` disparity, weights and losses (5 to 7), `distiller` the iteration (4, 8),
`rivals` what the paper compares it with, `recipe` the experiment.
"""

from stillroom.methods.rdd.distiller import RDD
from stillroom.methods.rdd.loss import Selection
from stillroom.methods.rdd.recipe import ROOM, recipe
from stillroom.methods.rdd.rivals import RivalDistiller

__all__ = ["RDD", "ROOM", "RivalDistiller", "Selection", "recipe"]
