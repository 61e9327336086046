"""Batches: which samples, how they are changed, and that nothing but the seed decides it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.images.transforms import describe_transform, eval_transform, train_transform, transform_from

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def folder_of(root, size, count=6, classes=("a", "b", "c")):
    numbers = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(numbers.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / name / f"{i}.png")
    return f"imagefolder:{root},val=0.5"


def whole(loader):
    return Batch(*map(torch.cat, zip(*(batch[:3] for batch in loader), strict=True)))


def test_batches(digits):
    loader = digits.train_loader(seed=0)
    batch = next(iter(loader))
    assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.float32, torch.int64, torch.int64)
    assert batch.images.shape == (32, *digits.input_shape)
    assert batch.inputs is batch.images
    assert torch.equal(batch.labels, digits.train_labels[batch.ids])
    assert len(loader) == 5


def test_every_training_sample_comes_once_an_epoch(digits):
    loader = digits.train_loader(seed=0)
    first, second = whole(loader), whole(loader)
    assert sorted(first.ids.tolist()) == sorted(second.ids.tolist()) == list(range(160))
    assert first.ids.tolist() != second.ids.tolist()


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_is_the_same_every_time(digits, world):
    parts = [whole(digits.eval_loader(rank=rank, world=world)) for rank in range(world)]
    ids = torch.cat([part.ids for part in parts])
    assert sorted(ids.tolist()) == list(range(80))
    images = torch.cat([part.images for part in parts])[ids.argsort()]
    assert torch.equal(images, whole(digits.eval_loader()).images)


def test_a_training_loss_can_be_measured_on_clean_images(digits):
    clean = whole(digits.train_eval_loader())
    assert clean.ids.tolist() == list(range(160))
    assert torch.equal(clean.images, whole(digits.train_eval_loader()).images)
    assert clean.images[0].unique().numel() <= 17  # the scan's own grey values, without noise


@pytest.mark.parametrize(("size", "augment"), [((16, 16), "cifar"), ((16, 16), "tiny-imagenet"), ((90, 70), "imagenet")])
def test_workers_and_processes_change_nothing(tmp_path, size, augment):
    spec = folder_of(tmp_path, size)

    def stream(workers, world):
        data = ImageData(spec, batch_size=4, workers=workers, augment=augment, image_size=16)
        return torch.cat(
            [whole(data.train_loader(seed=3, rank=rank, world=world)).images.view(2, -1, 3, 16, 16) for rank in range(world)], 1
        )

    expected = stream(0, 1)
    assert torch.equal(stream(2, 1), expected)
    assert torch.equal(stream(0, 2), expected)


def test_small_images_are_kept_in_memory_and_photographs_are_not(tmp_path):
    small, large = ImageData(folder_of(tmp_path / "s", (16, 16))), ImageData(folder_of(tmp_path / "l", (90, 70)))
    assert (small.in_memory, small.workers, small.image_size, small.augment) == (True, 0, 16, "cifar")
    assert (large.in_memory, large.image_size, large.augment) == (False, 224, "imagenet")
    assert large.workers > 0


def test_memory_and_files_give_the_same_evaluation(tmp_path):
    spec = folder_of(tmp_path, (16, 16))
    kept, read = ImageData(spec, image_size=12), ImageData(spec, image_size=12)
    read.in_memory = False
    assert torch.equal(whole(kept.eval_loader()).images, whole(read.eval_loader()).images)


def test_subsets_are_stratified_and_fixed():
    data = ImageData("digits", subset=100, val_subset=50)
    assert np.bincount(data.train_labels).tolist() == [10] * 10
    assert len(data.val_labels) == 50
    assert torch.equal(ImageData("digits", subset=100).train_labels, data.train_labels)
    other = ImageData("digits", subset=100, val_subset=50, subset_seed=1)
    assert other.fingerprint != data.fingerprint
    assert ImageData("digits", subset=100, val_subset=50, batch_size=8, workers=1).fingerprint == data.fingerprint


def test_a_set_smaller_than_a_batch_is_one_batch():
    data = ImageData("digits", subset=11, batch_size=64)
    assert [len(batch.ids) for batch in data.train_loader(seed=0)] == [11]
    assert [len(batch.ids) for batch in data.train_loader(seed=0, rank=1, world=2)] == [5]
    with pytest.raises(InputError, match="11 training images"):
        data.train_loader(seed=0, world=12)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"subset": 5}, "subset"),
        ({"subset": 901}, "subset"),
        ({"val_subset": 10_000}, "val_subset"),
        ({"augment": "cifr"}, "augment"),
        ({"image_size": 0}, "image_size"),
        ({"workers": -1}, "workers"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"data": "nothing"}, "data"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, named):
    with pytest.raises(InputError) as raised:
        ImageData(**arguments)
    assert raised.value.argument == named


def test_the_description_rebuilds_the_transform(digits):
    description = json.loads(json.dumps(digits.describe()))
    assert description["classes"] == list("0123456789")
    rebuilt = transform_from(description["transform"])
    assert torch.equal(rebuilt(digits.val_image(3)), whole(digits.eval_loader()).images[3])
    assert torch.equal(digits.example_inputs()[0], whole(digits.eval_loader()).images[0])


def test_photographs_are_evaluated_at_their_centre():
    image = Image.new("RGB", (640, 480))
    image.paste((255, 255, 255), (300, 220, 340, 260))
    prepared = eval_transform("imagenet", 224, *PLAIN)(image)
    assert prepared.shape == (3, 224, 224)
    assert describe_transform("imagenet", 224, *PLAIN)["resize"] == 256
    assert prepared[0, 112, 112] == 1
    assert prepared.mean() < 0.05


def test_cifar_augmentation_shifts_and_mirrors():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, 6, 5] = 255
    seeds = np.arange(4000)
    batch = train_transform("cifar", 16, *PLAIN).batch(image.expand(4000, -1, -1, -1), seeds)
    assert torch.equal(batch.sum((1, 2, 3)), torch.full((4000,), 3.0))
    rows, columns = batch[:, 0].sum(2).argmax(1), batch[:, 0].sum(1).argmax(1)
    assert rows.unique().tolist() == list(range(2, 11))
    assert columns.unique().tolist() == list(range(1, 15))  # 5 +- 4, and mirrored 10 +- 4
    assert torch.bincount(rows)[2:].min() > 4000 / 9 * 0.8
    assert abs((columns > 7).float().mean() - 0.5) < 0.03  # as often to the left as to the right


def test_digits_augmentation_rolls_and_adds_noise():
    image = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    image[:, 0, 0] = 255
    batch = train_transform("digits", 8, *PLAIN).batch(image.expand(4000, -1, -1, -1), np.arange(4000))
    noise = batch[:, :, 3:6, 3:6] - 128 / 255  # out of reach of the bright corner
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert abs(noise.mean()) < 0.003
    assert abs(noise.std() - 0.15) < 0.002
    mean = batch[:, 0].mean(0) - 128 / 255
    assert (mean > 0.03).nonzero().tolist() == [[i, j] for i in (0, 1, 7) for j in (0, 1, 7)]


def test_augmentation_depends_on_the_seed_of_the_sample_alone():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for augment in ("cifar", "digits"):
        transform = train_transform(augment, 8, *PLAIN)
        together = transform.batch(images, np.arange(6))
        alone = torch.stack([transform(image, seed) for seed, image in enumerate(images)])
        assert torch.equal(together, alone)


def test_a_killed_epoch_goes_on_with_the_same_pixels(digits):
    expected = list(digits.train_loader(seed=5))
    killed, continued = digits.train_loader(seed=5), digits.train_loader(seed=5)
    batches = iter(killed)
    for _ in range(2):
        next(batches)
    continued.load_state_dict(killed.state_dict())
    for got, wanted in zip(continued, expected[2:], strict=True):
        assert all(map(torch.equal, got[:3], wanted[:3]))


def test_real_images(shared_data):
    archive = shared_data / "cifar10" / "cifar10.zip"
    if not archive.exists():
        pytest.skip(f"needs {archive}")
    data = ImageData(f"imagefolder:{archive}", subset=200, val_subset=100, batch_size=50)
    batch = next(iter(data.train_loader(seed=0)))
    assert batch.images.shape == (50, 3, 32, 32)
    clean = whole(data.train_eval_loader())
    assert np.bincount(clean.labels).tolist() == [20] * 10
    assert abs(clean.images.mean()) < 0.4
    assert 0.8 < clean.images.std() < 1.3
    assert data.val_image(5).size == (32, 32)
    assert data.classes[data.val_labels[5]] in data.val_name(5)
