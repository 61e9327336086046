"""MemKD - Remembering Normality: Memory-guided Knowledge Distillation for Unsupervised Anomaly Detection.

A student learns to give good pictures the feature maps that a frozen teacher gives them; where the two differ later, something is not
normal. Memories between the student's stages recall what is normal (`memory`), are filled with the features of normal exemplars, and keep
their keys and values apart:

    L = L_KD + lambda1 L_NM + lambda2 L_ORTH

In the paper's order: `memory` and `networks` the student, `loss`, `data` and `distiller` its training, `arms` and `recipe` the experiment.
"""

from stillroom.methods.memkd.distiller import MemKD
from stillroom.methods.memkd.memory import NRMemory
from stillroom.methods.memkd.recipe import ROOM, recipe

__all__ = ["ROOM", "MemKD", "NRMemory", "recipe"]
