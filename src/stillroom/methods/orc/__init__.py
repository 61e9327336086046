"""ORC - ORC: Network Group-based Knowledge Distillation using Online Role Change (Choi, Cho, Cheung, Hwang, ICCV 2023).

Several networks of intermediate size teach a small one, but an immature teacher passes on what is false. So the roles change with every
batch: a pre-trained pivot always teaches; of the student group, in which the target and the intermediate networks learn, the best k
on this batch are promoted to temporary teachers. Before anyone is taught, the teachers are put right:

    intensive teaching   the pivot studies images mixed with those that the student group got wrong
    private teaching     the pivot corrects the temporary teachers
    group teaching       pivot and temporary teachers teach everyone else

and afterwards the temporary teachers are students again. No code was released: what the paper's text leaves open is marked [inferred].

`loss` holds the three teachings, `roles` the evaluation of the group and the choice of feedback samples, `distiller` the iteration,
`recipe` the experiment.
"""

from stillroom.methods.orc.distiller import ORC, Iteration
from stillroom.methods.orc.recipe import ROOM, build, recipe

__all__ = ["ORC", "ROOM", "Iteration", "build", "recipe"]
