"""Images without labels: read lazily, seen in several views, one of them of another image, the same whatever the workers and processes."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.images.views import ViewBatch
from stillroom.tasks.representation import FIRST, SECOND, Look, RepresentationData, crop_view, warp_view


def pile(folder: Path, count: int = 24, size: tuple[int, int] = (40, 32)) -> Path:
    """Noise in image files at several depths, and a file that is none."""
    for number in range(count):
        place = folder / ("deep/er" if number % 2 else "") / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 20 + number).convert("RGB").save(place)
    (folder / "notes.txt").write_text("no image")
    return folder


def stream(data: RepresentationData, **options: Any) -> list[ViewBatch]:
    return list(data.train_loader(seed=3, **options))


def shifted(epoch: int, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    return (ids + 1 + epoch) % 20


@pytest.mark.parametrize("packed", [False, True])
def test_a_pile_without_classes_says_that_it_is_not_scored(tmp_path: Path, packed: bool) -> None:
    folder = pile(tmp_path / "pile")
    if packed:
        with zipfile.ZipFile(tmp_path / "pile.zip", "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder))
    data = RepresentationData(f"images:{tmp_path / 'pile'}{'.zip' if packed else ''},val=0.25", image_size=16, workers=0)
    assert (data.train_size, len(data._val), data.labelled) == (18, 6, False)
    said = " ".join(data.first_lines())
    assert "without labels there are no scores" in said
    assert "passed over 1 file" in said
    batch = next(iter(data.train_loader(seed=0)))
    assert set(batch.labels.tolist()) == {-1}
    assert data.describe()["classes"] == []
    with pytest.raises(InputError, match="images without classes are images:PATH"):
        RepresentationData(f"imagefolder:{folder}")


def test_thousands_of_files_are_listed_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (100, 90))
    picture.save(tmp_path / "0.jpg")
    content = (tmp_path / "0.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_STORED) as archive:
        for number in range(21_500):
            archive.writestr(f"{number % 50}/{number}.jpg", content)
    decoded: list[Any] = []
    load = Image.Image.load

    def counted(image: Image.Image) -> Any:
        decoded.append(image)
        return load(image)

    monkeypatch.setattr(Image.Image, "load", counted)
    began = time.process_time()
    data = RepresentationData(f"images:{tmp_path / 'many.zip'},val=0.01", image_size=32, workers=0, batch_size=8)
    assert data.train_size == 21_285
    assert data.bank_size == 10_000
    assert len(decoded) < 1000  # those that are held out, and those that tell of the images' size
    next(iter(data.train_loader(seed=0)))
    assert len(decoded) < 1100
    assert time.process_time() - began < 20


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_view_shows_the_other_image(workers: int) -> None:
    options: dict[str, Any] = {"subset": 20, "val_subset": 10, "batch_size": 10}
    plain = RepresentationData("digits", augment="none", workers=0, **options)
    clean = {int(i): image for batch in plain.train_eval_loader() for i, image in zip(batch.ids, batch.images, strict=True)}
    data = RepresentationData("digits", workers=workers, **options)
    as_it_is = plain._eval_transform
    data = data.in_views(as_it_is, as_it_is, as_it_is, said="as they are", others=shifted)
    loader = data.train_loader(seed=0)
    for epoch in range(3):
        for batch in loader:
            assert batch.others.tolist() == [(i + 1 + epoch) % 20 for i in batch.ids.tolist()]
            for view, shown in zip(batch.views, (batch.ids, batch.others, batch.ids), strict=True):
                torch.testing.assert_close(view, torch.stack([clean[i] for i in shown.tolist()]))


def test_state_that_changes_between_epochs_is_seen_by_every_worker_and_rank(tmp_path: Path) -> None:
    state = {"shift": 0}
    made = RepresentationData(f"images:{pile(tmp_path)},val=0.17", image_size=16, workers=2, batch_size=4)

    def others(epoch: int, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return (ids + state["shift"]) % made.train_size

    data = made.in_views(crop_view(made, FIRST), crop_view(made, SECOND), said="two", others=others)
    loaders = [data.train_loader(seed=0, rank=rank, world=2) for rank in (0, 1)]
    for shift in (0, 7, 3):
        state["shift"] = shift
        for loader in loaders:
            for batch in loader:
                assert torch.equal(batch.others, (batch.ids + shift) % made.train_size)
    for loader in loaders:
        loader.end_workers()


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_crops_of_unlike_sizes_are_equal_for_any_workers_and_go_on_where_they_stopped(tmp_path: Path, kind: str) -> None:
    spec = "digits" if kind == "memory" else f"images:{pile(tmp_path, size=(90, 80))}"

    def made(workers: int) -> RepresentationData:
        options: dict[str, Any] = {"subset": 32} if kind == "memory" else {"image_size": 24}
        data = RepresentationData(spec, workers=workers, batch_size=8, **options)
        small = Look(scale=(0.1, 0.4), size=6)
        views = [crop_view(data, look) for look in (FIRST, SECOND, small, small)]
        return data.in_views(*views, said="2 + 2")

    whole, again = stream(made(0)), stream(made(2))
    side = made(0).image_size
    assert [view.shape[-1] for view in whole[0].views] == [side, side, 6, 6]
    assert not torch.equal(whole[0].views[2], whole[0].views[3])
    loader = made(0).train_loader(seed=3)
    loader.load_state_dict({"epoch": 0, "batch": 1})
    for batches, expected in ((again, whole), (list(loader), whole[1:])):
        for one, other in zip(batches, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    halves = [stream(made(0), rank=rank, world=2) for rank in (0, 1)]  # an image's views do not depend on those beside it
    joined = torch.cat([half[0].views[1] for half in halves])
    assert torch.equal(joined, whole[0].views[1]) or torch.allclose(joined, whole[0].views[1], atol=1e-6)


def test_views_change_colours_as_asked_for() -> None:
    data = RepresentationData("shapes,train=2,val=1", workers=0)
    pixels = data._train.pixels[:64]
    seeds = np.arange(64)

    def shown(look: Look) -> torch.Tensor:
        together = crop_view(data, look).together
        assert together is not None
        return together.apply(pixels, together.draw(seeds, pixels.shape[-2:]))

    still = shown(Look(scale=(1.0, 1.0), jitter=0, grey=0))
    assert still.min() >= 0
    assert still.max() <= 1
    grey = shown(Look(scale=(1.0, 1.0), jitter=0, grey=1))
    assert torch.allclose(grey[:, 0], grey[:, 2])
    solarised = shown(Look(scale=(1.0, 1.0), jitter=0, grey=0, solarise=1))
    torch.testing.assert_close(solarised, torch.where(still >= 0.5, 1 - still, still))
    blurred = shown(Look(scale=(1.0, 1.0), jitter=0, grey=0, blur=1))
    assert (blurred.diff(dim=-1).abs().mean((1, 2, 3)) <= still.diff(dim=-1).abs().mean((1, 2, 3)) + 1e-6).all()
    jittered = shown(Look(scale=(1.0, 1.0), jitter=1, grey=0))
    assert ((jittered - still).abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.9
    warped = warp_view(data)
    alone = warped.batch(pixels[5:6], seeds[5:6])
    torch.testing.assert_close(alone, warped.batch(pixels, seeds)[5:6])


def test_the_evaluation_shows_the_bank_and_then_every_validation_image_once() -> None:
    data = RepresentationData("digits", subset=60, val_subset=35, bank=30, batch_size=16, workers=0)
    assert np.bincount(data.train_labels[data.bank]).tolist() == [3] * 10
    ids = torch.cat([batch.ids for rank in (0, 1) for batch in data.eval_loader(rank=rank, world=2)])
    assert sorted(ids.tolist()) == list(range(65))


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"bank": 5}, "bank"),
        ({"bank": 10_000}, "bank"),
        ({"neighbours": 0}, "neighbours"),
        ({"knn_temperature": 0.0}, "knn_temperature"),
        ({"few_labels": 0}, "few_labels"),
        ({"augment": "wild"}, "augment"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        RepresentationData("digits", **options)
    assert caught.value.argument == argument


def test_fewer_than_two_images_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        RepresentationData(f"images:{pile(tmp_path, 1)}")
