"""Losses between intermediate features of a student and a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from stillroom.errors import InputError
from stillroom.losses.precision import in_one_type


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between a regressed student feature and the teacher's hint, averaged over all elements.

    The paper's eq. 3 is 1/2 ||u_h(x) - r(v_g(x))||^2, a sum over a sample's elements; the mean over elements used here is that of later
    benchmarks. It differs from the paper's by the constant 2 / (elements per sample), which the loss's weight takes up.

    Args:
        student: r(v_g(x)), the guided layer after its regressor, any shape.
        teacher: u_h(x), the hint, the same shape. No gradient reaches it.

    Returns:
        A scalar, float32 at least, 0 where the two are equal.

    Raises:
        InputError: the shapes differ.

    Source: Romero et al. 2015 (FitNets), eq. 3.
    """
    if student.shape != teacher.shape:
        raise InputError("student", f"features of shape {tuple(student.shape)}", f"the shape of the teacher's, {tuple(teacher.shape)}")
    return mse_loss(*in_one_type(student, teacher.detach()))


def cosine_distances(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """1 - cosine over channels of two feature maps, at every position; 1 where a vector is zero (lengths are at least 1e-8).

    Args:
        student_BCHW: the student's.
        teacher_BCHW: the teacher's, the same shape. No gradient reaches it.

    Returns:
        [B, H, W] in [0, 2], float32 at least.

    Raises:
        InputError: the shapes differ.
    """
    if student_BCHW.shape != teacher_BCHW.shape:
        got = f"features of shape {tuple(student_BCHW.shape)}"
        raise InputError("student", got, f"the shape of the teacher's, {tuple(teacher_BCHW.shape)}")
    return 1 - cosine_similarity(*in_one_type(student_BCHW, teacher_BCHW.detach()), dim=1, eps=1e-8)
