"""PointSetData: what the data of every task on points have in common."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from stillroom.engine.distributed import rank
from stillroom.engine.loading import Draw, Loader, SeekableBatches, identity, sample_order
from stillroom.engine.task import Task
from stillroom.errors import InputError, at_least
from stillroom.tasks.images.data import hashed
from stillroom.tasks.points.augment import BevAugment, ImageAugment, ObjectBank, moved
from stillroom.tasks.points.frames import Frame, FrameBatch, FrameInputs, cleaned, collate
from stillroom.tasks.points.sources import Frames, FrameSource, Notes

if TYPE_CHECKING:
    from typing_extensions import Self

    from stillroom.engine.run.recorder import Evaluator

logger = logging.getLogger(__name__)
_MEMORY = 1_000_000_000  # bytes of frames that are kept


class PointSetData(ABC):
    """Base of a task's data: a training and a validation set of frames, in batches.

    A task's class opens its source and hands it to this constructor, then says what its data are known by (`_identify`). It defines
    `evaluator` and `_described`. What is set here is never changed afterwards: data that show something else are derived (`derive`).

    Args:
        data: what was typed.
        source: what it opened.
        batch_size: images in a batch (frames here), of all processes together.
        workers: processes that read images ahead (frames here); by default none.
        subset: train on this many images only (frames here), drawn at random; by default on all.
        val_subset: validate on this many images only (frames here), likewise.
        subset_seed: which images the subsets, and whatever else is drawn of the data, are.

    Attributes:
        classes: their names, in the order of a network's answers.
        indices: which frames of the source these are, of a subset for example.
        augment: how training frames are changed; None for as they are.
        image_augment: how their pictures are, and to which size all are brought.
        bank: objects that are pasted into training frames.
        look_back: batches also hold the frame before each.
        met: what was left out of frames as they were read: points that are no numbers, boxes without a size.
        fingerprint: changes when what is shown does; not with batch size or workers.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]  # set by the task's own module, which imports this one
    renormalise = None
    fingerprint: str

    def __init__(
        self,
        data: str,
        source: FrameSource,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        subset: int | None = None,
        val_subset: int | None = None,
        subset_seed: int = 0,
    ) -> None:
        self.data, self.source = data, source
        self.batch_size = at_least("batch_size", batch_size, 1)
        self._workers = None if workers is None else at_least("workers", workers, 0)
        self.subset, self.val_subset, self.subset_seed = subset, val_subset, subset_seed
        self.classes: tuple[str, ...] = source.classes.names
        self.num_classes = len(self.classes)
        self.augment: BevAugment | None = None
        self.image_augment: ImageAugment | None = None
        self.bank: ObjectBank | None = None
        self.look_back = False
        self.indices: dict[str, np.ndarray] = {}
        self.met = Notes()
        train = self._part(source.train, "train", "subset", subset)
        self._shown: tuple[Frames, Frames] = train, self._part(source.val, "val", "val_subset", val_subset)
        self._kept = Kept(self.met, self.prepared)
        self._identify()

    def _part(self, frames: Frames, split: str, argument: str, count: int | None) -> Frames:
        if not len(frames):
            raise InputError("data", f"no {'training' if split == 'train' else 'validation'} frame", "at least one")
        if count is None:
            return frames
        if not 1 <= count <= len(frames):
            raise InputError(argument, count, f"a number from 1 to {len(frames)} (all there are)")
        self.indices[split] = np.sort(sample_order(self.subset_seed, 0, len(frames))[:count])
        return frames.take(self.indices[split])

    def _identify(self, *parts: Any) -> None:
        """Sets the fingerprint, over the source, the subsets and what else is shown."""
        chosen = self.subset, self.val_subset, self.subset_seed if (self.subset, self.val_subset) != (None, None) else 0
        self.fingerprint = hashed(repr((self.source.fingerprint, chosen, *parts)))

    def first_lines(self) -> list[str]:
        """What is said of the data before anything is trained: how many there are of what, and what was met."""
        train, val = map(len, self._shown)
        one = self.num_classes == 1
        names = ", ".join(self.classes[:20]) + (", ..." if self.num_classes > 20 else "")
        said = f"{train} training + {val} validation frames of {self.num_classes} class{'' if one else 'es'}: {names}"
        return [said, *self.source.said, *self.met.lines()]

    # What other data are made by ----------------------------------------------------------------------------------------------------

    def derive(self, described: str, *, train: Frames | None = None, val: Frames | None = None, **changes: Any) -> Self:
        """The same data but for what is given, with a fingerprint of their own.

        Args:
            described: what tells this change from every other one.
            train, val: frames in the place of those that are shown.
            changes: other attributes and their values.
        """
        derived = copy.copy(self)
        derived._shown = self._shown[0] if train is None else train, self._shown[1] if val is None else val
        derived.fingerprint = hashed(f"{self.fingerprint} {described}")
        derived._kept = Kept(self.met, self.prepared) if (train is not None or val is not None) else self._kept
        vars(derived).update(changes)
        return derived

    def for_teacher(self) -> Self:
        """The same data with the frames that the source has for training a teacher, where it has others."""
        if self.source.teacher is None:
            return self
        rest = {split: indices for split, indices in self.indices.items() if split != "train"}
        return self.derive("teacher", train=self.source.teacher, indices=rest)

    # Batches ------------------------------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """Processes that read frames ahead."""
        return self._workers or 0

    @property
    def train_size(self) -> int:
        """N, frames to train on."""
        return len(self._shown[0])

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled, randomly changed batches of `batch_size / world` frames; a set smaller than one batch is one batch."""
        count = self.train_size
        if count < world:
            raise InputError("data", f"{count} training frames", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = SeekableBatches(count, batch_size, seed=seed, rank=rank, world=world)
        return self._loader(self._samples(self._shown[0], self.changed), batches, training=True)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation frames in order, each exactly once over all processes."""
        return self._in_order(self._shown[1], rank, world)

    def train_eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training frames in order and as they are, each exactly once over all processes."""
        return self._in_order(self._shown[0], rank, world)

    def _in_order(self, frames: Frames, rank: int, world: int) -> Loader:
        batches = SeekableBatches(len(frames), self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        return self._loader(self._samples(frames, None), batches, training=False)

    def _loader(self, samples: Dataset[Any], batches: SeekableBatches, *, training: bool) -> Loader:
        return Loader(samples, batches, workers=self.workers, collate=identity, training=training)

    def _samples(self, frames: Frames, change: Callable[[Frame, np.random.Generator], Frame] | None) -> Dataset[Any]:
        return Samples(self, frames, change)

    def prepared(self, frame: Frame) -> Frame:
        """A frame as it is kept in memory; a task that shows them in another form overrides it."""
        return frame

    def changed(self, frame: Frame, random: np.random.Generator) -> Frame:
        """A training frame as it is shown: with objects pasted in, moved, its pictures changed."""
        if self.bank is not None:
            frame = self.bank.paste(frame, random)
        if self.augment is not None:
            frame = moved(frame, self.augment.draw(random))
        if self.image_augment is not None:
            frame = replace(frame, views=tuple(self.image_augment.apply(view, random) for view in frame.views))
        return frame

    def still(self, frame: Frame) -> Frame:
        """A frame as evaluation shows it."""
        if self.image_augment is None:
            return frame
        return replace(frame, views=tuple(self.image_augment.apply(view) for view in frame.views))

    def gathered(self, frames: Sequence[Frame], ids: Sequence[int], previous: Sequence[Frame]) -> FrameBatch:
        """The batch of frames; a task that shows them in another form overrides it."""
        return collate(frames, ids, previous)

    # Frames -------------------------------------------------------------------------------------------------------------------------

    def example_inputs(self) -> FrameInputs:
        """Of a batch of one: the first validation frame."""
        return self.gathered([self.still(self.val_frame(0))], [0], []).inputs

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on these data; plain values."""
        return {"source": self.data, "classes": list(self.classes), "columns": list(self.source.columns), **self._described()}

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """What scores a student's answers."""

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """What else the task must know; plain values."""

    def train_frame(self, index: int) -> Frame:
        """A training frame, cleaned, not changed."""
        return self._kept.frame(self._shown[0], index, self.source.columns)

    def val_frame(self, index: int) -> Frame:
        """A validation frame, likewise."""
        return self._kept.frame(self._shown[1], index, self.source.columns)

    @property
    def val_size(self) -> int:
        """Frames to measure with."""
        return len(self._shown[1])

    def train_name(self, index: int) -> str:
        """Where a training frame comes from."""
        return self._shown[0].name(index)

    def val_name(self, index: int) -> str:
        """Where a validation frame comes from."""
        return self._shown[1].name(index)


class Kept:
    """Frames that were read and cleaned, kept in memory as long as there is room; every process has its own.

    Args:
        met: counts what was left out.
        prepare: what is done to each besides.
    """

    def __init__(self, met: Notes, prepare: Callable[[Frame], Frame]) -> None:
        self.met, self._prepare = met, prepare
        self._frames: dict[tuple[int, int], Frame] = {}
        self._alive: dict[int, Frames] = {}  # who is known by its id must stay alive
        self._room = _MEMORY

    def frame(self, frames: Frames, index: int, columns: tuple[str, ...]) -> Frame:
        """One of them, with the source's columns."""
        key = id(frames), index
        if key in self._frames:
            return self._frames[key]
        read = frames.frame(index)
        frame, points, boxes = cleaned(read.with_columns(columns))
        for lacking in (name for name in columns if name not in read.columns):
            self.met.add(f"frames without the column {lacking}, which is 0 there", read.name or frames.name(index))
        empty = not len(frame.points)
        if points or boxes or empty:
            self._note(frame.name or frames.name(index), points, boxes, empty)
        frame = self._prepare(frame)
        size = frame.points.nbytes + sum(view.image.nbytes for view in frame.views)
        if size <= self._room:
            self._alive[key[0]] = frames
            self._frames[key] = frame
            self._room -= size
        return frame

    def _note(self, name: str, points: int, boxes: int, empty: bool) -> None:
        first = not self.met.counts
        self.met.add("points whose place is no number, left out", name, points)
        self.met.add("boxes without a size, left out", name, boxes)
        self.met.add("frames without a point", name, int(empty))
        if first and rank() == 0:
            logger.warning("data: %s; counted in the report", self.met.lines()[0])


class Samples(Dataset[Any]):
    """Whole batches by their draws.

    Args:
        data: whose frames they are.
        frames: which of them.
        change: what training does to a frame; None for evaluation.
    """

    def __init__(self, data: PointSetData, frames: Frames, change: Callable[[Frame, np.random.Generator], Frame] | None) -> None:
        self.data, self.frames, self.change = data, frames, change

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: Draw) -> FrameBatch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> FrameBatch:
        frames = [self._frame(draw.id, draw) for draw in draws]
        before = [self._frame(self._previous(draw.id), draw) for draw in draws] if self.data.look_back else []
        return self.data.gathered(frames, [draw.id for draw in draws], before)

    def _frame(self, index: int, draw: Draw) -> Frame:
        frame = self.data._kept.frame(self.frames, index, self.data.source.columns)
        return self.data.still(frame) if self.change is None else self.change(frame, np.random.default_rng(draw.seed))

    def _previous(self, index: int) -> int:
        """The frame before one in its sequence; of a first one itself."""
        return index - 1 if index and self.frames.sequence(index - 1) == self.frames.sequence(index) else index
