"""Distillers in a loop of one's own: what changes over the training is driven by `at`, and a method that nobody drives says so, once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from stillroom.engine import Distiller, Lab, LabOptions, Teacher, Training
from stillroom.errors import InputError
from stillroom.methods.dkd import DKD
from stillroom.methods.dot import DOT
from stillroom.methods.kd import KD
from stillroom.methods.kd3.selection import teacher_weight
from stillroom.methods.mdcs import MDCS
from stillroom.methods.wad.contrast import Contrast
from stillroom.methods.wad.networks import Encoder
from stillroom.tasks.classification import Batch, ImageData, ViewBatch
from stillroom.tasks.images.networks import ExpertConvNet
from tests.methods.kd3_job import made, small_data


def net(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def batch(size: int = 8) -> Batch:
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(size) % 10, torch.arange(size))


def views() -> ViewBatch:
    weak, strong = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return ViewBatch((weak, strong), torch.arange(8), torch.arange(8))


def dkd(**options: float) -> DKD:
    return DKD(net(6), Teacher(net(10), precision="fp32"), **options)


def mdcs(**options: float) -> MDCS:
    torch.manual_seed(5)
    return MDCS(ExpertConvNet(num_classes=10), class_counts=torch.arange(10, 0, -1), confident_only=False, **options)


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("step", "factor"), [(0, 0.05), (6, 0.05), (7, 0.1), (7 * 9, 0.5), (7 * 19, 1.0), (7 * 29, 1.0)])
def test_the_ramps_of_dkd_and_mdcs_follow_the_loop(step: int, factor: float) -> None:
    for ramped, full, shown in ((dkd(warmup=20), dkd(warmup=0), batch()), (mdcs(ramp_epochs=20), mdcs(ramp_epochs=0), views())):
        with silence():
            ramped.at(step, steps_per_epoch=7, epochs=30)
            losses, whole = ramped.losses(shown), full.losses(shown)
        assert losses.distill_total is not None
        assert whole.distill_total is not None
        torch.testing.assert_close(losses.distill_total, factor * whole.distill_total)
        torch.testing.assert_close(losses.task_total, whole.task_total)


def test_a_training_goes_through_the_whole_ramp() -> None:
    distiller, weights = dkd(warmup=3), []
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.0)
    for step in range(8):
        distiller.at(step, steps_per_epoch=2, epochs=4)
        losses = distiller.losses(batch())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        weights.append(losses.distill["dkd"].item())
    assert [weight / weights[-1] for weight in weights] == pytest.approx([1 / 3] * 2 + [2 / 3] * 2 + [1] * 4)


def test_kd3_chooses_by_the_epoch_of_the_loop() -> None:
    distiller = made(small_data(), scoring="plain", cutoff=0.5)
    alphas, kept = [], []
    for epoch in range(8):
        with silence():
            distiller.at(5 * epoch, steps_per_epoch=5, epochs=8)
            alphas.append(distiller.alpha())
            with torch.no_grad():
                kept.append(distiller.eval().select())
    assert alphas == [teacher_weight(epoch, switch_off=4, offset=16 / 3) for epoch in range(1, 9)]
    assert len(set(alphas)) > 3
    assert kept[0].tolist() != kept[-1].tolist()


def test_the_similarities_of_wads_teacher_are_asked_anew_after_each_step() -> None:
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), (0.5,) * 3, (0.5,) * 3, hidden=8, dim=4)
    memory = batch(3)
    distiller = Contrast(encoder, nn.Identity(), lambda: [memory], 3).eval()
    for step in range(2):
        with silence():
            distiller.at(step, steps_per_epoch=2, epochs=1)
            distiller.predict(batch(4))
        assert distiller._known is not None
        torch.testing.assert_close(distiller._known[1], distiller.student(memory.images))
        with torch.no_grad():
            distiller.encoder.projection[1].weight.neg_()


@pytest.mark.parametrize("distiller", [dkd(warmup=20), mdcs(), DOT(dkd(warmup=20))], ids=lambda made: type(made).__name__)
def test_a_ramp_that_nobody_drives_is_warned_of_once(distiller: Distiller) -> None:
    shown = views() if isinstance(distiller, MDCS) else batch()
    with pytest.warns(UserWarning, match=r"nobody says how far .* call distiller\.at\("):
        distiller.losses(shown)
    with silence():
        distiller.losses(shown)


def test_methods_without_a_ramp_warn_of_nothing() -> None:
    teacher = Teacher(net(10), precision="fp32")
    with silence():
        for distiller in (KD(net(6), teacher), DOT(KD(net(6), teacher)), dkd(warmup=0), dkd(warmup=1)):
            distiller.losses(batch())
        mdcs(consistency_weight=0.0).losses(views())


def test_the_lab_drives_it(tmp_path: Path) -> None:
    data = ImageData("digits", subset=32, val_subset=16, batch_size=16, augment="none")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nobody says.*")
        lab = Lab(LabOptions(out=tmp_path, accelerator="cpu"))
        lab.fit(DOT(dkd(warmup=2)), data, Training(epochs=2, milestones=(1,)), name="stage")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"step": -1, "steps_per_epoch": 5, "epochs": 2}, "step: got -1, expected a number from 0 and below 10"),
        ({"step": 10, "steps_per_epoch": 5, "epochs": 2}, "step: got 10, expected a number from 0 and below 10"),
        ({"step": 0, "steps_per_epoch": 0, "epochs": 2}, "steps_per_epoch: got 0"),
    ],
)
def test_a_place_that_there_is_not(place: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dkd().at(**place)
