"""What shrinking a CLIP costs: memory and time of the affinity loss at a large batch, and inheriting a ViT-B/32.

    python benchmarks/clip.py [--threads 1] [--rounds 3] [--batch 4096] [--note "..."]

The affinity loss, forward and backward, of `--batch` pairs and embeddings of 512, beside the same loss over whole matrices and open_clip's
`ClipLoss` and `DistillClipLoss` where that is installed. Bytes are of the tensors that a step makes, beside those of one matrix of
similarities; target: at most 1.3 of it. Inheriting is from a ViT-B/32 with random weights to half of it; target: 60 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import Allocated, Turns, keep, setting, show, verdict
from torch.nn.functional import normalize

from stillroom.methods.tinyclip import affinity
from stillroom.methods.tinyclip.inheritance import inherit
from stillroom.methods.tinyclip.recipe import half_shape, share
from stillroom.modules.clip import Clip, ClipShape, TowerShape

WIDTH = 512
SCALE = 50.0


def contenders(batch: int) -> dict[str, Callable[[], Any]]:
    """A step of each, forward and backward to the student's embeddings."""
    image, text, *teacher = (normalize(torch.randn(batch, WIDTH), dim=1) for _ in range(4))

    def step(loss: Callable[..., torch.Tensor], *more: Any) -> Callable[[], None]:
        def one() -> None:
            own = image.requires_grad_(), text.requires_grad_()
            torch.autograd.grad(loss(*own, *more), own)

        return one

    def whole(*embeddings: Any) -> torch.Tensor:
        before, affinity.CHUNK = affinity.CHUNK, batch
        try:
            return affinity.affinity_loss(*embeddings)
        finally:
            affinity.CHUNK = before

    found = {"affinity, in chunks": step(affinity.affinity_loss, *teacher, SCALE, SCALE)}
    found["affinity, whole"] = step(whole, *teacher, SCALE, SCALE)
    try:
        from open_clip.loss import ClipLoss, DistillClipLoss
    except ImportError:
        return found
    scale = torch.tensor(SCALE)
    found["open_clip ClipLoss"] = step(lambda i, t: ClipLoss()(i, t, scale))
    found["open_clip DistillClipLoss"] = step(lambda i, t: DistillClipLoss()(i, t, scale, *teacher, scale)[1])
    return found


def inherited() -> tuple[float, float]:
    """Seconds of building and of inheriting, from a full ViT-B/32 to half of it."""
    shape = ClipShape(TowerShape.of(768, 12, 12), TowerShape.of(512, 12, 8), 512, 224, 32, 77, 49408, 49407)
    began = time.perf_counter()
    teacher, student = Clip(shape), Clip(half_shape(shape, 0.5))
    built = time.perf_counter()
    inherit(teacher, student)
    ended = time.perf_counter()
    print(f"{share(student, teacher):.0%} of the blocks' weights are left")
    return built - began, ended - built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about, turns, matrix = setting(given.note), Turns(), 4 * given.batch**2
    steps = contenders(given.batch)
    for number in range(given.rounds):
        turns.round(steps, number)
    lines, rows = [], []
    for name, step in steps.items():
        with Allocated() as allocated:
            step()
        share_of = allocated.peak / matrix
        lines.append({"contender": name, "batch": given.batch, "width": WIDTH, "seconds": turns.median(name), "matrices": share_of})
        judged = verdict(share_of, 1.3, at_most=True) if name == "affinity, in chunks" else ""
        rows.append([name, f"{turns.median(name):.2f} s", f"{share_of:.2f} {judged}"])
    show(f"a step of {given.batch} pairs", ["loss", "time", "peak, in matrices of similarities"], rows, about)
    built, took = inherited()
    lines.append({"contender": "ViT-B/32 to half", "build_seconds": built, "inherit_seconds": took})
    row = ["ViT-B/32", f"{built:.1f} s", f"{took:.1f} s {verdict(took, 60, at_most=True)}"]
    show("inheriting", ["", "build both", "inherit"], [row], about)
    print(keep("clip", lines, about))


if __name__ == "__main__":
    main()
