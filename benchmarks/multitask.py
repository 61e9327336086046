"""What KDAM's terms cost beside one step of their student: 6 targets at 480 x 640 pixels.

    python benchmarks/multitask.py [--threads 1] [--rounds 3] [--student timm/resnet18] [--note "..."]

The step is plain training on all targets (40 classes, 7 parts, saliency, depth, normals, edges), forward and backward, of one picture. The
terms are timed forward and backward to the student's raw answers, in turns with the step, at these answers' own resolution. Target: at most
10 % of the step. The teacher's forward pass is no part of either; a cache of its answers saves it.
"""

from __future__ import annotations

import argparse

import torch
from measuring import Turns, keep, setting, show, verdict

from stillroom.methods.mtl_cs import Match
from stillroom.methods.mtl_cs.distiller import KINDS
from stillroom.tasks.multitask import DenseBatch, Supervised, Target, build_multitask

TARGETS = (
    Target("semseg", "classes", tuple(map(str, range(40)))),
    Target("human_parts", "classes", tuple(map(str, range(7)))),
    Target("sal", "saliency"),
    Target("depth", "depth"),
    Target("normals", "normals"),
    Target("edges", "edges"),
)
SIZE = (480, 640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--student", default="timm/resnet18")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    truths = {one.name: torch.randint(2, (1, *SIZE)) if one.labelled else torch.rand(1, one.channels, *SIZE) for one in TARGETS}
    batch = DenseBatch(torch.randn(1, 3, *SIZE), truths, torch.zeros(1))
    student = Supervised(build_multitask(given.student, TARGETS).network).train()
    with torch.no_grad():
        shapes = {name: raw.shape for name, raw in student.student(batch.images).items()}
    kinds = {target.name: KINDS[target.kind] for target in TARGETS}
    ours, theirs = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2))

    def terms(match: Match) -> None:
        leaves = {name: raw.requires_grad_() for name, raw in ours.items()}
        found = match.terms(list(match.maps(leaves, theirs, kinds).values()))
        torch.autograd.grad(torch.stack(list(found.values())).sum(), list(leaves.values()))

    arms = {"KDAM": Match(), "inter": Match(intra=False), "intra": Match(inter="none"), "KL": Match(divergence="kl")}
    contenders = {"step": lambda: student.losses(batch).total.backward(), **{name: lambda m=m: terms(m) for name, m in arms.items()}}
    terms(Match())  # warm-up
    turns = Turns()
    for number in range(given.rounds):
        turns.round(contenders, number)
    about, lines = setting(given.note), []
    rows = [[f"a step of {given.student}", f"{1e3 * turns.median('step'):.0f}", "", ""]]
    for name in arms:
        share = turns.ratio(name, "step")
        said = verdict(share, 0.1, at_most=True)
        lines.append(
            {
                "student": given.student,
                "what": name,
                "step": turns.median("step"),
                "seconds": turns.median(name),
                "share": share,
                "verdict": said,
            }
        )
        rows.append([name, f"{1e3 * turns.median(name):.1f}", f"{100 * share:.2f} %", said])
    show("KDAM's terms, 6 targets, 480 x 640 pixels", ["what", "ms", "of a step", "target"], rows, about)
    keep("multitask", lines, about)


if __name__ == "__main__":
    main()
