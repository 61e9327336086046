"""MDCS - More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition (Zhao et al., ICCV 2023).

Training classes have from many images to few, while all count alike at test time. One network with several experts on a shared trunk is
trained from scratch, in one stage. Two ideas:

    DL   every expert e has cross-entropy on logits shifted by its own multiple of the log class prior, so that one favours large
         classes, one is balanced, one favours small classes:          a_e = z_e + log n^lambda_e,   L_DL = sum_e CE(a_e, y)
    CS   every expert's answer to a weakly augmented view teaches its answer to a strongly augmented one of the same image, where it is
         right (confident instances):                                  L_CS = sum_e KL( softmax(a_e^weak) || softmax(a_e^strong) )

    L = L_DL + 0.6 min(epoch / 20, 1) L_CS                             at test time: the mean of the raw z_e

`loss` holds the two terms, `distiller` the training step, `data` the groups of classes, `measures` how experts and runs differ, `recipe`
the experiment; the networks are those of `stillroom.tasks.images.networks.experts`, the views of `stillroom.tasks.images.weak_strong`.
"""

from stillroom.methods.mdcs.data import LongTailedImages, shot_groups
from stillroom.methods.mdcs.distiller import MDCS
from stillroom.methods.mdcs.loss import Terms, mdcs_terms, prior_shift
from stillroom.methods.mdcs.recipe import ROOM, build, recipe
from stillroom.tasks.images.weak_strong import two_views

__all__ = ["MDCS", "ROOM", "LongTailedImages", "Terms", "build", "mdcs_terms", "prior_shift", "recipe", "shot_groups", "two_views"]
