"""Where to imitate: foreground, places that the teacher mistakes for objects, background; and what each cell of them counts.

Source: the specification's section "Region masks"; equal to the released code but where that divides by zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from stillroom.errors import InputError, one_of
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.regions import boxes_to_mask

Mistaken = Literal["teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student"]
MistakenScale = Literal["average", "dfs"]
_LEAST = 1e-4  # of a heatmap's probabilities, as they are clamped


@dataclass(frozen=True)
class Regions:
    """The regions of a tap, float32 [B, 1, ny, nx].

    Attributes:
        foreground: 1 in cells under a box.
        foreground_scale: sqrt(cell's area / box's area) of the first box that covers a cell, 0 elsewhere.
        background_scale: 1 / number of a sample's background cells, in every cell; 0 where there is none.
        mistaken: 1 in cells of the false-positive region; None where that is not looked at.
        mistaken_scale: what each of them counts, 0 elsewhere.
    """

    foreground: Tensor
    foreground_scale: Tensor
    background_scale: Tensor
    mistaken: Tensor | None = None
    mistaken_scale: Tensor | None = None

    def weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What each cell counts as foreground, as background and as mistaken: M_F, M_B, M_E [B, 1, ny, nx]."""
        larger = torch.maximum(self.foreground_scale, self.background_scale)
        elsewhere = 1 - self.foreground if self.mistaken is None else (1 - self.foreground) * (1 - self.mistaken)
        mistaken = None if self.mistaken is None or self.mistaken_scale is None else self.mistaken * self.mistaken_scale
        return self.foreground * larger, elsewhere * larger, mistaken

    def with_mistaken(self, cells: Tensor, scale: MistakenScale = "average") -> Regions:
        """The same with a false-positive region, which leaves the background.

        Args:
            cells: bool or 0 and 1 [B, 1, ny, nx]; those under a box do not count.
            scale: see `mistaken_scales`.
        """
        mistaken = cells.to(self.foreground) * (1 - self.foreground)
        left = (1 - self.foreground - mistaken).sum((1, 2, 3), keepdim=True)
        background = torch.where(left > 0, 1 / left.clamp(min=1), 0.0).expand_as(self.foreground)
        return Regions(self.foreground, self.foreground_scale, background, mistaken, mistaken_scales(mistaken, scale))


def regions_of(boxes: Sequence[Tensor], grid: BevGrid, *, sample: str = "center") -> Regions:
    """Foreground and background of a tap.

    Args:
        boxes: of each sample [M, 7 or more], or rectangles [M, 5] (x, y, dx, dy, yaw).
        grid: of the tap.
        sample: the position that stands for a cell: its "center", or its lower "corner" as in the released BEVDepth code.

    Raises:
        InputError: a box without a positive length and width.
    """
    masks, scales = [], []
    for mine in boxes:
        sides = mine[:, 2:4] if mine.shape[1] == 5 else mine[:, 3:5]
        if bad := (~(sides > 0).all(1)).nonzero().flatten().tolist():
            raise InputError("boxes", f"box {bad[0]} of {sides[bad[0]].tolist()} m", "a length and a width above 0")
        mask, owner = boxes_to_mask(mine.float(), grid, sample=sample)
        scale = (grid.cell / (sides[:, 0] * sides[:, 1]).float().sqrt()) if len(mine) else sides.new_zeros(1).float()
        masks.append(mask.float())
        scales.append(torch.where(mask, scale[owner.clamp(min=0)], 0.0))
    foreground, scale_B1YX = torch.stack(masks)[:, None], torch.stack(scales)[:, None]
    left = (1 - foreground).sum((1, 2, 3), keepdim=True)
    background = torch.where(left > 0, 1 / left.clamp(min=1), 0.0).expand_as(foreground)
    return Regions(foreground, scale_B1YX, background)


def mistaken_cells(
    truth_BKYX: Tensor, teacher_BKYX: Tensor, student_BKYX: Tensor | None, size: tuple[int, int], *, mode: Mistaken, threshold: float = 0.1
) -> Tensor:
    """Where a network is sure of an object and there is none, bool [B, 1, ny, nx] at the size of a tap.

    Args:
        truth_BKYX: Gaussian heatmaps of the objects, all classes.
        teacher_BKYX, student_BKYX: heatmap logits in the same layout; no gradient reaches them.
        size: (ny, nx) of the tap, an integer multiple or fraction of the heatmaps'.
        mode: whose mistakes: the ``teacher``'s, the ``student``'s, the student's that the teacher does not make
            (``teacher_selected_student``), or the first and the last together.
        threshold: theta, of truth and of probabilities.

    Raises:
        InputError: sizes that do not divide, or no student's heatmaps where they are needed.
    """
    one_of("mode", mode, get_args(Mistaken))
    empty = truth_BKYX.amax(1, keepdim=True) < threshold
    teacher = _probability(teacher_BKYX)
    found = empty & (teacher > threshold)
    if mode != "teacher":
        if student_BKYX is None:
            raise InputError("mode", mode, "teacher, where the student's heatmaps are not given")
        student = _probability(student_BKYX)
        if mode == "student":
            found = empty & (student > threshold)
        else:
            selected = empty & (student > threshold) & (teacher < threshold)
            found = selected if mode == "teacher_selected_student" else found | selected
    return resized(found, size)


def resized(cells_B1YX: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells brought to another grid of the same metres: any of those that a coarser one covers, or repeated.

    Args:
        cells_B1YX: bool.
        size: (ny, nx), an integer multiple or fraction.

    Raises:
        InputError: it is none.
    """
    factors = []
    for there, here in zip(size, cells_B1YX.shape[-2:], strict=True):
        if there % here and here % there:
            raise InputError("taps", f"a map of {list(size)} cells beside heatmaps of {list(cells_B1YX.shape[-2:])}", "integer multiples")
        factors.append((max(here // there, 1), max(there // here, 1)))
    pooled = max_pool2d(cells_B1YX.float(), (factors[0][0], factors[1][0])) > 0
    return pooled.repeat_interleave(factors[0][1], 2).repeat_interleave(factors[1][1], 3)


def _probability(logits_BKYX: Tensor) -> Tensor:
    """The largest of the classes, [B, 1, ny, nx]."""
    return logits_BKYX.detach().float().sigmoid().clamp(_LEAST, 1 - _LEAST).amax(1, keepdim=True)


def mistaken_scales(mistaken_B1YX: Tensor, scale: MistakenScale = "average") -> Tensor:
    """What the cells of the false-positive region count: 1 / their number in the sample, or (``dfs``) 1 / the size of the 4-connected patch
    that a cell belongs to; 0 elsewhere."""
    one_of("scale", scale, get_args(MistakenScale))
    if scale == "average":
        return mistaken_B1YX / mistaken_B1YX.sum((1, 2, 3), keepdim=True).clamp(min=1)
    from scipy.ndimage import label

    found = torch.zeros_like(mistaken_B1YX)
    for sample, cells in enumerate(mistaken_B1YX[:, 0].cpu().numpy() > 0):
        patches, _ = label(cells)
        sizes = np.bincount(patches.ravel())
        found[sample, 0] = torch.from_numpy(np.where(cells, 1 / sizes[patches], 0.0)).to(found)
    return found
