"""GiftNet: what GIFT may change, what relation distillation compares, and the experiment as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.giftnet import Gifted, GiftNet, Reconstruction
from stillroom.methods.giftnet.gift import Gift, ModulatedConv, global_vector
from stillroom.methods.giftnet.network import GiftSpec
from stillroom.methods.giftnet.relation import relation_loss
from stillroom.modules.batch_norms import kept_statistics
from stillroom.tasks.harmonization import Batch, HarmonizationUNet, HarmonyData, load
from stillroom.tasks.students import export_student
from tests.methods.giftnet_job import train
from tests.methods.kills import killed_at
from tests.processes import Processes
from tests.tasks.harmonization.scenery import iharmony4

TINY = "patches,train=32,val=8"


@pytest.fixture(scope="module")
def data() -> HarmonyData:
    return HarmonyData(TINY, batch_size=8)


def batch_of(data: HarmonyData) -> Batch:
    return next(iter(data.train_loader(seed=0)))


def changed(gift: Gift) -> Gift:
    """One that is no longer the identity."""
    nn.init.normal_(gift.out.weight, std=0.3)
    return gift


# GIFT -----------------------------------------------------------------------------------------------------------------------------------


def test_a_kernel_for_each_image_is_what_scaled_inputs_and_outputs_compute() -> None:
    conv, features, vector = ModulatedConv(5, 7), torch.randn(3, 5, 6, 6), torch.randn(3, 7)
    nn.init.normal_(conv.bias)
    scale_BC = conv.scale(vector)
    kernels = scale_BC[:, None, :, None, None] * conv.weight / 45**0.5
    kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    grouped = conv2d(features.reshape(1, 15, 6, 6), kernels.reshape(15, 5, 3, 3), padding=1, groups=3).view(3, 5, 6, 6)
    torch.testing.assert_close(conv(features, vector), grouped + conv.bias[:, None, None], rtol=1e-4, atol=1e-5)


def test_it_begins_as_the_identity_and_never_touches_the_background() -> None:
    features, vector, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 6), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:8, 4:8] = 1
    gift = Gift(4, 6)
    assert torch.equal(gift(features, vector, mask), features)
    out = changed(gift)(features, vector, mask)
    inside = (mask[:, :, ::2, ::2] > 0).expand_as(features)
    assert torch.equal(out[~inside], features[~inside])
    assert (out - features)[inside].abs().min() > 0


def test_the_global_vector_of_the_background_knows_nothing_of_the_foreground() -> None:
    bottleneck, mask = torch.randn(2, 5, 4, 4), torch.zeros(2, 1, 16, 16)
    mask[:, :, :8] = 1
    other = bottleneck.clone()
    other[:, :, :2] += 3
    assert torch.equal(global_vector(other, mask, "background"), global_vector(bottleneck, mask, "background"))
    assert not torch.allclose(global_vector(other, mask, "all"), global_vector(bottleneck, mask, "all"))
    assert not global_vector(bottleneck, mask, "zero").any()
    assert global_vector(bottleneck, torch.ones(2, 1, 16, 16), "background").isfinite().all()


def test_the_whole_image_guides_the_foreground_unless_v_is_zero() -> None:
    inputs = torch.randn(2, 4, 32, 32)
    inputs[:, 3] = 0
    inputs[:, 3, 4:12, 4:12] = 1
    far = inputs.clone()
    far[:, :3, 24:, 24:] += 4  # beyond what the transformation of level 0 sees
    for source, guided in (("all", True), ("zero", False)):
        torch.manual_seed(0)
        network = Gifted(HarmonizationUNet(4, 3), levels=[0], source=source).eval()
        changed(network.gifts["0"])  # type: ignore[arg-type]
        before, after = (network.answer(x)[1][0][:, :, 6:10, 6:10] for x in (inputs, far))
        assert torch.equal(before, after) != guided


@pytest.mark.parametrize("size", [(32, 32), (27, 40), (5, 3)])
def test_with_gift_any_size_is_answered_and_one_image_is_as_many(size: tuple[int, int]) -> None:
    network = Gifted(HarmonizationUNet(4, 4)).eval()
    for gift in network.gifts.values():
        changed(gift)  # type: ignore[arg-type]
    inputs = torch.rand(3, 4, *size)
    answer = network(inputs)
    assert answer.shape == (3, 3, *size)
    torch.testing.assert_close(network(inputs[1:2]), answer[1:2], rtol=1e-4, atol=1e-5)


def test_half_precision_makes_its_kernels_in_float32() -> None:
    gift, features, vector = changed(Gift(4, 6)), torch.randn(1, 4, 8, 8), 1e3 * torch.randn(1, 6)  # squares overflow float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gift(features, vector, torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(half.float(), gift(features, vector, torch.ones(1, 1, 8, 8)), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"levels": [3]}, "levels"), ({"levels": [0, 0]}, "levels"), ({"source": "moon"}, "global_source"), ({"blend": "add"}, "blend")],
)
def test_options_that_mean_nothing(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        Gifted(HarmonizationUNet(4, 3), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="features between encoder and decoder"):
        Gifted(nn.Conv2d(4, 3, 1))


def test_a_specification_is_read_as_it_is_written() -> None:
    spec = GiftSpec("nets.py:build", (0, 2), "background", "replace")
    assert GiftSpec.parse(str(spec), "model") == spec
    network = Gifted(HarmonizationUNet(4, 3), levels=[2, 0], source="background", blend="replace")
    assert GiftSpec.of_network(network, "nets.py:build") == spec


# Relation distillation ------------------------------------------------------------------------------------------------------------------


def mask_of(*rows: int) -> Tensor:
    mask = torch.zeros(len(rows), 1, 16, 16)
    for number, row in enumerate(rows):
        mask[number, :, :row] = 1
    return mask


@given(st.integers(0, 100), st.floats(0.1, 50))
def test_it_is_zero_for_equal_relations_and_blind_to_scale(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    assert relation_loss(factor * teacher, teacher, mask_of(8, 4)).item() == pytest.approx(0, abs=1e-9)
    loss = relation_loss(student, teacher, mask_of(8, 4))
    torch.testing.assert_close(relation_loss(factor * student, teacher, mask_of(8, 4)), loss, rtol=1e-4, atol=1e-7)
    assert loss > 0


def test_images_without_a_pair_count_for_nothing() -> None:
    student, teacher = torch.randn(3, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 8, 8)
    alone = relation_loss(student[1:2], teacher[1:2], mask_of(8))
    torch.testing.assert_close(relation_loss(student, teacher, mask_of(0, 8, 16)), alone)
    none = relation_loss(student[:1], teacher[:1], mask_of(0))
    assert none.item() == 0
    none.backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_vectors_of_zeros_have_no_relation_and_no_gradient() -> None:
    student = torch.randn(1, 4, 8, 8)
    student[:, :, :3] = 0  # as behind a ReLU
    student.requires_grad_()
    relation_loss(student, torch.randn(1, 4, 8, 8), mask_of(8)).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1
    assert not student.grad[:, :, :3].any()


def test_nothing_flows_into_the_teacher() -> None:
    student, teacher = (torch.randn(1, 4, 8, 8, requires_grad=True) for _ in range(2))
    relation_loss(student, teacher, mask_of(8)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_shared_teacher_moves_no_statistic_and_normalises_by_its_batch(data: HarmonyData) -> None:
    batch = batch_of(data)
    distiller = GiftNet(Gifted(HarmonizationUNet(4, 4)))
    norms = [module for module in distiller.modules() if isinstance(module, nn.BatchNorm2d)]
    before = {name: buffer.clone() for name, buffer in distiller.student.named_buffers()}
    features = distiller.real_features(batch)
    assert all(torch.equal(buffer, before[name]) for name, buffer in distiller.student.named_buffers())
    assert not any(feature.requires_grad for feature in features)
    assert all(norm.training and norm.track_running_stats for norm in norms)
    plain = HarmonizationUNet(4, 4)
    plain.load_state_dict(distiller.student.base.state_dict())
    torch.testing.assert_close(features[-1], plain.answer(batch.real_inputs)[1][-1])
    distiller.student.eval()
    with kept_statistics(distiller.student):  # by the running ones, as ever
        in_eval = distiller.student.answer(batch.real_inputs)[1][-1]
    torch.testing.assert_close(in_eval, distiller.student.answer(batch.real_inputs)[1][-1])


def test_the_terms_of_a_step(data: HarmonyData) -> None:
    batch = batch_of(data)
    network = Gifted(HarmonizationUNet(4, 3))
    losses = GiftNet(network, relation_weight=0.5).losses(batch)
    assert set(losses.task) == {"fn_mse"}
    assert set(losses.distill) == {"relation"}
    plain = GiftNet(network, relation_weight=0.0).losses(batch)
    assert not plain.distill
    torch.testing.assert_close(plain.task["fn_mse"], losses.task["fn_mse"])
    losses.distill["relation"].backward()
    assert network.base.enc0.conv1.weight.grad is not None  # type: ignore[union-attr]


def test_a_teacher_of_its_own_is_frozen_and_of_as_many_levels(data: HarmonyData) -> None:
    batch = batch_of(data)
    teacher = Gifted(HarmonizationUNet(6, 3, fusion=False))
    distiller = GiftNet(Gifted(HarmonizationUNet(4, 3)), teacher)
    wanted = teacher.eval().answer(batch.real_inputs)[1]
    for found, feature in zip(distiller.real_features(batch), wanted, strict=True):
        torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4)
    assert not any(name.startswith("teacher") for name, _ in distiller.named_parameters())
    with pytest.raises(InputError, match="a network with GIFT of 3 levels"):
        GiftNet(Gifted(HarmonizationUNet(4, 3)), Gifted(HarmonizationUNet(4, 4)))
    assert set(Reconstruction(teacher).losses(batch).task) == {"mse"}


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def fit(out: Path, data: HarmonyData) -> dict[str, Tensor]:
    torch.manual_seed(0)
    distiller = GiftNet(Gifted(HarmonizationUNet(4, 3)), grid=4)
    plan = Training(epochs=2, optimizer="adam", lr=2e-3, schedule="cosine")
    return read_weights(Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1)).fit(distiller, data, plan, name="distilled").folder)


def test_killed_and_continued_ends_with_the_same_numbers(data: HarmonyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(GiftNet, (2, 6), lambda out: fit(out, data), tmp_path, monkeypatch)


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    train(tmp_path / "one", 1)
    processes.on_two_ranks(train, tmp_path / "two", 2)
    one, two = (read_weights(tmp_path / name / "seed0/distilled") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=5e-5)


SMALL = ["--epochs", "1", "--batch-size", "8", "--accelerator", "cpu", "--student", "stillroom/harmony4_3"]


def test_the_command_ends_with_a_report_and_a_student_that_harmonises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = iharmony4(tmp_path / "HCOCO"), tmp_path / "run"
    words = ["run", "giftnet", "--data", f"iharmony4:{root}", "--image-size", "32", *SMALL, "--ablations", "[zero, replace]"]
    assert main([*words, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["composite", "alone", "gift", "gift, zero", "gift, replace", "distilled"]
    assert (metrics["primary"], metrics["higher_is_better"], metrics["baseline"]) == ("fMSE", False, "alone")
    page = (out / "report.html").read_text()
    assert "By the size of the foreground" in page
    assert "error of distilled" in page
    student = load(out)
    assert isinstance(student.network, Gifted)
    ablated = load(out / "seed0/gift-zero")
    assert isinstance(ablated.network, Gifted)
    assert ablated.network.source == "zero"
    capsys.readouterr()
    photos, masks = str(root / "composite_images"), str(root / "masks")
    assert main(["predict", str(out), photos, "--masks", masks, "--out", str(tmp_path / "done")]) == 0
    assert len(list((tmp_path / "done").glob("*.png"))) == 10
    assert np.asarray(Image.open(tmp_path / "done/p0_7_1.png")).shape == (40, 48, 3)
    assert export_student(out, format="torch", out=tmp_path / "student.pt2").outputs[0].difference <= 1e-4
    assert main([*words, "--out", str(out)]) == 0  # what is finished is not run again
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["reconstruct", "harmonizer"])
def test_a_teacher_is_trained_first_and_teaches_again_from_its_folder(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "giftnet", "--data", TINY, *SMALL, "--teacher-mode", mode]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    metrics = json.loads((tmp_path / "one/metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "composite", "alone", "gift", "distilled"]
    assert ("_paint" in metrics["stages"]["teacher"][0]["model"]) == (mode == "reconstruct")
    assert main([*words, "--teacher", str(tmp_path / "one/teacher"), "--out", str(tmp_path / "two")]) == 0
    again = json.loads((tmp_path / "two/metrics.json").read_text())
    for figure in ("fMSE", "PSNR"):
        assert again["stages"]["distilled"][0]["metrics"][figure] == metrics["stages"]["distilled"][0]["metrics"][figure]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher", "stillroom/harmony4_3"], "--teacher: got stillroom/harmony4_3, expected none: with teacher_mode shared"),
        (["--levels", "[5]"], "levels: got [5]"),
        (["--relation-weight", "-1"], "--relation-weight: got -1"),
        (["--student", "torch.nn:Identity"], "answers with [1, 4, 32, 32]"),
        (["--min-foreground", "0"], "--min-foreground: got 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "giftnet", "--data", TINY, *SMALL, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_papers_setting(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    with pytest.raises(SystemExit):
        main(["run", "giftnet", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    wanted = {
        "student": "stillroom/harmony32",
        "image_size": 256,
        "batch_size": 16,
        "epochs": 120,
        "lr": 1e-3,
        "grid": 16,
        "relation_weight": 0.1,
    }
    assert {name: values[name] for name in wanted} == wanted
    assert values["milestones"] == [105, 115]
    assert values["min_foreground"] * 256**2 == 1000
