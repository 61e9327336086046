"""Labelling stored crops: every image's crops are drawn, cut for the teacher, and its answers written into a bank (section 1)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.engine.cache.views import Views
from stillroom.engine.loading import Draw, Loader, SeekableBatches, identity
from stillroom.engine.report.results import StageResult
from stillroom.engine.teacher import Teacher
from stillroom.errors import InputError, at_least, positive
from stillroom.methods.ferkd.bank.folder import Rows
from stillroom.methods.ferkd.bank.labels import DEFAULT_TYPE, LabelDtype, LabelFormat
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.writer import BankPlan, write_bank
from stillroom.methods.ferkd.crops import CropRule, Interpolation, cut, cut_together
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.classified import SMALL
from stillroom.tasks.images.stores import Images, MemoryImages, TakenImages
from stillroom.tasks.images.transforms import Transform, height_and_width

_MEMORY = 1.5e9  # bytes of decoded images that are kept
_Again = tuple[LabelBank, np.ndarray]  # another bank whose crops are used again, and its number of each image


@dataclass(frozen=True)
class Labelling:
    """How images are cut and labelled.

    Args:
        crops: M, crops of each image.
        label_type: how labels are stored (see `bank.labels`).
        dtype: of the stored probabilities.
        temperature: tau_t of the teacher's softmax.
        rule: how crops are drawn.
        interpolation: in resizing crops for the teacher.
        seed: of the crops.
    """

    crops: int = 500
    label_type: str = DEFAULT_TYPE
    dtype: LabelDtype = "fp16"
    temperature: float = 1.0
    rule: CropRule = field(default_factory=CropRule)
    interpolation: Interpolation = "bicubic"
    seed: int = 0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        at_least("crops", self.crops, 1)


def crop_rule(data: ImageData, crop_area: tuple[float, float] | None, crop_flip: float | None) -> CropRule:
    """How crops are drawn: as given, else as the data's augmentation suggests (digits are neither mirrored nor cut to small pieces)."""
    digits = data.augment == "digits" or data.source.augment == "digits"
    suits = CropRule(area=(0.5, 1.0), flip=0.0) if digits else CropRule()
    area, flip = suits.area if crop_area is None else crop_area, suits.flip if crop_flip is None else crop_flip
    try:
        return CropRule(area=area, flip=flip)
    except InputError as error:
        raise InputError(f"crop_{error.argument}", error.got, error.expected) from None


def original_images(data: ImageData) -> Images:
    """The training images as they were read, not resized, in the data's own numbering.

    Small images of one size are in memory.

    Raises:
        InputError: images of one name, of which only some are left.
    """
    listed, now = data._listed[0], data._train
    names = image_names(now)
    found: Images | None = vars(data).get("_originals")  # looked for before, perhaps for more images than these
    if found is not None and image_names(found) == names and np.array_equal(found.labels, now.labels):
        return found
    if names != image_names(listed):
        places = {name: index for index, name in enumerate(image_names(listed))}
        if len(places) < len(listed):
            raise InputError("data", "images of which several have one name", "a name for each, where only some are trained on")
        indices = np.array([places[name] for name in names])
        listed = listed.take(indices) if isinstance(listed, MemoryImages) else TakenImages(listed, indices)
    if not np.array_equal(listed.labels, now.labels):
        listed = TakenImages(listed, np.arange(len(listed)), now.labels)
    originals = _in_memory(listed, data.source.image_size)
    vars(data)["_originals"] = originals
    return originals


def _in_memory(images: Images, side: int) -> Images:
    """All images decoded, if they are small and of one size; else as they were."""
    if isinstance(images, MemoryImages) or side > SMALL or 3 * side**2 * len(images) > _MEMORY:
        return images
    pixels: list[Tensor] = []
    for index in range(len(images)):
        picture = _pixels(images.image(index))
        if pixels and picture.shape != pixels[0].shape:
            return images
        pixels.append(picture)
    return MemoryImages(torch.stack(pixels), images.labels, image_names(images))


def image_names(images: Images) -> list[str]:
    """What reports call them."""
    return [images.name(index) for index in range(len(images))]


def _pixels(image: Image.Image | Tensor) -> Tensor:
    """uint8 [3, H, W]."""
    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def checksum(image: Image.Image | Tensor) -> int:
    """CRC-32 of the decoded pixels, never 0, which stands for one that is not known."""
    return zlib.crc32(_pixels(image).numpy().tobytes()) or 1


class ToLabel(NamedTuple):
    """Crops for a teacher, a row each.

    Attributes:
        images: float32 [R, 3, S, S].
        ids: int64 [R], the images they are of.
        coords: float32 [R, 4]; flips: bool [R].
        sizes: int32 [R, 2], height and width of the images; checksums: uint32 [R], of their pixels.
    """

    images: Tensor
    ids: np.ndarray
    coords: np.ndarray
    flips: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray


class _Share(SeekableBatches):
    """All crops of a range of images in order, in batches that hold whole images, or a part of one."""

    def __init__(self, images: int, views: Views, batch_size: int) -> None:
        super().__init__(images * views.count, batch_size, shuffle=False, drop_last=False)
        self.views, self.first, self.last = views, 0, images
        self.together = max(1, batch_size // views.count)
        self.parts = -(-views.count // batch_size)

    def __len__(self) -> int:
        return -(-(self.last - self.first) // self.together) * self.parts

    def _batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        for batch in range(start, len(self)):
            group, part = divmod(batch, self.parts)
            ids = np.arange(self.first + group * self.together, min(self.first + (group + 1) * self.together, self.last))
            crops = np.array_split(np.arange(self.views.count), self.parts)[part]
            yield self.views.draws(np.repeat(ids, len(crops)), np.tile(crops, len(ids)))


class _CropsToLabel(Dataset[ToLabel]):
    """Whole batches of crops by their draws."""

    def __init__(self, images: Images, labelling: Labelling, transform: Transform, size: int, again: _Again | None) -> None:
        self.images, self.labelling, self.transform, self.size, self.again = images, labelling, transform, size, again
        self._last: tuple[int, Image.Image | Tensor] | None = None

    def __getitems__(self, draws: Sequence[Draw]) -> ToLabel:
        ids, seeds, crops = np.array(draws, np.int64).T
        numbers, place_R = np.unique(ids, return_inverse=True)
        pictures = [self._image(index) for index in numbers.tolist()]
        sizes_R2 = np.array([height_and_width(picture) for picture in pictures], np.int32)[place_R]
        if self.again is None:
            coords_R4, flips_R = self.labelling.rule.draw(sizes_R2, seeds)
        else:
            coords_R4, flips_R = self.again[0].boxes(self.again[1][ids], crops)
        interpolation = self.labelling.interpolation
        if isinstance(self.images, MemoryImages):
            cuts_R3SS = cut_together(self.images.pixels[torch.from_numpy(ids.copy())], coords_R4, flips_R, self.size, interpolation)
        else:
            parts = [
                cut(picture, coords_R4[place_R == number], flips_R[place_R == number], self.size, interpolation)
                for number, picture in enumerate(pictures)
            ]
            cuts_R3SS = torch.cat(parts)
        sums_R = np.array([checksum(picture) for picture in pictures], np.uint32)[place_R]
        return ToLabel(self.transform.apply(cuts_R3SS, {}), ids, coords_R4, flips_R, sizes_R2, sums_R)

    def _image(self, index: int) -> Image.Image | Tensor:
        """An image is asked for again with its next crops."""
        if self._last is None or self._last[0] != index:
            self._last = index, self.images.image(index)
        return self._last[1]


def label_images(
    folder: str | Path,
    teacher: Teacher,
    data: ImageData,
    labelling: Labelling,
    *,
    result: StageResult | None = None,
    reference: LabelBank | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> LabelBank:
    """Writes a bank of the teacher's labels of crops of the training images, or goes on with one, or helps another process to.

    Args:
        folder: of the bank.
        teacher: who labels.
        data: whose training images. Crops are resized to its `image_size` and normalised with its statistics: the teacher's.
        labelling: how.
        result: what was measured of the teacher.
        reference: a bank whose crops and flips are used again, so that several teachers label the same ones.
        device: where the teacher runs.
        progress: called with the images that are done and those that there are.

    Raises:
        InputError: the folder holds a bank of something else; the reference lacks an image or has another number of crops.
    """
    device = torch.device(device)
    images = original_images(data)
    names = image_names(images)
    form = LabelFormat.of(labelling.label_type, data.num_classes, labelling.dtype)
    again: _Again | None = None
    if reference is not None:
        again = reference, reference.rows_of(names)
        if (again[1] < 0).any() or reference.crops != labelling.crops or "kept" in reference.arrays:
            got = f"{reference.path} with {reference.crops} crops of {len(reference)} images"
            raise InputError("reference", got, f"a bank of all {labelling.crops} crops of every training image")
    shares = _Share(len(images), Views(labelling.crops, labelling.seed), data.batch_size)
    crops = _CropsToLabel(images, labelling, data._eval_transform, data.image_size, again)
    workers = 0 if isinstance(images, MemoryImages) else data.workers
    loader = Loader(crops, shares, workers=workers, collate=identity, training=False)

    def rows(first: int, last: int) -> Iterator[Rows]:
        shares.first, shares.last = first, last
        parts: list[dict[str, np.ndarray]] = []
        for batch in loader:
            logits_RC = teacher(batch.images.to(device, non_blocking=True))
            if logits_RC.shape != (len(batch.ids), data.num_classes):
                got = f"answers {list(logits_RC.shape)} to {len(batch.ids)} crops"
                raise InputError("teacher", got, f"logits of {data.num_classes} classes")
            stored = form.encode((logits_RC.float() / labelling.temperature).softmax(-1)).arrays()
            parts.append({"coords": batch.coords, "flips": batch.flips, "sizes": batch.sizes, "checksums": batch.checksums, **stored})
            if len(parts) == shares.parts:
                yield _by_image(parts, labelling.crops, images.labels[np.unique(batch.ids)])
                parts = []

    options = {**asdict(labelling), "rule": asdict(labelling.rule)}
    key = {
        "teacher": teacher.fingerprint(),
        "teacher_precision": teacher.precision_on(device),
        **{name: value for name, value in data.cache_key.items() if name not in ("augment", "val_subset")},
        **{name: options[name] for name in ("temperature", "interpolation", "seed")},
        **(
            {"area": list(labelling.rule.area), "aspect": list(labelling.rule.aspect), "flip": labelling.rule.flip} if again is None else {}
        ),
        "reference": None if reference is None else reference.fingerprint(),
        "batch_size": data.batch_size,
    }
    about: dict[str, Any] = {
        "teacher": "" if result is None else result.model,
        "input_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "labelling": options,
    }
    plan = BankPlan(key, form, labelling.crops, data.classes, names, about, result=result)
    try:
        return write_bank(folder, plan, rows, progress=progress)
    finally:
        loader.end_workers()


def _by_image(parts: Sequence[dict[str, np.ndarray]], crops: int, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of crops as rows of images: the first dimension becomes [images, crops]; what is an image's own is kept once."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = {name: rows.reshape(-1, crops, *rows.shape[1:]) for name, rows in whole.items()}
    return {**found, "sizes": found["sizes"][:, 0], "checksums": found["checksums"][:, 0], "targets": targets.astype(np.int32)}
