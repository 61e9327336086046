"""A detector that is only a file teaches as the network that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.errors import InputError
from stillroom.methods.bckd import build
from stillroom.tasks.detection import DetectionData, build_detector
from tests.tasks.classification.test_file_teacher import written


@pytest.fixture(scope="module")
def scenes() -> DetectionData:
    return DetectionData("scenes:train=8,val=4,teacher=8", batch_size=4)


def detector_file(file: Path, count: int, classes: int) -> Path:
    """A file whose scores are the sigmoid of an image's mean plus a row of numbers, and whose boxes are the same for all images."""
    reads = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])]
    sides = {"scores": classes, "boxes": 4}
    answers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, side]) for name, side in sides.items()]
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "rows"], ["means"]),
        helper.make_node("Add", ["means", "offsets"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Mul", ["means", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "corners"], ["boxes"]),
    ]
    kept = {
        "axes": np.array([1, 2, 3]),
        "rows": np.array([-1, 1, 1]),
        "zero": np.zeros(1, np.float32),
        "offsets": OFFSETS[:, :count, :classes].numpy(),
        "corners": CORNERS[:, :count].numpy(),
    }
    graph = helper.make_graph(nodes, "g", reads, answers, [numpy_helper.from_array(value, name) for name, value in kept.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


OFFSETS = torch.linspace(-4, 1, 8000).view(1, 1000, 8)
CORNERS = torch.tensor([2.0, 3.0, 20.0, 30.0]).expand(1, 1000, 4).contiguous()


def test_it_is_scored_and_teaches_position_by_position(scenes: DetectionData, tmp_path: Path) -> None:
    student = build_detector("stillroom/gfl_24", num_classes=scenes.num_classes).network
    batch = next(iter(scenes.train_loader(seed=0)))
    sizes = [level.shape[1] for level in student(batch.images)["logits"]]
    probe = [-(-96 // stride) * -(-160 // stride) for stride in student.strides]
    with pytest.raises(InputError, match="whose scores are from 0 to 1"):
        build_detector(f"onnx:{detector_file(tmp_path / 'odd.onnx', sum(probe) + 1, 2)}", num_classes=2, argument="teacher")
    file = detector_file(tmp_path / "detector.onnx", sum(sizes), scenes.num_classes)
    # The file is of one size, as graphs without cells are: its input says so.
    model = onnx.load(file)
    for place, side in zip((2, 3), batch.images.shape[2:], strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    onnx.save(model, file)
    lab = Lab(LabOptions(out=tmp_path / "run", accelerator="cpu", teacher_precision="int8"))  # of which a file knows nothing
    experiment = Experiment(lab, scenes, Training(epochs=1), Networks(f"onnx:{file}", "stillroom/gfl_24", accept_teacher=True))
    taught = experiment.teacher()
    assert "AP" in taught.result.metrics
    assert taught.network is not None
    assert taught.network.strides == student.strides
    told = lab.teach(taught)(batch)
    wanted = (batch.images.mean((1, 2, 3))[:, None, None] + OFFSETS[:, : sum(sizes), : scenes.num_classes]).split(sizes, 1)
    for got, own in zip(told["logits"], wanted, strict=True):
        torch.testing.assert_close(got, own, atol=1e-3, rtol=1e-3)
    assert [level.shape[1] for level in told["boxes"]] == sizes
    assert torch.equal(told["boxes"][0][0, 0], CORNERS[0, 0])
    losses = build(student, lab.teach(taught), scenes).losses(batch)
    assert losses.distill["bcd"].item() > 0


def test_what_is_no_such_detector_is_a_line(scenes: DetectionData, tmp_path: Path) -> None:
    file = written(tmp_path / "classifier.onnx", shape=["batch", 3, "height", "width"])
    with pytest.raises(InputError, match=r"which answers with logits \[1, 2\], expected scores \[B, N, C\] and boxes"):
        build_detector(f"onnx:{file}", num_classes=scenes.num_classes, argument="teacher")
    with pytest.raises(InputError, match="one that is only a file can teach, and no more"):
        build_detector(f"onnx:{file}", num_classes=scenes.num_classes, argument="student")
