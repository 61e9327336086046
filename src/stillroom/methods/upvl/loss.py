"""What the student learns of the vision-language model, and how its features name boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

_EPS = 1e-12


def feature_loss(predicted_NC: Tensor, target_NC: Tensor) -> Tensor:
    """Mean of 1 - cosine over the points that have a target; 0, with a gradient of zeros, if none has.

    Args:
        predicted_NC: the student's features.
        target_NC: those that pictures gave; zero rows for points that no camera sees. Constant.
    """
    target_NC = target_NC.detach().float()
    seen_N = target_NC.norm(dim=1) > _EPS
    # a selection by weight, not by mask, keeps the graph where no point is seen
    apart_N = 1 - cosine_similarity(predicted_NC.float(), target_NC, dim=1, eps=_EPS)
    return (apart_N * seen_N).sum() / seen_N.sum().clamp_min(1)


def point_probabilities(features_NC: Tensor, text_QC: Tensor, temperature: float = 0.05) -> Tensor:
    """Softmax over prompts of the cosine of each point's feature, [N, Q]."""
    cosine_NQ = normalize(features_NC.float(), dim=1, eps=_EPS) @ normalize(text_QC.float(), dim=1, eps=_EPS).T
    return (cosine_NQ / temperature).softmax(1)


def box_labels(
    features_NC: Tensor, inside_MN: Tensor, text_QC: Tensor, background: Sequence[int], temperature: float = 0.05
) -> tuple[Tensor, Tensor]:
    """What each box is called: the mean over its points of their probabilities of each prompt.

    Args:
        features_NC: of points.
        inside_MN: which points each box holds.
        text_QC: prompts, those of the background among them.
        background: columns of these, which are no answers.
        temperature: of the softmax over prompts.

    Returns:
        Probabilities [M, Q], uniform for a box without a point, and the most probable prompt of each that is not background, int64 [M].
    """
    inside_MN = inside_MN.float()
    count_M1 = inside_MN.sum(1, keepdim=True)
    mean_MQ = inside_MN @ point_probabilities(features_NC, text_QC, temperature) / count_M1.clamp_min(1)
    mean_MQ = torch.where(count_M1 > 0, mean_MQ, 1 / len(text_QC))
    answers_MQ = mean_MQ.clone()
    answers_MQ[:, list(background)] = -1
    return mean_MQ, answers_MQ.argmax(1)
