"""The data of a segmentation run: pictures cut to one size to train on, whole ones to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize

from stillroom.engine.loading import Draw, uniforms
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.label_maps import IGNORE
from stillroom.tasks.images.stores import Images
from stillroom.tasks.images.transforms import Parameters
from stillroom.tasks.images.whole_pictures import Kept, pixels_of, prepared
from stillroom.tasks.segmentation.masked import MaskedImages, SegmentationBatch, WholeBatch, mask_of
from stillroom.tasks.segmentation.metrics import SegmentationEvaluator
from stillroom.tasks.segmentation.sources import SegmentationSource, open_source

AUGMENTATIONS = ("crop", "mirror", "none")
_MEMORY = 1_000_000_000  # bytes of decoded pictures that are kept
_SMALLEST = 0.5  # of the shorter side, that a random crop shows
_CENTRE = 7 / 8  # of the shorter side, that is cut out without random crops
_NAMED = 24  # classes whose pixels a run's first lines count


class SegmentationData(ImageSetData):
    """A training and a validation set of pictures with the class of every pixel; training pictures may be without.

    Networks are trained on squares that are cut out of pictures. They are measured on whole pictures, resized by their shorter side and
    gone through by sliding windows, against the masks in their own size. Sets of up to 1 GB are decoded once and stay in memory.

    Args:
        data: where the images are: ``objects`` (drawn), ``voc:ROOT``, ``masks:ROOT`` (folders of pictures and masks) or
            ``coco:IMAGES,PANOPTIC.json``; options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; height and width of what it is trained on; by default 128, or 64 for
            drawn objects.
        augment: random changes of training images: ``crop`` (a square of half to all of the shorter side, mirrored half of the time),
            ``mirror`` or ``none`` (the centre: seven eighths of the shorter side, or all of a picture that has the size already); by
            default crop, for drawn objects none.
        eval_size: pixels of the shorter side of pictures that are measured on; by default `image_size`.
        window_size: pixels of a sliding window's height and width; by default `eval_size`.
        stride: pixels from one window to the next; by default half a window.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: SegmentationSource

    def __init__(
        self,
        data: str = "objects",
        *,
        batch_size: int = 64,
        image_size: int | None = None,
        augment: str | None = None,
        eval_size: int | None = None,
        window_size: int | None = None,
        stride: int | None = None,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        source = open_source(data)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.background = source.background
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.augment = augment or source.augment
        self.eval_size = self.image_size if eval_size is None else at_least("eval_size", eval_size, 1)
        self.window = self.eval_size if window_size is None else at_least("window_size", window_size, 1)
        self.stride = max(self.window // 2, 1) if stride is None else at_least("stride", stride, 1)
        if self.stride > self.window:
            raise InputError("stride", self.stride, f"at most the window's {self.window} pixels, or some would not be seen")
        height, width = pixels_of(self._listed[1].image(0)).shape[1:]
        self.in_memory = 4 * height * width * sum(map(len, self._listed)) <= _MEMORY
        self._known_by({"image_size": self.image_size, "augment": self.augment}, self.eval_size, self.window, self.stride)

    @property
    def masked(self) -> bool:
        """Whether the training pictures have masks."""
        return hasattr(self._shown[0], "mask")

    @property
    def training_images(self) -> MaskedImages:
        """Those that are shown, with their masks."""
        images: MaskedImages = self._shown[0]
        return images

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of each class in the training and validation masks that were looked at, int64 [C] both."""
        train_C, val_C = self.source.pixels[:, :-1]
        return train_C, val_C

    def first_lines(self) -> list[str]:
        """How many pictures there are; the share of each class in the masks; sizes; what was met."""
        lines, sources = super().first_lines(), self.source
        lines[0] = f"procedural data: {lines[0]}" if sources.name == "objects" else lines[0]
        for split, counts, looked in zip(("training", "validation"), sources.pixels, sources.looked_at, strict=True):
            shares = 100 * counts / max(counts.sum(), 1)
            order = np.argsort(-counts[:-1], kind="stable")[:_NAMED]
            told = ", ".join(f"{i} {self.classes[i]} {shares[i]:.3g} %" for i in sorted(order.tolist()) if counts[i])
            more = f"; {shares[-1]:.3g} % count nowhere" if counts[-1] else ""
            lines.append(f"pixels of {looked} {split} masks by class: {told}{more}")
            if split == "training" and (absent := [name for name, count in zip(self.classes, counts, strict=False) if not count]):
                lines.append(self._absent(absent, counts))
        size = f"{self.image_size} × {self.image_size} pixels to train on ({self.augment})"
        return [*lines, f"{size}; measured with a shorter side of {self.eval_size}, in windows of {self.window} every {self.stride}"]

    def _absent(self, absent: Sequence[str], counts: np.ndarray) -> str:
        """What is said of classes that no training mask has."""
        said = f"no pixel of {', '.join(absent[:_NAMED])}{', ...' * (len(absent) > _NAMED)} in the training masks that were looked at"
        found = np.flatnonzero(counts[:-1]).tolist()
        if counts[-1] and len(found) <= 1:
            said += f": their numbers are {', '.join(map(str, found))} and {IGNORE}, which counts nowhere; if it is a class: ids=0+{IGNORE}"
        return said

    def evaluator(self) -> SegmentationEvaluator:
        """What measures predicted classes."""
        return SegmentationEvaluator(self.num_classes, self.background)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, S, S]: the centre of the first validation picture, without random changes."""
        return _Squares(self._val, self, "none", told=False).__getitems__([Draw(0, 0)]).images

    def val_mask(self, index: int) -> np.ndarray:
        """The truth of a validation picture, uint8 [H, W]."""
        mask: np.ndarray = self._val.mask(index)
        return mask

    def _described(self) -> dict[str, Any]:
        windows = {"shorter": self.eval_size, "window": self.window, "stride": self.stride}
        transform = {**windows, "interpolation": "bilinear", "mean": list(self.mean), "std": list(self.std)}
        return {"image_size": self.image_size, "transform": transform, "background": self.background, "colours": self.source.colours}

    @property
    def _light(self) -> bool:
        return self.in_memory

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        return _Squares(images, self, self.augment, told=told) if training else _Wholes(images, self)

    def _prepared(self, images: Any) -> Any:
        return images  # kept by those who read them


def _reader(images: Images, data: SegmentationData) -> Kept[tuple[Tensor, np.ndarray | None]]:
    """Pictures and masks, decoded: uint8 [3, H, W] and [H, W], None for a mask where there are none."""

    def read(index: int) -> tuple[Tensor, np.ndarray | None]:
        pixels = pixels_of(images.image(index))
        return pixels, mask_of(images, index, (pixels.shape[1], pixels.shape[2]))

    return Kept(read, len(images), _MEMORY // max(1, data.workers) if data.in_memory else 0)


class _Squares(Dataset[Any]):
    """Batches of squares cut out of pictures, by their draws; with `told` each with what was drawn, see `transforms`."""

    def __init__(self, images: Images, data: SegmentationData, augment: str, *, told: bool) -> None:
        self.read, self.side, self.augment, self.told = _reader(images, data), data.image_size, augment, told
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        ids, seeds, views = np.array(draws, np.int64).T
        images, masks, crops, flips = [], [], [], []
        for index, random in zip(ids.tolist(), uniforms(seeds, 4), strict=True):
            pixels, mask_HW = self.read(index)
            size = int(pixels.shape[1]), int(pixels.shape[2])
            top, left, side = self._square(size, random)
            mirrored = self.augment != "none" and random[3] < 0.5
            cut = pixels[:, top : top + side, left : left + side]
            cut = cut if side == self.side else resize(cut, [self.side] * 2, antialias=True)
            images.append(cut.flip(-1) if mirrored else cut)
            nearest = ((np.arange(self.side) + 0.5) * side / self.side).astype(np.int64)
            mask = np.full((self.side, self.side), IGNORE, np.uint8) if mask_HW is None else mask_HW[np.ix_(top + nearest, left + nearest)]
            masks.append(torch.from_numpy(np.ascontiguousarray(mask[:, ::-1] if mirrored else mask)))
            crops.append((top / size[0], left / size[1], side / size[0], side / size[1]))
            flips.append(mirrored)
        pictures = (torch.stack(images).float() / 255 - self.mean) / self.std
        recorded = None if draws[0].view < 0 else torch.from_numpy(views.copy())
        batch = SegmentationBatch(pictures, torch.stack(masks), torch.from_numpy(ids.copy()), recorded)
        drawn: Parameters = {"crop": np.array(crops, np.float32), "flip": np.array(flips, bool)}
        return (batch, drawn) if self.told else batch

    def _square(self, size: tuple[int, int], random: np.ndarray) -> tuple[int, int, int]:
        """Top, left and side in pixels of what is cut out."""
        shorter = min(size)
        if self.augment == "crop":
            side = max(1, round(shorter * (_SMALLEST + (1 - _SMALLEST) * random[0])))
            return int(random[1] * (size[0] - side + 1)), int(random[2] * (size[1] - side + 1)), side
        side = shorter if size == (self.side, self.side) else max(1, round(_CENTRE * shorter))
        return (size[0] - side) // 2, (size[1] - side) // 2, side


class _Wholes(Dataset[Any]):
    """Batches of whole pictures, by their draws."""

    def __init__(self, images: Images, data: SegmentationData) -> None:
        self.read, self.shorter, self.window, self.stride = _reader(images, data), data.eval_size, data.window, data.stride
        self.mean, self.std = data.mean, data.std

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> WholeBatch:
        images, masks = [], []
        for draw in draws:
            pixels, mask_HW = self.read(draw.id)
            assert mask_HW is not None, "what is measured on has masks"
            images.append(prepared(pixels, self.shorter, self.mean, self.std))
            masks.append(torch.from_numpy(np.ascontiguousarray(mask_HW)))
        return WholeBatch(images, masks, torch.tensor([draw.id for draw in draws]), self.window, self.stride)
