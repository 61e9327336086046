"""What a step of SDD costs beside a naive one, which differentiates through the teacher's network: processor time and kept bytes.

    python benchmarks/sdd.py

One thread, a denoiser of 24 channels and an editor of 24, batches of 32 pictures of 16 x 16; the best of some steps.
The naive step asks the same teacher with gradients. Bytes are those that a step's graph holds until its backward pass.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from stillroom.methods.sdd.gradient import score_distillation
from stillroom.tasks.editing import Denoiser, Editor, PixelTeacher
from stillroom.tasks.editing.shapes import COLOURS

STEPS = 5


def step(teacher: PixelTeacher, editor: Editor, pictures: Tensor, *, through: bool) -> None:
    condition = teacher.condition("red")
    loss = score_distillation(teacher, editor(pictures), "normal", 110, condition, guidance=5.0, through_teacher=through).loss
    loss.backward()


def kept(teacher: PixelTeacher, editor: Editor, pictures: Tensor, *, through: bool) -> int:
    """Bytes of the distinct tensors that the graph holds until the backward pass."""
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        condition = teacher.condition("red")
        score_distillation(teacher, editor(pictures), "normal", 110, condition, guidance=5.0, through_teacher=through)
    return sum(stored.values())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, editor = PixelTeacher(Denoiser(len(COLOURS), 16, 24), COLOURS, 16, "fp32"), Editor(24)
    pictures = torch.rand(32, 3, 16, 16) * 2 - 1
    for name, through in (("SDD", False), ("naive", True)):
        seconds = []
        for _ in range(STEPS):
            start = time.process_time()
            step(teacher, editor, pictures, through=through)
            seconds.append(time.process_time() - start)
        held = kept(teacher, editor, pictures, through=through) / 1e6
        print(f"{name}: {1e3 * min(seconds):.1f} ms of processor time a step, {held:.1f} MB kept for the backward pass")


if __name__ == "__main__":
    main()
