"""Features: a student's backbone learns to answer with what one teacher or several answer, image by image and place by place."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine import Distiller, Losses, Teacher, tap
from stillroom.engine.distributed import gather_rows
from stillroom.errors import InputError, at_least_zero, one_of
from stillroom.losses.features import cosine_distances
from stillroom.methods.features.loss import Queue, smooth_l1
from stillroom.modules.projectors import probing
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.images.layers import dense_layer
from stillroom.tasks.representation.teachers import Answers, as_map, pooled

FeatureLoss = Literal["cosine", "smooth_l1", "queue"]


class Features(Distiller):
    """A backbone trained on nothing but the features of frozen teachers.

        L = 1/T sum_t [ w_pooled * d( P_t(f(x)), f_t(x) ) + w_dense * d'( P'_t(m(x)), m_t(x) ) ]

    with a projector P_t of its own for each of the T teachers, which learns along and is no part of the student. Maps are compared on the
    teacher's grid: the student's projected map is resampled to it (bilinear, smoothed where it shrinks).

    Args:
        student: images [B, 3, H, W] to features [B, D].
        teacher: answers with `teachers.Answers`; a network or a cache of its answers.
        example: a few inputs, run once through both to learn shapes.
        loss: d: ``cosine`` (1 - cosine), ``smooth_l1`` to whitened features, or ``queue`` (see `loss.Queue`). For maps d' is the same, of
            ``queue`` the cosine.
        projector: ``linear``, or ``mlp`` with one hidden layer as wide as the wider end.
        pooled_weight, dense_weight: w_pooled and w_dense; at 0 the term is left out.
        queue_size: embeddings that the queue holds.
        queue_temperatures: the student's and the teacher's over the queue.

    Raises:
        InputError: a weight is out of its range, or both are 0; the teacher has no maps, or the student.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        *,
        example: Tensor,
        loss: FeatureLoss = "cosine",
        projector: Literal["linear", "mlp"] = "linear",
        pooled_weight: float = 1.0,
        dense_weight: float = 0.0,
        queue_size: int = 4096,
        queue_temperatures: tuple[float, float] = (0.2, 0.01),
    ) -> None:
        super().__init__(student, teacher)
        self.loss = one_of("feature_loss", loss, get_args(FeatureLoss))
        one_of("projector", projector, ("linear", "mlp"))
        self.pooled_weight, self.dense_weight = at_least_zero("pooled_weight", pooled_weight), at_least_zero("dense_weight", dense_weight)
        if not pooled_weight + dense_weight:
            raise InputError("pooled_weight", 0, "a number above 0, or a dense_weight above 0")
        self.layer = dense_layer(student, example, "student") if dense_weight else None
        self._student_with_map = tap(student, self.layer, argument="student") if self.layer is not None else None
        with probing(student, example):
            features_BD, map_BDHW = self._answers(example)
        theirs: Answers = teacher(example)
        if dense_weight and "dense" not in theirs:
            raise InputError("dense_weight", dense_weight, "0: these teachers' answers hold no maps")
        widths = [one.shape[1] for one in theirs["pooled"]]
        self.projectors = nn.ModuleList(_projector(projector, features_BD.shape[1], width) for width in widths if pooled_weight)
        self.map_projectors = nn.ModuleList(
            nn.Conv2d(map_BDHW.shape[1], one.shape[1], 1) for one in theirs.get("dense", []) if map_BDHW is not None
        )
        student_temperature, teacher_temperature = queue_temperatures
        temperatures = {"student_temperature": student_temperature, "teacher_temperature": teacher_temperature}
        self.queues = nn.ModuleList(Queue(queue_size, width, **temperatures) for width in widths if loss == "queue" and pooled_weight)

    def losses(self, batch: Batch) -> Losses:
        """A term for pooled features and one for maps of each teacher, numbered where there are several."""
        theirs: Answers = self.teacher(batch)
        features_BD, map_BDHW = self._answers(batch.inputs)
        count = len(theirs["pooled"])
        terms: dict[str, Tensor] = {}
        for number, projector in enumerate(self.projectors):
            distance = self._pooled_distance(number, projector(features_BD), theirs["pooled"][number])
            terms[_name("pooled", number, count)] = self.pooled_weight / count * distance
        for number, projector in enumerate(self.map_projectors):
            assert map_BDHW is not None
            wanted = theirs["dense"][number]
            found = resampled(projector(map_BDHW), wanted.shape[-2:])
            distance = smooth_l1(found, wanted) if self.loss == "smooth_l1" else cosine_distances(found, wanted).mean()
            terms[_name("dense", number, count)] = self.dense_weight / count * distance
        return Losses(task={}, distill=terms)

    def _answers(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The student's features, and its map where that is asked for."""
        if self._student_with_map is None or self.layer is None:
            return pooled(self.student(images_BCHW)), None
        answer, kept = self._student_with_map(images_BCHW)
        return pooled(answer), as_map(kept[self.layer], self.student, images_BCHW.shape[-2:])

    def _pooled_distance(self, number: int, projected_BD: Tensor, wanted_BD: Tensor) -> Tensor:
        if self.loss == "cosine":
            return cosine_distances(projected_BD, wanted_BD).mean()
        if self.loss == "smooth_l1":
            return smooth_l1(projected_BD, wanted_BD)
        queue: Any = self.queues[number]
        distance: Tensor = queue(projected_BD, wanted_BD)
        if self.training:
            queue.push(gather_rows(wanted_BD))
        return distance


def resampled(map_BDHW: Tensor, size: Any) -> Tensor:
    """A map on another grid, its height and width given; as it is where they are its own."""
    if map_BDHW.shape[-2:] == tuple(size):
        return map_BDHW
    return interpolate(map_BDHW.float(), tuple(size), mode="bilinear", antialias=True, align_corners=False)


def _projector(kind: str, width: int, to: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, to)
    hidden = max(width, to)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, to))


def _name(term: str, number: int, count: int) -> str:
    return term if count == 1 else f"{term} {number + 1}"
