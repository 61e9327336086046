"""OTD - Taxonomy Adaptive Cross-Domain Adaptation in Medical Imaging via Optimization Trajectory Distillation.

A labelled source with coarse classes, an unlabelled target of another stain with finer ones, a few labelled target pictures. One network
learns both; the gradients of its heads for the source and for classes that are known well teach those for the target and for new classes:

    L = L_src + w_few L_few + w_mix (pseudo labels mixed with the few's nuclei) + w_dom L_dom + w_cls L_cls

In the paper's order: `taxonomy` and `data` the two domains, `mixing` the pseudo labels, `terms` the losses on labels, `gradients` and
`bank` the trajectory and its subspace, `trajectory` the two streams, `history`, `distiller`, `recipe`.
"""

from stillroom.methods.otd.distiller import OTD
from stillroom.methods.otd.recipe import ROOM, recipe
from stillroom.methods.otd.taxonomy import Taxonomy

__all__ = ["OTD", "ROOM", "Taxonomy", "recipe"]
