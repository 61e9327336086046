"""What is shipped: a teacher, a student for each category, and the thresholds above which they call a picture anomalous."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller
from stillroom.engine.teacher import Renormalise
from stillroom.tasks.anomaly.maps import MapOptions, blurred, combined, image_scores, level_maps
from stillroom.tasks.anomaly.metrics import Answers
from stillroom.tasks.anomaly.teachers import Extractor


class FeatureStudent(Protocol):
    """A network that learns to give normal pictures the feature maps that a teacher gives them.

    Attributes:
        compared: how many of the teacher's maps it answers for, the first ones. Others are for training alone.
    """

    compared: int

    def levels(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its maps, to be compared with the teacher's first ones.

        Args:
            images: [B, 3, S, S].
            features: the teacher's maps of these images, at least those that are compared, for students that start from them.
        """


class Detectors(nn.Module):
    """One or several categories' detectors around one teacher.

    Args:
        teacher: the feature maps.
        students: of the categories, each a `FeatureStudent`.
        maps: how anomaly maps are made.
        renormalise: applied to the teacher's images.
        description: what builds the students again: see `anomaly.loaded`.

    Attributes:
        thresholds: of the scores of each category, float32 [categories]; NaN until they are made.
    """

    thresholds: Tensor

    def __init__(
        self,
        teacher: Extractor,
        students: Sequence[nn.Module],
        maps: MapOptions,
        renormalise: Renormalise | None,
        description: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.teacher, self.students = teacher, nn.ModuleList(students)
        self.maps, self.renormalise, self.description = maps, renormalise, dict(description)
        self.register_buffer("thresholds", torch.full((len(students),), torch.nan))

    @property
    def compared(self) -> int:
        """How many of the teacher's maps its students are compared with: what it is asked for."""
        student: Any = self.students[0]
        return int(student.compared)

    def features(self, images: Tensor, teacher: Callable[[Tensor], tuple[Tensor, ...]] | None = None) -> tuple[Tensor, ...]:
        """The teacher's maps that students are compared with; by another form of it, if one is given."""
        images = images if self.renormalise is None else self.renormalise(images)
        if teacher is not None:
            return teacher(images)
        maps: tuple[Tensor, ...] = self.teacher(images, self.compared)
        return maps

    def level_maps(self, images: Tensor, features: Sequence[Tensor], category: int) -> Tensor:
        """The levels' maps [K, B, S, S] by one category's student."""
        student: Any = self.students[category]
        maps = student.levels(images, features)
        return level_maps(maps, features[: len(maps)], (images.shape[-2], images.shape[-1]), self.maps)

    def of_levels(self, levels_KBSS: Tensor) -> tuple[Tensor, Tensor]:
        """The map [B, S, S] and the score [B]."""
        maps_BSS = blurred(combined(levels_KBSS, self.maps), self.maps.blur)
        return maps_BSS, image_scores(maps_BSS)

    def forward(self, images: Tensor, category: int = 0) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] to maps [B, S, S] and scores [B], by one category's student."""
        return self.of_levels(self.level_maps(images, self.features(images), category))

    def every(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """By each category's student: maps [B, categories, S, S] and scores [B, categories]; of a single one as `forward`."""
        found = [self.of_levels(self.level_maps(images, features, k)) for k in range(len(self.students))]
        if len(found) == 1:
            return found[0]
        return torch.stack([maps for maps, _ in found], 1), torch.stack([scores for _, scores in found], 1)

    def only(self, category: int) -> Detectors:
        """One category's detector; its networks are shared, not copied."""
        made = Detectors(self.teacher, [self.students[category]], self.maps, self.renormalise, self.description)
        made.thresholds.copy_(self.thresholds[category : category + 1])
        return made

    def described(self) -> dict[str, Any]:
        """What builds it again, besides the weights, as plain values."""
        statistics = None if self.renormalise is None else {"mean": list(self.renormalise.to_mean), "std": list(self.renormalise.to_std)}
        teacher = {"layers": list(self.teacher.layers), "statistics": statistics}
        return {"teacher": teacher, "maps": asdict(self.maps), "thresholds": self.thresholds.tolist(), **self.description}


class Scored(Distiller):
    """Detectors that are scored on test pictures of all categories."""

    def predict(self, batch: Any) -> Answers:
        """Each picture by its own category's student."""
        detectors: Any = self.student
        parts = []
        for category in batch.categories.unique().tolist():
            rows = (batch.categories == category).nonzero()[:, 0]
            levels_KBSS = detectors.level_maps(batch.images[rows], detectors.features(batch.images[rows]), category)
            maps_BSS, scores_B = detectors.of_levels(levels_KBSS)
            parts.append((rows, maps_BSS, scores_B, levels_KBSS, detectors.thresholds[category].expand(len(rows))))
        order = torch.cat([rows for rows, *_ in parts]).argsort()
        maps, scores, thresholds = (torch.cat([part[i] for part in parts])[order] for i in (1, 2, 4))
        return Answers(maps, scores, torch.cat([part[3] for part in parts], 1)[:, order], thresholds)
