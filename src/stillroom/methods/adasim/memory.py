"""What AdaSim remembers of every image: its newest feature, and the neighbours and similarities that were found for it then."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.engine.distributed import whole_batch
from stillroom.errors import InputError, at_least, one_of

Representation = Literal["first", "second", "mean"]
_EPS = 1e-12  # of a feature's length


class NeighbourMemory(nn.Module):
    """M, A and S: one row per training image, joined by its id; all are buffers, in the checkpoint, and equal in every process.

    Args:
        images: N.
        width: D of the features.
        topk: k, nearest images kept of each image.
        representation: what of an image's two views is remembered. The first always shows the image itself.

    Attributes:
        features: M, float32 [N, D], of unit length; zero before an image's first visit.
        ids: A, int32 [N, k], the nearest images, nearest first.
        similarities: S, float32 [N, k], their cosines.

    Raises:
        InputError: k above N, or another number out of its range.

    Source: specification, "State update".
    """

    features: Tensor
    ids: Tensor
    similarities: Tensor

    def __init__(self, images: int, width: int, *, topk: int = 10, representation: Representation = "first") -> None:
        super().__init__()
        if at_least("topk", topk, 1) > images:
            raise InputError("topk", topk, f"at most as many as there are training images ({images})")
        one_of("representation", representation, get_args(Representation))
        self.representation = representation
        self.register_buffer("features", torch.zeros(images, width))
        self.register_buffer("ids", torch.zeros(images, topk, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(images, topk))

    def represent(self, features: Tensor) -> Tensor:
        """r [B, D] of unit length from h [2 B, D], view 1 first; a zero row stays zero."""
        first, second = normalize(features.detach().float(), dim=1, eps=_EPS).chunk(2)
        if self.representation == "mean":
            return normalize((first + second) / 2, dim=1, eps=_EPS)
        return first if self.representation == "first" else second

    @torch.no_grad()
    def update(self, ids: Tensor, features: Tensor) -> Tensor:
        """Looks each image up in the memory as it was before, then writes it and what was found; of the images of all processes.

        Args:
            ids: of the images [B], int64, each once; as many in every process.
            features: h [2 B, D], the teacher's, of view 1 of all images, then of view 2.

        Returns:
            alpha [B, k]: the neighbours that were found for this process's images, nearest first.

        Raises:
            InputError: an id that is none of an image, or one twice; shapes that do not fit.
        """
        self._check(ids, features)
        with torch.autocast(features.device.type, enabled=False):
            rows = self.represent(features)
            similarities, found = (rows @ self.features.T).topk(self.ids.shape[1])
        ids, rows, similarities, written = map(whole_batch, (ids, rows, similarities, found.int()))
        self.features[ids], self.ids[ids], self.similarities[ids] = rows, written, similarities
        return found

    def _check(self, ids: Tensor, features: Tensor) -> None:
        if features.shape != (2 * len(ids), self.features.shape[1]):
            raise InputError("features", f"shape {list(features.shape)}", f"[{2 * len(ids)}, {self.features.shape[1]}], two views an image")
        if ids.is_cuda:  # nothing waits for a device; `AdaSim.others` looks at them before they go there
            return
        if not ((ids >= 0) & (ids < len(self.features))).all():
            raise InputError("ids", ids.tolist(), f"numbers from 0 to {len(self.features) - 1}")
        if len(ids.unique()) < len(ids):
            raise InputError("ids", ids.tolist(), "each image once in a batch")

    def extra_repr(self) -> str:
        """For people, and for the fingerprint of a stage."""
        return f"{list(self.features.shape)}, topk={self.ids.shape[1]}, representation={self.representation}"
