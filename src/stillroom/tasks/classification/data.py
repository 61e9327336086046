"""The data of a classification run: batches of images, labels and sample ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.classification.metrics import ClassificationEvaluator
from stillroom.tasks.classification.subsets import Hardship, make_harder, read_hardship, restricted
from stillroom.tasks.images.arguments import renormalisation, sides
from stillroom.tasks.images.classified import SMALL, open_source
from stillroom.tasks.images.data import NAMED, ImageSetData, hashed
from stillroom.tasks.images.sources import LabelledSource
from stillroom.tasks.images.stores import Images, joined, stratified
from stillroom.tasks.images.transforms import AUGMENTATIONS, BatchChange, Transform, describe_transform, eval_transform, train_transform
from stillroom.tasks.images.unlabelled import NO_LABEL, open_unlabelled, read_unlabelled, readable

if TYPE_CHECKING:
    from typing_extensions import Self

_MEMORY = 1.5e9  # bytes of decoded images that are kept


class ImageData(ImageSetData):
    """A training and a validation set of classified images.

    Small images (up to 64 pixels, up to 1.5 GB decoded) are decoded once, when a loader or the labels are first asked for, and stay in
    memory. Everything else is read from its files, by worker processes, in every epoch.

    Image files are looked at when the data are opened (see `stores.unreadable`). Those that cannot be decoded are left out, with one
    warning; the others are numbered without them, and the fingerprint tells sets with other files left out apart.

    Args:
        data: where the images are: ``digits`` (small, comes with scikit-learn), ``shapes`` (60 classes of drawn pictures),
            ``imagefolder:PATH[,val=0.2]`` (folder, zip or tar, one folder per class; ``,labels=FILE[:COLUMN]`` for labels by a table),
            ``csv:FILE[,image=COLUMN,label=COLUMN,root=FOLDER]`` (or JSON lines), ``webdataset:SHARDS``, ``parquet:FILE_OR_FOLDER``,
            ``hf:FOLDER``, ``cifar10:PATH``, ``cifar100:PATH``, ``tiny-imagenet:PATH``, ``imagenet:PATH``, or
            ``package.module:function`` or ``file.py:function`` returning (train, val).
            Behind any of them ``,imbalance=exp:100`` (or step, reverse) trains on a long tail, with ``,largest=500`` images of its largest
            class, and ``,noise=0.2`` with wrong labels; ``,unlabelled=FOLDER`` adds images that nobody labelled (a folder or zip, or
            other data whose labels are forgotten): what a teacher says of them is learnt too.
        image_size: pixels of the images that the network is given; height and width; by default the data's own, or 224.
        augment: random changes of training images: ``cifar``, ``tiny-imagenet``, ``imagenet``, ``digits`` or ``none``; by default what
            suits the data.
        teacher_image_size: pixels of the images that the teacher is given, for one that was trained at another size: the student's very
            crop, resized; a number, or height and width such as ``[224, 160]``; by default the student's.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: LabelledSource

    def __init__(
        self,
        data: str = "digits",
        *,
        image_size: int | None = None,
        augment: str | None = None,
        teacher_image_size: int | tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        spec, pile = read_unlabelled(data)
        spec, self.hardship = read_hardship(spec)
        hardship, source = self.hardship, open_source(spec)
        super().__init__(data, source, **options)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self._why = source.why if image_size is None else "as asked for"
        self.input_shape = (3, self.image_size, self.image_size)
        self.augment = augment or source.augment
        content = source.fingerprint
        if self.left_out:
            self._check_classes()
            content = hashed(repr((content, self.left_out)))
        if hardship:
            content = hashed(repr((content, hardship)))
            self._make_harder(hardship)
        # Evaluation prepares images as training does, except that "none" says nothing about it.
        self._style = source.augment if self.augment == "none" else self.augment
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = eval_transform(self._style, self.image_size, self.mean, self.std)
        small = self.image_size <= SMALL and 3 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY
        self.in_memory = small and self._style != "imagenet"  # whose crops are cut from the original image
        chosen = {"subset": self.subset, "val_subset": self.val_subset}
        parts = content, self.image_size, self.augment, *chosen.values(), self.mean, self.std, self.subset_seed
        known = {"image_size": self.image_size, "augment": self.augment, **chosen, "subset_seed": self.subset_seed}
        self._identify(*parts, content=content, **known)
        self._pile = None if pile is None else self._opened_pile(pile)
        self.unlabelled = 0 if self._pile is None else len(self._pile[0])  # images behind the training set's
        self.teacher_image_size = None if teacher_image_size is None else sides("teacher_image_size", teacher_image_size)
        if self.teacher_image_size is not None:  # else fingerprints and caches are those from before there was this option
            typed = self.teacher_mean, self.teacher_std
            self.renormalise = renormalisation((self.mean, self.std), *typed, size=self.teacher_image_size)
            self.cache_key = {**self.cache_key, "teacher_image_size": list(self.teacher_image_size)}

    def restricted(
        self,
        *,
        train: np.ndarray | Tensor | None = None,
        val: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        classes: Sequence[int] | None = None,
        name: str = "train",
    ) -> Self:
        """The same data with fewer images, other training labels or fewer classes. Batch ids number the images that are left.

        `classes` comes first: images of other classes are left out, and class k is `classes[k]` from then on. `train`, `val` and `labels`
        are of what it leaves.

        Args:
            train, val: indices of the images to keep, int64 [M], in the order that they will be numbered in.
            labels: of the training images that are kept, int64 [M]: pseudo-labels, for example.
            classes: numbers of the classes to keep, in their new order.
            name: what the kept training images are called in `indices`, which is written into the folder of each stage.

        Raises:
            InputError: an index or a class that there is not, or an image without a label of its own.
        """
        (images, kept), (val_images, _) = restricted(
            self._train, self._val, self.num_classes, train=train, val=val, labels=labels, classes=classes
        )
        left = self.classes if classes is None else tuple(self.classes[number] for number in classes)
        origin = self.indices.get(name)
        indices = {**self.indices, name: kept if origin is None else origin[kept]}
        given = [None if array is None else np.asarray(array).tobytes() for array in (train, val, labels)]
        described = "restricted", str(given), str(classes)
        return self.derive(described, train=images, val=val_images, indices=indices, classes=left, num_classes=len(left))

    def joined(self, images: Images, said: str) -> Self:
        """The same data with more training images behind its own.

        Args:
            images: whose labels are classes of this data; any of them stands for images without labels, which a method must not read.
            said: what tells these images from others in the data's fingerprint.
        """
        return self.derive(("joined", said), train=joined(self._train, self._prepared(images)))

    def without_augmentation(self) -> Self:
        """The same data, but that training shows its images as evaluation does."""
        return self if self.augment == "none" else self.derive("as evaluated", augment="none", _train_transform=self._eval_transform)

    def changed_by(self, change: BatchChange, said: str) -> Self:
        """The same data, but that training brings images to their size as evaluation does, and changes them like this.

        Args:
            change: of whole batches, before they are normalised.
            said: what tells this change from others in the data's fingerprint.
        """
        changed = Transform(self._eval_transform.each, self.mean, self.std, together=change)
        return self.derive(("changed by", said), _train_transform=changed)

    def with_unlabelled(self) -> Self:
        """The same data with the images that nobody labelled behind the training images; their label is -1."""
        if self._pile is None:
            return self
        images, said = self._pile
        key = {**self.cache_key, "unlabelled": said}
        return self.derive(("unlabelled", said), train=joined(self._train, self._prepared(images)), unlabelled=0, _pile=None, cache_key=key)

    def as_long(self) -> Self:
        """The same data with its training images again and again, until they are as many as with those that nobody labelled.

        What a student without a teacher trains on, so that it takes as many steps.
        """
        if not self.unlabelled:
            return self
        again = np.arange(self.train_size + self.unlabelled) % self.train_size
        return self.restricted(train=again).derive("as long", unlabelled=0, _pile=None)

    def _opened_pile(self, spec: str) -> tuple[Images, str]:
        """Images without labels that can be decoded, and what tells them from others."""
        try:
            images, said = open_unlabelled(spec, NO_LABEL)
            return readable(images, strict=self.strict), said
        except InputError as error:
            raise InputError("data", f"unlabelled={error.got}", error.expected) from None

    @property
    def train_labels(self) -> Tensor:
        """Label of each training image, int64 [N]; batch ids index it."""
        return torch.from_numpy(self._train.labels)

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class, int64 [C]."""
        return torch.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def val_labels(self) -> Tensor:
        """Label of each validation image, int64 [N]."""
        return torch.from_numpy(self._val.labels)

    def evaluator(self) -> ClassificationEvaluator:
        """What measures a network on these classes."""
        return ClassificationEvaluator(self.num_classes)

    def _described(self) -> dict[str, Any]:
        transform = describe_transform(self._style, self.image_size, self.mean, self.std)
        return {"image_size": self.image_size, "transform": transform}

    def _chosen(self, images: Images, argument: str, count: int) -> np.ndarray:
        if not self.num_classes <= count <= len(images):
            raise InputError(argument, count, f"a number from {self.num_classes} (one of each class) to {len(images)} (all there are)")
        return stratified(images.labels, count, seed=self.subset_seed)

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation images of each class, int64 [C] both, as the data were opened."""
        train_C, val_C = (np.bincount(images.labels, minlength=self.num_classes) for images in self._listed)
        return train_C, val_C

    def first_lines(self) -> list[str]:
        """Counts of each class in each split, the size and why, and what was met."""
        train_C, val_C = self.listed_counts()
        more = len(self.classes) > NAMED
        if train_C.min() == train_C.max() and val_C.min() == val_C.max():
            shown = f"{', '.join(self.classes[:NAMED])}{', ...' if more else ''} ({train_C[0]} + {val_C[0]} of each)"
        else:
            named = zip(self.classes[:NAMED], train_C, val_C, strict=False)
            shown = ", ".join(f"{name} ({train} + {val})" for name, train, val in named)
            spread = f"{train_C.min()} to {train_C.max()} training and {val_C.min()} to {val_C.max()} validation images of a class"
            shown += f", ... ({spread})" if more else ""
        first = f"{train_C.sum()} training + {val_C.sum()} validation images of {self.num_classes} classes: {shown}"
        size = f"{self.image_size} × {self.image_size} pixels: {self._why}"
        return [first, size, *self._met()]

    def _met(self) -> list[str]:
        train_C, val_C = self.listed_counts()
        met = super()._met()
        unknown = [name for name, train, val in zip(self.classes, train_C, val_C, strict=True) if val and not train]
        unseen = [name for name, train, val in zip(self.classes, train_C, val_C, strict=True) if not val and not train]
        unasked = [name for name, train, val in zip(self.classes, train_C, val_C, strict=True) if train and not val]
        if unseen == ["0"] and self.classes[0] == "0":
            met.append("labels start at 1: class 0 has no image, and takes one of a network's answers")
        elif unseen:
            met.append(f"classes without any image: {_few(unseen)}")
        if unknown:
            met.append(f"classes with validation images that no training image shows, which cannot be learnt: {_few(unknown)}")
        if unasked:
            met.append(f"classes without a validation image, which are learnt and not measured: {_few(unasked)}")
        if self.unlabelled:
            met.append(
                f"{self.unlabelled} images without labels: a student learns what its teacher says of them, or what it is sure of itself; "
                "one that learns from labels alone sees its labelled images again instead, so that all take as many steps"
            )
        if self.hardship.imbalance is not None:
            met.append(f"a long tail is trained on, as asked for: {train_C.sum()} of {len(self.source.train)} training images")
        if "wrong labels" in self.indices:
            met.append(f"{len(self.indices['wrong labels'])} training images have a wrong label, as asked for")
        return met

    def _check_classes(self) -> None:
        """Every class that has files has one that can be decoded."""
        listed = self.source.train, self.source.val
        for images, whole, split in zip(self._listed, listed, ("training", "validation"), strict=True):
            counts, files = (np.bincount(one.labels, minlength=self.num_classes) for one in (images, whole))
            if empty := [name for name, count, there in zip(self.classes, counts, files, strict=True) if there and not count]:
                raise InputError("data", f"no readable {split} image of {', '.join(empty[:5])}", "at least one of each class")

    def _make_harder(self, hardship: Hardship) -> None:
        """Trains on a long tail or with wrong labels."""
        try:
            images, indices = make_harder(self._listed[0], self.num_classes, hardship, seed=self.subset_seed)
        except InputError as error:
            raise InputError("data", f"{error.argument}={error.got}", error.expected) from None
        if "train" in self.indices and "train" in indices:
            indices["train"] = self.indices["train"][indices["train"]]
        self.indices.update(indices)
        self._listed = self._shown = (images, self._listed[1])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
