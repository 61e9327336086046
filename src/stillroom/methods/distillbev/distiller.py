"""DistillBEV as a distiller, and the plainer imitation that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine import Teacher
from stillroom.errors import InputError, at_least_zero, one_of
from stillroom.methods.distillbev.loss import Attention, TapLoss, Upsampled, Weights
from stillroom.methods.distillbev.regions import Mistaken, MistakenScale, Regions, mistaken_cells, regions_of
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs
from stillroom.tasks.detection3d.supervised import Detection3dDistiller
from stillroom.tasks.points.center_head import CenterHead, center_targets
from stillroom.tasks.points.frames import FrameBatch, FrameInputs
from stillroom.tasks.points.grid import BevGrid

Imitation = Literal["balanced", "even", "mse"]
NECK = "neck"


@dataclass(frozen=True)
class Tap:
    """A pair of maps: the student's and the teacher's stage by their numbers (from 0), or both necks.

    Attributes:
        student, teacher: numbers of stages; None for the necks.
    """

    student: int | None
    teacher: int | None

    @property
    def name(self) -> str:
        """As it is typed."""
        return NECK if self.student is None else f"{self.student}:{self.teacher}"


def taps_in(text: str | None, student_stages: int, teacher_stages: int) -> tuple[Tap, ...]:
    """The pairs that are compared: as typed in ``1:0+2:1+neck``, or by default the last two stages of each, and the necks.

    Raises:
        InputError: a stage that there is not, or a pair twice.
    """
    if text is None:
        count = min(2, student_stages, teacher_stages)
        last = [Tap(student_stages - count + i, teacher_stages - count + i) for i in range(count)]
        return (*last, Tap(None, None))
    found: list[Tap] = []
    for part in text.split("+"):
        word = part.strip()
        pair = word.split(":")
        if word == NECK:
            found.append(Tap(None, None))
        elif len(pair) == 2 and all(one.isdigit() for one in pair) and int(pair[0]) < student_stages and int(pair[1]) < teacher_stages:
            found.append(Tap(int(pair[0]), int(pair[1])))
        else:
            stages = f"a student's stage below {student_stages} and a teacher's below {teacher_stages}, as in 1:0+2:1+neck"
            raise InputError("map_pairs", text, stages)
    if len(set(found)) < len(found):
        raise InputError("map_pairs", text, "each pair once")
    return tuple(found)


class WithStages(nn.Module):
    """A teacher that answers with its stages as well.

    Args:
        detector: the teacher's network.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: FrameInputs) -> dict[str, Any]:
        """``stages``, ``neck`` and ``heatmap`` (logits) of B frames."""
        detector: Any = self.detector
        outputs: MapOutputs = detector.raw(inputs)
        return {"stages": tuple(outputs.stages), "neck": outputs.neck, "heatmap": detector.head.dense(outputs.predictions)[0]}


class DistillBEV(Detection3dDistiller):
    """The detector's own losses, and at every tap foreground, background, mistaken places and attention of the teacher's map.

    Args:
        student: a detector from above, of cameras say; it begins with the teacher's head if asked.
        teacher: a detector from above of the same classes and range, of lidar points say.
        example: inputs of a frame, by which the maps' sizes are found.
        map_pairs: stages that are compared, student's and teacher's, and the ``neck``: see `taps_in`.
        weights: of the terms.
        distill_scale: of all terms together.
        attention: of both networks, of the teacher alone, or ``none``.
        mistaken: whose mistakes are a region of their own, at the necks; ``none`` for nobody's.
        mistaken_scale: what its cells count.
        heatmap_threshold: theta, of heatmaps.
        sample: the position that stands for a cell, its ``center`` or its lower ``corner``.
        attention_temperature: tau and tau_c.
        channel_mask: weigh channels in all terms.
        inherit_head: the student's branches begin with the teacher's.

    Attributes:
        imitation: ``balanced``; see `plainer`.

    Raises:
        InputError: the two know other classes or ranges, a map does not fit, or the head's branches are of unlike width.

    Source: the specification's sections 2 to 6.
    """

    teacher: Teacher

    def __init__(
        self,
        student: MapDetector,
        teacher: Teacher | nn.Module,
        *,
        example: FrameInputs,
        map_pairs: str | None = None,
        weights: Weights | None = None,
        distill_scale: float = 1.0,
        attention: Attention = "teacher_student",
        mistaken: Mistaken | Literal["none"] = "teacher",
        mistaken_scale: MistakenScale = "average",
        heatmap_threshold: float = 0.1,
        sample: Literal["center", "corner"] = "center",
        attention_temperature: float = 0.5,
        channel_mask: bool = False,
        inherit_head: bool = True,
    ) -> None:
        super().__init__(student, teacher)
        large = self.teacher.networks[0]
        if not isinstance(large, MapDetector) or not isinstance(large.head, CenterHead):
            raise InputError("teacher", type(large).__name__, "a detector of this task with a head of centres")
        if large.classes.tasks != student.classes.tasks:
            got = f"a detector of {large.classes.tasks}"
            raise InputError("teacher", got, f"the student's classes and groups, {student.classes.tasks}")
        for axis in ("x_range", "y_range"):
            if getattr(large.grid, axis) != getattr(student.grid, axis):
                got = f"a map of {axis} {getattr(large.grid, axis)} m"
                raise InputError("teacher", got, f"the student's, {getattr(student.grid, axis)}")
        one_of("mistaken", mistaken, ("none", *get_args(Mistaken)))
        self.mistaken, self.mistaken_scale, self.threshold, self.sample = mistaken, mistaken_scale, heatmap_threshold, sample
        self.imitation: Imitation = "balanced"
        self.distill_scale = at_least_zero("distill_scale", distill_scale)
        self.grid, self.teacher_grid = student.grid, large.grid
        if mistaken not in ("none", "teacher") and student.grid != large.grid:
            raise InputError("mistaken", mistaken, "teacher or none, where the two heads' maps are of unlike resolution")
        if inherit_head:
            self._inherit(student, large)
        self._asked = self.teacher.around(WithStages)
        ours, theirs = self._shapes(student, example), self._shapes(large, example)
        self.taps = taps_in(map_pairs, len(ours[0]), len(theirs[0]))
        options: dict[str, Any] = {"attention": attention, "temperature": attention_temperature}
        options["channel_temperature"] = attention_temperature
        self.adapters, self.terms = nn.ModuleList(), nn.ModuleList()
        for tap in self.taps:
            mine, wanted = (shapes[1] if at is None else shapes[0][at] for shapes, at in ((ours, tap.student), (theirs, tap.teacher)))
            self.adapters.append(adapter(mine, wanted))
            self.terms.append(TapLoss(weights or Weights(), channel_mask=channel_mask, **options))

    def plainer(self, imitation: Imitation) -> DistillBEV:
        """The same distiller with a plainer imitation, to compare with.

        Args:
            imitation: ``even``: every cell of a region counts alike, and no attention; ``mse``: the mean squared distance of the necks
                alone.
        """
        one_of("imitation", imitation, get_args(Imitation))
        self.imitation = imitation
        if imitation == "even":
            for term in self.terms:
                term.attention = "none"  # type: ignore[assignment]
        if imitation == "mse":
            last = self.taps.index(Tap(None, None)) if Tap(None, None) in self.taps else len(self.taps) - 1
            self.taps, self.adapters = (self.taps[last],), nn.ModuleList([self.adapters[last]])
            self.terms = nn.ModuleList([nn.Identity()])
        return self

    @staticmethod
    def _inherit(student: MapDetector, large: MapDetector) -> None:
        """The branches of the student's head begin with the teacher's; the shared convolution, of another width, does not."""
        mine: Any = student.head
        theirs: Any = large.head
        shapes = [{name: value.shape for name, value in head.tasks.state_dict().items()} for head in (mine, theirs)]
        if shapes[0] != shapes[1]:
            got = "true, with branches of unlike widths or parts"
            raise InputError("inherit_head", got, "heads of one width in both detectors, or --inherit-head false")
        mine.tasks.load_state_dict(theirs.tasks.state_dict())

    @staticmethod
    def _shapes(network: nn.Module, example: FrameInputs) -> tuple[list[torch.Size], torch.Size]:
        """Shapes of the stages and the neck."""
        from stillroom.modules.projectors import probing

        with probing(network, example.points):
            outputs: MapOutputs = network.raw(example)  # type: ignore[operator]
        return [stage.shape for stage in outputs.stages], outputs.neck.shape

    def taught(self, batch: FrameBatch, outputs: MapOutputs) -> dict[str, Tensor]:
        """Each term, summed over the taps."""
        told: Any = self._asked(batch)
        found: dict[str, Tensor] = {}
        for tap, adapt, term in zip(self.taps, self.adapters, self.terms, strict=True):
            mine, theirs = (
                (outputs.neck, told["neck"]) if tap.student is None else (outputs.stages[tap.student], told["stages"][tap.teacher])
            )
            adapted = adapt(mine)
            if self.imitation == "mse":
                return {"mse": self.distill_scale * (adapted.float() - theirs.float()).square().mean()}
            regions = self.regions(batch, theirs, outputs, told["heatmap"], mistaken=tap.student is None)
            for name, value in term(adapted, theirs, regions).items():
                found[name] = found.get(name, torch.zeros_like(value)) + self.distill_scale * value
        return found

    def regions(self, batch: FrameBatch, theirs: Tensor, outputs: MapOutputs, heatmap: Tensor, *, mistaken: bool) -> Regions:
        """The regions of a tap whose teacher's map is `theirs`."""
        size = (theirs.shape[-2], theirs.shape[-1])
        low, high = self.teacher_grid.x_range
        grid = BevGrid(self.teacher_grid.x_range, self.teacher_grid.y_range, (high - low) / size[1])
        found = regions_of(batch.boxes, grid, sample=self.sample)
        if mistaken and self.mistaken != "none":
            truth = center_targets(batch.boxes, batch.labels, self.student.classes, self.teacher_grid).heatmap
            mine = None if self.mistaken == "teacher" else self.student.head.dense(outputs.predictions)[0]
            mode: Any = self.mistaken
            cells = mistaken_cells(truth, heatmap, mine, size, mode=mode, threshold=self.threshold)
            found = found.with_mistaken(cells, self.mistaken_scale)
        return even(found) if self.imitation == "even" else found


def even(regions: Regions) -> Regions:
    """The same regions with the same sums of weights, shared by their cells alike: no scale of a box's own."""
    total = (regions.foreground_scale * regions.foreground).sum((1, 2, 3), keepdim=True)
    cells = regions.foreground.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return replace(regions, foreground_scale=regions.foreground * total / cells)


class Resized(nn.Module):
    """A map brought to a size, bilinear with aligned corners, and to channels by a 1x1 convolution.

    Args:
        student, teacher: channels.
        size: of the teacher's map; None where they are alike.
    """

    def __init__(self, student: int, teacher: int, size: Sequence[int] | None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(student, teacher, 1)
        self.size = None if size is None else tuple(size)

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """[B, C_s, h, w] -> [B, C_t, H, W]."""
        if self.size is not None:
            map_BCYX = interpolate(map_BCYX, size=list(self.size), mode="bilinear", align_corners=True)
        found: Tensor = self.convolution(map_BCYX)
        return found


def adapter(student: torch.Size, teacher: torch.Size) -> nn.Module:
    """What brings a student's map to a teacher's: a 1x1 convolution for equal sizes, `Upsampled` for a multiple, else a resizing before it.

    Args:
        student, teacher: shapes [B, C, H, W].
    """
    (_, ours, *mine), (_, channels, *theirs) = student, teacher
    factor = theirs[0] // mine[0]
    if factor > 1 and [factor * side for side in mine] == theirs:
        return Upsampled(ours, channels, factor)
    return Resized(ours, channels, None if mine == theirs else theirs)
