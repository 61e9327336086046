"""A detector that is only a file teaches as the network that it was exported from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Teacher, Training
from stillroom.engine.export import ExportSpec, export
from stillroom.errors import InputError
from stillroom.methods.bckd import build
from stillroom.tasks.detection import DetectionData, build_detector
from stillroom.tasks.detection.export import dense_answers
from tests.tasks.classification.test_file_teacher import written


@pytest.fixture(scope="module")
def scenes() -> DetectionData:
    return DetectionData("scenes:train=8,val=4,teacher=8", batch_size=4)


def test_it_is_scored_and_teaches_position_by_position(scenes: DetectionData, tmp_path: Path) -> None:
    network, student = (build_detector("stillroom/gfl_24", num_classes=scenes.num_classes).network for _ in range(2))
    file, divisor = tmp_path / "detector.onnx", scenes.preparation.divisor
    images = torch.randn(2, 3, 64, 96)
    spec = ExportSpec(network, images, ("images", "scores", "boxes"), units=(1.0, 100.0), ask=dense_answers, cell=divisor)
    export(spec, file, format="onnx")
    lab = Lab(LabOptions(out=tmp_path / "run", accelerator="cpu", teacher_precision="int8"))  # of which a file knows nothing
    experiment = Experiment(lab, scenes, Training(epochs=1), Networks(f"onnx:{file}", "stillroom/gfl_24", accept_teacher=True))
    taught = experiment.teacher()
    assert "AP" in taught.result.metrics
    batch = next(iter(scenes.train_loader(seed=0)))
    told, wanted = lab.teach(taught)(batch), Teacher(network, precision="fp32")(batch)
    for name in ("logits", "boxes"):
        for got, own in zip(told[name], wanted[name], strict=True):
            torch.testing.assert_close(got, own, atol=2e-2, rtol=1e-3)
    terms = [build(student, teacher, scenes).losses(batch).distill for teacher in (lab.teach(taught), Teacher(network, precision="fp32"))]
    for name, term in terms[0].items():
        assert term.item() == pytest.approx(terms[1][name].item(), rel=1e-2), name


def test_what_is_no_such_detector_is_a_line(scenes: DetectionData, tmp_path: Path) -> None:
    file = written(tmp_path / "classifier.onnx", shape=["batch", 3, "height", "width"])
    with pytest.raises(InputError, match=r"which answers with logits \[1, 2\], expected scores \[B, N, C\] and boxes"):
        build_detector(f"onnx:{file}", num_classes=scenes.num_classes, argument="teacher")
    with pytest.raises(InputError, match="one that is only a file can teach, and no more"):
        build_detector(f"onnx:{file}", num_classes=scenes.num_classes, argument="student")
