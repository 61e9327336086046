"""A diffusers pipeline on disk as a teacher."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.editing.pipeline import NonFiniteLatents, PipelineTeacher
from stillroom.tasks.editing.sampling import SDEdit

pytest.importorskip("diffusers", reason="the extra stillroom[diffusion] is not installed")

from tests.tasks.editing.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> PipelineTeacher:
    return PipelineTeacher(str(folder), precision="fp32")


def test_it_has_the_pipeline_s_noise_levels_size_and_prompts(teacher: PipelineTeacher) -> None:
    from stillroom.tasks.editing.diffusion import alphas_cumprod

    torch.testing.assert_close(teacher.alphas_cumprod, alphas_cumprod(), rtol=1e-4, atol=1e-6)
    assert teacher.image_size == 32
    assert teacher.condition("white hair").shape == teacher.null_condition.shape == (1, 8, 16)
    assert not torch.equal(teacher.condition("white hair"), teacher.null_condition)


def test_a_prompt_that_is_too_long_is_cut_and_said(teacher: PipelineTeacher, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert teacher.condition("white hair red hair white hair red hair white").shape == (1, 8, 16)
    assert "tokens, of which the text encoder reads the first 8" in caplog.text


def test_the_gradient_goes_through_the_encoder_and_not_through_the_u_net(teacher: PipelineTeacher) -> None:
    images = torch.rand(2, 3, 32, 32).mul(2).sub(1).requires_grad_()
    latents = teacher.encode(images)
    assert latents.shape == (2, 4, 16, 16)
    assert latents.dtype == torch.float32
    latents.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for network in teacher.networks for parameter in network.parameters())
    assert not teacher.predict_noise(torch.randn(1, 4, 16, 16), 500, teacher.null_condition).requires_grad


def test_velocities_are_read_as_such(folder: Path, teacher: PipelineTeacher, tmp_path: Path) -> None:
    of_velocity = shutil.copytree(folder, tmp_path / "v")
    place = of_velocity / "scheduler/scheduler_config.json"
    place.write_text(place.read_text().replace('"prediction_type": "epsilon"', '"prediction_type": "v_prediction"'))
    other = PipelineTeacher(str(of_velocity), precision="fp32")
    noisy, t = torch.randn(1, 4, 16, 16), 700
    answer, abar = teacher.predict_noise(noisy, t, teacher.null_condition), teacher.alphas_cumprod[t]
    expected = abar.sqrt() * answer + (1 - abar).sqrt() * noisy
    torch.testing.assert_close(other.predict_noise(noisy, t, other.null_condition), expected)
    assert other.fingerprint() != teacher.fingerprint()


def test_an_unknown_prediction_is_refused(folder: Path, tmp_path: Path) -> None:
    strange = shutil.copytree(folder, tmp_path / "x")
    place = strange / "scheduler/scheduler_config.json"
    place.write_text(place.read_text().replace('"prediction_type": "epsilon"', '"prediction_type": "sample"'))
    with pytest.raises(InputError, match=r"prediction_type 'sample'.*epsilon, v_prediction"):
        PipelineTeacher(str(strange))


def test_an_autocast_around_it_does_not_reach_the_vae(teacher: PipelineTeacher) -> None:
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.manual_seed(0)
    expected = teacher.encode(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.encode(images)
        assert teacher.decode(found).dtype == torch.float32
    assert torch.equal(found, expected)


def test_latents_that_are_not_finite_name_the_vae(folder: Path) -> None:
    broken = PipelineTeacher(str(folder), precision="fp32")
    with torch.no_grad():
        broken.vae.encoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLatents, match="VAE"):
        broken.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(NonFiniteLatents, match="VAE"):
        broken.decode(torch.full((1, 4, 16, 16), float("nan")))


def test_what_is_no_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json; a model of the hub is hub:NAME"):
        PipelineTeacher("runwayml/stable-diffusion-v1-5")
    partial = shutil.copytree(folder, tmp_path / "partial")
    shutil.rmtree(partial / "vae")
    with pytest.raises(InputError, match="missing: vae"):
        PipelineTeacher(str(partial))
    without = shutil.copytree(folder, tmp_path / "without")
    (without / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        PipelineTeacher(str(without))


def test_sdedit_of_no_step_gives_the_encoded_picture_back(teacher: PipelineTeacher) -> None:
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    editor = SDEdit(teacher, teacher.condition("red hair"), strength=0.05, steps=15)
    torch.manual_seed(0)
    found = editor(images)
    torch.manual_seed(0)
    assert torch.equal(found, teacher.decode(teacher.encode(images)).detach().clamp(-1, 1))


def test_own_photos_are_edited_by_a_pipeline(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    out = tmp_path / "run"
    words = ["run", "sdd", "--images", str(photos), "--pipeline", str(folder), "--prompt", "white hair", "--from", "red hair"]
    small = ["--image-size", "24", "--batch-size", "2", "--epochs", "1", "--search-images", "2", "--search-steps", "[200,600]"]
    more = ["--top-k", "64", "--ddim-steps", "2", "--accelerator", "cpu", "--out", str(out)]
    assert main([*words, *small, *more]) == 0
    assert main(["predict", str(out), str(photos), "--out", str(tmp_path / "edited")]) == 0
    assert {Image.open(file).size for file in (tmp_path / "edited").iterdir()} == {(50, 40)}
    page = (out / "report.html").read_text()
    assert "Nothing here tells whether an edit was made" in page
    assert not [file for file in out.glob("**/*.safetensors") if file.stat().st_size > 200_000]  # no copy of the pipeline
