"""The search for time steps, before any training: the teacher's gradient at unedited pictures, for each picture and each step of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.methods.sdd.gradient import resized, score_distillation
from stillroom.methods.sdd.hqs import gradient_entropy, gradient_l1
from stillroom.tasks.editing.diffusion import DiffusionTeacher, check_step

_TOGETHER = 32  # pictures that the teacher is asked about at a time


def grid_of(total: int) -> list[int]:
    """The paper's grid, 100, 150 ... 900 of 1000 time steps, for a teacher of T."""
    return sorted({min(round(total * share / 20), total - 1) for share in range(2, 19)})


def search(
    teacher: DiffusionTeacher,
    images: Tensor,
    condition: Tensor,
    timesteps: Sequence[int],
    *,
    guidance: float,
    top_k: int | None = None,
    teacher_size: int | None = None,
    through_teacher: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The indicators of each picture and time step. The student is at its start, so that its pictures are the unedited ones.

    The released code takes the gradient of the first picture of a batch of two, whose second adds log(H W) to the entropy; here each
    picture counts for itself, its thinning out (`top_k`) too.

    Args:
        teacher: the diffusion model.
        images: [N, 3, H, W] in [-1, 1].
        condition: of the prompt.
        timesteps: the grid.
        guidance, top_k, teacher_size, through_teacher: as in training.
        seed: of the noise, drawn afresh for each picture and step.
        device: where to compute; by default where the pictures are.

    Returns:
        ``entropy`` and ``l1`` float64 [N, T] and ``timesteps`` int64 [T], on the CPU.

    Raises:
        InputError: no picture, no time step, or one that the teacher does not have.
    """
    if not len(images) or not len(timesteps):
        raise InputError("search_steps" if len(images) else "search_images", "none", "at least one")
    grid = [check_step(int(t), len(teacher.alphas_cumprod), "search_steps") for t in timesteps]
    generator, found = torch.Generator().manual_seed(seed), []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)  # of what the teacher draws, such as a sample of its VAE's posterior
        for part in images.split(1 if top_k is not None else _TOGETHER):
            row = []
            for t in grid:
                pixels = part.to(device or part.device).float().requires_grad_()
                drawn = int(torch.randint(2**62, (), generator=generator))
                loss = score_distillation(
                    teacher,
                    resized(pixels, teacher_size),
                    drawn,
                    t,
                    condition,
                    guidance=guidance,
                    top_k=top_k,
                    through_teacher=through_teacher,
                ).loss
                gradient = torch.autograd.grad(loss, pixels)[0]
                row.append((gradient_entropy(gradient).cpu(), gradient_l1(gradient).cpu()))
            entropies, norms = zip(*row, strict=True)
            found.append((torch.stack(entropies, 1), torch.stack(norms, 1)))
    entropy, l1 = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {"entropy": entropy, "l1": l1, "timesteps": torch.tensor(grid)}
