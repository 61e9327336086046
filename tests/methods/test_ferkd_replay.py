"""Replay of stored crops: the very crops that were labelled, crop-major, counted in epochs, the same after a kill and over processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.crops import CropRule
from stillroom.methods.ferkd.labelling import Labelling, label_images, original_images
from stillroom.methods.ferkd.replay import BankData, CropBatch, CropEpochs, choose_crops
from stillroom.tasks.classification import ImageData

CROPS = 6
LABELLING = Labelling(crops=CROPS, label_type="ori", dtype="fp32", rule=CropRule(area=(0.3, 1.0)), interpolation="bilinear")


class Pixels(nn.Module):
    """Answers with logits that tell what it was shown: some pixels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return 3 * images.flatten(1)[:, 5 : 5 + self.classes]


def digits(**options: Any) -> ImageData:
    return ImageData("digits", **{"batch_size": 16, "subset": 80, "val_subset": 20, "augment": "none", **options})


def teacher(classes: int = 10) -> Teacher:
    return Teacher(Pixels(classes), precision="fp32")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> LabelBank:
    return label_images(tmp_path_factory.mktemp("bank"), teacher(), digits(), LABELLING)


def photos(root: Path, count: int = 6, height: int = 40) -> str:
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (height, 50 + i, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return f"imagefolder:{root}"


def epochs_of(data: BankData, count: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> list[list[CropBatch]]:
    loader = data.train_loader(seed=seed, rank=rank, world=world)
    return [list(loader) for _ in range(count)]


# Counting epochs


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 12))
def test_passes_cover_every_epoch_once_and_the_last_ones_singly(epochs: int, crops: int, first: int) -> None:
    counted = CropEpochs(epochs, crops, first)
    passes = counted.passes()
    covered = [epoch for visit in passes for epoch in range(visit.epoch, visit.epoch + visit.crops)]
    assert covered == list(range(epochs))
    assert all(counted.at(epoch).single and counted.at(epoch).crops == 1 for epoch in range(min(first, epochs)))
    begun_late = [visit for visit in passes if visit.epoch >= epochs - crops]
    assert all(visit.single and visit.crops == 1 for visit in begun_late)
    assert all(not visit.single and visit.crops == crops for visit in passes if first <= visit.epoch < epochs - crops)


def test_three_hundred_epochs_of_four() -> None:
    passes = CropEpochs(300, 4).passes()
    assert [visit.epoch for visit in passes] == [*range(0, 296, 4), 296, 297, 298, 299]


# Choosing crops


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_chosen_crops_are_different_ones_that_are_there(stored: int, count: int, seed: int) -> None:
    kept = np.random.default_rng(seed).random((20, stored)) < 0.6
    kept[:, 0] |= ~kept.any(1)
    seeds = np.arange(20) + seed
    chosen = choose_crops(kept, seeds, count)
    assert kept[np.arange(20)[:, None], chosen].all()
    for row, left in zip(chosen, kept.sum(1), strict=True):
        assert len(set(row)) == count or left < count
    assert np.array_equal(choose_crops(kept[3:5], seeds[3:5], count), chosen[3:5])


def test_every_crop_is_as_likely_in_every_place() -> None:
    chosen = choose_crops(np.tile([True, True, False, True, True], (20_000, 1)), np.arange(20_000), 3)
    for place in chosen.T:
        assert np.bincount(place, minlength=5) / 20_000 == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.015)
    pairs = np.bincount(chosen[:, 0] * 5 + chosen[:, 2], minlength=25)
    assert pairs[pairs > 0] / 20_000 == pytest.approx(np.full(12, 1 / 12), abs=0.012)


# Replay


@pytest.mark.parametrize("mode", ["memory", "files", "workers"])
def test_replayed_crops_are_the_crops_that_were_labelled(tmp_path: Path, bank: LabelBank, mode: str) -> None:
    """The teacher's answers tell what it was shown; asked again about what training shows it says the same."""
    data = digits()
    if mode != "memory":
        options = {"batch_size": 8, "image_size": 16, "workers": 2 if mode == "workers" else 0}
        data = ImageData(photos(tmp_path / "photos"), **options)
        bank = label_images(tmp_path / "bank", teacher(2), data, LABELLING)
    again = teacher(data.num_classes)
    for batches in epochs_of(BankData(data, bank, CropEpochs(6, 2)), 3):
        for batch in batches:
            torch.testing.assert_close(again(batch.images).softmax(1), bank.format.dense(batch.soft), atol=1e-6, rtol=1e-5)


def test_rows_are_crop_major_and_every_batch_has_as_many(bank: LabelBank) -> None:
    data = BankData(digits(), bank, CropEpochs(12, 4))
    epochs = epochs_of(data, 12)
    assert {len(batch.ids) for batches in epochs for batch in batches} == {16}
    assert {len(batches) for batches in epochs} == {5}
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            assert batch.num_crops == (4 if epoch < 8 else 1)
            ids_KB, crops_KB = (rows.view(batch.num_crops, -1) for rows in (batch.ids, batch.crops))
            assert (ids_KB == ids_KB[0]).all()
            assert len(ids_KB[0].unique()) == ids_KB.shape[1]
            assert all(len(column.unique()) == batch.num_crops for column in crops_KB.T)
            assert torch.equal(batch.labels, digits().train_labels[batch.ids])
    for first in (0, 4):  # one pass: every image once, four crops of it
        seen = torch.cat([batch.ids for batches in epochs[first : first + 4] for batch in batches])
        assert torch.bincount(seen).tolist() == [4] * 80
    assert sorted(torch.cat([batch.ids for batch in epochs[9]]).tolist()) == list(range(80))
    assert not torch.equal(epochs[0][0].crops, epochs[4][0].crops)


@pytest.mark.parametrize("epoch", [0, 2, 5, 9])
def test_a_loader_goes_on_where_it_was_stopped(bank: LabelBank, epoch: int) -> None:
    data = BankData(digits(), bank, CropEpochs(10, 4))
    expected = epochs_of(data, epoch + 1)[epoch][2:]
    loader = data.train_loader(seed=0)
    loader.load_state_dict({"epoch": epoch, "batch": 2})
    for batch, should in zip(loader, expected, strict=True):
        assert torch.equal(batch.images, should.images)
        assert torch.equal(batch.crops, should.crops)


def test_processes_share_the_images_of_a_batch(bank: LabelBank) -> None:
    data = BankData(digits(), bank, CropEpochs(6, 4))
    whole = epochs_of(data, 6)
    shares = [epochs_of(data, 6, rank=rank, world=2) for rank in (0, 1)]
    for epoch, batches in enumerate(whole):
        for place, batch in enumerate(batches):
            parts = [shares[rank][epoch][place] for rank in (0, 1)]
            assert all(len(part.ids) == 8 for part in parts)
            both = torch.cat([part.ids.view(batch.num_crops, -1) for part in parts], 1)
            assert torch.equal(both.reshape(-1), batch.ids)
            assert torch.equal(torch.cat([part.crops.view(batch.num_crops, -1) for part in parts], 1).reshape(-1), batch.crops)


def test_batches_that_cannot_be_shared_are_refused(bank: LabelBank) -> None:
    data = BankData(digits(batch_size=20), bank, CropEpochs(6, 4))
    with pytest.raises(InputError, match="batch_size: got 20, which is 5 images with 4 crops each"):
        data.train_loader(seed=0, world=2)


def test_a_set_smaller_than_a_batch_is_one_batch(bank: LabelBank) -> None:
    data = BankData(digits(batch_size=500), bank, CropEpochs(9, 4))
    epochs = epochs_of(data, 9)
    assert {len(batches) for batches in epochs} == {1}
    assert {len(batch.ids) for batches in epochs for batch in batches} == {80}
    with pytest.raises(InputError, match="data: got 80 labelled images, expected at least 84"):
        BankData(digits(), bank, CropEpochs(9, 84)).train_loader(seed=0)


def test_discarded_crops_are_not_shown_and_too_few_are_shown_again(tmp_path: Path, bank: LabelBank) -> None:
    kept = np.zeros((80, CROPS), bool)
    kept[:, 2] = kept[:40, 4] = kept[:20] = True
    for file in bank.path.rglob("*.*"):
        target = tmp_path / file.relative_to(bank.path)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(file.read_bytes())
    np.save(tmp_path / "rows/kept.npy", kept)
    record = (tmp_path / "bank.json").read_text().replace('"targets": [', '"kept": [\n   [6], "|b1"],\n  "targets": [')
    (tmp_path / "bank.json").write_text(record)
    data = BankData(digits(), LabelBank(tmp_path), CropEpochs(6, 3))
    for batches in epochs_of(data, 6):
        for batch in batches:
            assert kept[batch.ids.numpy(), batch.crops.numpy()].all()


def test_the_student_has_its_own_size_and_statistics(tmp_path: Path) -> None:
    data = ImageData(photos(tmp_path / "photos"), image_size=16, workers=0)
    bank = label_images(tmp_path / "bank", teacher(2), data, LABELLING)
    own = ImageData(f"imagefolder:{tmp_path / 'photos'}", image_size=24, workers=0, batch_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    batch = epochs_of(BankData(own, bank, CropEpochs(4, 2)), 1)[0][0]
    assert batch.images.shape == (4, 3, 24, 24)
    assert batch.images.abs().max() <= 1


# The same images


def test_a_part_of_the_images_finds_its_labels_by_name(bank: LabelBank) -> None:
    whole, chosen = digits(), np.array([70, 3, 41, 8, 9, 10, 11, 12])
    part = BankData(whole.restricted(train=chosen), bank, CropEpochs(4, 2))
    for batches in epochs_of(part, 2):
        for batch in batches:
            assert torch.equal(batch.soft.values, bank.soft(chosen[batch.ids.numpy()], batch.crops.numpy()).values)
            again = teacher()(batch.images).softmax(1)
            torch.testing.assert_close(again, bank.format.dense(batch.soft), atol=1e-6, rtol=1e-5)


def test_missing_images_are_named_or_skipped(bank: LabelBank, caplog: pytest.LogCaptureFixture) -> None:
    data = digits(subset=100)
    with pytest.raises(InputError, match=r"labels: got .*, which has no labels of 20 of 100 images, digits/"):
        BankData(data, bank, CropEpochs(4, 2))
    with caplog.at_level(logging.WARNING):
        some = BankData(data, bank, CropEpochs(4, 2), missing="skip")
    assert "20 of 100 training images have no labels and are not shown" in caplog.text
    assert some.train_size == 80
    assert len(some.indices["labelled"]) == 80
    shown = torch.cat([batch.ids for batches in epochs_of(some, 2) for batch in batches]).unique()
    assert set(shown.tolist()) <= set(some.indices["labelled"].tolist())


def test_other_classes_and_other_targets_are_refused(tmp_path: Path, bank: LabelBank) -> None:
    with pytest.raises(InputError, match=r"labels: got .* of 10 classes"):
        BankData(ImageData(photos(tmp_path), workers=0), bank, CropEpochs(4, 2))
    labels = digits().train_labels.numpy().copy()
    labels[5] = (labels[5] + 1) % 10
    with pytest.raises(InputError, match=r"labels: got .*, in which digits/.* is of class"):
        BankData(digits().restricted(labels=labels), bank, CropEpochs(4, 2))


@pytest.mark.parametrize("change", ["pixels", "shape"])
def test_images_that_were_replaced_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str) -> None:
    spec = photos(tmp_path / "photos")
    bank = label_images(tmp_path / "bank", teacher(2), ImageData(spec, image_size=16, workers=0), LABELLING)
    file = tmp_path / "photos/train/cat/0.png"
    with Image.open(file) as image:
        new = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if change == "pixels" else image.resize((50, 80))
    new.save(file)
    with caplog.at_level(logging.WARNING):
        BankData(ImageData(spec, image_size=16, workers=0), bank, CropEpochs(4, 2))
    assert "train/cat/0.png is not the image that was labelled" in caplog.text


# Labelling


def test_another_teacher_labels_the_same_crops(tmp_path: Path, bank: LabelBank) -> None:
    other = Teacher(nn.Sequential(Pixels(), nn.Linear(10, 10)), precision="fp32")
    second = label_images(tmp_path, other, digits(), LABELLING, reference=bank)
    for name in ("coords", "flips"):
        assert np.array_equal(second.arrays[name], bank.arrays[name])
    assert not np.array_equal(second.arrays["values"], bank.arrays["values"])
    with pytest.raises(InputError, match=r"reference: got .* with 6 crops of 80 images"):
        label_images(tmp_path / "no", other, digits(subset=90), LABELLING, reference=bank)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 13, 200])
def test_labels_do_not_depend_on_how_many_are_asked_for_at_once(tmp_path: Path, bank: LabelBank, batch_size: int) -> None:
    other = label_images(tmp_path, teacher(), digits(batch_size=batch_size), LABELLING)
    for name, values in bank.arrays.items():
        assert np.allclose(values, other.arrays[name], atol=1e-6), name


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher: got answers \[12, 7\] to 12 crops, expected logits of 10 classes"):
        label_images(tmp_path, teacher(7), digits(), LABELLING)


def test_temperature_softens(tmp_path: Path, bank: LabelBank) -> None:
    soft = label_images(tmp_path, teacher(), digits(), Labelling(CROPS, "ori", "fp32", 3.0, LABELLING.rule, "bilinear"))
    expected = (torch.from_numpy(np.array(bank.arrays["values"])).log() / 3).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(np.array(soft.arrays["values"])), expected, atol=1e-5, rtol=1e-4)


def test_originals_are_not_resized(tmp_path: Path) -> None:
    data = digits(image_size=16)
    assert original_images(data).image(3).shape == (3, 8, 8)
    restricted = data.restricted(train=np.array([4, 3]))
    assert torch.equal(original_images(restricted).image(1), original_images(data).image(3))  # type: ignore[arg-type]
