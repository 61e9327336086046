"""Several views of every image: each its own, each reproducible, whatever the workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.transforms import Transform, train_transform
from stillroom.tasks.images.views import ViewBatch

STATISTICS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def weak(size: int = 8) -> Transform:
    return train_transform("cifar", size, *STATISTICS)


def small_crop() -> v2.Transform:
    return v2.Compose([v2.ToImage(), v2.RandomResizedCrop(6, antialias=True), v2.ToDtype(torch.float32, scale=True)])


def stream(data: ImageData, count: int = 3) -> list[ViewBatch]:
    return [batch for batch, _ in zip(data.train_loader(seed=1), range(count), strict=False)]


def test_views_of_images_in_memory() -> None:
    data = ImageData("digits", batch_size=16)
    clean = {int(i): label for batch in data.train_eval_loader() for i, label in zip(batch.ids, batch.labels, strict=True)}
    batch = stream(data.in_views(weak(), weak(), said="two weak"))[0]
    assert [view.shape for view in batch.views] == [torch.Size([16, 3, 8, 8])] * 2
    assert not torch.equal(*batch.views)  # the same images, not the same changes
    assert batch.inputs is batch.views[0]
    assert [clean[i] for i in batch.ids.tolist()] == batch.labels.tolist()


def test_views_of_different_sizes_and_kinds() -> None:
    data = ImageData("digits", batch_size=16).in_views(weak(), small_crop(), said="weak, crop")
    first, again = stream(data), stream(data)
    assert [view.shape[-1] for view in first[0].views] == [8, 6]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    assert torch.equal(first[0].ids, stream(ImageData("digits", batch_size=16))[0].ids)  # the same order as without views


@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_files(tmp_path: Path, workers: int) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.effect_noise((90, 80), 60 + number).convert("RGB").save(tmp_path / label / f"{number}.png")
    data = ImageData(f"imagefolder:{tmp_path}", image_size=32, augment="imagenet", batch_size=4, workers=workers)
    in_views = data.in_views(train_transform("imagenet", 32, *STATISTICS), small_crop(), said="crops")
    batches = stream(in_views)
    assert [view.shape for view in batches[0].views] == [torch.Size([4, 3, 32, 32]), torch.Size([4, 3, 6, 6])]
    expected = stream(ImageData(f"imagefolder:{tmp_path}", image_size=32, augment="imagenet", batch_size=4, workers=0).in_views(
        train_transform("imagenet", 32, *STATISTICS), small_crop(), said="crops"
    ))  # fmt: skip
    for one, other in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_other_views_are_other_data() -> None:
    data = ImageData("digits")
    assert len({data.fingerprint, data.in_views(weak(), said="a").fingerprint, data.in_views(weak(), said="b").fingerprint}) == 3
