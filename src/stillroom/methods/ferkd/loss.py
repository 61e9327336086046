"""FerKD's one loss term (section 5)."""

from __future__ import annotations

from torch import Tensor

from stillroom.errors import InputError, positive
from stillroom.losses.precision import at_least_float32


def soft_cross_entropy(student_RC: Tensor, labels_RC: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with soft labels, averaged over the rows:

        L = -1/R sum_r sum_c y[r, c] log softmax(z_s[r] / tau)[c]

    There is no factor tau^2, as in the released code. From the divergence KL(y || softmax) it differs by a constant.

    Args:
        student_RC: z_s, logits, one row per crop.
        labels_RC: y, probabilities. No gradient reaches them.
        temperature: tau > 0.

    Returns:
        A scalar, float32 (float64 if the logits are).

    Raises:
        InputError: the shapes differ, or there is no row, or the temperature is not above 0.

    Source: Shen 2023, "FerKD", as Shen and Xing 2022, "A Fast Knowledge Distillation Framework", section 3.
    """
    if student_RC.ndim != 2 or student_RC.numel() == 0 or labels_RC.shape != student_RC.shape:
        got = f"labels {list(labels_RC.shape)} for logits {list(student_RC.shape)}"
        raise InputError("labels_RC", got, "a soft label [R, C] for each row of logits [R, C], at least one")
    log_q_RC = (at_least_float32(student_RC) / positive("temperature", temperature)).log_softmax(-1)
    return -(labels_RC.detach().to(log_q_RC.dtype) * log_q_RC).sum(-1).mean()
