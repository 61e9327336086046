"""Anomaly maps, and pictures and maps between a picture's own pixels and the network's square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from stillroom.errors import InputError
from stillroom.tasks.anomaly.maps import MapOptions, anomaly_map, blurred, heat
from stillroom.tasks.anomaly.preparation import Preparation


@pytest.mark.parametrize("size", [(20, 33), (5, 7)])
def test_the_blur_is_scipy_s(size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size)
    expected = np.stack([gaussian_filter(one.double().numpy(), 4, mode="reflect", truncate=4) for one in maps])
    np.testing.assert_allclose(blurred(maps, 4.0).numpy(), expected, atol=1e-6)
    assert blurred(maps, 0.0) is maps


def test_every_option_of_maps_changes_them_and_is_said() -> None:
    students, teachers = ([torch.rand(1, 3, n, n) for n in (8, 4)] for _ in range(2))
    variants = [
        MapOptions(),
        MapOptions(combine="product"),
        MapOptions(level_weight="inv_area"),
        MapOptions(align_corners=True),
        MapOptions(blur=2),
    ]
    maps = [anomaly_map(students, teachers, (16, 16), options) for options in variants]
    assert all(not torch.allclose(maps[i], maps[j]) for i in range(5) for j in range(i))
    assert len({options.said(16) for options in variants}) == 5
    with pytest.raises(InputError, match="combine"):
        MapOptions(combine="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64)])
def test_a_place_stays_where_it_is(fit: str, width: int, height: int) -> None:
    """There and back: a spot in the picture peaks there again, whatever the shape; what was never seen is no number."""
    preparation = Preparation(64, fit)
    y, x = 30 + height // 10, 25 + width // 8
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    seen = preparation(Image.fromarray(pixels)).float().mean(0)
    mask = preparation.mask(pixels[..., 0] > 0)
    assert mask.any()
    placed = preparation.placed(blurred(seen[None], 1.0)[0], height, width)
    assert placed.shape == (height, width)
    peak = np.unravel_index(int(placed.nan_to_num(-1).argmax()), placed.shape)
    assert abs(int(peak[0]) - y) <= 2
    assert abs(int(peak[1]) - x) <= 2
    unseen = placed.isnan().float().mean()
    assert float(unseen) == pytest.approx(0.4 if fit == "crop" and width != height else 0.0, abs=0.03)


def test_masks_and_pictures_are_resized_alike() -> None:
    for fit in ("squash", "crop"):
        preparation = Preparation(32, fit)
        mask = np.zeros((90, 140), bool)
        mask[20:60, 50:90] = True
        picture = Image.fromarray(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2))
        assert ((preparation(picture)[0].numpy() > 127) == preparation.mask(mask)).mean() > 0.97


def test_smoothing_is_an_option() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8))
    smooth, plain = (Preparation(30, antialias=antialias)(picture).float() for antialias in (True, False))
    assert float(smooth.std()) < 0.8 * float(plain.std())


def test_what_describes_a_preparation_builds_it() -> None:
    described = Preparation(48, "crop", antialias=False).describe((0.5,) * 3, (0.2,) * 3)
    again = Preparation.from_description(described)
    assert (again.image_size, again.fit, again.antialias) == (48, "crop", False)


def test_heat_grows_from_black_to_white() -> None:
    colours = heat(torch.linspace(0, 1, 7)[None], 0.0, 1.0)[:, 0].int()
    assert colours[:, 0].tolist() == [0, 0, 0]
    assert colours[:, -1].tolist() == [255, 255, 255]
    assert (colours.sum(0).diff() > 0).all()
