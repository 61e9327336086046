"""Anyone's pile of unlabelled images: found, decoded as far as it can be, shown, scored."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError, StillroomError
from stillroom.methods.kd3.restyle import restyled
from stillroom.methods.kd3.web import SteadyBatches, WebData
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.stores import MemoryImages
from tests.tasks.classification.miniatures import classes_of_pictures, picture, zipped


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("digits", batch_size=4, subset=20, val_subset=10)


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """Seven images of several kinds, sizes and depths, three broken ones, and things that are no images."""
    root = tmp_path / "pile"
    for number in range(4):
        picture(root / f"{number}.png", (60 * number, 0, 0), (9 + number, 30))
    picture(root / "holidays" / "a.JPG", size=(40, 20))
    picture(root / "holidays" / "train" / "deep.bmp", size=(8, 8))
    picture(root / "only" / "b.webp", size=(5, 7))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (root / "holidays" / "empty.png").touch()
    (root / "page.png").write_text("<html>not found</html>")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize("kind", ["imagefolder:", ""])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [8, 96])  # into memory, and read from its files
def test_every_image_that_can_be_decoded_is_found(
    data: ImageData, pile: Path, tmp_path: Path, packed: bool, kind: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    place = zipped(pile, tmp_path / "pile.zip") if packed else pile
    sized = data if size == 8 else ImageData("digits", image_size=size, batch_size=4, subset=20, val_subset=10, workers=0)
    with caplog.at_level(logging.WARNING):
        web = WebData(sized, f"{kind}{place}")
    assert len(web) == 7
    warned = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("left out 3 image files that cannot be decoded: broken.jpg, holidays/empty.png, page.png")
    shown = list(web.scoring_loader(seed=0, plain=True))
    assert torch.cat([batch.ids for batch in shown]).tolist() == list(range(7))
    assert torch.cat([batch.images for batch in shown]).shape == (7, 3, size, size)
    assert torch.cat([batch.labels for batch in shown]).unique().tolist() == [-1]


@pytest.mark.parametrize("size", [8, 96])
def test_strict_refuses_a_broken_image(pile: Path, size: int) -> None:
    strict = ImageData("digits", image_size=size, subset=20, val_subset=10, strict=True)
    with pytest.raises(StillroomError, match=r"broken.jpg") as refused:
        WebData(strict, str(pile))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("size", [8, 96])
def test_a_pile_of_broken_images_is_none(tmp_path: Path, size: int) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("broken")
    sized = ImageData("digits", image_size=size, subset=20, val_subset=10)
    with pytest.raises(StillroomError, match="cannot be decoded") as refused:
        WebData(sized, str(tmp_path))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("web", "message"),
    [
        ("imagefolder:nowhere", "unlabelled: got nowhere, expected a folder or a zip file that exists"),
        ("nowhere", "unlabelled: got nowhere, expected a folder or a zip file that exists, or other data"),
        ("", "unlabelled: got nothing, expected a folder or a zip file that exists, or other data"),
        ("cifra100:nowhere", "unlabelled: got cifra100:nowhere, expected one of cifar100"),
    ],
)
def test_refuses_what_is_not_there(data: ImageData, web: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WebData(data, web)


def test_refuses_a_folder_without_images_and_a_single_one(data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"unlabelled: .* expected images in it"):
        WebData(data, str(tmp_path))
    picture(tmp_path / "lonely.png")
    with pytest.raises(InputError, match="unlabelled: got one image"):
        WebData(data, str(tmp_path))


def test_refuses_statistics_and_changes_that_there_are_not(data: ImageData) -> None:
    for options, named in (({"std": (0.1, 0.0, 0.1)}, "unlabelled_std"), ({"mean": (0.1, 0.1)}, "unlabelled_mean")):
        with pytest.raises(InputError, match=f"^{named}: got"):
            WebData(data, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unlabelled_augment: got crop"):
        WebData(data, augment="crop")
    with pytest.raises(InputError, match="unlabelled: got restyled, expected imagefolder:PATH"):
        WebData(ImageData("digits", image_size=96, subset=20, val_subset=10))


def test_other_data_lose_their_labels(data: ImageData, tmp_path: Path) -> None:
    web = WebData(data, f"imagefolder:{classes_of_pictures(tmp_path / 'set')}")
    again = WebData(data, "digits")
    assert (len(web), len(again)) == (10, 900)
    assert set(web.images.labels.tolist()) == set(again.images.labels.tolist()) == {-1}


def test_validation_is_that_of_the_data(data: ImageData) -> None:
    web = WebData(data)
    for batch, other in zip(web.eval_loader(), data.eval_loader(), strict=True):
        assert torch.equal(batch.images, other.images)
    assert torch.equal(web.example_inputs(), data.example_inputs())


def test_the_fingerprint_follows_what_is_shown(data: ImageData, pile: Path) -> None:
    made = [
        WebData(data),
        WebData(data, steady=True),
        WebData(data, augment="none"),
        WebData(data, mean=(0.1, 0.1, 0.1)),
        WebData(data, str(pile)),
        WebData(data, MemoryImages(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), np.zeros(3, np.int64), ["a", "b", "c"])),
    ]
    assert len({web.fingerprint for web in made}) == len(made)
    assert WebData(data).fingerprint == made[0].fingerprint


def test_scores_are_of_one_change_that_the_seed_decides(data: ImageData) -> None:
    web = WebData(data, augment="imagenet")

    def images(seed: int, **options: bool) -> torch.Tensor:
        return torch.cat([batch.images for batch in web.scoring_loader(seed=seed, **options)])

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))
    assert torch.equal(images(1, plain=True), images(2, plain=True))


def test_processes_share_the_scoring(data: ImageData) -> None:
    web = WebData(data)
    whole = {int(i): image for batch in web.scoring_loader(seed=5) for i, image in zip(batch.ids, batch.images, strict=True)}
    shared = [
        (int(i), image)
        for rank in range(3)
        for batch in web.scoring_loader(seed=5, rank=rank, world=3)
        for i, image in zip(batch.ids, batch.images, strict=True)
    ]
    assert sorted(i for i, _ in shared) == sorted(whole)
    assert all(torch.equal(image, whole[i]) for i, image in shared)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 40), st.integers(0, 3), st.integers(1, 3))
def test_steady_epochs_show_what_is_chosen_evenly(size: int, batch_size: int, chosen: int, epoch: int, world: int) -> None:
    batch_size, chosen = min(batch_size, size), min(chosen, size)
    ids = np.random.default_rng(0).permutation(size)[:chosen]
    shown: list[list[int]] = [[] for _ in range(size // batch_size)]
    seeds = []
    for rank in range(world):
        batches = SteadyBatches(size, batch_size, seed=7, drop_last=False, rank=rank, world=world)
        batches.choose(ids)
        batches.seek(epoch, 0)
        all_of_them = list(batches)
        assert len(all_of_them) == len(batches) == size // batch_size
        for number, draws in enumerate(all_of_them):
            shown[number] += [draw.id for draw in draws]
            seeds += [draw.seed for draw in draws]
        batches.seek(epoch, len(batches) // 2)
        assert list(batches) == all_of_them[len(batches) // 2 :]
    assert all(len(batch) == batch_size for batch in shown)
    counts = np.bincount(np.concatenate(shown).astype(np.int64), minlength=size)
    assert set(np.flatnonzero(counts)) <= set(ids)
    assert counts[ids].max() - counts[ids].min() <= 1
    assert len(set(seeds)) == len(seeds)  # a sample that comes again is changed anew


def test_steady_epochs_have_orders_of_their_own() -> None:
    batches, orders = SteadyBatches(64, 16, seed=1, drop_last=False), []
    batches.choose(np.arange(16))
    for epoch in range(2):
        batches.seek(epoch, 0)
        orders += [tuple(draw.id for draw in draws) for draws in batches]
    assert len(set(orders)) == 8  # each pass over the sixteen, in both epochs


def test_styles_are_five_and_a_function_of_the_seed() -> None:
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = restyled(pixels)
    assert torch.equal(restyled(pixels), changed)
    assert not torch.equal(restyled(pixels, seed=1), changed)
    assert (changed != pixels).flatten(1).any(1).all()
    assert torch.equal(restyled(pixels[:10]), changed[:10])  # each image's own
    levels = [len(image.unique()) for image in changed]
    assert sum(count <= 3 for count in levels) > 4  # the posterised
    assert sum(bool((image[0] == image[1]).all()) for image in changed) > 4  # the sketches
