"""Loading that can be stopped anywhere and goes on exactly there.

The order of an epoch's samples and the randomness of every sample's augmentation are pure functions of (seed, epoch, sample id). Nothing
about them lives in a worker, a process or a generator that would have to be saved: a position is two numbers, the epoch and how many of
its batches were delivered, and any number of workers or processes replays the same stream from it.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from stillroom.errors import InputError, StillroomError

_WORD = 2**64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORDER, _SAMPLE = 1, 2  # separate streams: a sample's place in the epoch says nothing about its augmentation


class Draw(NamedTuple):
    """One sample to be read: which one, the seed of its randomness (63 bits), and which recorded view that is (-1: none)."""

    id: int
    seed: int
    view: int = -1


def _scramble(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 in which every input bit moves every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _hash(*parts: int | np.ndarray) -> np.ndarray:
    """uint64 hash of integers, one per element of the arrays among them, which have one shape."""
    words = np.zeros(1, np.uint64)
    for part in parts:
        part = part.astype(np.uint64) if isinstance(part, np.ndarray) else np.uint64(part % _WORD)
        words = _scramble(words + _GOLDEN + part)
    return words


def sample_seeds(seed: int, epoch: int | np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The seed of each sample's randomness in an epoch (or each in its own), int64 [N] >= 0, for ids int [N]."""
    return (_hash(_SAMPLE, seed, epoch, ids) >> np.uint64(1)).astype(np.int64)


def sample_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The shuffled ids of an epoch, int64 [size]. The same on every machine and with every version of the libraries."""
    return np.argsort(_hash(_ORDER, seed, epoch, np.arange(size)), kind="stable")


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """`count` independent uniform numbers in [0, 1) per seed, float64 [N, count]: randomness for transforms of whole batches."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = _scramble(_hash(seeds)[:, None] + steps)
    return (words >> np.uint64(11)) * 2.0**-53


class SeekableBatches(Sampler[list[Draw]]):
    """The batches of an epoch, from any of them on.

    Global batch k is `order[k * batch_size : (k + 1) * batch_size]`, whatever the number of processes; each process takes its contiguous
    share of it. In a short last batch the shares differ by at most one, no sample is repeated, and a process whose share is empty skips it.

    Args:
        size: samples in the set.
        batch_size: samples in a batch of all processes together.
        seed: of the order and of every sample's randomness.
        shuffle: a new order in every epoch, else 0, 1, 2, ...
        drop_last: leave out a short last batch, so that every process has as many full ones.
        least: leave out a short last batch of fewer samples than this, where `drop_last` keeps it (BatchNorm needs two).
        rank, world: this process and how many there are.

    Attributes:
        chosen: int64 [M], the samples that epochs are made of at present (see `choose`); None for all.

    Raises:
        InputError: `batch_size` below 1, or with `drop_last` not divisible by `world`; `rank` outside [0, world).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        least: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "a whole number of at least 1")
        if not 0 <= rank < world:
            raise InputError("rank", rank, f"a number from 0 to {world - 1}, since there are {world} processes")
        if drop_last and batch_size % world:
            raise InputError("batch_size", batch_size, f"a multiple of {world}, since {world} processes share each batch")
        self.size, self.batch_size, self.seed, self.shuffle, self.drop_last = size, batch_size, seed, shuffle, drop_last
        self.least, self.rank, self.world = least, rank, world
        self.epoch, self.start = 0, 0
        self.chosen: np.ndarray | None = None

    def choose(self, ids: np.ndarray | None) -> None:
        """From the next iteration on, epochs are made of these samples only; None for all.

        Args:
            ids: int64 [M], each at most once; the same in every process.

        Raises:
            InputError: an id that the set does not have, or one that comes twice; too few to fill one batch.
        """
        if ids is not None:
            ids = np.asarray(ids, np.int64)
            if len(np.unique(ids)) != len(ids) or (len(ids) and not 0 <= ids.min() <= ids.max() < self.size):
                raise InputError("ids", f"{len(ids)} ids", f"numbers from 0 to {self.size - 1}, none of them twice")
            if not self._count(len(ids)):
                raise InputError("ids", f"{len(ids)} samples", f"enough for one batch of {self.batch_size}")
        self.chosen = ids

    def seek(self, epoch: int, start: int) -> None:
        """The next iteration gives the batches of `epoch` from number `start` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of an epoch in this process, wherever the next iteration starts."""
        return self._count(self.size if self.chosen is None else len(self.chosen))

    @property
    def whole(self) -> int:
        """Batches of an epoch of all samples in this process."""
        return self._count(self.size)

    def _count(self, samples: int) -> int:
        full, rest = divmod(samples, self.batch_size)
        shares = full if self._share(self.batch_size) else 0
        return shares + int(not self.drop_last and rest >= self.least and self._share(rest) > 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        return self._batches(self.epoch, self.start)

    def _bounds(self, count: int) -> tuple[int, int]:
        return self.rank * count // self.world, (self.rank + 1) * count // self.world

    def _share(self, count: int) -> int:
        first, last = self._bounds(count)
        return last - first

    def _batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        samples = np.arange(self.size) if self.chosen is None else self.chosen
        order = samples[sample_order(self.seed, epoch, len(samples))] if self.shuffle else samples
        for batch in range(start, len(self)):
            ids = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            first, last = self._bounds(len(ids))
            share = ids[first:last]
            yield self._draws(epoch, share)

    def _draws(self, epoch: int, ids: np.ndarray) -> list[Draw]:
        return [Draw(*pair) for pair in zip(ids.tolist(), sample_seeds(self.seed, epoch, ids).tolist(), strict=True)]


def _quiet_when_left(worker: int) -> None:
    """Let a worker whose main process has gone say nothing: that process has told why, in one line."""
    loud = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):  # the thread that hands over tensors found nobody there
            loud(kind, error, trace)

    sys.excepthook = hook


class Loader(DataLoader[Any]):
    """A DataLoader with a position: after `load_state_dict(state_dict())` the stream goes on with the next batch that was not delivered.

    A training loader counts what it hands out, across iterators: leaving a pass early (a limit of batches, Ctrl-C) and iterating again
    goes on where it was left, and after the last batch the next pass is the next epoch. An evaluation loader gives the same whole pass
    each time. `len()` is always the number of batches of a whole epoch, as Lightning expects of a loader that it resumes.

    The position is read when the first batch is asked for, so iterators that are made and never used change nothing. A new pass ends the
    previous one; asking that one for more is an error rather than a batch out of order.

    Lightning must not replace the sampler: `Trainer(use_distributed_sampler=False)`.

    Args:
        dataset: read with lists of `Draw` (`__getitems__`) or single ones (`__getitem__`), e.g. `Seeded`.
        batches: which samples, in which order.
        workers: processes that read ahead; they stay between epochs. 0 reads in this process.
        collate: samples of a batch -> batch; None for PyTorch's default.
        training: see above.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: SeekableBatches,
        *,
        workers: int = 0,
        collate: Callable[[Any], Any] | None = None,
        training: bool = True,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            worker_init_fn=_quiet_when_left,
            pin_memory=torch.cuda.is_available(),
            # DataLoader draws a number at every pass: from a generator of its own, so that the training's generators do not depend on
            # how often a run was continued.
            generator=torch.Generator().manual_seed(0),
        )
        self.batches = batches
        self.training = training
        self._epoch, self._delivered = 0, 0
        self._loaded = False
        self._passes = 0

    @property
    def place(self) -> tuple[int, int]:
        """The epoch (from 0), and how many of its batches were delivered."""
        return self._epoch, self._delivered

    @property
    def whole(self) -> int:
        """Batches of an epoch of all samples, whichever are chosen."""
        return self.batches.whole

    def first(self, count: int) -> Any:
        """The first samples of the first epoch, read in this process; whoever iterates does not notice."""
        draws = next(iter(copy.copy(self.batches)))[:count]
        samples = self.dataset
        found = samples.__getitems__(draws) if hasattr(samples, "__getitems__") else [samples[draw] for draw in draws]
        return self.collate_fn(found)

    def choose(self, ids: np.ndarray | None) -> None:
        """From the next pass on, show these samples only (see `SeekableBatches.choose`). To be called between two epochs."""
        if self._delivered >= len(self):
            self._epoch, self._delivered = self._epoch + 1, 0
        self.batches.choose(ids)

    def state_dict(self) -> dict[str, Any]:
        """The position: `epoch` and `batch` of `place`, and the ids `chosen`, if any are."""
        chosen = {} if self.batches.chosen is None else {"chosen": torch.from_numpy(self.batches.chosen)}
        return {"epoch": self._epoch, "batch": self._delivered, **chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a position at the next pass.

        Raises:
            InputError: the position is outside this loader's epochs (it was saved with other data or another batch size).
        """
        epoch, batch = state_dict["epoch"], state_dict["batch"]
        self.batches.choose(state_dict["chosen"].numpy() if "chosen" in state_dict else None)
        if epoch < 0 or not 0 <= batch <= len(self):
            raise InputError("state_dict", f"epoch {epoch}, batch {batch}", f"a batch from 0 to {len(self)}: was the batch size changed?")
        self._epoch, self._delivered = epoch, batch
        self._loaded = True
        self._passes += 1

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # lazily: see the class
        self._begin_pass()
        current = self._passes
        iterator: Iterator[Any] | None = None
        try:
            iterator = super().__iter__()
            for _ in range(self._delivered, len(self)):
                batch = next(iterator)
                self._delivered += 1
                yield batch
                if current != self._passes:
                    raise RuntimeError("this iterator has ended: its loader began another pass or was set to another position")
        except GeneratorExit:  # left early; workers stay for the next pass
            raise
        except StillroomError as error:
            self.end_workers()
            if "Original Traceback" in str(error):  # a worker's error comes wrapped in its traceback: keep the line meant for the user
                raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
            raise
        except BaseException:
            if current == self._passes:
                self.end_workers()
            raise

    def end_workers(self) -> None:
        """Stop the worker processes; the next pass starts new ones."""
        if isinstance(self._iterator, _MultiProcessingDataLoaderIter):
            with suppress(RuntimeError):  # one that was killed is told of here a second time
                self._iterator._shutdown_workers()
        self._iterator = None

    def _begin_pass(self) -> None:
        self._passes += 1
        if not self.training and not self._loaded:
            self._epoch, self._delivered = 0, 0
        elif self._delivered >= len(self):
            self._epoch, self._delivered = self._epoch + int(self.training), 0
        self._loaded = False
        self.batches.seek(self._epoch, self._delivered)
        running = self._iterator
        if isinstance(running, _MultiProcessingDataLoaderIter) and not all(worker.is_alive() for worker in running._workers):
            self.end_workers()  # Ctrl-C reaches the workers too


class Together(dict[str, Any]):
    """One batch of each of several loaders, by the loaders' names."""

    @property
    def ids(self) -> Tensor:
        """The sample ids of all, one after the other, int64 [sum of B]."""
        return torch.cat([batch.ids for batch in self.values()])

    @property
    def inputs(self) -> Any:
        """What a network reads of the first."""
        return next(iter(self.values())).inputs


class Cycled:
    """Several training loaders, each gone through again and again at its own pace; an epoch is a number of steps.

    A step's batch is a `Together` of the next batch of each. Where each loader is follows from the number of steps alone, so this has the
    position of a `Loader` and is continued like one.

    Args:
        loaders: by name, none of them empty; one that shows chosen samples goes on showing these.
        steps: batches of an epoch.
    """

    def __init__(self, loaders: dict[str, Loader], steps: int) -> None:
        if steps < 1:
            raise InputError("steps", steps, "a whole number of at least 1")
        for name, loader in loaders.items():
            if not len(loader):
                raise InputError(name, "no sample", "enough for one batch")
        self.loaders, self.steps = loaders, steps
        self._epoch, self._delivered = 0, 0

    @property
    def place(self) -> tuple[int, int]:
        """The epoch (from 0), and how many of its batches were delivered."""
        return self._epoch, self._delivered

    @property
    def whole(self) -> int:
        """Batches of an epoch."""
        return self.steps

    def first(self, count: int) -> Together:
        """The first samples of each loader (see `Loader.first`)."""
        return Together({name: loader.first(count) for name, loader in self.loaders.items()})

    def __len__(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, int]:
        """The position: `epoch` and `batch` of `place`."""
        return {"epoch": self._epoch, "batch": self._delivered}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a position at the next pass."""
        self._epoch, self._delivered = state_dict["epoch"], state_dict["batch"]

    def __iter__(self) -> Iterator[Together]:
        if self._delivered >= self.steps:
            self._epoch, self._delivered = self._epoch + 1, 0
        streams = {name: _endless(loader, self._epoch * self.steps + self._delivered) for name, loader in self.loaders.items()}
        while self._delivered < self.steps:
            batch = Together({name: next(stream) for name, stream in streams.items()})
            self._delivered += 1
            yield batch


def _endless(loader: Loader, start: int) -> Iterator[Any]:
    """Pass after pass, from batch number `start` of all passes on."""
    epoch, batch = divmod(start, len(loader))
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": batch})
    while True:
        yield from loader


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the global generators of `random`, NumPy and PyTorch (CPU) afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002 - users' transforms draw from it
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - users' transforms draw from it
        torch.default_generator.set_state(states[2])


def seed_generators(seed: int) -> None:
    """Seed the global generators of `random`, NumPy and PyTorch (CPU)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - users' transforms draw from it
    torch.default_generator.manual_seed(seed)


class Seeded(Dataset[Any]):
    """A data set whose random transform depends on the draw alone.

    The global generators are seeded before a sample is read and transformed, and restored after the batch, so that whatever the transform
    draws from is reproducible and the training step in the same process never notices.

    Args:
        dataset: sample by index. Its own randomness, if any, is seeded as well.
        transform: applied to each sample; None for none.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any] | None = None) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Any]:
        with kept_generators():
            return [self._sample(draw) for draw in draws]

    def _sample(self, draw: Draw) -> Any:
        seed_generators(draw.seed)
        sample = self.dataset[draw.id]
        return sample if self.transform is None else self.transform(sample)


def identity(batch: Any) -> Any:
    """The collate function of data sets that answer with whole batches."""
    return batch
