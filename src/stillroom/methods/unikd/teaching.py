"""What teaches in UniKD: a detector's maps, and the answers that its extractors read from them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stillroom.engine.cache import CachedTeacher
from stillroom.engine.loading import sample_seeds
from stillroom.engine.run.stage import digest
from stillroom.engine.teacher import Renormalise, Teacher
from stillroom.errors import InputError
from stillroom.methods.unikd.attention import level_padding
from stillroom.methods.unikd.boxes import match_roles, sample_boxes, trainable
from stillroom.methods.unikd.extractors import Extractors, Sizes
from stillroom.modules.projectors import probing
from stillroom.tasks.detection import DetectionBatch, DetectionData, Detector
from stillroom.tasks.detection.detr import ADAPTERS

EXACT = ("content_reference", "position_reference")  # of an answer; half precision would shift them by up to 1/2048 of the image
_VIEWS = 2  # an image and its mirror image; rounds from here on are steps of a training


def common_strides(student: Detector[Any, Any], strides: Sequence[int], argument: str = "student") -> tuple[int, ...]:
    """The strides that the student's maps and the teacher's have in common, the finest first.

    Raises:
        InputError: there are none.
    """
    common = tuple(sorted({*student.strides} & {*strides}))
    if not common:
        got = f"a detector with maps of strides {list(student.strides)}"
        raise InputError(argument, got, f"one that shares a stride with the teacher, which has {list(strides)}")
    return common


def adapter_depth(student: Detector[Any, Any], teacher_kind: str) -> int:
    """Self-attention layers of the student's adapter: 0 between detectors of one kind, 2 where one is of the DETR family, else 1."""
    kinds = {type(student).__name__, teacher_kind}
    if len(kinds) == 1:
        return 0
    return 2 if kinds & {kind.__name__ for kind in ADAPTERS.values()} else 1


def maps_at(maps: Sequence[Tensor], every: Sequence[int], strides: Sequence[int]) -> list[Tensor]:
    """Of a detector's maps those of some of its strides, in their order; `every` are the strides that it has."""
    return [maps[every.index(stride)] for stride in strides]


def map_channels(detector: Detector[Any, Any], example: Tensor, strides: Sequence[int], argument: str) -> int:
    """Channels of a detector's maps.

    Args:
        detector: on the CPU.
        example: images [1, 3, H, W].
        strides: of the maps.
        argument: what the user calls the detector.

    Raises:
        InputError: they differ from level to level.
    """
    with probing(detector, example):
        maps = maps_at(detector.feature_maps(example, torch.tensor([example.shape[-2:]])), detector.strides, strides)
    channels = {level.shape[1] for level in maps}
    if len(channels) > 1:
        raise InputError(argument, f"a detector with maps of {sorted(channels)} channels", "the same number on every level")
    return channels.pop()


class MapsOf(nn.Module):
    """A detector that answers with its maps.

    Args:
        detector: any.
        strides: of the maps.
    """

    def __init__(self, detector: Detector[Any, Any], strides: Sequence[int]) -> None:
        super().__init__()
        self.detector, self.strides = detector, tuple(strides)

    def forward(self, images: tuple[Tensor, Tensor]) -> list[Tensor]:
        """A padded batch and the sizes of its images -> per level [B, C, h, w]."""
        return maps_at(self.detector.feature_maps(*images), self.detector.strides, self.strides)


class _Sized(NamedTuple):
    """A batch of which a teacher reads the images with their sizes: what a detector of the DETR family knows its padding by."""

    batch: DetectionBatch

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.batch.images, self.batch.sizes

    def renormalised(self, renormalise: Renormalise) -> _Sized:
        return _Sized(self.batch.renormalised(renormalise))


def teacher_maps(teacher: Teacher, batch: DetectionBatch) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of a teacher around `MapsOf`, and what of them is padding."""
    maps: Any = teacher(_Sized(batch))
    return maps, level_padding(batch.images, batch.sizes, maps)


def example_batch(images: Tensor) -> DetectionBatch:
    """Images [B, 3, H, W] without padding, of which no object is known."""
    count, sizes = len(images), torch.tensor(images.shape[-2:], device=images.device)
    nothing = [torch.zeros(0, dtype=torch.long, device=images.device)] * count
    ids = torch.arange(count, device=images.device)
    return DetectionBatch(images, sizes.expand(count, 2), [images.new_zeros(0, 4)] * count, nothing, nothing, ids, torch.zeros_like(ids))


class Answers(Teacher):
    """A frozen detector with its frozen extractors. To a batch it answers, for ``content`` and ``position``, with

    - ``..._query`` and ``..._embedding``, float [B, N, C]: q, and z by the teacher's own maps;
    - ``..._reference``, [B, N, 2] or [B, N, 4]: where each query looks, of position queries B~;
    - ``..._positive``, [B, N]: 1 for a query that stands for an object.

    They are tensors of one shape for every image, so that `engine.cache` can keep them. B~ is the same whenever it is asked for an image
    in a view; `fresh` draws others.

    Args:
        maps: the detector around `MapsOf`.
        extractors: trained on it.
        seed: of B~.
    """

    def __init__(self, maps: Teacher, extractors: Extractors, *, seed: int = 0) -> None:
        self.maps, self.extractors, self.seed = maps, frozen(extractors), seed

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The detector around `MapsOf`."""
        return self.maps.networks

    def precision_on(self, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
        """The detector's; extractors compute in float32."""
        return self.maps.precision_on(device)

    def fingerprint(self) -> str:
        """Of detector, extractors and seed."""
        parts = self.maps.fingerprint(), digest(self.extractors.state_dict()), repr(self.extractors.sizes), self.seed
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        return f"Answers({self.maps!r})"

    def __call__(self, batch_or_tensor: Any) -> Any:
        """The answers to be kept: by the batch's views, or the plain images where it names none. A bare tensor has no object."""
        batch = example_batch(batch_or_tensor) if isinstance(batch_or_tensor, Tensor) else batch_or_tensor
        return self._answered(batch, 0 if batch.views is None else batch.views.cpu().numpy())

    def fresh(self, batch: DetectionBatch, step: int) -> dict[str, Tensor]:
        """The answers with a B~ of this step's own."""
        return self._answered(batch, _VIEWS + step)

    @torch.no_grad()
    def _answered(self, batch: DetectionBatch, round_: Any) -> dict[str, Tensor]:
        entered, padding = teacher_maps(self.maps, batch)
        extractors = self.extractors.to(batch.images.device)
        objects = trainable(batch.objects(), batch.sizes)
        boxes, known = sample_boxes(objects[0], sample_seeds(self.seed, round_, batch.ids.cpu().numpy()), extractors.sizes.queries)
        maps = extractors.enter(entered)
        told: dict[str, Tensor] = {}
        for name, extractor in extractors.both():
            query, reference = extractor.ask(boxes, maps, padding)
            embedding = extractor.read(query, reference, maps, padding)
            roles = known
            if name == "content":
                found = extractor.detect(embedding, reference)
                roles = torch.stack([match_roles(*one) for one in zip(*found, objects[1], objects[0], strict=True)])
            told |= {f"{name}_query": query, f"{name}_embedding": embedding, f"{name}_reference": reference.contiguous()}
            told[f"{name}_positive"] = (roles >= 0).float()
        return told


@dataclass(frozen=True)
class Taught:
    """What teaches a student.

    Attributes:
        extractors: of both networks.
        answers: the teacher's.
        maps: the teacher around `MapsOf`; None where its answers were stored.
    """

    extractors: Extractors
    answers: Answers | CachedTeacher
    maps: Teacher | None


def with_extractors(teacher: Teacher, extractors: Extractors, *, seed: int = 0) -> Taught:
    """A detector as a teacher, with extractors that fit it; `seed` of B~."""
    maps = teacher.around(lambda network: MapsOf(network, extractors.sizes.strides))  # type: ignore[arg-type]
    return Taught(extractors, Answers(maps, extractors, seed=seed), maps)


def sizes_for(teacher: Teacher, strides: Sequence[int], data: DetectionData, name: str, **numbers: int) -> Sizes:
    """What extractors of a detector's maps are made for: at these strides, for the classes of the data, of so many queries and so on.

    Raises:
        InputError: it has no such maps.
    """
    detector: Any = teacher.networks[0]
    if not {*strides} <= {*detector.strides}:
        raise InputError("extractors", f"extractors for maps of strides {list(strides)}", f"the teacher's, {list(detector.strides)}")
    channels = map_channels(detector, data.example_inputs(), strides, "teacher")
    found = {"teacher": name, "kind": type(detector).__name__, "weights": digest(detector.state_dict())}
    return Sizes(tuple(strides), channels, data.classes, **numbers, **found)  # type: ignore[arg-type]


def frozen(extractors: Extractors) -> Extractors:
    """A copy that learns nothing; gradients pass through it."""
    return copy.deepcopy(extractors).eval().requires_grad_(False)
