"""How different experts are, and how much runs vary ("Variance/diversity analysis"; the exact forms are inferred)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from stillroom.errors import InputError


class OneExpert(nn.Module):
    """One expert of a network as a network of its own: images [B, 3, H, W] -> logits [B, C].

    Args:
        network: has a method ``experts(images)``.
        expert: its number, from 0.
    """

    def __init__(self, network: nn.Module, expert: int) -> None:
        super().__init__()
        self.network, self.expert = network, expert

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C]."""
        logits_BEC: Tensor = self.network.experts(images)  # type: ignore[operator]
        return logits_BEC[:, self.expert]


def expert_divergence(logits_BEC: Tensor) -> Tensor:
    """Mean KL between the softmax outputs of two different experts, over all ordered pairs; [B] in nats, 0 for equal experts.

    Raises:
        InputError: fewer than two experts.
    """
    experts = logits_BEC.shape[1]
    if experts < 2:
        raise InputError("logits_BEC", f"shape {list(logits_BEC.shape)}", "[B, E, C] of at least two experts")
    log_p_BEC = logits_BEC.float().log_softmax(-1)
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
    votes_NC = torch.nn.functional.one_hot(torch.from_numpy(predicted_RN), classes).sum(0)
    main_N = votes_NC.argmax(-1).numpy()
    return 100 * float((main_N != labels_N).mean()), 100 * (predicted_RN != main_N).mean(1)
