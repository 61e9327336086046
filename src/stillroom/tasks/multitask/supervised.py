"""Plain training on all targets, and how every network of this task answers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import InputError
from stillroom.tasks.multitask.losses import enlarged, target_loss
from stillroom.tasks.multitask.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stillroom.tasks.multitask.batches import DenseBatch, WholeBatch

_TOGETHER = 16  # pictures of one size that go through a network at a time


def answer_to(target: Target, raw_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """What a raw answer says, in a height and width: scores [B, C, H, W] of classes; depth in metres, at least 0, [B, 1, H, W]; unit
    vectors [B, 3, H, W]; of saliency and edges the probability [B, 1, H, W].
    """
    found = enlarged(raw_BCHW.float(), size)
    if target.kind == "depth":
        return found.clamp_min(0)
    if target.kind == "normals":
        return normalize(found, dim=1)
    if target.kind == "edges":
        return found.sigmoid()
    return found.softmax(1)[:, 1:] if target.kind == "saliency" else found


def answers_to(
    network: Callable[[Tensor], Mapping[str, Tensor]], images: Sequence[Tensor], sizes: Sequence[Sequence[int]], targets: Sequence[Target]
) -> list[dict[str, Tensor]]:
    """Of each picture, seen whole: by target `answer_to` without the batch, of classes the number of the likeliest [H, W].

    Args:
        network: images to raw answers.
        images: [3, H, W] each, normalised.
        sizes: height and width of each answer.
        targets: that are asked for.

    Raises:
        InputError: an answer that is no number.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for together in _alike([(image.shape, tuple(size)) for image, size in zip(images, sizes, strict=True)]):
        raw = network(torch.stack([images[number] for number in together]))
        for target in targets:
            answer = answer_to(target, raw[target.name], sizes[together[0]])
            if bool(answer.isnan().any()):
                raise InputError("student", f"a network whose answer to {target.name} is no number", "finite weights")
            for number, one in zip(together, answer.argmax(1) if target.kind == "classes" else answer, strict=True):
                found.setdefault(number, {})[target.name] = one
    return [found[number] for number in range(len(images))]


def _alike(keys: Sequence[Hashable]) -> Iterator[list[int]]:
    """Places of equal keys, a few at a time."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    for some in places.values():
        yield from (some[first : first + _TOGETHER] for first in range(0, len(some), _TOGETHER))


class MultiTaskDistiller(Distiller):
    """A distiller whose student answers to several dense targets, and is measured on whole pictures.

    Args:
        student: network from images [B, 3, H, W] to raw answers {target: [B, C, h, w]}, as `build_multitask` makes it: its attribute
            `targets` says what is learnt.
        teacher: what teaches it.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module | None = None) -> None:
        super().__init__(student, teacher)
        self.targets: tuple[Target, ...] = tuple(student.targets)  # type: ignore[arg-type]

    def task_terms(self, raw: Mapping[str, Tensor], batch: DenseBatch) -> dict[str, Tensor]:
        """The loss of each target, times its weight."""
        return {one.name: one.weight * target_loss(one, raw[one.name], batch.truths[one.name]) for one in self.targets}

    @torch.no_grad()
    def predict(self, batch: WholeBatch) -> list[dict[str, Tensor]]:
        """Of each picture the answers by target, in its truth's size."""
        return answers_to(self.student, batch.images, batch.sizes, self.targets)


class Supervised(MultiTaskDistiller):
    """A network trained on its targets' truth."""

    def losses(self, batch: DenseBatch) -> Losses:
        """A task term for each target."""
        return Losses(task=self.task_terms(self.student(batch.inputs), batch))
