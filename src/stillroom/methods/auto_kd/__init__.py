"""Auto-KD - Automated Knowledge Distillation via Monte Carlo Tree Search (Li et al., ICCV 2023).

Which features to compare, how transformed, by which distance and at what weight differs from one pair of teacher and student to the next.
Auto-KD composes distillers of a few options at each of five levels (`stillroom.losses.composed`), searches the tree of all compositions
(`stillroom.engine.study.tree_sampler`) by what a short, sparse training of the student reaches, and trains the student with the best.

In the paper's order: `space` what is searched, `reward` how a candidate is judged, `candidate` one short training with its accelerations,
`sparse` and `offline`, `weighting` of several layers and teachers, `search` the search and `recipe` the experiment; `distiller` trains a
student with any composition, which is the method `searched` by itself.
"""

from stillroom.methods.auto_kd.distiller import Searched
from stillroom.methods.auto_kd.recipe import ROOM, recipe

__all__ = ["ROOM", "Searched", "recipe"]
