"""Batches: sizes, flips and scales change images and boxes together, and depend on the draw's seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.engine.loading import Draw, sample_seeds, uniforms
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionBatch, DetectionData, _Batches
from stillroom.tasks.detection.preparation import Preparation, rescaled
from tests.tasks.detection.boxed import FORMATS, Picture, coco, pictures, voc

SEEDS = sample_seeds(3, 0, np.arange(40))


def bright(data: DetectionData, image: Tensor) -> list[int]:
    """The box around what is bright, in pixels."""
    pixels = image * torch.tensor(data.preparation.std)[:, None, None] + torch.tensor(data.preparation.mean)[:, None, None]
    rows, columns = (pixels[0] > 0.5).nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def one_cat(root: Path, size: tuple[int, int] = (48, 40)) -> str:
    made = pictures()
    for one in made:
        one.size = one.said = size
        one.things = [("cat", (8, 12, 20, 36), False)]
    return coco(root, made, ("cat",))


def seen(data: DetectionData, seed: int, **options: object) -> DetectionBatch:
    return _Batches(data.source.train, data, flip=True, **options).__getitems__([Draw(0, seed)])  # type: ignore[arg-type]


@pytest.mark.parametrize("image_size", [None, 30, 60])
def test_boxes_stay_on_their_objects(image_size: int | None, tmp_path: Path) -> None:
    data = DetectionData(one_cat(tmp_path), image_size=image_size)
    mirrored = set()
    for seed in SEEDS[:8].tolist():
        batch = seen(data, seed)
        height, width = batch.sizes[0].tolist()
        assert (height, width) == {None: (40, 48), 30: (30, 36), 60: (60, 72)}[image_size]
        assert np.abs(batch.boxes[0][0].numpy() - bright(data, batch.images[0, :, :height, :width])).max() <= 1
        assert type(batch.boxes[0]) is Tensor
        mirrored.add(float(batch.boxes[0][0, 0]) > width / 3)
        assert (float(batch.boxes[0][0, 0]) > width / 3) == (uniforms(np.array([seed]), 1)[0, 0] < 0.5)
    assert mirrored == {True, False}


def test_scales_are_drawn_for_teachers_alone(tmp_path: Path) -> None:
    data = DetectionData(one_cat(tmp_path), image_size=40, teacher_scales=(30, 50), max_size=66)
    theirs = data.for_teacher()
    assert data.for_teacher().fingerprint == theirs.fingerprint != data.fingerprint
    sides = []
    for seed in SEEDS.tolist():
        batch, again = (seen(data, seed, scales=theirs.scales) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(batch.boxes, again.boxes, strict=True))
        height, width = batch.sizes[0].tolist()
        assert np.abs(batch.boxes[0][0].numpy() - bright(data, batch.images[0, :, :height, :width])).max() <= 1
        sides.append(height)
    assert min(sides) <= 33
    assert 47 <= max(sides) <= 50
    shapes = {tuple(size) for batch in theirs.train_loader(seed=0) for size in batch.sizes.tolist()}
    assert len(shapes) > 1
    assert {tuple(size) for batch in (*data.train_loader(seed=0), *theirs.eval_loader()) for size in batch.sizes.tolist()} == {(40, 48)}


def test_images_of_several_sizes_make_one_batch(tmp_path: Path) -> None:
    made = pictures(8)
    for one, size in zip(made, ((24, 20), (60, 30), (30, 70), (24, 20)) * 2, strict=True):
        one.size = one.said = size
    data = DetectionData(coco(tmp_path, made), batch_size=8)
    (batch,) = data.train_loader(seed=0)
    assert batch.images.shape[-2] % 32 == batch.images.shape[-1] % 32 == 0
    for image, (height, width), boxes in zip(batch.images, batch.sizes.tolist(), batch.boxes, strict=True):
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()


def test_an_image_without_a_box_trains_where_it_is_kept(tmp_path: Path) -> None:
    spec = voc(tmp_path / "set", [*pictures(), Picture(file="empty.jpg", things=[])])
    counts = [len(DetectionData(f"{spec},empty={empty}").source.train) for empty in ("drop", "keep")]
    assert counts[1] - counts[0] <= 1
    data = DetectionData(f"{spec},empty=keep", batch_size=8)
    boxes = [len(boxes) for batch in (*data.train_loader(seed=0), *data.eval_loader()) for boxes in batch.boxes]
    assert 0 in boxes


@pytest.mark.parametrize("format", FORMATS)
def test_figures_are_those_of_the_data(format: str, tmp_path: Path) -> None:
    evaluator = DetectionData(FORMATS[format](tmp_path / "set", pictures())).evaluator()
    assert evaluator.voc == (format == "voc")


def test_a_preparation_survives_json_and_goes_back() -> None:
    made = Preparation(40, 60, (0.5,) * 3, (0.25,) * 3, 16)
    assert Preparation.from_json(made.to_json()) == made
    assert made.size(100, 300) == (20, 60)
    box = torch.tensor([[10.0, 20, 30, 40]])
    torch.testing.assert_close(rescaled(rescaled(box, (100, 301), (20, 60)), (20, 60), (100, 301)), box)


SCENES = "scenes:size=32,train=12,val=6,teacher=14"


def test_a_subset_shows_the_images_that_its_indices_name() -> None:
    whole, some = DetectionData(SCENES, batch_size=4), DetectionData(SCENES, batch_size=4, subset=5, val_subset=3, subset_seed=2)
    assert {split: len(indices) for split, indices in some.indices.items()} == {"train": 5, "val": 3}
    assert some.train_size == 5
    for split, mine, all_of_them in (("train", some.trained, whole.trained), ("val", some.truth, whole.truth)):
        for number, origin in enumerate(some.indices[split].tolist()):
            assert np.array_equal(mine.boxes[number], all_of_them.boxes[origin])
            assert torch.equal(mine.image(number), all_of_them.image(origin))
    ids = torch.cat([batch.ids for batch in some.eval_loader()])
    assert ids.tolist() == [0, 1, 2]
    assert {int(i) for batch in some.train_loader(seed=0) for i in batch.ids} <= set(range(5))
    other = DetectionData(SCENES, subset=5, val_subset=3, subset_seed=3)
    assert len({data.fingerprint for data in (whole, some, other)}) == 3
    assert (some.cache_key["subset"], "subset" in whole.cache_key) == (5, False)
    theirs = some.for_teacher()
    assert (theirs.train_size, list(theirs.indices)) == (14, ["val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 13}, "subset: got 13, expected a number from 1 to 12"),
        ({"val_subset": 0}, "val_subset: got 0, expected a number from 1 to 6"),
        ({"augment": "cifar"}, "augment: got cifar, expected one of mirror, none"),
        ({"workers": -1}, "workers: got -1"),
        ({"image_size": 4}, "image_size: got 4"),
    ],
)
def test_refuses_what_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        DetectionData(SCENES, **options)


def test_files_too_large_to_be_kept_are_read_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = one_cat(tmp_path)
    assert DetectionData(spec).workers == 0
    monkeypatch.setattr("stillroom.tasks.detection.data._MEMORY", 1000)
    assert DetectionData(spec).workers > 0
    assert DetectionData(spec, workers=0).workers == 0
