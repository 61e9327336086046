"""MDCS's loss: prior-shifted cross-entropy of every expert (DL), and every expert's weak view teaching its strong one (CS with CIS).

Symbols: z_e [2B, C] an expert's logits for B images, the rows 0..B-1 their weak views and B..2B-1 their strong ones in the same order;
y [B] the labels, n_c the number of training images of class c, lambda_e the expert's prior exponent. Half-precision logits are shifted and
compared in float32, float64 ones in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from stillroom.errors import InputError, positive
from stillroom.losses.precision import at_least_float32


class Terms(NamedTuple):
    """What `mdcs_terms` answers.

    Attributes:
        diversity: L_DL, a scalar.
        consistency: L_CS, a scalar, before its weight.
        confident_BE: bool [B, E], whether an expert's weak view is right: whose weak views teach under confident instance sampling.
    """

    diversity: Tensor
    consistency: Tensor
    confident_BE: Tensor


def prior_shift(class_counts: Tensor | Sequence[int], lambdas: Sequence[float], *, epsilon: float = 1e-9) -> Tensor:
    """log(n_c^lambda_e + epsilon): what is added to every expert's logits in training (section "Method" 1).

    With lambda < 0 the training shift lowers the logits of large classes, so the expert must say them too readily and, without the shift,
    favours them. lambda = 1 is balanced; lambda > 1 favours small classes. The counts are raw: divided by their sum, large powers of
    small shares would fall below the epsilon.

    Args:
        class_counts: n, [C] numbers of training images, of all processes together.
        lambdas: an exponent for each expert.
        epsilon: as in the released code; with raw counts it does not matter.

    Returns:
        float32 [E, C].

    Raises:
        InputError: a class without an image, no exponents, or one that is not finite.
    """
    counts_C = torch.as_tensor(class_counts).detach().cpu().double()
    if counts_C.ndim != 1 or len(counts_C) < 2:
        raise InputError("class_counts", f"shape {list(counts_C.shape)}", "one number of training images for each of at least two classes")
    if not bool((counts_C > 0).all()):
        empty = torch.nonzero(~(counts_C > 0)).flatten().tolist()
        raise InputError("class_counts", f"{counts_C[empty[0]]:g} images of class {empty[0]}", "at least one training image of each class")
    if not lambdas or not all(map(math.isfinite, lambdas)):
        raise InputError("lambdas", list(lambdas), "a finite number for each expert")
    shift_EC = (counts_C ** torch.tensor(lambdas, dtype=torch.float64)[:, None] + epsilon).log()
    if not bool(shift_EC.isfinite().all()):
        raise InputError("lambdas", list(lambdas), "exponents with which the powers of the class counts stay finite")
    return shift_EC.float()


def mdcs_terms(logits_NEC: Tensor, labels_B: Tensor, shift_EC: Tensor, *, confident_only: bool = True, temperature: float = 1.0) -> Terms:
    """Both terms of the loss (section "Method" 1 and 2), on the shifted logits a_e = z_e + log n^lambda_e.

        L_DL = sum_e 1/2B sum_i CE( a_e[i], y[i] )                                                  over both views
        L_CS = sum_e 1/M_e sum_{i confident} T^2 KL( softmax(a_e[i] / T) || softmax(a_e[B+i] / T) )

    The weak view's softmax is the teacher and has no gradient: L_CS reaches the strong rows alone. M_e counts the images that expert e
    classifies correctly in the weak view (shifted logits, the first class of a tie); an expert without any adds exactly 0.

    Args:
        logits_NEC: z, all weak views and then all strong ones, N = 2B.
        labels_B: y, in 0..C-1.
        shift_EC: see `prior_shift`.
        confident_only: leave out images that an expert gets wrong in the weak view (CIS); else all teach, for comparison.
        temperature: T > 0; 1 in the paper. The factor T^2 is inferred.

    Raises:
        InputError: shapes that do not belong together, an odd number of rows, a temperature not above 0; or, where looking costs nothing
            (on the CPU), a label outside 0..C-1.
    """
    _check(logits_NEC, labels_B, shift_EC)
    positive("temperature", temperature)
    shifted_NEC = at_least_float32(logits_NEC) + shift_EC
    experts, images = shifted_NEC.shape[1], len(labels_B)

    labels_NE = labels_B.repeat(2)[:, None].expand(-1, experts)
    diversity = experts * cross_entropy(shifted_NEC.transpose(1, 2), labels_NE)  # a mean over rows and experts

    weak_BEC, strong_BEC = shifted_NEC[:images].detach(), shifted_NEC[images:]
    confident_BE = weak_BEC.argmax(-1) == labels_B[:, None]
    teaching_BE = confident_BE if confident_only else torch.ones_like(confident_BE)
    log_p_BEC, log_q_BEC = (weak_BEC / temperature).log_softmax(-1), (strong_BEC / temperature).log_softmax(-1)
    divergence_BE = kl_div(log_q_BEC, log_p_BEC, log_target=True, reduction="none").sum(-1)
    share_BE = teaching_BE.to(shifted_NEC.dtype) / teaching_BE.sum(0).clamp(min=1)
    return Terms(diversity, temperature**2 * (share_BE * divergence_BE).sum(), confident_BE)


def _check(logits_NEC: Tensor, labels_B: Tensor, shift_EC: Tensor) -> None:
    if logits_NEC.ndim != 3 or logits_NEC.numel() == 0 or len(logits_NEC) % 2:
        raise InputError("logits_NEC", f"shape {list(logits_NEC.shape)}", "[2B, E, C]: a weak and a strong view of each image")
    if logits_NEC.shape[1:] != shift_EC.shape:
        experts, classes = shift_EC.shape
        raise InputError(
            "logits_NEC", f"{logits_NEC.shape[1]} experts and {logits_NEC.shape[2]} classes", f"{experts} and {classes}, as the shift has"
        )
    if labels_B.shape != (len(logits_NEC) // 2,) or labels_B.dtype.is_floating_point or labels_B.dtype == torch.bool:
        raise InputError(
            "labels_B",
            f"shape {list(labels_B.shape)} of {labels_B.dtype}",
            f"one whole number for both views of each of the {len(logits_NEC) // 2} images",
        )
    if labels_B.device.type == "cpu" and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < shift_EC.shape[1]:
        raise InputError("labels_B", f"labels from {labels_B.min()} to {labels_B.max()}", f"labels from 0 to {shift_EC.shape[1] - 1}")
