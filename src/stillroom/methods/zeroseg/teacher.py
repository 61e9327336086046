"""What teaches: an image-text model whose image tower answers to all views of an image; and a small one that is trained here.

The small one is a classifier of pictures that answers with embeddings and is trained against a table of embeddings, one for each class
name: cross-entropy over scaled cosines. The table is its text tower, and knows these names alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from stillroom.engine import Lab, Teacher, Training
from stillroom.engine.cache import CachedTeacher, Storage, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.console import StageDisplay
from stillroom.engine.specification import LIBRARIES
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError
from stillroom.methods.zeroseg.decoding import with_vocabulary
from stillroom.methods.zeroseg.views import boxes, views
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.clips import ImageText, class_embeddings, names_clip, open_clip
from stillroom.tasks.segmentation import Background, SegmentationData, Vocabulary
from stillroom.tasks.segmentation.objects import CLASSES, SIDE, draw

SINGLE = "stillroom.methods.zeroseg.teacher:single_objects"
STAND_IN = Training(epochs=8, optimizer="adamw", lr=4e-3, weight_decay=0.01, schedule="onecycle")
_DIM = 64  # of the stand-in's embeddings
_STATISTICS = (0.5,) * 3, (0.25,) * 3
_TEACHER_SIDE = 32  # pixels that drawn pictures are given to the stand-in with
_TOGETHER = 256  # views that go through the teacher at a time
_SECONDS = 1.0


class ViewTeacher(nn.Module):
    """All views of each image through an image tower: images in [0, 1] -> embeddings [B, views, D].

    Args:
        clip: whose image tower, statistics and size are used.
        scales: of the grids.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: ImageText, scales: Sequence[int]) -> None:
        super().__init__()
        self.image, self.scales, self.size = clip.image, tuple(scales), clip.image_size
        self.register_buffer("mean", torch.tensor(clip.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(-1, 1, 1))
        self.register_buffer("told", torch.tensor([*self.scales, self.size]))  # so that a fingerprint of the weights tells them apart

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Float32 at least; see `views` for their order."""
        shown = (views(images_B3HW, self.scales, self.size) - self.mean) / self.std
        parts = [self.image(part) for part in shown.flatten(0, 1).split(_TOGETHER)]
        return torch.cat(parts).unflatten(0, shown.shape[:2])


class Cells(nn.Module):
    """The floor: each cell of a grid is of the class that the teacher gives its view to; no segmentation is learnt.

    Args:
        clip: the teacher.
        vocabulary: of the classes.
        grid: cells down and across.
        pixels: makes values in [0, 1] of the images.
    """

    def __init__(self, clip: ImageText, vocabulary: Vocabulary, grid: int, pixels: Renormalise) -> None:
        super().__init__()
        self.teacher, self.vocabulary, self.grid, self.pixels = ViewTeacher(clip, (grid,)), vocabulary, grid, pixels

    def finding(self, vocabulary: Vocabulary) -> Cells:
        """The same for other classes, or another threshold."""
        other = copy.copy(self)
        other.vocabulary = vocabulary
        return other

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Scores [B, C, H, W] of the vocabulary's classes."""
        embeddings_BJD = normalize(self.teacher(self.pixels(images_B3HW)), dim=-1)
        text_CD = self.vocabulary.text.to(embeddings_BJD.device)
        probabilities_BJC = (self.vocabulary.scale * embeddings_BJD @ text_CD.T).softmax(-1)
        height, width = (int(side) for side in images_B3HW.shape[2:])
        places_HW = torch.arange(height)[:, None] * self.grid // height * self.grid + torch.arange(width) * self.grid // width
        scores_BCHW = probabilities_BJC.mT[:, :, places_HW.to(text_CD.device)]
        return with_vocabulary(scores_BCHW, probabilities_BJC, self.vocabulary)


# A teacher that is at hand, or one that is trained here ---------------------------------------------------------------------------------


class StandIn(nn.Module):
    """A small image tower, and a table of class names: images [B, 3, H, W] to scaled cosines [B, C].

    Args:
        image: images to embeddings [B, D].
        words: C, names in the table.
    """

    scale = 20.0

    def __init__(self, image: nn.Module, words: int) -> None:
        super().__init__()
        self.image, self.table = image, nn.Parameter(torch.randn(words, _DIM))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits of the names."""
        return self.scale * normalize(self.image(images_B3HW), dim=-1) @ normalize(self.table, dim=-1).T


@dataclass(frozen=True)
class Taught:
    """The teacher, and how it names classes.

    Attributes:
        clip: image tower, size and statistics.
        vocabulary: of the data's classes.
        notes: on it, for the report.
    """

    clip: ImageText
    vocabulary: Vocabulary
    notes: tuple[str, ...]


def teach(lab: Lab, data: SegmentationData, networks: Any, background: Background, threshold: float) -> Taught:
    """The teacher: a CLIP that is at hand, or a stand-in that is trained here, one for all seeds.

    Args:
        lab: where and how to run.
        data: whose classes are to be named.
        networks: whose `teacher` names a CLIP, see `clips`, or a classifier, which is made the stand-in's image tower; `teacher_data` are
            what that learns from.
        background, threshold: see `Vocabulary`.

    Raises:
        InputError: no such CLIP or classifier; class names that the stand-in does not know.
    """
    options: dict[str, Any] = {"background": background, "threshold": threshold}
    spec, images = networks.teacher, networks.teacher_data
    if names_clip(spec):
        trust = lab.options.trust_pickle
        clip = open_clip(spec, trust_pickle=trust, argument="teacher")
        dim = class_embeddings(clip, ["x"]).shape[1]
        path, comma, rest = spec.partition(",")
        encoder = f"{Path(path).expanduser().resolve()}{comma}{rest}"
        empty = Vocabulary((), torch.empty(0, dim), encoder, clip.scale, (), **options)
        return Taught(clip, empty.of(data.classes, trust_pickle=trust), (f"Teacher: {clip.source}.",))
    if "/" in spec and not spec.startswith(LIBRARIES) and ":" not in spec:
        expected = "a folder of a transformers CLIPModel, a TinyCLIP run or open_clip's weights, that exists; or a classifier to be trained"
        raise InputError("teacher", spec, f"{expected} such as stillroom/convnet24")
    drawn = images.startswith(SINGLE)
    lab.say("teacher", f"a small stand-in that is trained here on {'drawn pictures' if drawn else images}, no CLIP: it knows a few words")
    pictures = ImageData(images, batch_size=64, augment="none" if drawn else None)
    Vocabulary(pictures.classes, torch.empty(pictures.num_classes, _DIM), "", 1.0, (), **options).of(data.classes)
    plan = networks.teacher_plan(STAND_IN)
    with lab.shared():
        built = build_classifier(spec, num_classes=_DIM, image_size=pictures.image_size, argument="teacher")
        # each number of an embedding varies by 1, as much as the pixels that the student guesses besides
        tower = nn.Sequential(built.network, nn.BatchNorm1d(_DIM, affine=False))
        made = Supervised(StandIn(tower, pictures.num_classes))
        trained = lab.fit(made, pictures, plan, name="teacher", model=f"{built.spec} (with a table of {pictures.num_classes} names)")
    network = trained.network
    assert isinstance(network, StandIn)
    clip = ImageText(network.eval().image, _no_texts, pictures.image_size, pictures.mean, pictures.std, StandIn.scale, "stand-in")
    table = normalize(network.table.detach(), dim=-1)
    vocabulary = Vocabulary(pictures.classes, table, "", StandIn.scale, (), **options).of(data.classes)
    accuracy, chance = trained.result.metrics["top1"], 100 / pictures.num_classes
    if accuracy <= 1.5 * chance and not networks.accept_teacher:
        got = f"{spec}, which is right in {accuracy:.1f} % of the pictures that it was trained on the like of"
        raise InputError("teacher", got, "one that learns more (--teacher-epochs), or --accept-teacher to go on with it")
    right = f"right in {accuracy:.1f} % of pictures held out"
    note = f"Teacher: a stand-in trained here on {'drawn pictures' if drawn else images}, {right}; of {pictures.num_classes} words."
    return Taught(clip, vocabulary, (note,))


def _no_texts(texts: Sequence[str]) -> Tensor:
    raise InputError("classes", ", ".join(texts), "words of the stand-in's table")


class _Singles:
    """Drawn pictures of one object or none, as a data set of (image, label)."""

    classes = CLASSES

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.targets = random.integers(0, len(CLASSES), count)
        pixels, masks, boxes_of = draw(count, seed, objects=(1, 1))
        empty, _, _ = draw(count, seed, objects=(0, 0))
        self.pictures = []
        for number, boxes_K4 in enumerate(boxes_of):
            self.targets[number] = self.targets[number] and masks[number].max()  # one in nine shows the ground alone
            shown = pixels[number] if self.targets[number] else empty[number]
            self.pictures.append(_around(shown, boxes_K4[0], random))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pictures[index], int(self.targets[index])


def _around(pixels_3HW: Tensor, box: np.ndarray, random: np.random.Generator) -> Tensor:
    """A square around a box, in the teacher's size: half of them a part or little more of it, the others up to the whole picture."""
    top, bottom, left, right = box.tolist()
    size = bottom - top
    most = round(1.25 * size) if random.random() < 0.5 else SIDE
    side = int(random.integers(round(0.75 * size), most + 1))
    slack = max(abs(side - size), round(0.2 * size))
    centre = [(top + bottom) / 2, (left + right) / 2]
    start = [int(np.clip(round(c - side / 2 + random.uniform(-0.5, 0.5) * slack), 0, SIDE - side)) for c in centre]
    cut = pixels_3HW[:, start[0] : start[0] + side, start[1] : start[1] + side][None].float()
    wanted = (_TEACHER_SIDE, _TEACHER_SIDE)
    shown = interpolate(cut, wanted, mode="bicubic", antialias=True, align_corners=False)[0]
    return shown.round().clamp(0, 255).to(torch.uint8)


def single_objects(train: int = 1500, val: int = 300) -> tuple[_Singles, _Singles]:
    """Pictures that the stand-in learns from, and others: see `_Singles`; from the whole picture with its object to parts of the object."""
    return _Singles(train, 1_000_001), _Singles(val, 1_000_002)


# Its answers ----------------------------------------------------------------------------------------------------------------------------


def cached_views(lab: Lab, taught: Taught, data: SegmentationData, scales: Sequence[int], result: StageResult) -> CachedTeacher:
    """The teacher's answers to all views of every training image, computed once and kept on disk in half precision.

    Raises:
        InputError: images with fewer pixels than cells.
    """
    count = len(boxes(data.image_size, data.image_size, scales))
    teacher = Teacher(
        ViewTeacher(taught.clip, scales),
        precision=lab.options.torch_precision,
        renormalise=Renormalise(data.mean, data.std, (0.0,) * 3, (1.0,) * 3),
        fold=False,
        channels_last=False,
    )
    folder = lab.folder / "views"
    display, started = StageDisplay("views", silent=not lab.is_main), time.monotonic()
    with display.counting(data.train_size) as progress:
        cached = build_cache(folder, teacher, data, result, storage=Storage("fp16"), device=lab.device, progress=progress, wait=True)
    dim = taught.vocabulary.embeddings.shape[1]
    size = 2 * cached.samples * count * dim
    taken = time.monotonic() - started
    spent = f" in {taken:.0f} s" if taken > _SECONDS else ""
    display.say(f"{count} views of {cached.samples} images, {dim} numbers each: {size / 1e6:.1f} MB in {folder}{spent}")
    return cached
