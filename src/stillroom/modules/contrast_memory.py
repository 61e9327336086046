"""CRD's memory: one embedding per training sample and network, from which positives and negatives are read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize

from stillroom.errors import InputError, at_least, positive


class ContrastMemory(nn.Module):
    """Two banks of unit-length embeddings, the student's and the teacher's, one row per training sample, joined by sample id.

    The banks start random (uniform in +-1 / sqrt(E / 3), then scaled to unit length) and follow training: `update` moves a row towards its
    sample's present embedding. A student's embedding is compared with the teacher's bank and a teacher's with the student's, so that a
    batch sees K negatives per sample for the price of its own forward pass.

    Scores. The paper's critic is exp(dot / temperature) / (exp(dot / temperature) + K / M). The common practice, used here, is that of
    Wu et al. 2018: exp(dot / temperature) is first divided by a constant Z, one for each direction, so that it is about a probability over
    the M samples. Z is estimated once, as M times the mean of the first training batch's exponentials, and then kept.

    Negatives. With `labels` they are samples of other classes, without them any other samples; in both cases drawn uniformly and with
    replacement from torch's generator of the ids' device. For that the ids are kept sorted by class: a class's complement is the sorted
    order without one block, so a uniform number below M - |block|, moved past the block where it reaches it, is a uniform negative.

    Everything that is learned (banks, Z, whether Z is there) is a buffer and in the checkpoint. Under torch.distributed the embeddings and
    ids of all ranks enter the update of each, and Z is averaged over ranks, so that banks which start equal stay equal. Batches must be of
    one size on all ranks.

    Args:
        num_samples: M, training samples; ids run from 0 to M - 1.
        embed_dim: E, width of the embeddings.
        negatives: K, drawn for each sample of a batch.
        temperature: above 0; smaller weights the hardest negatives more.
        momentum: share of the old row in an updated one, in [0, 1).
        labels: [M] class of each training sample by id; None lets any other sample be a negative.

    Raises:
        InputError: an argument is out of its range, or there is nothing to draw negatives from.

    Source: Tian et al. 2020 (CRD), section 3.1 and the memory buffer of its experiments; Wu et al. 2018, sections 3.1-3.2.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalisers: Tensor
    calibrated: Tensor
    _order: Tensor
    _block_start: Tensor
    _block_size: Tensor

    def __init__(
        self,
        num_samples: int,
        embed_dim: int = 128,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, count, least in (("num_samples", num_samples, 2), ("embed_dim", embed_dim, 1), ("negatives", negatives, 1)):
            at_least(name, count, least)
        if not 0 <= momentum < 1:
            raise InputError("momentum", momentum, "a number from 0 to below 1")
        if labels is not None and labels.shape != (num_samples,):
            raise InputError("labels", f"a tensor of shape {tuple(labels.shape)}", f"[{num_samples}], one class per training sample")
        self.num_samples, self.embed_dim, self.negatives = num_samples, embed_dim, negatives
        self.temperature, self.momentum = positive("temperature", temperature), momentum

        bound = 1 / math.sqrt(embed_dim / 3)
        for side in ("student", "teacher"):
            rows = torch.empty(num_samples, embed_dim).uniform_(-bound, bound)
            self.register_buffer(f"{side}_bank", normalize(rows, dim=1))
        self.register_buffer("log_normalisers", torch.zeros(2))
        self.register_buffer("calibrated", torch.tensor(False))
        self._is_calibrated = False  # the buffer's value on the host, so that no step waits for the device
        self.register_load_state_dict_post_hook(_read_calibrated)

        # without labels every sample is a class of its own; the three tables follow from the data and stay out of checkpoints
        classes = torch.arange(num_samples) if labels is None else labels.detach().cpu()
        _, class_of, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise InputError("labels", "a single class", "at least two: negatives are samples of other classes")
        starts = sizes.cumsum(0) - sizes
        self.register_buffer("_order", class_of.argsort(stable=True), persistent=False)
        self.register_buffer("_block_start", starts[class_of], persistent=False)
        self.register_buffer("_block_size", sizes[class_of], persistent=False)

    def extra_repr(self) -> str:
        """The numbers that make this memory what it is."""
        return (
            f"num_samples={self.num_samples}, embed_dim={self.embed_dim}, negatives={self.negatives}, "
            f"temperature={self.temperature}, momentum={self.momentum}"
        )

    def draw_negatives(self, ids_B: Tensor) -> Tensor:
        """Ids [B, K] of samples that are no positives of `ids_B`, drawn uniformly with replacement."""
        start_B1, size_B1 = self._block_start[ids_B, None], self._block_size[ids_B, None]
        # the remainder of a 62-bit number is uniform to within M / 2^62; a float32 would be too coarse for a million samples
        position_BK = torch.randint(2**62, (len(ids_B), self.negatives), device=ids_B.device) % (self.num_samples - size_B1)
        position_BK = position_BK + size_B1 * (position_BK >= start_B1)
        return self._order[position_BK]

    def forward(self, student_BE: Tensor, teacher_BE: Tensor, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised scores of each anchor with its positive (first column) and K negatives, in both directions.

        Banks are constants here: gradient reaches the two embeddings only. Nothing is stored, except Z at the first call in train mode.

        Args:
            student_BE, teacher_BE: embeddings of unit length.
            ids_B: [B] int64, which rows are the positives'.

        Returns:
            Two float32 tensors [B, 1 + K]: the student's embeddings against the teacher's bank, and the teacher's against the student's.
            Both use the same negatives.

        Raises:
            InputError: shapes do not fit each other or the banks.
        """
        self._check(student_BE, teacher_BE, ids_B)
        chosen_BK1 = torch.cat([ids_B[:, None], self.draw_negatives(ids_B)], dim=1)
        with torch.autocast(student_BE.device.type, enabled=False):  # differences of 1e-3 in a dot product are 1.5 % of a score
            by_student_BK1 = self._dots(student_BE.float(), self.teacher_bank, chosen_BK1) / self.temperature
            by_teacher_BK1 = self._dots(teacher_BE.float(), self.student_bank, chosen_BK1) / self.temperature
            log_z = self._log_normalisers(by_student_BK1.detach(), by_teacher_BK1.detach())
            return (by_student_BK1 - log_z[0]).exp(), (by_teacher_BK1 - log_z[1]).exp()

    @torch.no_grad()
    def update(self, student_BE: Tensor, teacher_BE: Tensor, ids_B: Tensor) -> None:
        """Moves the rows of `ids_B` towards these embeddings: normalise(momentum * row + (1 - momentum) * embedding).

        To be called after the step's loss; graphs made before stay valid. Of several embeddings for one id the first counts.

        Raises:
            InputError: shapes do not fit each other or the banks.
        """
        self._check(student_BE, teacher_BE, ids_B)
        student_BE, teacher_BE, ids_B = _of_all_ranks(student_BE.float()), _of_all_ranks(teacher_BE.float()), _of_all_ranks(ids_B)
        first_B = (ids_B[:, None] == ids_B[None, :]).int().argmax(1)  # equal ids write equal rows, in whatever order they are written
        for bank, embedding_BE in ((self.student_bank, student_BE), (self.teacher_bank, teacher_BE)):
            rows_BE = self.momentum * bank[ids_B].float() + (1 - self.momentum) * embedding_BE[first_B]
            bank[ids_B] = normalize(rows_BE, dim=1).to(bank.dtype)

    def _dots(self, anchor_BE: Tensor, bank_ME: Tensor, chosen_BK1: Tensor) -> Tensor:
        """Dot products of each anchor with its chosen rows, [B, 1 + K], the way that holds fewer numbers."""
        (batch, chosen), (samples, width) = chosen_BK1.shape, bank_ME.shape
        if samples * (batch + width) <= batch * chosen * width:
            # against all rows at once, copied because the graph outlives the bank's next update. The gather's backward adds up repeated
            # negatives in any order, yet always to the same sum: a negative that an anchor has twice gets the same gradient twice
            return (anchor_BE @ bank_ME.to(torch.float32, copy=True).T).gather(1, chosen_BK1)
        return torch.einsum("be,bke->bk", anchor_BE, bank_ME[chosen_BK1].float())

    def _log_normalisers(self, *logits_BK1: Tensor) -> Tensor:
        """log Z of each direction: the stored ones, or those of this first batch."""
        if self._is_calibrated:
            return self.log_normalisers.float()
        log_means = torch.stack([logits.flatten().logsumexp(0) - math.log(logits.numel()) for logits in logits_BK1])
        by_rank_R2 = _of_all_ranks(log_means[None])
        log_z = by_rank_R2.logsumexp(0) - math.log(len(by_rank_R2)) + math.log(self.num_samples)
        if self.training:
            self.log_normalisers.copy_(log_z)
            self.calibrated.fill_(True)
            self._is_calibrated = True
        return log_z

    def _check(self, student_BE: Tensor, teacher_BE: Tensor, ids_B: Tensor) -> None:
        if ids_B.ndim != 1:
            raise InputError("ids_B", f"a tensor of shape {tuple(ids_B.shape)}", "[B], one id per sample")
        for name, embedding_BE in (("student_BE", student_BE), ("teacher_BE", teacher_BE)):
            if embedding_BE.shape != (len(ids_B), self.embed_dim):
                raise InputError(name, f"a tensor of shape {tuple(embedding_BE.shape)}", f"[{len(ids_B)}, {self.embed_dim}]")


def _read_calibrated(memory: Any, _: Any) -> None:
    memory._is_calibrated = bool(memory.calibrated)


def _of_all_ranks(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; the rows themselves in a single process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
