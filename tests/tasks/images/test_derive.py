"""Data that are derived from others: known by what they show, numbered by it, and leaving what they came from as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.engine.cache import Views
from stillroom.engine.loading import Draw
from stillroom.tasks.classification import ImageData
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.images.batches import Batch, Batches
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.stores import MemoryImages, taken
from stillroom.tasks.images.transforms import eval_transform
from stillroom.tasks.multilabel import MultiLabelData

OPENED: dict[str, Callable[[], ImageSetData]] = {
    "classification": lambda: ImageData("digits", subset=40, val_subset=20, batch_size=8),
    "multilabel": lambda: MultiLabelData("mosaics,train=30,val=10,teacher=34", batch_size=8, augment="turn"),
    "detection": lambda: DetectionData("scenes:size=32,train=12,val=6,teacher=14", batch_size=4),
}
TASKS = pytest.mark.parametrize("task", OPENED)
# What tells a change from others: a text, or values.
DESCRIBED = st.one_of(st.text(max_size=4), st.tuples(st.sampled_from(["train", "views"]), st.integers(0, 3)))
INDICES = st.lists(st.integers(0, 39), min_size=1, max_size=6, unique=True)


@cache
def opened(task: str) -> ImageSetData:
    return OPENED[task]()


@given(one=DESCRIBED, other=DESCRIBED)
@settings(deadline=None)
def test_data_are_known_by_how_they_were_changed(one: Any, other: Any) -> None:
    data = opened("classification")
    first, second = data.derive(one), data.derive(other)
    assert (first.fingerprint == second.fingerprint) == (one == other)
    assert (first.cache_key == second.cache_key) == (one == other)
    chains = [data.derive(one).derive(other), data.derive(other).derive(one)]
    assert len({data.fingerprint, first.fingerprint, chains[0].fingerprint}) == 3
    assert (chains[0].fingerprint == chains[1].fingerprint) == (one == other)


@given(one=INDICES, other=INDICES, then=st.data())
@settings(max_examples=30, deadline=None)
def test_restricted_data_are_known_by_what_they_show(one: list[int], other: list[int], then: st.DataObject) -> None:
    data = opened("classification")
    assert isinstance(data, ImageData)
    first, second = (data.restricted(train=np.array(indices)) for indices in (one, other))
    assert (first.fingerprint == second.fingerprint) == (one == other)
    assert first.fingerprint != data.fingerprint
    # A chain of two shows what its second link chose of the first's, under numbers of its own, and knows where in the source that was.
    part = then.draw(st.lists(st.integers(0, len(one) - 1), min_size=1, unique=True))
    both = first.restricted(train=np.array(part))
    assert both.fingerprint not in (data.fingerprint, first.fingerprint)
    whole = ImageData("digits")
    assert torch.equal(both.train_labels, whole.train_labels[torch.from_numpy(both.indices["train"])])
    shown = torch.cat([batch.images for batch in both.train_eval_loader()])
    expected = torch.cat([batch.images for batch in data.train_eval_loader()])[torch.tensor(one)[part]]
    assert torch.equal(shown, expected)
    assert torch.cat([batch.ids for batch in both.train_eval_loader()]).tolist() == list(range(len(part)))


@TASKS
def test_derived_data_leave_theirs_as_they_were(task: str) -> None:
    data, again = OPENED[task](), OPENED[task]()
    other = data.derive("other", train=data._taken(data._train, np.array([3, 1, 2])), indices={"train": np.array([3, 1, 2])})
    assert type(other) is type(data)
    assert (other.train_size, other.indices["train"].tolist()) == (3, [3, 1, 2])
    assert (data.fingerprint, data.cache_key, data.train_size) == (again.fingerprint, again.cache_key, again.train_size)
    assert {name: found.tolist() for name, found in data.indices.items()} == {name: found.tolist() for name, found in again.indices.items()}
    shown, wanted = (torch.cat([batch.images for batch in each.eval_loader()]) for each in (other, data))
    assert torch.equal(shown, wanted)
    assert other.derive("x").fingerprint == again.derive("other").derive("x").fingerprint


def test_images_are_decoded_once_for_all_that_are_derived() -> None:
    data = ImageData("digits", image_size=10)
    before, after = data.derive("before"), data
    assert before._train is after._train
    assert data.derive("later")._val is before._val
    fewer = data.derive("fewer", train=taken(data._train, np.arange(5)))
    assert fewer._val is data._val


@TASKS
def test_replayed_views_are_the_ones_that_a_cache_has_answers_to(task: str) -> None:
    data, views = opened(task), Views(2, seed=7)
    every: dict[tuple[int, int], torch.Tensor] = {}
    for batch, drawn in data.every_view(views, batch_size=5):
        assert all(len(values) == len(batch.ids) for values in drawn.values())
        every |= {(i, v): image for i, v, image in zip(batch.ids.tolist(), batch.views.tolist(), batch.images, strict=True)}
    assert len(every) == 2 * data.train_size
    replaying = data.replaying(views)
    assert replaying.fingerprint != data.fingerprint
    assert replaying.cache_key == data.cache_key
    loader, seen = replaying.train_loader(seed=1), set()
    for _ in range(2):
        for batch in loader:
            for i, v, image in zip(batch.ids.tolist(), batch.views.tolist(), batch.images, strict=True):
                assert torch.equal(image, every[i, v])
                seen.add(v)
    assert seen == {0, 1}
    assert next(iter(data.train_loader(seed=1))).views is None


def test_views_begin_anywhere() -> None:
    data, views = opened("multilabel"), Views(3)
    whole, later = (list(data.every_view(views, batch_size=4, start=start)) for start in (0, 5))
    assert torch.equal(later[0][0].images, whole[5][0].images)
    assert len(later) == len(whole) - 5


# Fingerprints and keys of caches lie on people's disks: these are those of the first version.


@pytest.mark.parametrize(
    ("make", "fingerprint"),
    [
        (lambda: ImageData("digits"), "ba285f143bfb8102"),
        (lambda: ImageData("digits", subset=21, val_subset=13, subset_seed=1), "1cff58880f981908"),
        (lambda: ImageData("digits,imbalance=step:5,largest=40,noise=0.1"), "928ba5488c492ca6"),
        (lambda: ImageData("digits", mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3)), "11f8a9e26629a924"),
        (lambda: ImageData("digits").restricted(train=np.arange(5, 90)).restricted(train=np.arange(7, 40)), "4d6b75e4fb3bd442"),
        (lambda: ImageData("digits").restricted(train=np.arange(5, 90)).replaying(Views(2, 5)), "a8c3b4772a024955"),
        (lambda: MultiLabelData("mosaics,train=50,val=21,teacher=70"), "e895b055ac4ac183"),
        (lambda: MultiLabelData("mosaics,train=50,val=21,teacher=70").for_teacher(), "87996792f0f503f5"),
        (lambda: DetectionData("scenes:train=10,val=4,teacher=12"), "b897674f38c55222"),
        (lambda: DetectionData("scenes:train=10,val=4,teacher=12", augment="none"), "757387937afe13bc"),
        (lambda: DetectionData("scenes:train=10,val=4,teacher=12", teacher_scales=(16, 40)).for_teacher(), "b084b55915e5bc75"),
        (lambda: DetectionData("scenes:train=10,val=4,teacher=12").replaying(Views(2, 1)), "c5d9774b7cb671fa"),
    ],
)
def test_fingerprints_stay(make: Callable[[], ImageSetData], fingerprint: str) -> None:
    assert make().fingerprint == fingerprint


def test_cache_keys_stay() -> None:
    assert DetectionData("scenes:train=10,val=4,teacher=12").cache_key == {
        "data": "da2bd7f1acfcfe42",
        "image_size": None,
        "max_size": None,
        "flip": True,
        "mean": [0.45] * 3,
        "std": [0.25] * 3,
        "teacher_mean": None,
        "teacher_std": None,
    }
    assert ImageData("digits", val_subset=20, teacher_std=(0.2, 0.2, 0.2)).cache_key == {
        "data": "a9a55a2a19d93e94",
        "image_size": 8,
        "augment": "digits",
        "subset": None,
        "val_subset": 20,
        "subset_seed": 0,
        "mean": [0.306] * 3,
        "std": [0.376] * 3,
        "teacher_mean": [0.306] * 3,
        "teacher_std": [0.2] * 3,
    }


def test_labels_that_are_measures_stay_as_they_are() -> None:
    labels = np.array([0.25, 1.5, 2.75], np.float32)
    images = MemoryImages(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), labels, ["a", "b", "c"])
    plain = eval_transform("none", 4, (0.0,) * 3, (1.0,) * 3)
    batch = Batches(images, plain, prepared=True, told=False).__getitems__([Draw(2, 0), Draw(0, 0)])
    assert isinstance(batch, Batch)
    assert batch.labels.tolist() == [2.75, 0.25]
