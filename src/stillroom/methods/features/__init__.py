"""Any foundation model into any backbone, from images without labels.

The student's features, through a small projector, follow those of one frozen teacher or of several. From the literature, without a
specification: plain feature regression (Romero et al. 2015; Wei et al. 2022, "Contrastive Learning Rivals Masked Image Modeling in
Fine-tuning via Feature Distillation"), several teachers at once (Ranzinger et al. 2024, AM-RADIO), and the softmax over a queue of the
teacher's embeddings (Fang et al. 2021, SEED). No number of theirs is claimed here.

- `loss`: cosine, smooth L1, and the queue.
- `distiller`: projectors, grids of unlike size, and the terms.
- `recipe`: teacher, the backbone as it starts, the backbone distilled; scored, and fine-tuned on few labels.

What teaches, networks of any library, is opened by the task (`tasks.representation.teachers`): a cache stores its answers, too.
"""

from stillroom.methods.features.distiller import Features
from stillroom.methods.features.recipe import PRESETS, ROOM, recipe

__all__ = ["PRESETS", "ROOM", "Features", "recipe"]
