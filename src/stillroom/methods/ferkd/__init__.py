"""FerKD - FerKD: Surgical Label Adaptation for Efficient Distillation (Shen, ICCV 2023).

A teacher labels many random crops of every image once (a label bank, as in FKD); students are then trained from what is stored, several
crops of an image at a time, without the teacher. Stored labels are not equally good: FerKD discards those of the hardest and the easiest
crops, gives hard ones the smoothed ground truth, and leaves the rest:

    L = - 1/R sum_r sum_c y_a[r, c] log softmax(z_s[r])[c]

`bank` holds the stored crops and labels, `crops` and `labelling` how they are made, `replay` training on them; `adaptation` the rule,
`calibration` what it makes of a bank, `mixing` SelfMix, `loss` and `distiller` the training step, `recipe` the experiment.
"""

from stillroom.methods.ferkd.calibration import Calibration, adapted_bank
from stillroom.methods.ferkd.distiller import FerKD
from stillroom.methods.ferkd.recipe import ROOM, build, recipe

__all__ = ["ROOM", "Calibration", "FerKD", "adapted_bank", "build", "recipe"]
