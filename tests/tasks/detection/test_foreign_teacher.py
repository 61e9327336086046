"""Teachers that were trained with other statistics of images than the student's data have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Teacher, Training
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.models import build_detector
from tests.tasks.detection.boxed import coco, pictures

OWN, OTHER = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}, {"mean": (0.1, 0.1, 0.1), "std": (0.9, 0.8, 0.7)}
SPEC = "stillroom/gfl_24"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Images of two sizes, so that there is padding."""
    made = pictures(8)
    for wide in made[::3]:
        wide.size = wide.said = (40, 20)
    return coco(tmp_path / "data", made)


def batch_of(data: DetectionData) -> DetectionBatch:
    batch: DetectionBatch = next(iter(data.eval_loader()))
    return batch


def test_a_batch_of_other_statistics_is_that_of_data_with_them(data: str) -> None:
    abroad = DetectionData(data, **OTHER, teacher_mean=OWN["mean"], teacher_std=OWN["std"])
    assert abroad.renormalise is not None
    batch, expected = batch_of(abroad), batch_of(DetectionData(data, **OWN))
    assert (batch.sizes[:, 1] < batch.images.shape[-1]).any(), "no padding"
    found = batch.renormalised(abroad.renormalise)
    torch.testing.assert_close(found.images, expected.images)
    assert torch.equal(found.images == 0, expected.images == 0)
    assert found.boxes is batch.boxes


def test_a_teacher_with_its_own_statistics_answers_and_scores_as_at_home(data: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(build_detector(SPEC, num_classes=2).network, tmp_path / "teacher.safetensors")
    at_home = DetectionData(data, **OWN)
    abroad = DetectionData(data, **OTHER, teacher_mean=OWN["mean"], teacher_std=OWN["std"])
    told, scored = {}, {}
    for name, seen in (("home", at_home), ("abroad", abroad), ("lost", DetectionData(data, **OTHER))):
        lab = Lab(LabOptions(out=tmp_path / name, teacher_precision="fp32", accelerator="cpu"))
        stage = Experiment(lab, seen, Training(epochs=1), Networks(f"{SPEC}@{tmp_path / 'teacher.safetensors'}", SPEC)).teacher()
        told[name], scored[name] = lab.teach(stage)(batch_of(seen))["logits"], stage.result.details
    for own, foreign, lost in zip(told["home"], told["abroad"], told["lost"], strict=True):
        torch.testing.assert_close(foreign, own, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(lost, own, rtol=1e-4, atol=1e-4)
    assert scored["home"].keys() == scored["abroad"].keys()
    for name, value in scored["home"].items():
        torch.testing.assert_close(torch.from_numpy(scored["abroad"][name]), torch.from_numpy(value), rtol=1e-3, atol=1e-2)


def test_statistics_of_a_teacher_need_one_with_weights(data: str, tmp_path: Path) -> None:
    abroad = DetectionData(data, teacher_mean=OWN["mean"])
    with pytest.raises(InputError, match=r"teacher_mean: got .*a teacher without weights, expected none"):
        Experiment(Lab(LabOptions(out=tmp_path / "run", accelerator="cpu")), abroad, Training(epochs=1), Networks(SPEC, SPEC)).teacher()


def test_a_batch_says_itself_what_its_images_become(data: str) -> None:
    abroad = DetectionData(data, **OTHER, teacher_mean=OWN["mean"], teacher_std=OWN["std"])
    batch, network = batch_of(abroad), build_detector(SPEC, num_classes=2).network
    told = Teacher(network, precision="fp32", renormalise=abroad.renormalise)(batch)
    expected = Teacher(network, precision="fp32")(batch_of(DetectionData(data, **OWN)))
    for found, own in zip(told["boxes"], expected["boxes"], strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-2)
