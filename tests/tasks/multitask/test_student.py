"""What becomes of a finished multi-task run's student: asked about photos, exported, cached, a start of others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.multitask import MultiTaskData, Supervised, build_multitask, load
from stillroom.tasks.students import load as load_any
from tests.tasks.multitask.miniatures import dense, scene

TINY = ["--batch-size", "4", "--augment", "none", "--warmup-epochs", "0", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense(tmp_path_factory.mktemp("dense"), 10)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain training on a miniature."""
    out = tmp_path_factory.mktemp("multitask") / "run"
    words = ["run", "supervised", "--task", "multitask", "--data", f"dense:{root}", "--student", "stillroom/pyramid6"]
    assert main([*words, *TINY, "--epochs", "40", "--lr", "0.02", "--target-weights", "depth=3+edges=5", "--out", str(out)]) == 0
    return out


def test_a_small_network_learns_every_target(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["primary"] == "score"
    found = metrics["stages"]["alone"][0]["metrics"]
    assert found["semseg mIoU"] > 50
    assert found["depth RMSE"] < 1
    assert found["normals mean angle"] < 30
    assert "edges odsF" in found
    page = (run / "report.html").read_text()
    assert "Every target" in page
    assert page.count("truth</figcaption>") == 2 * 4
    assert "depth RMSE, m" in page
    assert "axes" not in metrics["notes"]


def test_photos_are_answered_as_evaluation_answers_them(run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = load(run)
    data = MultiTaskData(f"dense:{root}", batch_size=4, augment="none")
    distiller = Supervised(student.network)
    batch = next(iter(data.eval_loader()))
    measured = distiller.predict(batch)[0]
    pixels, _ = data.val_sample(0)
    asked = student.maps(Image.fromarray(np.moveaxis(pixels.numpy(), 0, -1)))
    for name, values in asked.items():
        np.testing.assert_allclose(values.astype(np.float64), measured[name].double().numpy(), atol=1e-5)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(scene(0, (30, 50))["image"]).save(photos / "a.jpg")
    Image.fromarray(scene(1, (64, 20))["image"]).save(photos / "b.png")
    (photos / "c.png").write_bytes(b"none")
    assert main(["predict", str(run), str(photos), "--out", str(tmp_path / "maps"), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.jpg", "b.png"]
    for line, size in zip(lines, ((50, 30), (20, 64)), strict=True):
        for name, mode in (("semseg", "P"), ("depth", "I;16"), ("normals", "RGB"), ("edges", "L")):
            with Image.open(line[name]["map"]) as image:
                assert (image.size, image.mode) == (size, mode)
    with Image.open(lines[0]["depth"]["map"]) as image:
        low, high = (float(one) for one in re.findall(r"[\d.]+", lines[0]["depth"]["said"]))
        assert np.asarray(image).min() / 1000 == pytest.approx(low, abs=0.01)
        assert np.asarray(image).max() / 1000 == pytest.approx(high, abs=0.01)


def test_the_student_is_exported(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--out", str(tmp_path / "s.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["semseg", "depth", "normals", "edges"]
    semseg, depth, normals, edges = session.run(None, {"images": np.random.default_rng(0).normal(size=(3, 3, 24, 24)).astype(np.float32)})
    assert semseg.shape == (3, 3, 24, 24)
    assert depth.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    assert ((edges >= 0) & (edges <= 1)).all()


def test_a_run_is_a_start_for_fewer_targets_and_not_for_others(run: Path, root: Path, tmp_path: Path) -> None:
    data = MultiTaskData(f"dense:{root}", only_targets="depth+normals")
    made = build_multitask(str(run), data.targets)
    assert made.network.targets == data.targets
    assert set(made.network(torch.zeros(1, 3, 24, 32))) == {"semseg", "depth", "normals", "edges"}
    assert isinstance(load_any(run), type(load(run)))
    other = MultiTaskData("solids:train=2,val=2,teacher=1")
    with pytest.raises(InputError, match=r"answers to semseg \(classes, 3\).*expected a network that answers to semseg \(classes, 7\)"):
        build_multitask(str(run), other.targets)


def test_a_teachers_answers_are_kept_and_teach(run: Path, root: Path, tmp_path: Path) -> None:
    words = ["cache", "--task", "multitask", "--data", f"dense:{root}", "--teacher", str(run), "--batch-size", "4", "--accelerator", "cpu"]
    assert main([*words, "--augment", "scale", "--views", "2", "--dtype", "fp32", "--out", str(tmp_path / "cache")]) == 0
    learn = ["run", "mtl-cs", "--data", f"dense:{root}", "--student", "stillroom/pyramid4", "--epochs", "1", "--single-students", "false"]
    learn += [*TINY, "--augment", "scale", "--out"]
    assert main([*learn, str(tmp_path / "run"), "--teacher", f"cache:{tmp_path / 'cache'}"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["summary"]) == {"teacher", "alone", "kdam"}
    assert metrics["primary"] == "score"
