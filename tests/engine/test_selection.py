"""A method that chooses the samples of its epochs, and several loaders in one epoch: stopped and continued, they show the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from stillroom.engine import Distiller, Lab, LabOptions, Losses, Training
from stillroom.engine.loading import Cycled, Draw, Loader, SeekableBatches
from stillroom.errors import InputError
from stillroom.tasks.classification import Batch, ImageData, build_classifier


class Killed(Exception):
    """Stands for a kill."""


class Choosing(Distiller):
    """Shows the samples that its student is least sure of: fewer in the first epoch, more in the second, all in the third."""

    sizes = (40, 100, None)

    def __init__(self, data: ImageData, fall_at: tuple[int, int] | None) -> None:
        torch.manual_seed(3)
        super().__init__(build_classifier("stillroom/convnet4", num_classes=10).network)
        self._data, self._fall_at = data, fall_at
        self._seen: list[tuple[int, Tensor]] = []
        self._asked: list[int] = []

    def select(self) -> Tensor | None:
        self._asked.append(self.progress.epoch)
        size = self.sizes[self.progress.epoch - 1]
        if size is None:
            return None
        with torch.no_grad():
            scored = [(batch.ids, self.student(batch.images).softmax(-1).amax(1)) for batch in self._data.train_eval_loader()]
        ids, sure = (torch.cat(column) for column in zip(*scored, strict=True))
        return ids[sure.argsort()[:size]]

    def losses(self, batch: Batch) -> Losses:
        if (self.progress.epoch, len([None for epoch, _ in self._seen if epoch == self.progress.epoch])) == self._fall_at:
            raise Killed
        self._seen.append((self.progress.epoch, batch.ids))
        return Losses(task={"ce": cross_entropy(self.student(batch.images), batch.labels)})


def run(folder: Path, data: ImageData, fall_at: tuple[int, int] | None = None) -> tuple[Choosing, dict[str, Tensor]]:
    distiller = Choosing(data, fall_at)
    lab = Lab(LabOptions(out=folder, accelerator="cpu", checkpoint_steps=2))
    trained = lab.fit(distiller, data, Training(epochs=3, lr=0.05, schedule="constant"), name="student")
    assert trained.network is not None
    return distiller, trained.network.state_dict()


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("digits", batch_size=16, subset=160, val_subset=80)


@pytest.fixture(scope="module")
def whole(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Choosing, dict[str, Tensor]]:
    return run(tmp_path_factory.mktemp("whole"), data)


def test_an_epoch_is_as_long_as_its_selection(whole: tuple[Choosing, Any]) -> None:
    distiller, _ = whole
    epochs = [[ids for epoch, ids in distiller._seen if epoch == number] for number in (1, 2, 3)]
    assert [len(batches) for batches in epochs] == [2, 6, 10]
    assert [len(torch.cat(batches).unique()) for batches in epochs] == [32, 96, 160]
    assert distiller._asked == [1, 2, 3]


@pytest.mark.parametrize("fall_at", [(1, 0), (2, 0), (2, 3), (3, 5)])
def test_killed_and_continued_shows_the_same_samples(
    whole: tuple[Choosing, dict[str, Tensor]], data: ImageData, tmp_path: Path, fall_at: tuple[int, int]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data, fall_at)
    distiller, weights = run(tmp_path, data)
    assert all(torch.equal(weights[name], value) for name, value in whole[1].items())
    if fall_at == (2, 3):
        assert distiller._asked == [3]  # the half epoch's selection was kept, not made again


def test_a_selection_that_cannot_be_shown_is_refused() -> None:
    batches = SeekableBatches(10, 4)
    for ids in ([1, 1, 2, 3], [0, 1, 2, 10], [-1, 0, 1, 2], [1, 2, 3]):
        with pytest.raises(InputError, match="ids"):
            batches.choose(torch.tensor(ids).numpy())
    assert len(batches) == 2


class Numbers(Dataset[Any]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, draws: list[Draw]) -> Batch:
        ids = torch.tensor([draw.id for draw in draws])
        return Batch(torch.tensor([draw.seed for draw in draws]), ids, ids)


def cycled(sizes: dict[str, int], steps: int, seed: int = 0) -> Cycled:
    loaders = {}
    for name, size in sizes.items():
        batches = SeekableBatches(size, 4, seed=seed, drop_last=False, least=2)
        loaders[name] = Loader(Numbers(size), batches, collate=lambda batch: batch)
    return Cycled(loaders, steps)


def taken(source: Cycled, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        for batch in source:
            found.append(batch)
            if len(found) == count:
                break
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 23), st.integers(2, 23), st.integers(1, 9), st.integers(0, 30))
def test_cycled_loaders_go_on_where_they_were_stopped(labelled: int, unlabelled: int, steps: int, stop: int) -> None:
    sizes = {"labelled": labelled, "unlabelled": unlabelled}
    expected = taken(cycled(sizes, steps), stop + 8)
    first = cycled(sizes, steps)
    if stop:
        taken(first, stop)
    second = cycled(sizes, steps)
    second.load_state_dict(first.state_dict())
    for batch, should in zip(taken(second, 8), expected[stop:], strict=True):
        for name in sizes:
            assert torch.equal(batch[name].ids, should[name].ids)
            assert torch.equal(batch[name].images, should[name].images)
        assert torch.equal(batch.ids, torch.cat([should["labelled"].ids, should["unlabelled"].ids]))


def test_each_loader_is_gone_through_at_its_own_pace_and_batches_of_one_are_left_out() -> None:
    batches = taken(cycled({"labelled": 9, "unlabelled": 12}, steps=6), 6)
    assert [len(batch["labelled"].ids) for batch in batches] == [4, 4, 4, 4, 4, 4]  # the ninth alone is left out of its pass
    assert sorted(torch.cat([batch["unlabelled"].ids for batch in batches[:3]]).tolist()) == list(range(12))
    assert sorted(torch.cat([batch["unlabelled"].ids for batch in batches[3:]]).tolist()) == list(range(12))
