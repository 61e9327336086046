"""What the data give to a run: batches, views of them, and what is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.images.page_parts import data_section
from stillroom.tasks.images.transforms import train_transform, transform_from
from stillroom.tasks.multilabel import MultiLabelData
from tests.tasks.multilabel.annotated import tags, voc


def mosaics(**options: object) -> MultiLabelData:
    return MultiLabelData("mosaics,train=50,val=21,teacher=70", batch_size=16, **options)  # type: ignore[arg-type]


def test_batches_hold_the_labels_of_their_images() -> None:
    data = mosaics()
    batches = list(data.train_loader(seed=1))
    assert [len(batch.ids) for batch in batches] == [16, 16, 16]
    for batch in batches:
        assert batch.images.shape == (16, 3, 16, 16)
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        assert torch.equal(batch.labels, data.train_labels[batch.ids])
        assert batch.inputs is batch.images
    assert torch.cat([batch.ids for batch in data.eval_loader()]).tolist() == list(range(21))
    again = next(iter(data.train_loader(seed=1)))
    assert torch.equal(again.images, batches[0].images)
    halves = [next(iter(data.train_loader(seed=1, rank=rank, world=2))).ids for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batches[0].ids)


def test_a_teacher_may_have_more_images_to_learn_from() -> None:
    data = mosaics(subset=20)
    theirs = data.for_teacher()
    assert len(theirs.train_labels) == 70
    assert len(data.train_labels) == 20
    assert theirs.fingerprint != data.fingerprint
    assert theirs.indices == {}
    assert torch.equal(theirs.val_labels, data.val_labels)
    assert data.indices.keys() == {"train"}


def test_a_teacher_of_other_sets_learns_from_the_same(tmp_path: Path) -> None:
    data = MultiLabelData(f"csv:{tags(tmp_path, 12)}", image_size=8)
    assert data.for_teacher() is data


def test_photographs_are_squashed_not_cropped(tmp_path: Path) -> None:
    data = MultiLabelData(f"voc:{voc(tmp_path)}", image_size=8, augment="none", workers=0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    batch = next(iter(data.eval_loader()))
    assert batch.images.shape == (2, 3, 8, 8)
    raw = (batch.images * 0.5 + 0.5) * 255
    # colours say the labels: 60, and 60 more for each object; JPEG is a little off
    assert torch.equal((raw.mean((2, 3)) > 90).long(), batch.labels)
    assert data.in_memory


@pytest.mark.parametrize("memory", [0, 1e9])
def test_reading_from_files_and_from_memory_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    monkeypatch.setattr("stillroom.tasks.multilabel.data._MEMORY", memory)
    place = f"voc:{voc(tmp_path, size=(40, 30))}"
    data = MultiLabelData(place, image_size=12, workers=0)
    assert data.in_memory == bool(memory)
    images = next(iter(data.train_loader(seed=0))).images
    monkeypatch.setattr("stillroom.tasks.multilabel.data._MEMORY", 1e9 - memory)
    other = next(iter(MultiLabelData(place, image_size=12, workers=0).train_loader(seed=0))).images
    assert torch.equal(images, other)


def test_the_papers_augmentation_cuts_a_rectangle_and_is_replayed() -> None:
    transform = train_transform("randaugment", 16, (0, 0, 0), (1, 1, 1))
    torch.manual_seed(0)
    image = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    changed, drawn = transform.prepare(image)
    assert set(drawn) == {"cutout", "policy"}
    assert changed.shape == (3, 16, 16)
    assert changed.dtype == torch.uint8
    state = torch.random.get_rng_state()
    assert torch.equal(transform.replay(image, drawn), changed.float() / 255)
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [transform.prepare(image)[0] for _ in range(20)]
    assert sum(not torch.equal(other, changed) for other in others) == 20


def test_turning_gives_the_eight_symmetries() -> None:
    image = torch.arange(3 * 16, dtype=torch.uint8).view(3, 4, 4)
    transform = train_transform("turn", 4, (0, 0, 0), (1, 1, 1))
    seen = {tuple(transform.batch(image[None], np.array([seed])).flatten().tolist()) for seed in range(200)}
    expected = {
        tuple((t.float() / 255).flatten().tolist()) for k in range(4) for t in (image.rot90(k, (1, 2)), image.rot90(k, (1, 2)).flip(2))
    }
    assert seen == expected
    mirrored = train_transform("mirror", 4, (0, 0, 0), (1, 1, 1))
    seen = {tuple(mirrored.batch(image[None], np.array([seed])).flatten().tolist()) for seed in range(50)}
    assert seen == {tuple((t.float() / 255).flatten().tolist()) for t in (image, image.flip(2))}


def test_the_description_prepares_images_as_evaluation_does(tmp_path: Path) -> None:
    data = MultiLabelData(f"voc:{voc(tmp_path)}", image_size=8, mean=(0.1, 0.2, 0.3))
    transform = transform_from(data.describe()["transform"])
    assert torch.equal(transform(data.source.val.image(0)), next(iter(data.eval_loader())).images[0])


def test_damaged_files_are_left_out_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tags(tmp_path, 12)
    (tmp_path / "photos/1.png").write_bytes(b"<html>not found</html>")
    whole = f"csv:{table},val=0.2"
    data = MultiLabelData(whole, image_size=8)
    assert "left out 1 image file that cannot be decoded: photos/1.png" in caplog.text
    assert len(data.train_labels) + len(data.val_labels) == 11
    with pytest.raises(InputError, match="strict"):
        MultiLabelData(whole, image_size=8, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 51}, "subset: got 51, expected a number from 1 to 50"),
        ({"augment": "flip"}, "augment: got flip"),
        ({"std": (1.0, 0.0, 1.0)}, "std: got"),
        ({"mean": (1.0, 0.0)}, "mean: got"),
        ({"image_size": 0}, "image_size: got 0"),
    ],
)
def test_refuses_what_it_cannot_use(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        mosaics(**options)


def test_the_first_lines_count_labels_and_say_the_size(tmp_path: Path) -> None:
    data = MultiLabelData(f"csv:{tags(tmp_path, 12)}")
    counts, size, *_ = data.first_lines()
    trained, measured = data.train_labels.sum(0).tolist(), data.val_labels.sum(0).tolist()
    named = ", ".join(f"{name} ({a} + {b})" for name, a, b in zip(data.classes, trained, measured, strict=True))
    assert counts == f"{len(data.train_labels)} training + {len(data.val_labels)} validation images with {data.num_classes} labels: {named}"
    assert size == "224 × 224 pixels: the default, whatever their size (the first is 16 × 12; enlarged: --image-size 12 takes less time)"
    assert mosaics(image_size=8).first_lines()[1] == "8 × 8 pixels: as asked for"
    section = data_section(data, "label")
    assert section.html.count("<tr>") == 1 + data.num_classes
