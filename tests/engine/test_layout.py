"""The layout that a student is trained in: faster where it can be taken, and never seen in what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.run.layout import channels_last
from stillroom.engine.run.stage import digest
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch, ImageData, build_classifier

PLAN = Training(epochs=2, lr=0.01)


class FlattensByView(nn.Module):
    """What many a network of old does; a map of more than one pixel must then lie as NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).relu()
        return self.head(x.view(x.shape[0], -1))


class FlattensInTraining(FlattensByView):
    """The same, behind a branch that evaluation never takes."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.training else self.head(self.norm(self.conv(images)).relu().flatten(1))


def convnet() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(build_classifier("stillroom/convnet4", num_classes=10).network, nn.Dropout(0.1))


class Watching(KD):
    """Notes how the student's first convolution lies in memory in each step."""

    def losses(self, batch: Batch) -> Losses:
        first = next(module for module in self.student.modules() if isinstance(module, nn.Conv2d)).weight
        self.seen.append(first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous())
        return super().losses(batch)


def trained(out: Path, data: ImageData, student: nn.Module, **options: Any) -> tuple[Any, list[bool]]:
    torch.manual_seed(6)
    distiller = Watching(student, Teacher(build_classifier("stillroom/convnet24", num_classes=10).network))
    distiller.seen = []
    lab = Lab(LabOptions(out=out, accelerator="cpu", **options))
    return lab.fit(distiller, data, PLAN, name="distilled"), distiller.seen


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("digits", batch_size=32, subset=96, val_subset=40)


def test_the_lab_trains_channels_last_and_gives_an_ordinary_network_back(tmp_path: Path, data: ImageData) -> None:
    stage, seen = trained(tmp_path, data, convnet())
    assert seen == [True] * 6
    assert all(parameter.is_contiguous() for parameter in stage.network.parameters())


@pytest.mark.parametrize("build", [FlattensByView, FlattensInTraining])
def test_a_student_that_flattens_by_view_is_trained_in_its_own_layout(tmp_path: Path, data: ImageData, build: type[nn.Module]) -> None:
    torch.manual_seed(5)
    stage, seen = trained(tmp_path, data, build())
    assert seen == [False] * 6
    assert stage.result.epochs == 2


def test_both_layouts_learn_the_same_and_leave_files_of_one_form(tmp_path: Path, data: ImageData) -> None:
    (fast, laid_out), (plain, ordinary) = (
        trained(tmp_path / layout, data, convnet(), layout=layout, teacher_precision="fp32") for layout in ("auto", "contiguous")
    )
    assert laid_out != ordinary
    # More than rounding would be a wrong number; the two runs share one fingerprint, because a layout is no argument of the result.
    for name, value in load_file(plain.folder / "student.safetensors").items():
        torch.testing.assert_close(load_file(fast.folder / "student.safetensors")[name], value, rtol=1e-3, atol=1e-4)
    again, seen = trained(tmp_path / "auto", data, convnet(), layout="contiguous")
    assert seen == []  # read, not run again
    assert digest(again.network.state_dict()) == digest(fast.network.state_dict())


def test_neither_values_nor_random_numbers_nor_statistics_change() -> None:
    network, example = convnet(), torch.randn(1, 3, 8, 8)
    before, drawn = digest(network.state_dict()), torch.get_rng_state()
    with channels_last(network, example) as changed:
        assert changed
        assert digest(network.state_dict()) == before
    assert digest(network.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_convolutions_or_one_that_refuses_the_example_is_left_alone() -> None:
    for network in (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), nn.Conv2d(4, 8, 3)):
        strides = [parameter.stride() for parameter in network.parameters()]
        with channels_last(network, torch.randn(1, 3, 8, 8)) as changed:
            assert not changed
            assert [parameter.stride() for parameter in network.parameters()] == strides
