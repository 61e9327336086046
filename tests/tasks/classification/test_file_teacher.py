"""A teacher that is only a file: it is read, scored and teaches as the network that it was written from; and what is wrong with one is a
line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Training
from stillroom.engine.lab import Trained
from stillroom.engine.teacher import Teacher
from stillroom.errors import InputError
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.images.file_networks import open_file
from tests.tasks.classification.test_foreign_teacher import pictures

STUDENT = "stillroom/convnet4"
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def written(file: Path, columns: tuple[float, ...] = (-4, 4), **change: Any) -> Path:
    """A file whose logits are an image's mean times each of the columns.

    Args:
        change: `shape` and `dtype` of its input, `inputs` more of them, `operator` in the place of Mul, `metadata`, `extra` output.
    """
    shape, dtype = change.get("shape", ["batch", 3, 12, 12]), change.get("dtype", TensorProto.FLOAT)
    reads = [helper.make_tensor_value_info("images", dtype, shape)]
    reads += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in change.get("inputs", ())]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(columns)])]
    outputs += [helper.make_tensor_value_info("mean.value", TensorProto.FLOAT, ["batch", 1])] if change.get("extra") else []
    nodes = [
        helper.make_node("Cast", ["images"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["as_float", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "row"], ["mean.value"]),
        helper.make_node(change.get("operator", "Mul"), ["mean.value", "scale"], ["logits"], domain=change.get("domain", "")),
    ]
    kept = {"axes": np.array([1, 2, 3]), "row": np.array([-1, 1]), "scale": np.array([columns], np.float32)}
    graph = helper.make_graph(nodes, "g", reads, outputs, [numpy_helper.from_array(value, name) for name, value in kept.items()])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(change["domain"], 1)] if "domain" in change else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, change.get("metadata", {}))
    onnx.save(model, file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "p", ("bright", "dark"))


def taught(spec: str, folder: Path, out: Path, data: dict[str, Any] | None = None, **options: Any) -> Trained:
    lab = Lab(LabOptions(out=out, accelerator="cpu"))
    images = ImageData(f"imagefolder:{folder}", batch_size=4, augment="none", **(data or {}))
    return Experiment(lab, images, Training(epochs=1), ClassifierNetworks(spec, STUDENT, **options)).teacher()


def test_a_file_is_scored_and_teaches_like_the_network(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "model.onnx", metadata={"classes": json.dumps(["dark", "bright"])})  # rows are picked by their names
    teacher = taught(f"onnx:{file}", folder, tmp_path / "run")
    assert teacher.network is not None
    assert teacher.result.metrics["top1"] == 100.0
    assert teacher.result.footprint.bytes == file.stat().st_size
    assert teacher.result.footprint.parameters == 7
    assert "the weights of" in teacher.result.origin
    images = torch.randn(5, 3, 12, 12)
    expected = images.mean((1, 2, 3))[:, None] * torch.tensor([4.0, -4.0])
    torch.testing.assert_close(Teacher(teacher.network, precision="bf16")(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Teacher([teacher.network, teacher.network], combine="logits")(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Teacher(teacher.network)(images.contiguous(memory_format=torch.channels_last)), expected)
    other = written(tmp_path / "other.onnx", (-3, 3))
    fingerprints = {Teacher(open_file(f"onnx:{one}", "teacher")).fingerprint() for one in (file, other, file)}
    assert len(fingerprints) == 2


def test_a_whole_run_with_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "model.onnx", (4, -4))
    names = tmp_path / "names.txt"
    names.write_text("bright\ndark\n")
    words = ["run", "kd", "--data", f"imagefolder:{folder}", "--batch-size", "4", "--teacher", f"onnx:{file}", "--student", STUDENT]
    assert main([*words, "--teacher-classes", str(names), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "scored and used as they are" in capsys.readouterr().out
    report = json.loads((tmp_path / "run/metrics.json").read_text())
    assert report["stages"]["teacher"][0]["metrics"]["top1"] == 100.0
    assert not (tmp_path / "run/teacher/student.json").exists()  # nothing that could be trained again


def test_layout_size_type_and_batch_are_the_files_own(folder: Path, tmp_path: Path) -> None:
    images = torch.rand(5, 3, 12, 12)
    mean = images.mean((1, 2, 3))[:, None]
    expected = mean * torch.tensor([-4.0, 4.0])
    for name, shape in {"nhwc": ["batch", 12, 12, 3], "fixed": [2, 3, 12, 12], "one": [1, 12, 12, 3], "any": ["b", 3, "h", "w"]}.items():
        file = written(tmp_path / f"{name}.onnx", shape=shape)
        torch.testing.assert_close(open_file(f"onnx:{file}", "teacher")(images), expected, atol=1e-5, rtol=1e-5)
    half = open_file(f"onnx:{written(tmp_path / 'half.onnx', dtype=TensorProto.FLOAT16)}", "teacher")
    torch.testing.assert_close(half(images), expected, atol=1e-2, rtol=1e-2)
    # bytes: the pixels themselves come to the file; of another size, the student's crops are resized for it
    file = written(tmp_path / "bytes.onnx", (1, -1), dtype=TensorProto.UINT8, shape=["batch", 24, 24, 3])
    teacher = taught(f"onnx:{file}", folder, tmp_path / "run", accept_teacher=True)  # to which all is bright
    assert teacher.renormalise is not None
    data = ImageData(f"imagefolder:{folder}", batch_size=4)
    pixels = teacher.renormalise(data.eval_loader().first(4).images)
    assert pixels.shape == (4, 3, 24, 24)
    assert pixels.max() > 200
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-2, rtol=0)


def test_what_a_file_says_of_itself_is_read(folder: Path, tmp_path: Path) -> None:
    ours = {"transform": json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}), "classes": '["bright", "dark"]'}
    theirs = {"names": "{0: 'bright', 1: 'dark'}", "mean_values": "25.5 51 76.5", "scale_values": "127.5"}
    for number, metadata in enumerate((ours, theirs)):
        file = written(tmp_path / f"{number}.onnx", (4, -4), metadata=metadata)
        renormalise = taught(f"onnx:{file}", folder, tmp_path / f"run{number}").renormalise
        assert renormalise is not None
        assert renormalise.to_mean == pytest.approx((0.1, 0.2, 0.3))
        assert renormalise.to_std == pytest.approx((0.5, 0.5, 0.5))


def test_further_outputs_are_features(tmp_path: Path) -> None:
    file = written(tmp_path / "two.onnx", extra=True)
    images = torch.rand(3, 3, 12, 12)
    answer, features = Teacher(open_file(f"onnx:{file}", "teacher")).tap("mean_value")(images)
    assert [tuple(part.shape) for part in answer] == [(3, 2), (3, 1)]
    torch.testing.assert_close(features["mean_value"], images.mean((1, 2, 3))[:, None])


@needs_openvino
def test_an_openvino_file_teaches_too(folder: Path, tmp_path: Path) -> None:
    import openvino

    model = openvino.convert_model(written(tmp_path / "model.onnx", shape=["batch", 12, 12, 3]))
    model.set_rt_info("bright dark", ["model_info", "labels"])
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    teacher = taught(f"openvino:{tmp_path / 'model.xml'}", folder, tmp_path / "run", accept_teacher=True)
    assert teacher.result.metrics["top1"] == 0.0  # "bright" is its first row by its metadata, whatever the order would suit
    assert isinstance(teacher.network, torch.nn.Module)
    images: Tensor = torch.randn(5, 3, 12, 12)
    expected = images.mean((1, 2, 3))[:, None] * torch.tensor([-4.0, 4.0])
    torch.testing.assert_close(Teacher(teacher.network)(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ["scale_2"]}, "with 2 inputs (images, scale_2)"),
        ({"shape": None}, "of which it does not say how many dimensions"),
        ({"shape": ["batch", 3, 12, 12, 1]}, "of shape [any, 3, 12, 12, 1]"),
        ({"shape": ["batch", "a", "b", "c"]}, "--teacher-layout nchw or nhwc"),
        ({"shape": [1, 1, 12, 12]}, "a model of images of three channels"),
        ({"operator": "Mulle"}, "Mulle"),
        ({"operator": "Mul", "domain": "org.nowhere"}, "org.nowhere"),
        ({"dtype": TensorProto.INT64}, "float32, float16, or uint8"),
        ({"columns": (1, 2, 3)}, "of a teacher of 3 classes say which: --teacher-classes"),
        ({"metadata": {"classes": '["dark", "light"]'}}, "only the model has ['light'], only the data have ['bright']"),
    ],
)
def test_a_file_that_cannot_teach_is_one_line(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = written(tmp_path / "model.onnx", **change)
    with pytest.raises(InputError) as caught:
        taught(f"onnx:{file}", folder, tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_file_of_a_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for spec, message in ((f"onnx:{tmp_path / 'text.onnx'}", "cannot open"), ("onnx:nowhere.onnx", "an existing file")):
        with pytest.raises(InputError, match=message):
            taught(spec, folder, tmp_path / "run")
    written(tmp_path / "m.onnx")
    student = ClassifierNetworks("", f"onnx:{tmp_path / 'm.onnx'}")
    learning = Experiment(Lab(LabOptions(out=tmp_path / "r")), ImageData(f"imagefolder:{folder}", batch_size=4), Training(), student)
    with pytest.raises(InputError, match="one that is only a file can teach"):
        learning.alone()
    with pytest.raises(InputError, match="the file reads no other images"):
        taught(f"onnx:{tmp_path / 'm.onnx'}", folder, tmp_path / "run", {"teacher_image_size": 16})
