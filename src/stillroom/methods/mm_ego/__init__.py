"""Multimodal Distillation for Egocentric Action Recognition (Radevski, Grujicic, Blaschko, Moens, Tuytelaars; ICCV 2023).

A network of each modality (frames, optical flow, object boxes, sound) is trained alone; together they are one teacher, whose logits are
a weighted mean with weights from their losses on clips that none was trained on; a student that sees RGB frames alone learns its answers:

    w_m = softmax( - l_m / gamma ),   T = sum_m w_m t_m,   L = tau^2 KL( softmax(T / tau) || softmax(s / tau) )

`loss.py` has the student's loss, `ensemble.py` the weights, `teacher.py` the ensemble, `scoring.py` what is asked of whole sets,
`distiller.py` stage 3, `recipe.py` the experiment.
"""

from stillroom.methods.mm_ego.distiller import MultimodalDistiller
from stillroom.methods.mm_ego.loss import distillation_term
from stillroom.methods.mm_ego.recipe import PRESETS, ROOM, recipe
from stillroom.methods.mm_ego.teacher import MultimodalTeacher

__all__ = ["PRESETS", "ROOM", "MultimodalDistiller", "MultimodalTeacher", "distillation_term", "recipe"]
