"""Open-vocabulary decoding: which class each pixel is of, by the nearness of its segment to the classes' names.

S = soft_1^T soft_2^T, resized;  E = one-hot(arg-max over segments);  R = softmax_c( kappa g . t_c )
U = R * softmax_c( kappa g . t_c, only the five classes that the whole image is nearest to );  Y = E U
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.segmentation.vocabulary import Vocabulary

_KEPT = 5  # classes that an image may show


def resized_assignment(composed_BLS: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Soft assignments of tokens, brought from their grid to pixels: [B, S, H, W]."""
    map_BShw = composed_BLS.mT.unflatten(2, grid)
    return interpolate(at_least_float32(map_BShw), size, mode="bilinear", align_corners=False)


def class_probabilities(segments_BMD: Tensor, global_BD: Tensor, text_CD: Tensor, scale: float) -> Tensor:
    """U, what each segment says of each class: [B, m, C], float32 at least.

    Args:
        segments_BMD, global_BD: g and z, of any length.
        text_CD: t_c, of any length.
        scale: kappa, at most 100 is used.

    Raises:
        InputError: text and image embeddings of unlike width.

    Source: GroupViT's code (the restriction to the image's five classes).
    """
    if text_CD.shape[-1] != segments_BMD.shape[-1]:
        raise InputError("classes", f"embeddings of {text_CD.shape[-1]} numbers", f"{segments_BMD.shape[-1]}, as the student's segments")
    with torch.autocast(segments_BMD.device.type, enabled=False):
        text, kappa = normalize(at_least_float32(text_CD), dim=-1), min(scale, 100.0)
        logits_BMC = kappa * normalize(at_least_float32(segments_BMD), dim=-1) @ text.T.to(segments_BMD.device)
        image_BC = kappa * normalize(at_least_float32(global_BD), dim=-1) @ text.T.to(global_BD.device)
        kept_BK = image_BC.topk(min(_KEPT, len(text)), dim=1).indices
        left_out_BC = torch.ones_like(image_BC, dtype=torch.bool).scatter(1, kept_BK, False)
        return logits_BMC.softmax(-1) * logits_BMC.masked_fill(left_out_BC[:, None], -torch.inf).softmax(-1)


def pixel_scores(soft_BSHW: Tensor, probabilities_BSC: Tensor) -> Tensor:
    """Y, the class scores of each pixel, [B, C, H, W]: those of the segment that it belongs to most; of equal ones the first."""
    which_BHW = soft_BSHW.argmax(1)
    hard_BHWS = one_hot(which_BHW, soft_BSHW.shape[1]).to(probabilities_BSC.dtype)
    return torch.einsum("bhws,bsc->bchw", hard_BHWS, probabilities_BSC)


def with_background(scores_BCHW: Tensor, probabilities_BSC: Tensor, threshold: float) -> Tensor:
    """The scores with those of a background before them, [B, 1 + C, H, W]: 1 where no class reaches the threshold, else 0.

    Args:
        scores_BCHW: Y.
        probabilities_BSC: U; where all of an image's are below the threshold, the largest of them takes its place.
        threshold: of a class score.
    """
    limit_B = probabilities_BSC.amax((1, 2)).clamp_max(threshold)
    background_BHW = (scores_BCHW.amax(1) < limit_B[:, None, None]).to(scores_BCHW.dtype)
    return torch.cat((background_BHW[:, None], scores_BCHW), 1)


def with_vocabulary(scores_BCHW: Tensor, probabilities_BSC: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The scores of a vocabulary's named classes, with those of a background that no name says at its place among them.

    Args:
        scores_BCHW: Y.
        probabilities_BSC: U.
        vocabulary: whose order is answered in; where its background is "none", that class has a score of -1.
    """
    if (place := vocabulary.place) is None:
        return scores_BCHW
    if vocabulary.background == "none":
        shown = torch.full_like(scores_BCHW[:, :1], -1.0)
    else:
        shown = with_background(scores_BCHW, probabilities_BSC, vocabulary.threshold)[:, :1]
    return torch.cat((scores_BCHW[:, :place], shown, scores_BCHW[:, place:]), 1)
