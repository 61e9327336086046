"""ImageSetData: what the data of every task on images have in common, and the one way to derive changed data from others."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.cache import EveryView, ReplayedBatches, Views
from stillroom.engine.loading import Loader, SeekableBatches, identity, sample_order
from stillroom.engine.task import Task
from stillroom.errors import InputError, at_least
from stillroom.tasks.images.arguments import cpus, renormalisation, statistics
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.folders import counted, printable
from stillroom.tasks.images.sources import Source
from stillroom.tasks.images.stores import Images, MemoryImages, decodable, into_memory, several_frames, taken
from stillroom.tasks.images.transforms import Transform
from stillroom.tasks.images.views import Others, PairedBatches, Shown, View, ViewBatches

if TYPE_CHECKING:
    from typing_extensions import Self

    from stillroom.engine.run.recorder import Evaluator

_SPLITS = (("train", "training"), ("val", "validation"))
NAMED = 20  # classes that a run's first lines name one by one


class ImageSetData(ABC):
    """Base of a task's data: a training and a validation set of images, thinned out, without damaged files, in batches.

    A task's class opens its source and hands it to this constructor with the options that it shares with every other task. Then it sets
    `image_size`, `in_memory` and its two transforms, and says what its data are known by (`_known_by`). It defines `evaluator` and
    `_described`; one that shows its images in a way of its own overrides what it must of `_samples`, `_prepared`, `_chosen`, `_taken`.

    What is set or found here is never changed afterwards: data that show something else are derived (`derive`).

    Args:
        data: what was typed.
        source: what it opened.
        batch_size: images in a batch, of all processes together.
        workers: processes that read images ahead; by default none for images in memory that are little changed, else up to 4.
        subset: train on this many images only, drawn evenly from the classes where each image has one; by default on all.
        val_subset: validate on this many images only, likewise.
        subset_seed: which images the subsets, and whatever else is drawn of the data, are.
        mean: of each channel, for pixels in [0, 1], e.g. ``[0.5, 0.5, 0.5]``; by default what suits the data.
        std: standard deviation of each channel, likewise.
        teacher_mean: the mean that the teacher was trained with, where it is another than the student's; by default, of a classifier with
            weights, what its own configuration says.
        teacher_std: the teacher's standard deviation, likewise.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise, with one warning.

    Attributes:
        classes: names of the classes or labels, in the order of a network's answers.
        indices: which images of the source these are, of a subset for example; int64 arrays by what they are called.
        left_out: names of the files that cannot be decoded.
        animated: names of the files with several pictures, of which the first is read.
        views: of training images that are shown, and no others; None for ever new ones.
        training_shown: the several views in which batches show each training image (`in_views`); None for one.
        in_memory: the images are decoded once, when they are first asked for.
        fingerprint: changes when what is shown does; not with batch size or workers.
        cache_key: what a teacher's answer to a training image depends on, by names that a user knows.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]  # set by the task's own module, which imports this one
    image_size: int
    in_memory: bool
    fingerprint: str
    cache_key: dict[str, Any]
    training_shown: Shown | None = None
    _train_transform: Transform
    _eval_transform: Transform
    _evaluated_in: int | None = None  # images of a batch of evaluation; by default as many as in training

    def __init__(
        self,
        data: str,
        source: Source,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        subset: int | None = None,
        val_subset: int | None = None,
        subset_seed: int = 0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        teacher_mean: tuple[float, float, float] | None = None,
        teacher_std: tuple[float, float, float] | None = None,
        strict: bool = False,
    ) -> None:
        self.data, self.source = data, source
        self.batch_size = at_least("batch_size", batch_size, 1)
        self._workers = None if workers is None else at_least("workers", workers, 0)
        self.subset, self.val_subset, self.subset_seed, self.strict = subset, val_subset, subset_seed, strict
        self.mean, self.std = statistics(mean, std, (source.mean, source.std))
        self.teacher_mean, self.teacher_std = teacher_mean, teacher_std
        self.renormalise = renormalisation((self.mean, self.std), teacher_mean, teacher_std)
        self.classes: tuple[str, ...] = source.classes
        self.num_classes = len(self.classes)
        self.views: Views | None = None
        self.indices: dict[str, np.ndarray] = {}
        self._listed = self._opened()
        self._shown = self._listed
        self._decoded: dict[int, tuple[Any, Any]] = {}  # what was listed, and decoded from it; one for all data that are derived from these

    def _opened(self) -> tuple[Any, Any]:
        """Training and validation images of the source: those that were asked for and can be decoded."""
        listed = []
        for (split, _), argument, count in zip(_SPLITS, ("subset", "val_subset"), (self.subset, self.val_subset), strict=True):
            images = getattr(self.source, split)
            if count is not None:
                self.indices[split] = self._chosen(images, argument, count)
                images = self._taken(images, self.indices[split])
            listed.append(images)
        kept, self.left_out = decodable(listed, strict=self.strict, argument="data")
        if self.left_out:
            for number, (split, said) in enumerate(_SPLITS):
                listed[number] = self._taken(listed[number], kept[number])
                if split in self.indices:
                    self.indices[split] = self.indices[split][kept[number]]
                if not len(kept[number]):
                    raise InputError("data", f"no readable {said} image", "at least one")
        self.animated = several_frames(listed)
        return listed[0], listed[1]

    def first_lines(self) -> list[str]:
        """What is said of the data before anything is trained, and in the report: how many there are of what, and what was met."""
        train, val = map(len, self._listed)
        one = self.num_classes == 1
        names = f"{', '.join(self.classes[:NAMED])}{', ...' if self.num_classes > NAMED else ''}"
        return [f"{train} training + {val} validation images of {self.num_classes} class{'' if one else 'es'}: {names}", *self._met()]

    def _met(self) -> list[str]:
        """What was found on the way to the images; sentences without a full stop."""
        met = list(self.source.said)
        if self.left_out:
            met.append(f"left out {counted(self.left_out)}")
        if self.animated:
            one = len(self.animated) == 1
            files = f"{len(self.animated)} file{'' if one else 's'} with several pictures, the first {printable(self.animated[0])}"
            met.append(f"{files}: the first picture of {'it' if one else 'each'} is read")
        return met

    # What other data are made by ---------------------------------------------------------------------------------------------------

    def derive(self, described: str | tuple[Any, ...], *, train: Any = None, val: Any = None, **changes: Any) -> Self:
        """The same data but for what is given, with a fingerprint and a cache key of their own: the one way to changed data.

        Args:
            described: what tells this change from every other one: a text, or values of which `repr` tells them apart.
            train, val: images in the place of those that are shown; batch ids number them.
            changes: other attributes and their values; a `cache_key` among them where a teacher's answers tell more, or less, than the
                fingerprint.
        """
        derived = copy.copy(self)
        derived._shown = (self._shown[0] if train is None else train, self._shown[1] if val is None else val)
        if isinstance(described, str):
            derived._rehash(f"{self.fingerprint} {described}")
        else:
            derived._mark(*described)
        vars(derived).update(changes)
        return derived

    def replaying(self, views: Views) -> Self:
        """The same data, but that training shows these views of its images and no others; its batches say which."""
        return self.derive((views,), views=views, cache_key=self.cache_key)

    def in_views(self, *views: View, said: str, others: Others | None = None, of_other: tuple[int, ...] = (1,)) -> Self:
        """The same data, but that training batches show every image in each of these views (`ViewBatch`).

        Args:
            views: how images are changed and prepared: transforms, or functions of one image to a normalised tensor; sizes may differ.
            said: what tells these views from others in the data's fingerprint.
            others: which training image stands in each one's place in some of the views, asked batch by batch (see `PairedBatches`).
                It is no part of the fingerprint.
            of_other: numbers of those views.
        """
        return self.derive(("views", said), training_shown=Shown(views, others, of_other if others is not None else ()))

    def for_teacher(self) -> Self:
        """The same data with the images that the source has for training a teacher, where it has others: of made-up images mostly more."""
        if self.source.teacher is None:
            return self
        return self.derive("teacher", train=self.source.teacher, indices=self._indices_but_train())

    def in_batches_of(self, count: int) -> Self:
        """The same data, trained on in batches of another size, and evaluated as before; neither is a part of what they are known by."""
        derived = copy.copy(self)
        derived._evaluated_in = self._evaluated_in or self.batch_size
        derived.batch_size = at_least("batch_size", count, 1)
        return derived

    def holding_out(self, share: float) -> Self:
        """The same data with a share of the training images as validation images, and without those that were: for a search, whose result
        the validation set is to judge.

        Raises:
            InputError: a share that leaves one of the two without images.
        """
        shown = self._shown[0]
        count = round(share * len(shown))
        if not 0 < share < 1 or not 0 < count < len(shown):
            raise InputError("held_out", share, "a share of the training images, above 0 and below 1, that leaves some for both")
        held = self._chosen(shown, "held_out", count)
        rest = np.setdiff1d(np.arange(len(shown)), held)
        indices = self.indices.get("train", np.arange(len(shown)))
        split = {"train": indices[rest], "held out": indices[held]} if len(indices) == len(shown) else {}
        return self.derive(("held out", share), train=self._taken(shown, rest), val=self._taken(shown, held), indices=split)

    def _indices_but_train(self) -> dict[str, np.ndarray]:
        return {split: indices for split, indices in self.indices.items() if split != "train"}

    def _mark(self, *described: Any) -> None:
        """Makes the fingerprint that of other data; for constructors, which have further arguments of their own."""
        self._rehash(repr((self.fingerprint, *described)))

    def _rehash(self, text: str) -> None:
        self.fingerprint = hashed(text)
        self.cache_key = {**self.cache_key, "restricted": self.fingerprint}

    def _identify(self, *parts: Any, content: str, **options: Any) -> None:
        """Sets the fingerprint, over `parts`, and the cache key: of the images, of options by their names, and of the statistics.

        Args:
            parts: in an order that must stay: fingerprints lie on people's disks.
            content: hash of the images.
            options: that a teacher's answers depend on.
        """
        self.fingerprint = hashed(repr(parts))
        renormalise = self.renormalise
        self.cache_key = {
            "data": content,
            **options,
            "mean": list(self.mean),
            "std": list(self.std),
            "teacher_mean": None if renormalise is None else list(renormalise.to_mean),
            "teacher_std": None if renormalise is None else list(renormalise.to_std),
        }

    @property
    def _subsets(self) -> dict[str, Any]:
        """Which of the source's images these are, by the options that say so."""
        return {"subset": self.subset, "val_subset": self.val_subset, "subset_seed": self.subset_seed}

    @property
    def _content(self) -> str:
        """Hash of the images that can be read."""
        return hashed(repr((self.source.fingerprint, self.left_out))) if self.left_out else self.source.fingerprint

    def _known_by(self, options: Mapping[str, Any], *measured: Any, content: str | None = None) -> None:
        """`_identify` for tasks of which no older fingerprints lie on disks: of the images, of options, and of which images they are.

        Args:
            options: that a teacher's answers depend on, by their names.
            measured: values that only evaluation depends on, in an order that must stay.
            content: hash of the images, where it is another than that of the source without what cannot be read.
        """
        content = self._content if content is None else content
        parts = content, *options.values(), *measured, *self._subsets.values(), self.mean, self.std
        self._identify(*parts, content=content, **options, **self._subsets)

    # Batches -----------------------------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """Processes that read images ahead."""
        if self._workers is not None:
            return self._workers
        return 0 if self._light else min(4, cpus())

    @property
    def _light(self) -> bool:
        """Whether there is so little to do for each image that processes of their own would not pay."""
        return self.in_memory and self._train_transform.fixed

    @property
    def train_size(self) -> int:
        """N, images to train on."""
        return len(self._train)

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1, drop_last: bool = True) -> Loader:
        """Shuffled, randomly changed batches of `batch_size / world` images.

        A set smaller than one batch is one batch, of as many images as can be shared evenly by the processes.

        Args:
            seed: of the order and the changes.
            rank, world: this process and how many there are.
            drop_last: leave out a short last batch; else one of two images or more is kept.
        """
        count = len(self._train)
        if count < world:
            raise InputError("data", f"{count} training images", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = self._order(count, batch_size, seed=seed, rank=rank, world=world, drop_last=drop_last)
        return self._loader(self._samples(self._train, training=True), batches)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, each exactly once over all processes."""
        return self._eval_loader(self._val, rank, world)

    def train_eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training images in order and without random changes, each exactly once over all processes."""
        return self._eval_loader(self._train, rank, world)

    def every_view(self, views: Views, *, batch_size: int, start: int = 0) -> Loader:
        """Every view of every training image once, in the order of `EveryView`, from batch number `start` on.

        Its batches are pairs: a batch, and what was drawn for each of its images (`transforms.Parameters`).
        """
        batches = EveryView(len(self._train), batch_size, views=views)
        loader = self._loader(self._samples(self._train, training=True, told=True), batches, training=False)
        loader.load_state_dict({"epoch": 0, "batch": start})
        return loader

    def _order(self, count: int, batch_size: int, *, seed: int, rank: int, world: int, drop_last: bool) -> SeekableBatches:
        """Which images the batches of training show."""
        if self.views is not None:
            return ReplayedBatches(count, batch_size, views=self.views, seed=seed, rank=rank, world=world)
        options: dict[str, Any] = {"seed": seed, "drop_last": drop_last, "least": 2, "rank": rank, "world": world}
        if self.training_shown is not None and self.training_shown.others is not None:
            return PairedBatches(count, batch_size, self.training_shown.others, **options)
        return SeekableBatches(count, batch_size, **options)

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        """Images as training or evaluation shows them, in whole batches by their draws; `told`, each with what was drawn."""
        if training and self.training_shown is not None and not told:
            return ViewBatches(images, self.training_shown, fitted=self.in_memory and self._train_transform.fixed)
        transform = self._train_transform if training else self._eval_transform
        return Batches(images, transform, prepared=self.in_memory and transform.fixed, told=told)

    def _eval_loader(self, images: Any, rank: int, world: int) -> Loader:
        batches = SeekableBatches(
            len(images), self._evaluated_in or self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world
        )
        return self._loader(self._samples(images, training=False), batches, training=False)

    def _loader(self, samples: Dataset[Any], batches: SeekableBatches, *, training: bool = True) -> Loader:
        return Loader(samples, batches, workers=self.workers, collate=identity, training=training)

    # Images ------------------------------------------------------------------------------------------------------------------------

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation image."""
        return self._eval_transform(self._val.image(0))[None]

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on these data: classes, and how images are prepared; plain values."""
        return {"source": self.data, "classes": list(self.classes), **self._described(), "fingerprint": self.fingerprint}

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """What scores a student's answers."""

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """How images are prepared for evaluation, and what else the task must know; plain values."""

    def val_image(self, index: int) -> Image.Image:
        """A validation image for people to look at."""
        image = self._val.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    def train_name(self, index: int) -> str:
        """Where a training image comes from."""
        return str(self._train.name(index))

    def val_name(self, index: int) -> str:
        """Where a validation image comes from."""
        return str(self._val.name(index))

    @property
    def _train(self) -> Any:
        """The training images that are shown; decoded, if they stay in memory."""
        return self._decode(self._shown[0])

    @property
    def _val(self) -> Any:
        """The validation images, likewise."""
        return self._decode(self._shown[1])

    def _decode(self, images: Any) -> Any:
        if id(images) not in self._decoded:
            prepared = self._prepared(images)
            if prepared is images:
                return images
            self._decoded[id(images)] = images, prepared  # who is known by its id must stay alive
        return self._decoded[id(images)][1]

    def _prepared(self, images: Any) -> Any:
        """Images in the size that networks are given, in memory, if they are to stay there; else as they are."""
        size = self.image_size, self.image_size
        if not self.in_memory or (isinstance(images, MemoryImages) and images.pixels.shape[-2:] == size):
            return images
        return into_memory(images, self.image_size, lambda image: self._eval_transform.prepare(image)[0], strict=self.strict)

    def _chosen(self, images: Any, argument: str, count: int) -> np.ndarray:
        """Which images a subset is: so many, drawn at random; indices, sorted."""
        if not 1 <= count <= len(images):
            raise InputError(argument, count, f"a number from 1 to {len(images)} (all there are)")
        return np.sort(sample_order(self.subset_seed, 0, len(images))[:count])

    def _taken(self, images: Images, indices: np.ndarray) -> Any:
        """Some of the images, renumbered from 0."""
        return taken(images, indices)


def hashed(text: str) -> str:
    """What data are known by: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
