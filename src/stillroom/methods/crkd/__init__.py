"""CrKD - Class-relation Knowledge Distillation for Novel Class Discovery (Gu et al., ICCV 2023).

Labelled images of known classes and unlabelled images of novel ones are given; one network is to classify the former and to cluster the
latter. What a network that was taught the known classes alone answers to a novel image says which of them the novel class resembles: its
class relation. Ordinary discovery (UNO: swapped predictions of balanced pseudo-labels, several heads) destroys it; CrKD keeps it, image by
image as much as the student itself sees known classes in the image:

    L = 1/H sum_h [ L_cl(h) + alpha L_rel(h) ]
    L_rel(h) = mean T^2 w ( - sum_c p_c log q_c ),   w = eta / mean(eta),   eta = the student's probability of the known classes

`loss` holds the equations, `networks` the heads, `distiller` the two stages, `data` which classes are known, `views` the crops, `metrics`
and `evaluator` the Hungarian matching, `recipe` the experiment.
"""

from stillroom.methods.crkd.data import NovelClassData
from stillroom.methods.crkd.distiller import Discovery, Pretraining
from stillroom.methods.crkd.recipe import ROOM, recipe

__all__ = ["ROOM", "Discovery", "NovelClassData", "Pretraining", "recipe"]
