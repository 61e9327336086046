"""The drawn pictures: their classes, and that they are always the same."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.shapes import HUES, SHAPES, TEXTURES, class_names, shape_images


def test_classes_are_all_combinations() -> None:
    names = class_names()
    assert sorted(names) == sorted(" ".join(parts) for parts in itertools.product(HUES, TEXTURES, SHAPES))
    assert len(set(names)) == 60


def test_every_one_of_the_last_24_shares_two_properties_with_several_of_the_first_36() -> None:
    known, novel = [[set(name.split()) for name in part] for part in (class_names()[:36], class_names()[36:])]
    assert min(sum(len(one & other) == 2 for other in known) for one in novel) >= 2


def test_more_pictures_of_a_class_begin_with_the_fewer_and_validation_has_others() -> None:
    few, more, other = shape_images(2), shape_images(5), shape_images(2, val=True)
    assert torch.equal(few.pixels.view(60, 2, -1), more.pixels.view(60, 5, -1)[:, :2])
    assert not (few.pixels == other.pixels).flatten(1).all(1).any()
    assert np.array_equal(few.labels, np.repeat(np.arange(60), 2))


def test_pictures_are_the_same_everywhere() -> None:
    blurred = (shape_images(1).pixels.float().mean((2, 3)) / 8).round().byte()  # but for the last bit of a sine
    assert hashlib.sha256(blurred.numpy().tobytes()).hexdigest()[:12] == "4b03e20e9ffb"


def test_hue_shows_in_the_middle_of_plain_discs() -> None:
    names, pixels = class_names(), shape_images(20).pixels.view(60, 20, 3, 16, 16).float()
    red, cyan = (pixels[names.index(f"{hue} plain disc")][:, :, 6:10, 6:10].mean((0, 2, 3)) for hue in ("red", "cyan"))
    assert red.argmax() == 0
    assert cyan.argmin() == 0


def test_stripes_vary_along_one_axis_only() -> None:
    names, pixels = class_names(), shape_images(30).pixels.view(60, 30, 3, 16, 16).float()

    def variation(texture: str, axis: int) -> float:
        squares = torch.cat([pixels[names.index(f"{hue} {texture} square")] for hue in HUES])[..., 5:11, 5:11]
        return float(squares.diff(dim=axis).abs().mean())

    assert variation("vertical", -1) > 1.2 * variation("vertical", -2)
    assert variation("horizontal", -2) > 1.2 * variation("horizontal", -1)
    assert variation("plain", -1) < 0.8 * variation("vertical", -1)


def test_the_source() -> None:
    data = ImageData("shapes,train=3,val=2")
    assert (data.train_size, len(data.val_labels), data.num_classes, data.image_size) == (180, 120, 60, 16)
    assert data.in_memory
    assert ImageData("shapes").train_size == 3000


def test_another_seed_draws_other_pictures_of_the_same_classes() -> None:
    data, other = ImageData("shapes,train=2,val=1"), ImageData("shapes,train=2,val=1,seed=1")
    assert other.classes == data.classes
    assert other.fingerprint != data.fingerprint
    for val in (False, True):
        pictures, others = shape_images(2, val=val), shape_images(2, val=val, seed=1)
        assert not (pictures.pixels == others.pixels).flatten(1).all(1).any()
        assert not set(pictures.names) & set(others.names)  # a bank of labels of the ones does not pass for the others'
    assert ImageData("shapes,train=2,val=1,seed=0").fingerprint == data.fingerprint


def test_a_teacher_has_more_pictures_that_begin_with_the_students() -> None:
    data, plain = ImageData("shapes,train=2,val=1,teacher=5", augment="none"), ImageData("shapes,train=2,val=1", augment="none")
    taught = data.for_teacher()
    assert (data.train_size, taught.train_size) == (120, 300)
    own, more = ({one.train_name(i) for i in range(one.train_size)} for one in (data, taught))
    assert own < more
    assert torch.equal(taught.val_labels, data.val_labels)
    others = {ImageData(f"shapes,train=2,val=1,teacher={n}").for_teacher().fingerprint for n in (5, 6)}
    assert len({data.fingerprint, plain.fingerprint, taught.fingerprint, *others}) == 5
    assert plain.for_teacher() is plain


@pytest.mark.parametrize("spec", ["shapes:somewhere", "shapes,seed=-1", "shapes,train=0", "shapes,train=x", "shapes,test=3"])
def test_what_it_refuses(spec: str) -> None:
    with pytest.raises(InputError, match=r"^data: got"):
        ImageData(spec)
