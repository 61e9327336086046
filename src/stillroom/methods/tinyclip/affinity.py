"""Affinity mimicking: the student's similarities of every image to every text, and the reverse, follow the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillroom.engine.distributed import gather_with_gradient
from stillroom.losses.precision import in_one_type

CHUNK = 256  # rows whose similarities are in memory together


def affinity_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    teacher_image_BE: Tensor,
    teacher_text_BE: Tensor,
    scale: Tensor | float,
    teacher_scale: Tensor | float,
) -> Tensor:
    """L_distill = 1/2 (L_I2T + L_T2I), both of them `mimicry`, over the texts and images of all processes.

    No label is used: a caption that two images share is as near to both as the teacher has it.

    Args:
        image_BD, text_BD: the student's embeddings of this process's pairs, of unit length. Every process has as many.
        teacher_image_BE, teacher_text_BE: the teacher's, whose length E may be another. No gradient reaches them.
        scale, teacher_scale: gamma and gamma'.

    Returns:
        A scalar: the mean over this process's rows. Under DDP, which takes the mean of the processes' gradients, the gradient is that of
        the whole batch on one process.

    Source: TinyCLIP, affinity mimicking loss; released code.
    """
    with torch.no_grad():
        teacher_images_NE, teacher_texts_NE = gather_with_gradient(teacher_image_BE), gather_with_gradient(teacher_text_BE)
    images_ND, texts_ND = gather_with_gradient(image_BD), gather_with_gradient(text_BD)
    image_to_text = mimicry(image_BD, texts_ND, teacher_image_BE, teacher_texts_NE, scale, teacher_scale)
    text_to_image = mimicry(text_BD, images_ND, teacher_text_BE, teacher_images_NE, scale, teacher_scale)
    return (image_to_text + text_to_image) / 2


def mimicry(
    rows_BD: Tensor,
    columns_ND: Tensor,
    teacher_rows_BE: Tensor,
    teacher_columns_NE: Tensor,
    scale: Tensor | float,
    teacher_scale: Tensor | float,
) -> Tensor:
    """One direction: the cross-entropy of the student's softmaxed similarities to the teacher's, summed over columns, the mean over rows.

        A = softmax_row(gamma X Y^T),  A' = softmax_row(gamma' X' Y'^T),  L = -mean_rows sum_cols A' log A

    In float32 at least. Where there are more than `CHUNK` rows, so many at a time are in memory, and are computed again on the way back.
    """
    rows_BD, columns_ND = in_one_type(rows_BD, columns_ND)
    teacher_rows_BE, teacher_columns_NE = in_one_type(teacher_rows_BE.detach(), teacher_columns_NE.detach())
    known = columns_ND, teacher_columns_NE, torch.as_tensor(scale), torch.as_tensor(teacher_scale).detach()
    if len(rows_BD) <= CHUNK:
        return _crossed(rows_BD, teacher_rows_BE, *known) / len(rows_BD)
    parts = zip(rows_BD.split(CHUNK), teacher_rows_BE.split(CHUNK), strict=True)
    sums = [checkpoint(_crossed, own, teachers, *known, use_reentrant=False) for own, teachers in parts]
    return torch.stack(sums).sum() / len(rows_BD)


def _crossed(rows_CD: Tensor, teacher_CE: Tensor, columns_ND: Tensor, teacher_NE: Tensor, scale: Tensor, teacher_scale: Tensor) -> Tensor:
    """The sum over some rows."""
    with torch.autocast(rows_CD.device.type, enabled=False):  # a similarity's error in half precision is multiplied by the scale
        log_student_CN = (scale * (rows_CD @ columns_ND.T)).log_softmax(-1)
        teacher_CN = (teacher_scale * (teacher_CE @ teacher_NE.T)).softmax(-1)
        return -(teacher_CN * log_student_CN).sum()
