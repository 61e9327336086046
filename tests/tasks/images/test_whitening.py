from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.networks import NETWORKS
from stillroom.tasks.images.networks.whitening import Jitter, Whitened, Whitening, contrast_normalised, zca

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pixels(count: int = 200, size: int = 4) -> Tensor:
    """Smooth images, whose neighbouring pixels are alike, with values of uint8."""
    coarse = torch.rand(count, 3, 2, 2)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.1 * torch.rand(count, 3, size, size)
    return (images.clamp(0, 1) * 255).round()


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def fitted(images: Tensor) -> Whitening:
    whitening = Whitening(images.shape[-1])
    whitening.fit(lambda: normalised(images).split(64), MEAN, STD)
    return whitening


def test_contrast_is_normalised_whatever_brightness_and_contrast_were() -> None:
    rows = pixels().flatten(1)
    out = contrast_normalised(rows)
    torch.testing.assert_close(out.mean(1), torch.zeros(200), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.norm(dim=1), torch.full((200,), 55.0))
    torch.testing.assert_close(contrast_normalised(0.5 * rows + 20), out, atol=1e-3, rtol=0)


def test_a_constant_image_becomes_nothing() -> None:
    assert (contrast_normalised(torch.full((2, 12), 7.0)) == 0).all()
    grey = torch.full((1, 3, 4, 4), 128.0)
    assert fitted(pixels()).contrast_normalised(normalised(grey)).abs().max() < 0.1


def test_whitened_rows_are_uncorrelated_and_the_matrix_symmetric() -> None:
    rows = contrast_normalised(pixels(4000).flatten(1).double())
    mean, matrix = zca(rows.split(999), scale=0.0)
    white = (rows - mean) @ matrix
    values = torch.linalg.eigvalsh(white.T @ white / 3999)  # all images have mean 0: one direction has no variance
    assert values[0] < 1e-6
    torch.testing.assert_close(values[1:], torch.ones(47, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix, matrix.T)


def test_statistics_do_not_depend_on_how_the_set_is_cut() -> None:
    rows = contrast_normalised(pixels().flatten(1))
    for whole, pieces in zip(zca([rows]), zca(rows.split(7)), strict=True):
        torch.testing.assert_close(whole, pieces)


def test_the_network_s_whitening_is_that_of_the_pixels() -> None:
    images = pixels()
    rows = contrast_normalised(images.flatten(1).double())
    mean, matrix = zca([rows])
    expected = ((rows - mean) @ matrix).view_as(images).float()
    torch.testing.assert_close(fitted(images)(normalised(images)), expected, atol=2e-3, rtol=1e-3)


def test_whitening_stays_in_float32_under_autocast() -> None:
    images, whitening = normalised(pixels()), fitted(pixels())
    expected = whitening(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(whitening(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(0, 3, 4, 4)])
def test_too_few_images_for_a_covariance(images: Tensor) -> None:
    with pytest.raises(InputError, match="at least two images"):
        fitted(images)


def test_photographs_are_refused() -> None:
    with pytest.raises(InputError, match="image_size: got 224"):
        Whitened(NETWORKS["wrn_16_1"], num_classes=2, image_size=224)


def test_jitter_rests_in_evaluation() -> None:
    images = torch.randn(5, 3, 8, 8)
    assert Jitter().eval()(images) is images


@pytest.mark.parametrize("each", [False, True])
def test_jitter_shows_windows_of_the_image_with_a_reflected_border(each: bool) -> None:
    images = torch.randn(6, 3, 8, 8)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    jitter, places = Jitter(noise=0.0, each=each), set()
    for _ in range(60):
        rows = []
        for image, source in zip(jitter(images), padded, strict=True):
            found = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if torch.equal(image.flip(-1) if flip else image, source[:, top : top + 8, left : left + 8])
            ]
            assert len(found) == 1
            rows.append(found[0])
        assert (len(set(rows)) == 1) or each
        places |= set(rows)
    assert {flip for _, _, flip in places} == {False, True}
    assert {top for top, _, _ in places} == {left for _, left, _ in places} == set(range(5))


def test_jitter_adds_noise_of_its_own_to_each_number() -> None:
    noise = Jitter(border=0)(torch.zeros(50, 3, 16, 16))
    assert noise.std().item() == pytest.approx(0.15, rel=0.02)
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_the_whitened_network_ships_its_statistics_and_trains() -> None:
    network = Whitened(NETWORKS["wrn_16_1"], num_classes=2, image_size=8)
    network.whitening.fit(lambda: [normalised(pixels(50, 8))], MEAN, STD)
    images = normalised(pixels(4, 8))
    again = Whitened(NETWORKS["wrn_16_1"], num_classes=2, image_size=8)
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again.eval()(images), network.eval()(images))
    network.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_sizes_and_first_weights_of_the_wide_resnet_of_semi_supervised_learning() -> None:
    network = NETWORKS["wrn_28_2_leaky"](num_classes=2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_466_578
    assert {module.negative_slope for module in network.modules() if isinstance(module, torch.nn.LeakyReLU)} == {0.1}
    assert not any(isinstance(module, torch.nn.ReLU) for module in network.modules())
    head = NETWORKS["wrn_28_2_leaky"](num_classes=1000).fc
    assert head.weight.std().item() == pytest.approx((2 / (128 + 1000)) ** 0.5, rel=0.02)
    assert (head.bias == 0).all()
