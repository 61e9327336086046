"""What MDCS shows its experts, by which groups of classes it is scored, and how it measures that experts and runs differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.methods.mdcs import LongTailedImages, shot_groups, two_views
from stillroom.methods.mdcs.measures import bias_and_variance, expert_divergence
from stillroom.tasks.classification import ViewBatch
from stillroom.tasks.images.transforms import Transform

STATISTICS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def pixels(count: int = 50, size: int = 16) -> Tensor:
    return torch.randint(1, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def small_views(**options: Any) -> tuple[Transform, Transform]:
    weak, strong = two_views("small", 16, *STATISTICS, **options)
    assert isinstance(weak, Transform)
    assert isinstance(strong, Transform)
    return weak, strong


def test_small_views_depend_on_each_images_seed_alone() -> None:
    for view in small_views():
        every = view.batch(pixels(), np.arange(50))
        assert torch.equal(every[7:9], view.batch(pixels()[7:9], np.array([7, 8])))
        assert not torch.equal(every, view.batch(pixels(), np.arange(50) + 1))


def test_a_weak_view_is_a_crop_of_the_reflected_image() -> None:
    image = pixels(1)
    reflected = nn.functional.pad(image.float() / 255, (2, 2, 2, 2), mode="reflect")
    crops = {tuple(reflected[0, :, i : i + 16, j : j + 16].flatten().tolist()) for i in range(5) for j in range(5)}
    seen = {tuple(view.flatten().tolist()) for view in small_views(mirror=False)[0].batch(image.expand(400, -1, -1, -1), np.arange(400))}
    assert seen == crops
    mirrored = small_views()[0].batch(image.expand(100, -1, -1, -1), np.arange(100)).flip(-1)
    assert any(tuple(view.flatten().tolist()) in crops for view in mirrored)


def test_a_strong_view_has_a_black_square_colours_and_sometimes_none() -> None:
    shown = small_views()[1].batch(pixels(200), np.arange(200))
    black = (shown == 0).all(1)
    sizes = black.flatten(1).sum(1)
    assert sizes.max() == 64  # 8 x 8 where it lies inside
    assert sizes.min() >= 16  # a corner of it at the least
    assert shown.max() <= 1
    assert shown.min() >= 0
    grey = ((shown[:, 0] == shown[:, 1]) & (shown[:, 1] == shown[:, 2])).flatten(1).all(1)
    assert 0.1 < grey.float().mean() < 0.3


@pytest.mark.parametrize(("style", "size"), [("cifar", 32), ("imagenet", 48)])
def test_the_papers_views_read_files_and_tensors(style: Any, size: int) -> None:
    for view in two_views(style, size, *STATISTICS):
        assert not isinstance(view, Transform)
        for picture in (pixels(1, 40)[0], Image.effect_noise((70, 60), 80).convert("RGB")):
            first, again = (_seeded(view, picture) for _ in range(2))
            assert type(first) is Tensor
            assert first.shape == (3, size, size)
            assert first.dtype == torch.float32
            assert torch.equal(first, again)
    with pytest.raises(InputError, match="view_style"):
        two_views("imagnet", 32, *STATISTICS)  # type: ignore[arg-type]


def _seeded(view: Any, picture: Any) -> Tensor:
    from stillroom.engine.loading import kept_generators, seed_generators

    with kept_generators():
        seed_generators(3)
        shown: Tensor = view(picture)
        return shown


def test_the_papers_strong_view_of_small_images_has_a_hole_before_it_is_normalised() -> None:
    _, strong = two_views("cifar", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    shown = torch.stack([strong(torch.full((3, 32, 32), 255, dtype=torch.uint8)) for _ in range(10)])  # type: ignore[operator]
    assert (shown == -1).all(1).flatten(1).sum(1).min() >= 64  # black, that is -1


# Groups of classes, and how experts and runs differ ------------------------------------------------------------------------------------


def test_groups_of_classes_by_their_training_images() -> None:
    groups = shot_groups([500, 101, 100, 20, 19, 1])
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "many": [True, True, False, False, False, False],
        "medium": [False, False, True, True, False, False],
        "few": [False, False, False, False, True, True],
    }
    assert set(shot_groups([500, 1])) == {"many", "few"}
    assert set(shot_groups([5, 1], few_below=2, many_above=1)) == {"many", "few"}
    with pytest.raises(InputError, match="few_below"):
        shot_groups([5, 1], few_below=5, many_above=3)


def test_long_tailed_images_are_scored_by_group_and_are_other_data_with_other_limits() -> None:
    data = LongTailedImages(few_below=5, many_above=50)
    assert data.class_counts.tolist()[-1] == 3
    evaluator = data.evaluator()
    evaluator.update(torch.eye(10), ViewBatch((torch.empty(10),), torch.arange(10), torch.arange(10)))
    assert {name: evaluator.compute()[name] for name in ("many", "medium", "few")} == dict.fromkeys(("many", "medium", "few"), 100)
    assert LongTailedImages(few_below=6, many_above=50).fingerprint != data.fingerprint
    with pytest.raises(InputError, match="few_below"):
        LongTailedImages(few_below=50, many_above=20)


def test_divergence_of_experts() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum((p[:, i] * (p[:, i].log() - p[:, j].log())).sum(-1) for i, j in pairs) / 6
    torch.testing.assert_close(expert_divergence(logits), expected)
    assert expert_divergence(logits[:, :1].expand(-1, 3, -1)).abs().max() < 1e-6
    with pytest.raises(InputError, match="two experts"):
        expert_divergence(logits[:, :1])


def test_bias_and_variance_of_runs() -> None:
    predicted = np.array([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 1, 2]])
    bias, variance = bias_and_variance(predicted, np.array([0, 1, 2, 0]))
    assert bias == 25  # the majority says 0, 1, 1, 0
    assert variance.tolist() == [25, 25, 50]
    with pytest.raises(InputError, match="at least two"):
        bias_and_variance(predicted[:1], np.array([0, 1, 2, 0]))
