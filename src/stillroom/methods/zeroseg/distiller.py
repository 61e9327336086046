"""ZeroSeg: a student that segments, taught by what a frozen image tower says of an image and of its parts.

L = L_rec + w_ms L_ms + w_match L_match
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError, at_least_zero
from stillroom.methods.zeroseg.loss import first_local, matching_loss, multi_scale_loss
from stillroom.methods.zeroseg.masking import (
    Mask,
    Reconstruction,
    random_mask,
    reconstruction_loss,
    reconstruction_targets,
    visible_patches,
)
from stillroom.methods.zeroseg.network import Segmented, ZeroSegNetwork, heads_of, sizes_of
from stillroom.tasks.segmentation import SegmentationBatch, SegmentationDistiller

_BETA2 = 0.95


def patch_noise(batch: int, patches: int, device: torch.device) -> Tensor:
    """Uniform numbers that choose which patches are seen, [B, N], from torch's own generator."""
    return torch.rand(batch, patches, device=device)


class ZeroSeg(SegmentationDistiller):
    """L = L_rec + w_ms L_ms + w_match L_match over masked images; no mask of pixels and no word is read.

    Args:
        student: encoder, segmentation head and projection.
        teacher: images to embeddings of all their views [B, views, D]; a network, or its answers on disk.
        scales: of the views' grids.
        multi_scale: L_ms over all views; else over the whole image alone, the paper's base.
        match_weight: w_match; at 0 segments are not matched.
        ms_weight: w_ms.
        mask_ratio: rho, share of the patches that are not seen; at 0 nothing is reconstructed.
        reconstruction: of the decoder that guesses them, ``vitWIDTH_BLOCKS``.
        normalise_pixels: guess each patch less its mean, over its deviation.
        normalise_targets: compare directions alone: views, z and g brought to unit length.

    Raises:
        InputError: a number that cannot be used, or scales without what is asked of them.
    """

    student: ZeroSegNetwork
    teacher: Teacher

    def __init__(
        self,
        student: ZeroSegNetwork,
        teacher: Teacher | None,
        *,
        scales: tuple[int, ...] = (1, 2, 3),
        multi_scale: bool = True,
        match_weight: float = 1.0,
        ms_weight: float = 1.0,
        mask_ratio: float = 0.6,
        reconstruction: str = "vit48_2",
        normalise_pixels: bool = False,
        normalise_targets: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        self.multi_scale, self.scales = multi_scale, tuple(scales)
        self.match_weight, self.ms_weight = at_least_zero("match_weight", match_weight), at_least_zero("ms_weight", ms_weight)
        self.mask_ratio, self.normalise_pixels, self.normalise_targets = mask_ratio, normalise_pixels, normalise_targets
        visible_patches(10**6, mask_ratio)  # whether it leaves one of an image's is seen when the image is
        if list(scales) != sorted({*scales}):
            raise InputError("view_scales", list(scales), "different numbers, the smallest first")
        if match_weight and set(scales) == {1}:
            raise InputError(
                "view_scales", list(scales), "a scale above 1, or match_weight 0: segments are matched with parts of the image"
            )
        if not multi_scale and 1 not in scales:
            raise InputError("view_scales", list(scales), "scale 1 among them: the base knows the whole image alone")
        self.reconstruction: Reconstruction | None = None
        if mask_ratio:
            width, depth, _ = sizes_of(f"{reconstruction}_1", "reconstruction")
            encoded = student.encoder.norm.weight.shape[0]
            self.reconstruction = Reconstruction(encoded, width, depth, heads_of(width), student.encoder.patch)

    def losses(self, batch: SegmentationBatch) -> Losses:
        """The three terms, weighted."""
        encoder, mask = self.student.encoder, None
        grid = encoder.grid(batch.images)
        if self.reconstruction is not None:
            mask = random_mask(patch_noise(len(batch.images), grid[0] * grid[1], batch.images.device), self.mask_ratio)
        found = self.student.segmented(batch.images, mask)
        task = {"reconstruction": self._reconstruction(batch.images, found, mask, grid)} if mask is not None else {}
        return Losses(task=task, distill=self.taught(found, self.teacher(batch)))

    def _reconstruction(self, images_B3HW: Tensor, found: Segmented, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """L_rec; of what is left over at the right and at the bottom of whole patches nothing is asked."""
        assert self.reconstruction is not None
        patch = self.student.encoder.patch
        whole = images_B3HW[:, :, : grid[0] * patch, : grid[1] * patch]
        targets = reconstruction_targets(whole, patch, normalise_pixels=self.normalise_pixels)
        return reconstruction_loss(self.reconstruction(found.cls, found.tokens, mask, grid), targets, mask.removed)

    def taught(self, found: Segmented, views_BJD: Tensor) -> dict[str, Tensor]:
        """L_ms and L_match, weighted."""
        z, g = found.image, found.segments
        if views_BJD.shape[-1] != z.shape[-1]:
            raise InputError("teacher", f"embeddings of {views_BJD.shape[-1]} numbers", f"{z.shape[-1]}, as the student's")
        if self.normalise_targets:
            views_BJD, z, g = (normalize(one, dim=-1) for one in (views_BJD, z, g))
        seen = views_BJD if self.multi_scale else views_BJD[:, :1]
        terms = {"multi_scale": self.ms_weight * multi_scale_loss(z, seen)}
        if self.match_weight:
            terms["match"] = self.match_weight * matching_loss(g, views_BJD, first_local(self.scales))
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices and filters with the plan's decay, biases and norms without."""
        learning = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in learning if p.ndim > 1]},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The plan's; AdamW with the masked autoencoder's second beta."""
        optimizer = self.plan.build_optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (group["betas"][0], _BETA2)
        return optimizer
