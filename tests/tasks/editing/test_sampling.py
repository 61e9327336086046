"""DDIM, its inversion, and SDEdit."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.editing.denoiser import Denoiser, PixelTeacher
from stillroom.tasks.editing.diffusion import alphas_cumprod
from stillroom.tasks.editing.sampling import DDIB, SDEdit, ddim_invert, ddim_sample, ddim_times, strength_steps


@pytest.mark.parametrize(("strength", "steps", "taken"), [(0.05, 15, 0), (0.58, 50, 29), (1.0, 50, 50), (0.0, 20, 0), (0.3, 20, 6)])
def test_a_strength_is_a_share_of_the_steps(strength: float, steps: int, taken: int) -> None:
    assert strength_steps(strength, steps) == taken


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_inversion_and_sampling_undo_each_other(steps: int) -> None:
    """With a network that always answers the same; each of them calls it once a step, at times of the grid alone."""
    abar, times = alphas_cumprod(), ddim_times(steps, 1000)
    z, eps = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    asked: list[int] = []

    def constant(noisy: Tensor, t: int) -> Tensor:
        asked.append(t)
        return eps

    there = ddim_invert(constant, z, times, abar)
    assert len(asked) == steps
    back = ddim_sample(constant, there, times, abar)
    assert len(asked) == 2 * steps
    assert (back - z).abs().max() < 1e-6
    assert set(asked) <= set(times)
    assert min(asked) >= 0
    assert times[-1] == 999
    assert len(set(times)) == steps


def test_more_steps_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(InputError, match="ddim_steps"):
        ddim_times(300, 200)


def test_no_step_is_said_and_gives_the_picture_back(caplog: pytest.LogCaptureFixture) -> None:
    teacher = PixelTeacher(Denoiser(2, 16, 8), ("a", "b"), 16, "fp32")
    with caplog.at_level(logging.WARNING):
        editor = SDEdit(teacher, teacher.condition("a"), strength=0.05, steps=15)
    assert "none of its 15 steps" in caplog.text
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(editor(images), images)


def test_an_edit_by_sampling_is_the_same_each_time() -> None:
    teacher = PixelTeacher(Denoiser(2, 16, 8), ("a", "b"), 16, "fp32")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    editor = SDEdit(teacher, teacher.condition("b"), strength=0.5, steps=4)
    assert torch.equal(editor(images), editor(images))
    assert not torch.equal(editor(images), images)


def test_there_and_back_under_one_condition_is_nearly_the_picture() -> None:
    torch.manual_seed(0)
    teacher = PixelTeacher(Denoiser(2, 16, 8), ("a", "b"), 16, "fp32")
    images = torch.rand(2, 3, 16, 16) * 1.8 - 0.9
    same = DDIB(teacher, teacher.condition("a"), teacher.condition("a"), steps=50)(images)
    assert (same - images).abs().max() < 0.02
