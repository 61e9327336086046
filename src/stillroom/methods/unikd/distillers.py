"""The two trainings of UniKD: extractors absorb what a teacher knows, a student is injected with it; and the hints of the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import box_convert

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.loading import sample_seeds
from stillroom.errors import at_least_zero
from stillroom.losses.precision import at_least_float32
from stillroom.methods.unikd.attention import Adapter, Maps, Padding, level_padding
from stillroom.methods.unikd.boxes import match_roles, sample_boxes, trainable
from stillroom.methods.unikd.extractors import Extractors
from stillroom.methods.unikd.loss import WEIGHTS, absorb_terms, embedding_distance
from stillroom.methods.unikd.teaching import Answers, example_batch, frozen, maps_at, teacher_maps
from stillroom.tasks.detection import DetectionBatch, DetectionDistiller, Detector
from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.metrics import Detections

_MOST = 100  # detections of an image


class ExtractorDetector(nn.Module):
    """The content extractor as a detector of its own, which shows what it has absorbed; the teacher that it reads is no part of it.

    Args:
        extractors: are trained and saved.
        teacher: around `MapsOf`.
    """

    def __init__(self, extractors: Extractors, teacher: Teacher) -> None:
        super().__init__()
        self.extractors = extractors
        self._teacher = teacher

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] without padding -> class logits [B, N, K] and relative boxes [B, N, 4]."""
        return self.answer(example_batch(images))

    def answer(self, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        """The same of a batch."""
        found, padding = teacher_maps(self._teacher, batch)
        maps, content = self.extractors.enter(found), self.extractors.content
        query, reference = content.ask(batch.images.new_zeros(len(batch.images), 0, 4), maps, padding)
        return content.detect(content.read(query, reference, maps, padding), reference)


class Absorb(Distiller):
    """Stage 1: both extractors learn to detect objects by the maps of a frozen teacher, by bipartite matching (content) and from the boxes
    that they were asked about (position).

    Args:
        extractors: to be trained.
        teacher: the detector around `MapsOf`.
        box_seed: of B~, which is drawn anew in every step.
    """

    teacher: Teacher
    student: ExtractorDetector

    def __init__(self, extractors: Extractors, teacher: Teacher, *, box_seed: int = 0) -> None:
        super().__init__(ExtractorDetector(extractors, teacher), teacher)
        self.box_seed = box_seed

    def losses(self, batch: DetectionBatch) -> Losses:
        """2 x focal + 5 x L1 + 2 x (1 - GIoU) of either extractor."""
        found, padding = teacher_maps(self.teacher, batch)
        extractors = self.student.extractors
        objects, labels = trainable(batch.objects(), batch.sizes)
        seeds = sample_seeds(self.box_seed, self.progress.step, batch.ids.cpu().numpy())
        boxes, known = sample_boxes(objects, seeds, extractors.sizes.queries)
        maps = extractors.enter(found)
        terms: dict[str, Tensor] = {}
        for name, extractor in extractors.both():
            query, reference = extractor.ask(boxes, maps, padding)
            logits, guessed = extractor.detect(extractor.read(query, reference, maps, padding), reference)
            roles = known
            if name == "content":
                roles = torch.stack([match_roles(*one) for one in zip(logits, guessed, labels, objects, strict=True)])
            positive, at = roles >= 0, roles.clamp_min(0)
            wanted_labels, wanted = (_of_roles(part, at) for part in (labels, objects))
            rows = [part.flatten(0, 1) for part in (logits, guessed, wanted_labels, wanted, positive)]
            for part, term in absorb_terms(*rows, count=averaged_count(positive.sum().float())).items():
                terms[f"{name}_{part}"] = WEIGHTS[part] * term
        return Losses(task=terms)

    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """The content extractor's best 100 answers of each image."""
        logits, boxes = self.student.answer(batch)
        scores_BN, at_BN = at_least_float32(logits).sigmoid().flatten(1).topk(min(_MOST, logits[0].numel()))
        queries_BN, labels_BN = at_BN // logits.shape[-1], at_BN % logits.shape[-1]
        corners = box_convert(boxes, "cxcywh", "xyxy") * batch.sizes.flip(1).repeat(1, 2)[:, None]
        chosen = corners.gather(1, queries_BN[..., None].expand(-1, -1, 4))
        return [Detections(*one) for one in zip(chosen, scores_BN, labels_BN, strict=True)]


def _of_roles(rows: Sequence[Tensor], at_BN: Tensor) -> Tensor:
    """The row of the object that each query stands for, [B, N, ...]; zeros for an image without objects."""
    return torch.stack([part[at] if len(part) else part.new_zeros(len(at), *part.shape[1:]) for part, at in zip(rows, at_BN, strict=True)])


def injected(
    extractors: Extractors, told: dict[str, Tensor], maps: Maps, padding: Padding, *, content: float, position: float, shared: bool = True
) -> dict[str, Tensor]:
    """``content`` and ``position``: the weighted distance of what the readers make of the student's maps to what the teacher answered.

    Args:
        extractors: frozen.
        told: the teacher's, see `Answers`.
        maps, padding: the student's maps in the extractors' width; gradients reach them.
        content, position: weights lambda1 and lambda2; what has the weight 0 is left out.
        shared: ask with the teacher's queries; else, as a control, with those that the generators make of the student's maps.
    """
    weights, terms = {"content": content, "position": position}, {}
    for name, extractor in extractors.both():
        if not weights[name]:
            continue
        query, reference = told[f"{name}_query"], told[f"{name}_reference"]
        if not shared:
            query, _ = extractor.ask(told["position_reference"], maps, padding)
        z = extractor.read(query, reference, maps, padding)
        terms[name] = weights[name] * embedding_distance(z, told[f"{name}_embedding"], told[f"{name}_positive"] > 0.5)
    return terms


class _OnMaps(DetectionDistiller):
    """A student whose maps pass through an adapter that learns with it and is dropped afterwards.

    Args:
        student: the detector.
        teacher: what answers.
        adapter: from the student's maps.
        strides: of the maps that take part.
    """

    def __init__(self, student: Detector[Any, Any], teacher: Teacher, adapter: Adapter, strides: tuple[int, ...]) -> None:
        super().__init__(student, teacher)
        self.adapter, self.strides = adapter, strides

    def adapted(self, batch: DetectionBatch, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The student's maps as the adapter makes them, and what of them is padding."""
        maps = maps_at(outputs.features, outputs.strides, self.strides)
        padding = level_padding(batch.images, batch.sizes, maps)
        return self.adapter(maps, padding), padding


class UniKD(_OnMaps):
    """Stage 2: a detector trained on boxes, and on what frozen extractors read from its maps, by the teacher's queries.

    Args:
        student: the detector that learns.
        teacher: `Answers`, or a cache of them.
        extractors: that answered; not changed.
        adapter: phi, from the student's channels to the extractors' width.
        content_weight, position_weight: lambda1 and lambda2; 0 leaves a part out.
        shared_queries: see `injected`.

    Raises:
        InputError: a weight below 0.
    """

    teacher: Teacher

    def __init__(
        self,
        student: Detector[Any, Any],
        teacher: Teacher,
        extractors: Extractors,
        adapter: Adapter,
        *,
        content_weight: float = 10.0,
        position_weight: float = 10.0,
        shared_queries: bool = True,
    ) -> None:
        super().__init__(student, teacher, adapter, extractors.sizes.strides)
        self.content_weight = at_least_zero("content_weight", content_weight)
        self.position_weight = at_least_zero("position_weight", position_weight)
        self.shared_queries = shared_queries
        self._extractors = (frozen(extractors),)  # in a tuple: no part of what is trained, saved or shared with other processes

    def taught(self, batch: DetectionBatch, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """``content`` and ``position``, see `injected`."""
        told: Any = self.teacher(batch) if isinstance(self.teacher, CachedTeacher) else self._asked(batch)
        maps, padding = self.adapted(batch, outputs)
        extractors = self._extractors[0].to(batch.images.device)
        weights = {"content": self.content_weight, "position": self.position_weight}
        return injected(extractors, told, maps, padding, **weights, shared=self.shared_queries)

    def _asked(self, batch: DetectionBatch) -> dict[str, Tensor]:
        assert isinstance(self.teacher, Answers)
        return self.teacher.fresh(batch, self.progress.step)


class MapHints(_OnMaps):
    """The baseline, FitNet on the same maps: mean over all numbers of (phi(F_s) - F_t)^2, the student's maps resized to the teacher's.

    Args:
        student, adapter, strides: see `_OnMaps`; the adapter leads to the teacher's channels.
        teacher: the detector around `MapsOf`.
        hint_weight: of the term.
    """

    teacher: Teacher

    def __init__(
        self, student: Detector[Any, Any], teacher: Teacher, adapter: Adapter, strides: tuple[int, ...], *, hint_weight: float = 5.0
    ) -> None:
        super().__init__(student, teacher, adapter, strides)
        self.hint_weight = at_least_zero("hint_weight", hint_weight)

    def taught(self, batch: DetectionBatch, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """``hint``."""
        wanted, _ = teacher_maps(self.teacher, batch)
        total, count = torch.zeros((), device=batch.images.device), 0
        for mine, theirs in zip(self.adapted(batch, outputs)[0], wanted, strict=True):
            if mine.shape[-2:] != theirs.shape[-2:]:
                mine = interpolate(mine, size=theirs.shape[-2:], mode="bilinear")
            total = total + (at_least_float32(mine) - theirs).square().sum()
            count += theirs.numel()
        return {"hint": self.hint_weight * total / count}
