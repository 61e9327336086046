"""A detector's answers on disk teach as the detector does, whatever the images' sizes, and only where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillroom.cli import main
from stillroom.engine import Teacher
from stillroom.engine.cache import CachedTeacher, Storage, Views, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError
from stillroom.methods.bckd import BCKD, LD
from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.task import TASK

RESULT = StageResult("teacher", 0, {"AP": 20.0}, {}, [], Footprint(1, 1, 1.0, 1), 0.0, 0, "stillroom/gfl_24")
SCENES = "scenes:size=32,train=10,val=4,teacher=12"
VIEWS = Views(2)


def detector(seed: int = 0, classes: int = 6, name: str = "gfl_24") -> DenseDetector:
    torch.manual_seed(seed)
    return build_detector(f"stillroom/{name}", num_classes=classes).network


def online(seed: int = 0, classes: int = 6) -> Teacher:
    return Teacher(detector(seed, classes), precision="fp32", fold=False)


def scenes(**options: Any) -> DetectionData:
    return DetectionData(SCENES, **{"batch_size": 4, **options})


def build(folder: Path, data: DetectionData | None = None, teacher: Teacher | None = None, **options: Any) -> CachedTeacher:
    settings = {"views": VIEWS, "storage": Storage("fp32"), "exact": TASK.exact, **options}
    return build_cache(folder, teacher or online(), data or scenes(), RESULT, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of several sizes, in COCO's format."""
    root = tmp_path_factory.mktemp("photographs")
    numbers, images, marks = np.random.default_rng(0), [], []
    for i, (width, height) in enumerate([(40, 30), (30, 52), (64, 20), (25, 28), (40, 30), (20, 47)]):
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        marks.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [2, 3, 12, 14], "iscrowd": 0, "area": 168})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    (root / "boxes.json").write_text(json.dumps({"images": images, "annotations": marks, "categories": categories}))
    return f"coco:{root},{root / 'boxes.json'},val=0.2"


def same(told: Any, expected: Any) -> None:
    assert told.keys() == expected.keys()
    for name, levels in expected.items():
        for mine, theirs in zip(told[name], levels, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def gradients(distiller: BCKD | LD, batch: DetectionBatch) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    losses = distiller.losses(batch)
    distiller.zero_grad()
    losses.total.backward()
    return losses.terms, [parameter.grad for parameter in distiller.student.parameters()]


# Answers


@pytest.mark.parametrize("method", [BCKD, LD])
def test_a_step_of_the_cache_is_a_step_of_the_network(finished: Path, method: Any) -> None:
    data, cached = scenes(), CachedTeacher(finished)
    loader = data.replaying(cached.views).train_loader(seed=3)
    for batch in (next(iter(loader)) for _ in range(2)):
        mine, theirs = (gradients(method(detector(7).train(), teacher), batch) for teacher in (cached, online()))
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-6)
        for gradient, expected in zip(mine[1], theirs[1], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_training_sees_what_it_sees_without_a_cache() -> None:
    data = scenes()
    plain, replayed = data.train_loader(seed=4), data.replaying(VIEWS).train_loader(seed=4)
    mirrored = 0
    for _ in range(3):
        for expected, batch in zip(plain, replayed, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert all(map(torch.equal, batch.boxes, expected.boxes))
            assert expected.views is None
            mirrored += int(batch.views.sum())
    assert 4 < mirrored < 20  # of 24


def test_images_of_several_sizes_are_answered_as_they_are_shown(photographs: str, tmp_path: Path) -> None:
    data = DetectionData(photographs, batch_size=2)
    cached, teacher = build(tmp_path, data, online(classes=2)), online(classes=2)
    shown = data.replaying(cached.views)
    shapes = set()
    for _ in range(3):
        for batch in shown.train_loader(seed=1):
            shapes.add(tuple(batch.images.shape[-2:]))
            same(cached(batch), teacher(batch))
    assert shapes == {(64, 64)}
    assert {tuple(batch.images.shape[-2:]) for batch in shown.eval_loader()} != shapes  # validation stays as it is
    small = data.example_inputs()
    same(cached(small), teacher(small))
    with pytest.raises(InputError, match=r"data\.replaying"):
        cached(next(iter(data.train_loader(seed=1))))


def test_boxes_keep_their_precision(finished: Path, tmp_path: Path) -> None:
    half, whole = build(tmp_path, storage=Storage("bf16")), CachedTeacher(finished)
    batch = next(iter(scenes().replaying(VIEWS).train_loader(seed=0)))
    told, expected = half(batch), whole(batch)
    assert all(map(torch.equal, told["boxes"], expected["boxes"]))
    assert not torch.equal(told["logits"][0], expected["logits"][0])
    torch.testing.assert_close(told["logits"], expected["logits"], rtol=2**-8, atol=1e-6)


# Kills, and what is refused


def test_half_a_cache_is_refused_and_completed(finished: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def fall(done: int, rows: int) -> None:
        if done >= 8:
            raise Killed

    with pytest.raises(Killed):
        build(tmp_path, progress=fall, mark_seconds=0.0)
    with pytest.raises(InputError, match="of which 8 of 20 rows are done"):
        CachedTeacher(tmp_path)
    build(tmp_path)
    files = [file.name for file in sorted((finished / "rows").iterdir())]
    arrays = [*(f"answer{part}.npy" for part in range(6)), "view.flip.npy"]
    assert files == sorted([*arrays, *(f"sum.{name}" for name in arrays)])
    assert all((tmp_path / "rows" / name).read_bytes() == (finished / "rows" / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": online(seed=1)}, "teacher was"),
        ({"data": scenes(image_size=40)}, "image_size was None, now 40"),
        ({"data": DetectionData("scenes:size=32,train=10,val=4,teacher=12,seed=1", batch_size=4)}, "data was"),
        ({"storage": Storage("fp16")}, "dtype was 'fp32', now 'fp16'"),
        ({"storage": Storage("fp32", top=2)}, "top was None, now 2"),
    ],
)
def test_building_on_something_else_is_refused(finished: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        build(finished, **change)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (scenes(image_size=40), "image_size was None, now 40"),
        (scenes(augment="none"), "flip was True, now False"),
        (scenes(mean=(0.1, 0.2, 0.3)), "mean was"),
        (scenes().for_teacher(), "data was"),
    ],
)
def test_reading_for_other_data_is_refused(finished: Path, data: DetectionData, named: str) -> None:
    with pytest.raises(InputError, match=rf"^teacher: .*{named}"):
        CachedTeacher(finished, data.cache_key)


def test_top_classes_are_for_logits_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^top: got 2 for an answer of 6 tensors"):
        build(tmp_path, storage=Storage("fp32", top=2))


def first_losses(distiller: BCKD, data: DetectionData) -> None:
    """As a rehearsal asks for them: of a few images, in views that the cache knows."""
    assert isinstance(distiller.teacher, CachedTeacher)
    distiller.rehearse(data.replaying(distiller.teacher.views).train_loader(seed=0).first(1))


def test_a_student_with_other_positions_is_refused_before_it_is_trained(finished: Path) -> None:
    cached, data = CachedTeacher(finished), scenes()
    first_losses(BCKD(detector(7, name="gfl_32"), cached), data)
    with pytest.raises(InputError, match=r"^teacher: got a detector with logits of shapes"):
        first_losses(BCKD(detector(7, classes=5), cached), data)


# The command


TINY = ("--data", SCENES, "--batch-size", "4", "--warmup-epochs", "0", "--epochs", "1", "--accelerator", "cpu")


def test_the_command_stores_and_a_run_learns_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, out = tmp_path / "cache", tmp_path / "run"
    assert main(["cache", *TINY, "--teacher", "stillroom/gfl_24", "--dtype", "fp32", "--out", str(cache)]) == 0
    assert "cache: logits, boxes, bins of 10 images, 2 views each" in capsys.readouterr().out
    assert main(["run", "bckd", *TINY, "--teacher", f"cache:{cache}", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stages"]["teacher"][0]["model"] == "stillroom/gfl_24"
    assert "bckd" in metrics["summary"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cache", "--views", "8"], "--views: got 8, expected 2: an image and its mirror image"),
        (["cache", "--views", "2", "--augment", "none"], "--views: got 2, expected 1: nothing about an image is random"),
        (["cache", "--task", "poetry"], "--task: got poetry, expected one of classification, multilabel, detection"),
        (["cache", "--teacher", "RUN"], "RUN, a run of the task poetry, expected a teacher of classification or multilabel or detection"),
        (["cache", "--taps", "head.towers"], "--taps: got 'head.towers'"),
        (["run", "bckd", "--teacher", "cache:nowhere"], "--teacher: got nowhere, which is no cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    Path("RUN/student.json").write_text('{"task": "poetry"}')
    assert main([*arguments, *TINY, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
