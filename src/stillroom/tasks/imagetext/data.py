"""The data of an image-text run: batches of images, token ids and sample ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Loader
from stillroom.engine.task import Task
from stillroom.errors import InputError, at_least, one_of
from stillroom.modules.clip import ClipShape
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.clips import TEMPLATES, OpenedClip, filled
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.stores import MemoryImages, decodable, joined, taken
from stillroom.tasks.images.tokens import Tokenizer, learnt, read_tokenizer
from stillroom.tasks.images.transforms import PAIR_AUGMENTATIONS, describe_transform, train_transform, transform_from
from stillroom.tasks.imagetext.batches import PairBatches
from stillroom.tasks.imagetext.metrics import Classes, PairEvaluator
from stillroom.tasks.imagetext.sources import Captions, PairSource, ZeroShot, open_source, open_zero_shot

if TYPE_CHECKING:
    from typing_extensions import Self

_MEMORY = 0.5e9  # bytes of prepared images that are kept
_LOOKED_AT = 20_000  # captions whose length is looked at before a run


class ImageTextData(ImageSetData):
    """A training and a validation set of images, each with captions.

    The shorter side of an image is brought to the size and the centre cut out. In training each image has one of its captions, another one
    each time. Sets of up to 0.5 GB in that size stay in memory, unless crops are drawn of the images.

    Args:
        data: where the images are: ``compositions`` (drawn pictures of a shape, procedural data), ``pairs:FILE.csv`` (a table with a row
            for each image and caption, or a folder or zip with a pairs.csv in it), ``coco:IMAGES,CAPTIONS.json``, or
            ``webdataset:SHARDS`` (such as ``shard-{000..010}.tar``, samples of an image and a .txt); options follow after commas, e.g.
            ``pairs:shop.csv,text=title,val=0.1``.
        image_size: pixels of the images that the network is given; by default the model's that is read, the size of small images, or 224.
        augment: random changes of training images: ``crop90`` (of 90 to 100 % of the area), ``mirror`` or ``none``; by default crop90 for
            photographs, mirror for small pictures, none for drawn ones.
        tokenizer: a folder with a vocabulary (tokenizer.json, or vocab.json and merges.txt); by default that of the model that is read,
            else one is learnt from the training captions.
        vocabulary: tokens of one that is learnt.
        context: tokens of a caption at most; a longer one is cut.
        zero_shot: a folder or zip of classes of images that every model is scored on by its texts alone.
        templates: texts with ``{}`` in the place of a class's name, whose mean stands for the class.
        options: those of every task on images, see `ImageSetData`.

    Attributes:
        tokenizer: of the captions.
        like: the sizes of a model at hand that the data are read for; None for none.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]
    source: PairSource

    def __init__(
        self,
        data: str = "compositions",
        *,
        image_size: int | None = None,
        augment: str | None = None,
        tokenizer: str | None = None,
        vocabulary: int = 4096,
        context: int | None = None,
        zero_shot: str | None = None,
        templates: tuple[str, ...] = TEMPLATES,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, PAIR_AUGMENTATIONS)
        source = open_source(data)
        super().__init__(data, source, **options)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self._asked_size = image_size
        self._why = source.why if image_size is None else "as asked for"
        self.augment = augment or source.augment
        self.templates = tuple(templates)
        filled(self.templates, "")
        self.tokenizer, self._told = self._tokens(tokenizer, vocabulary, context)
        self.vocabulary = self.tokenizer.size
        self.like: ClipShape | None = None
        self._asked_tokenizer = tokenizer
        self._zero = self._zero_shot(zero_shot)
        self._captions = self._with_prompts()
        self._behind = None  # the classified images, whose captions are the prompts
        if self._zero is not None:
            numbers = np.arange(len(self._zero.images))
            self._behind = taken(self._zero.images, numbers, numbers + len(source.captions.groups))
        self._prepare()
        kept = tuple(map(len, self._listed))
        chosen = {"subset": self.subset, "val_subset": self.val_subset}
        parts = source.fingerprint, kept, self.image_size, self.augment, *chosen.values(), self.mean, self.std, self.subset_seed
        known = {"image_size": self.image_size, "augment": self.augment, **chosen, "subset_seed": self.subset_seed}
        zero = None if self._zero is None else (self._zero.classes, self._zero.images.names, self.templates)
        self._identify(*parts, self.tokenizer.fingerprint, zero, content=self._content, tokenizer=self.tokenizer.fingerprint, **known)

    def _tokens(self, asked: str | None, vocabulary: int, context: int | None) -> tuple[Tokenizer, str]:
        """The tokenizer, and what is said of it."""
        if asked is not None:
            named = read_tokenizer(Path(asked).expanduser(), 77 if context is None else context, "tokenizer")
            if named is None:
                raise InputError("tokenizer", asked, "a folder with tokenizer.json, or with vocab.json and merges.txt")
            return named, f"captions are read by the vocabulary of {asked}"
        if self.source.tokenizer is not None:
            rules = self.source.tokenizer
            own = rules if context is None else Tokenizer(rules.rules, context)
            return own, f"a token for each of the {len(rules.rules.get_vocab()) - 3} words of drawn captions"
        images = self._listed[0]
        texts = [self.source.captions.texts[i] for label in images.labels.tolist() for i in self.source.captions.groups[label].tolist()]
        found = learnt(texts, vocabulary, 32 if context is None else context)
        return found, f"no vocabulary is at hand: {found.size} byte pairs are learnt from the training captions"

    def _zero_shot(self, place: str | None) -> ZeroShot | None:
        if place is None:
            return None
        found = open_zero_shot(place)
        (kept,), names = decodable([found.images], strict=self.strict, argument="zero_shot")
        return replace(found, images=found.images.take(kept)) if names else found

    def _with_prompts(self) -> Captions:
        """The captions, and behind them the prompts, of which each classified image carries a share: so all are encoded once.

        Raises:
            InputError: a class whose name has words that the vocabulary does not have.
        """
        own = self.source.captions
        if self._zero is None:
            return own
        if strange := [name for name in self._zero.classes if not self.tokenizer.knows(name)]:
            got = f"{self._zero.classes.index(strange[0])}: {strange[0]!r} among the classes"
            raise InputError("zero_shot", got, "names whose words the tokenizer knows")
        prompts = [prompt for name in self._zero.classes for prompt in filled(self.templates, name)]
        shares = np.array_split(np.arange(len(own.texts), len(own.texts) + len(prompts)), len(self._zero.images))
        return Captions((*own.texts, *prompts), (*own.groups, *shares))

    def _prepare(self) -> None:
        """Sets the transforms, and whether images stay in memory, for the present size and statistics."""
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = transform_from(self._described()["transform"])
        self.in_memory = self._train_transform.fixed and 3 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY

    # Of the model that is read -----------------------------------------------------------------------------------------------------------

    def as_read_by(self, opened: OpenedClip) -> Self:
        """The same pairs as a model at hand reads them: its tokens, its size of images, its statistics.

        Raises:
            InputError: another size or vocabulary was asked for, or the model has no tokenizer and none is named.
        """
        shape = opened.clip.shape
        if self._asked_size not in (None, shape.image_size):
            raise InputError("image_size", self._asked_size, f"the {shape.image_size} pixels that {opened.source} reads, or none")
        tokenizer = self.tokenizer if self._asked_tokenizer is not None else opened.tokenizer
        if tokenizer is None:
            raise InputError("tokenizer", f"nothing for {opened.source}, which has none", "a folder with its vocabulary")
        if tokenizer.size > shape.vocabulary or tokenizer.end != shape.end:
            got = f"{tokenizer.size} tokens, the end is {tokenizer.end}"
            raise InputError("tokenizer", got, f"that of {opened.source}: {shape.vocabulary} tokens, the end is {shape.end}")
        if tokenizer.context != shape.context:
            tokenizer = Tokenizer(tokenizer.rules, shape.context)
        described = ("read by", tokenizer.fingerprint, shape.image_size, opened.mean, opened.std)
        told = f"captions are read by the vocabulary of {opened.source}"
        changes: dict[str, Any] = {"tokenizer": tokenizer, "vocabulary": shape.vocabulary, "like": shape, "image_size": shape.image_size}
        changes |= {"mean": opened.mean, "std": opened.std, "_decoded": {}}
        derived = self.derive(described, _why=f"the size that {opened.source} reads", _told=told, **changes)
        derived._captions = derived._with_prompts()
        derived._prepare()
        return derived

    def first(self, count: int) -> Self:
        """The same data, of which training shows only so many images, always the same: for phases that are shorter than an epoch."""
        images = self._shown[0]
        chosen = self._chosen(images, "count", min(count, len(images)))
        return self.derive(("only", count), train=self._taken(images, chosen))

    def clip_shape(self, shape: ClipShape) -> ClipShape:
        """A model's sizes, with those that these data ask for: images, vocabulary, context, end; and what a model that is read has besides.

        Raises:
            InputError: its patches do not fill the images.
        """
        if self.like is not None:
            shape = replace(shape, activation=self.like.activation, norm_eps=self.like.norm_eps)
        tokens = self.tokenizer
        return replace(shape, image_size=self.image_size, vocabulary=self.vocabulary, context=tokens.context, end=tokens.end)

    # What is said ------------------------------------------------------------------------------------------------------------------------

    def first_lines(self) -> list[str]:
        """How many pairs there are, and how they are read; that they are drawn, where they are."""
        train, val = self._listed
        captions = [sum(len(self._captions.groups[label]) for label in images.labels.tolist()) for images in (train, val)]
        drawn = "procedural data, nothing of it is real: " if self.source.drawn else ""
        first = f"{drawn}{len(train)} training + {len(val)} validation images with {captions[0]} + {captions[1]} captions"
        cut = sum(self.tokenizer.is_cut(text) for text in self.source.captions.texts[:_LOOKED_AT])
        steps = f"{max(1, len(train) // self.batch_size)} steps of {min(self.batch_size, len(train))} images are an epoch"
        lines = [first, f"{self.image_size} × {self.image_size} pixels: {self._why}", self._told, steps]
        if cut:
            lines.append(f"{cut} captions have more than the {self.tokenizer.context} tokens of the context and are cut at their ends")
        if repeated := self._repeated():
            lines.append(f"{repeated} validation images share their caption with another one: any of these counts as found")
        if self._zero is not None:
            count, classes = len(self._zero.images), len(self._zero.classes)
            lines.append(f"zero-shot: {count} images of {classes} classes by {len(self.templates)} templates, e.g. {self.templates[0]!r}")
        return [*lines, *self._met()]

    def _repeated(self) -> int:
        groups = [self._captions.groups[label].tolist() for label in self._listed[1].labels.tolist()]
        times = Counter(text for group in groups for text in group)
        return sum(any(times[text] > 1 for text in group) for group in groups)

    def caption(self, text: int) -> str:
        """A validation text, as the evaluator numbers it."""
        return self._captions.texts[self._val_texts()[text]]

    def captions_of(self, image: int) -> list[str]:
        """Those of a validation image."""
        return [self._captions.texts[text] for text in self._captions.groups[self._shown[1].labels[image]].tolist()]

    @property
    def zero_shot(self) -> ZeroShot | None:
        """What models are scored on by words alone."""
        return self._zero

    # Batches -----------------------------------------------------------------------------------------------------------------------------

    def evaluator(self) -> PairEvaluator:
        """What measures a network on these pairs."""
        place = {text: number for number, text in enumerate(self._val_texts().tolist())}
        groups = [self._captions.groups[label].tolist() for label in self._shown[1].labels.tolist()]
        own = [np.array([place[text] for text in group], np.int64) for group in groups]
        if self._zero is None:
            return PairEvaluator(own, len(place))
        count = len(self._zero.classes) * len(self.templates)
        prompts = np.arange(len(place), len(place) + count).reshape(len(self._zero.classes), -1)
        return PairEvaluator(own, len(place), Classes(self._zero.images.labels, prompts))

    def _val_texts(self) -> np.ndarray:
        """Which of the texts the validation images have, sorted: the evaluator's numbers are places among them, prompts are behind."""
        return np.unique(np.concatenate([self._captions.groups[label] for label in self._shown[1].labels.tolist()]))

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, then the classified ones, each exactly once over all processes."""
        images = self._val
        if self._behind is not None:
            images = joined(images, self._decode(self._behind))
        return self._eval_loader(images, rank, world)

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        transform = self._train_transform if training else self._eval_transform
        prepared = self.in_memory and transform.fixed and isinstance(images, MemoryImages)
        pictures = Batches(images, transform, prepared=prepared, told=False)
        return PairBatches(pictures, self._captions, self.tokenizer, training=training)

    def example_inputs(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """A batch of one: the first validation image [1, 3, H, W] and its first caption [1, T]."""
        images: Tensor = super().example_inputs()
        return images, self.tokenizer(self.captions_of(0)[:1])

    def _described(self) -> dict[str, Any]:
        transform = {**describe_transform("none", self.image_size, self.mean, self.std), "interpolation": "bicubic"}
        return {"image_size": self.image_size, "transform": transform}
