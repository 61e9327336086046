"""KD^3 - Distribution Shift Matters for Knowledge Distillation with Webly Collected Images (ICCV 2023).

The teacher is there, its training data are not. A student learns from unlabelled images of the web instead, of which many show none of
the teacher's classes and most look otherwise. Three parts:

1. once per epoch, teacher and student choose the images that they are sure of (`selection`);
2. the student has no classifier of its own: a connector maps its last features into the teacher's, where the teacher's frozen classifier
   reads them, and they are regressed on the teacher's, image by image with a weight (`loss`);
3. an image and its view in a mixture of styles are pulled together (`mixdistribution`, `stillroom.losses.contrast.nt_xent`).

`distiller` joins them, `recipe` is the experiment. The student, which is shipped whole, is a
`stillroom.methods.kd3.shared_classifier.SharedClassifier`.
"""

from stillroom.methods.kd3.distiller import KD3, WebKD
from stillroom.methods.kd3.mixdistribution import MixDistribution
from stillroom.methods.kd3.recipe import ROOM, build, recipe

__all__ = ["KD3", "ROOM", "MixDistribution", "WebKD", "build", "recipe"]
