"""How different experts are, and how much runs vary ("Variance/diversity analysis"; the exact forms are inferred)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, one_hot

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32


def expert_divergence(logits_BEC: Tensor) -> Tensor:
    """Mean KL between the softmax outputs of two different experts, over all ordered pairs; [B] in nats, 0 for equal experts.

    Raises:
        InputError: fewer than two experts.
    """
    experts = logits_BEC.shape[1]
    if experts < 2:
        raise InputError("logits_BEC", f"shape {list(logits_BEC.shape)}", "[B, E, C] of at least two experts")
    log_p_BEC = at_least_float32(logits_BEC).log_softmax(-1)
    pairs_BEE = kl_div(log_p_BEC[:, None], log_p_BEC[:, :, None], log_target=True, reduction="none").sum(-1)
    return pairs_BEE.sum((1, 2)) / (experts * (experts - 1))


def bias_and_variance(predicted_RN: np.ndarray, labels_N: np.ndarray) -> tuple[float, np.ndarray]:
    """The 0-1 bias and variance of several runs on the same samples.

    Args:
        predicted_RN: classes that each of R runs predicts.
        labels_N: the true ones.

    Returns:
        The error of the main prediction (the one of most runs; of a tie the smallest class), in %; and for each run on how many samples
        it differs from the main prediction, in %, [R].

    Raises:
        InputError: a single run, which has no variance.
    """
    if len(predicted_RN) < 2:
        raise InputError("predicted_RN", f"{len(predicted_RN)} runs", "at least two")
    classes = int(max(predicted_RN.max(), labels_N.max())) + 1
    votes_NC = one_hot(torch.from_numpy(predicted_RN), classes).sum(0)
    main_N = votes_NC.argmax(-1).numpy()
    return 100 * float((main_N != labels_N).mean()), 100 * (predicted_RN != main_N).mean(1)
