"""ZeroSeg - Exploring Open-Vocabulary Semantic Segmentation from CLIP Vision Encoder Distillation Only.

A network that segments images by words, from unlabelled images alone. A frozen CLIP image tower looks at each image and at the cells of
grids over it; the student, a masked autoencoder with a head that groups patches into a few segments, learns to say the same:

    L = L_rec + w_ms mean_j |z - v_j| + w_match sum_i min_(j local) |g_i - v_j|

z is the image's embedding, g_i a segment's, v_j that of a view. Segments then lie among CLIP's embeddings of texts, which name them.
In the paper's order: `masking` the encoder, `grouping` the segmentation head, `network` the student, `views` and `teacher` what teaches,
`loss`, `distiller`, `decoding` by words, `scoring` and `recipe` the experiment.
"""

from stillroom.methods.zeroseg.distiller import ZeroSeg
from stillroom.methods.zeroseg.network import ZeroSegNetwork, ZeroSegSpec
from stillroom.methods.zeroseg.recipe import ROOM, recipe

__all__ = ["ROOM", "ZeroSeg", "ZeroSegNetwork", "ZeroSegSpec", "recipe"]
