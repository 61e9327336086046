"""Drawn pictures, photos, the data of one edit, and who judges it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.editing import EditingData
from stillroom.tasks.editing.shapes import COLOURS, PROTOTYPES, drawn_shapes


def test_drawn_pictures_are_what_they_are_said_to_be() -> None:
    drawn = drawn_shapes(120, 0)
    share_N = drawn.masks_NHW.float().mean((1, 2))
    assert share_N.min() >= 0.2
    assert share_N.max() <= 0.45
    pixels = drawn.images.pixels.float() / 127.5 - 1
    inside = drawn.masks_NHW[:, None].float()
    colour_N3 = (pixels * inside).sum((2, 3)) / inside.sum((2, 3))
    assert torch.equal(torch.cdist(colour_N3, PROTOTYPES).argmin(1), torch.from_numpy(drawn.images.labels))
    outside = ~drawn.masks_NHW[:, None].expand_as(pixels)
    ground = drawn.grounds_NCHW.float() / 127.5 - 1
    assert (pixels - ground)[outside].std() == pytest.approx(0.02, abs=0.003)
    assert np.bincount(drawn.images.labels).tolist() == [20] * 6


def test_an_edit_s_data_leave_out_what_need_not_be_edited() -> None:
    data = EditingData("colours:train=60,val=30", batch_size=10)
    edit = data.for_edit("red")
    assert edit.train_size == 50
    labels = torch.cat([batch.labels for batch in edit.eval_loader()])
    assert len(labels) == 25
    assert COLOURS.index("red") not in labels.tolist()
    from_blue = data.for_edit("red", "blue")
    assert {int(label) for batch in from_blue.eval_loader() for label in batch.labels} == {COLOURS.index("blue")}
    assert len({data.fingerprint, edit.fingerprint, from_blue.fingerprint}) == 3
    with pytest.raises(InputError, match="from_: got red, expected another class than the prompt's"):
        data.for_edit("red", "red")


@pytest.mark.parametrize("subset", [None, 12])
def test_the_judge_of_drawn_pictures_knows_them(subset: int | None) -> None:
    """The true recolouring is an edit without error; the picture itself is none; red everywhere is one, and the judge says what it cost."""
    data = EditingData("colours:train=12,val=30", val_subset=subset)
    edit = data.for_edit("red")
    evaluator = edit.evaluator()
    drawn = data._known()
    for batch in edit.eval_loader():
        masks = edit.judge.masks[batch.ids][:, None]  # type: ignore[union-attr]
        red = PROTOTYPES[0][None, :, None, None]
        for answer, expected in (
            (torch.where(masks, red, batch.images), {"edited": 100.0, "background": 0.0, "iou": 100.0}),
            (batch.images, {"edited": 0.0, "background": 0.0, "change": 0.0, "iou": 100.0}),
        ):
            evaluator.reset()
            evaluator.update(answer, batch)
            found = evaluator.compute()
            assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
            assert evaluator.details()["outcome"].mean() == pytest.approx(found["edited"])
        evaluator.reset()
        evaluator.update(red.expand_as(batch.images), batch)
        assert evaluator.compute()["background"] > 100
    assert len(drawn.images) == (subset or 30)


def test_photos_of_a_folder_need_no_classes(tmp_path: Path) -> None:
    for number in range(10):
        place = tmp_path / ("a" if number % 2 else "b/c")
        place.mkdir(parents=True, exist_ok=True)
        Image.new(("RGB", "L", "RGBA", "P")[number % 4], (40, 30)).save(place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("none")
    data = EditingData(images=str(tmp_path), image_size=16)
    assert (data.train_size, len(next(iter(data.eval_loader())).ids)) == (8, 2)
    assert not data.has_classes
    assert data.for_edit("white hair").evaluator().primary == "change"
    assert data.train_loader(seed=0).first(2).images.shape == (2, 3, 16, 16)
    assert any("notes.txt" in line for line in data.first_lines())


def test_drawn_pictures_have_one_size() -> None:
    with pytest.raises(InputError, match="image_size: got 32, expected 16, in which colours are drawn"):
        EditingData(image_size=32)


def test_drawn_data_say_so() -> None:
    assert "procedural data" in EditingData("colours:train=12,val=12").first_lines()[0]
