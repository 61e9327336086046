"""UP-VL's detector: what its features are learned at, what is measured, and the experiment as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillroom import load
from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.methods.upvl import UPVL, standin, targets
from stillroom.methods.upvl.detector import parse
from stillroom.methods.upvl.distiller import WAYS, Found
from stillroom.methods.upvl.metrics import OpenEvaluator
from stillroom.methods.upvl.standin import FEATURES, StandIn, bag_of_words
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.frames import Frame, FrameBatch, FrameInputs
from stillroom.tasks.points.lift_splat import sample_bev, sample_rows
from stillroom.tasks.points.worlds import DrivingWorld, WorldSpec
from tests.methods.kills import killed_and_continued, two_processes_as_one
from tests.methods.upvl_job import REACH, STUDENT, detector, objects, table, train
from tests.processes import Processes
from tests.test_label_3d_command import clip_folder  # noqa: F401 - a fixture

SEQUENCES = "streets:train=2,val=1,frames=3,cameras=2,beams=16,azimuths=120,reach=12"
SHORT = ["--student", STUDENT, "--reach", str(list(REACH)), "--epochs", "1", "--batch-size", "2", "--accelerator", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def quick_stand_in() -> Iterator[None]:
    """A stand-in that hardly learns anything."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(standin, "_WORLDS", 2)
        patched.setattr(standin, "_STEPS", 2)
        yield


# The detector ---------------------------------------------------------------------------------------------------------------------------


def test_a_specification_is_read_as_it_is_written() -> None:
    text = "upvl:stillroom/centerpoint-pillar,cell=0.32,features=512,language=clip"
    assert str(parse(text, "student")) == text
    data = objects()
    for wrong, said in (
        ("upvl:stillroom/pillar-small", "features=C"),
        (f"upvl:{STUDENT},features=4,language=dutch", "own, clip"),
        ("upvl:stillroom/voxel-small,features=4,language=own", "on pillars"),
    ):
        with pytest.raises(InputError, match=said):
            build_detector(wrong, Wanted.of(data.describe()), argument="student")


def test_rows_of_features_stay_with_their_points_when_frames_are_turned() -> None:
    still, turned = objects(), objects("turn")
    batch = turned.train_loader(seed=0).first(2)
    assert batch.point_labels is not None
    for number, index in enumerate(batch.ids.tolist()):
        mine, frame = batch.batch_index == number, still.train_frame(index)
        assert not torch.allclose(batch.points[mine, :2], torch.from_numpy(frame.points[:, :2]))
        assert torch.equal(batch.points[mine, 3:], torch.from_numpy(frame.points[:, 3:]))  # brightness and ring
        assert batch.point_labels[mine].tolist() == (np.arange(len(frame.points)) % 50).tolist()


def test_maps_are_read_at_points_of_any_number() -> None:
    grid = detector(objects()).grid
    maps, xy = torch.randn(2, 3, grid.ny, grid.nx), torch.rand(2, 5, 2) * 20 - 10
    found = sample_rows(maps, xy.flatten(0, 1), torch.tensor([0] * 5 + [1] * 5), grid)
    torch.testing.assert_close(found, sample_bev(maps, xy, grid).flatten(0, 1))
    far = sample_rows(maps, torch.tensor([[1e3, 1e3]]), torch.tensor([1]), grid)
    torch.testing.assert_close(far[0], maps[1, :, -1, -1])


def test_features_are_learned_where_they_are_known_and_nowhere_else() -> None:
    data = objects()
    batch = data.train_loader(seed=0).first(2)
    rows, texts = table()
    distiller = UPVL(detector(data), rows, texts)

    def loss(some: FrameBatch) -> Tensor:
        distiller.zero_grad(set_to_none=True)
        losses = distiller.losses(some)
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in distiller.parameters() if parameter.requires_grad)
        return losses.distill["feature"].detach()

    assert batch.point_labels is not None
    assert 0 < loss(batch) < 2
    unseen = batch._replace(point_labels=torch.full_like(batch.point_labels, -1))
    assert loss(unseen) == 0  # no camera sees a frame: an exact 0 that still reaches the head
    assert not any(parameter.grad.any() for parameter in distiller.student.naming.parameters())
    nothing = batch.inputs._replace(points=batch.points[:0], batch_index=batch.batch_index[:0])
    no_boxes = [box[:0] for box in batch.boxes], [label[:0] for label in batch.labels]
    empty = batch._replace(inputs=nothing, point_labels=batch.point_labels[:0], boxes=no_boxes[0], labels=no_boxes[1])
    assert loss(empty) == 0
    assert len(distiller.predict(empty)) == 2
    far = batch.inputs._replace(points=batch.points + 500)
    assert loss(batch._replace(inputs=far)) == 0


def test_a_box_without_points_gets_the_first_query() -> None:
    data = objects()
    network = detector(data).eval()
    inputs: FrameInputs = data.example_inputs()
    boxes = torch.tensor([[0.0, 0, 80, 1, 1, 1, 0], [*inputs.points[0, :3].tolist(), 2, 2, 2, 0]])
    found = [Detections(boxes, torch.ones(2), torch.zeros(2, dtype=torch.int64))]
    with torch.no_grad():
        ((labels, shares),) = network.naming.named(network.raw(inputs), inputs, found, table()[1])
    assert labels[0] == 0
    assert shares[0] == pytest.approx(1 / 14)
    assert shares[1] != pytest.approx(1 / 14)


# What is measured -----------------------------------------------------------------------------------------------------------------------


def frames_of(boxes: Tensor, named: list[int], moving: list[bool]) -> FrameBatch:
    about = {"named": torch.tensor(named), "moving": torch.tensor(moving)}
    nothing = FrameInputs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 1)
    return FrameBatch(nothing, [boxes], [torch.zeros(len(boxes), dtype=torch.int64)], torch.tensor([7]), about=[about])


def test_what_moves_what_stands_words_and_sizes_are_measured_apart() -> None:
    true = torch.tensor([[0.0, 0, 1, 4, 2, 2, 0], [10, 0, 1, 4, 2, 2, 0], [20, 0, 1, 1, 1, 2, 0]])
    batch = frames_of(true, [0, 0, 1], [True, False, False])
    boxes = torch.cat((true, true[:1] + torch.tensor([0, 40.0, 0, 0, 0, 0, 0])))  # all, and one that is not there
    boxes[0, 3:7] = torch.tensor([2.0, 4.0, 2.0, np.pi / 2])  # the same box: sides are compared by length
    boxes[2, 3] = 1.2
    scores, visible = torch.tensor([0.9, 0.8, 0.7, 0.85]), torch.full((4, 3), torch.nan)
    visible[1] = torch.tensor([2.0, 1.0, 1.0])
    evaluator = OpenEvaluator(["car", "person"], from_above=True)
    evaluator.update([Found(boxes, scores, torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 0.5, 1.0, 1.0]), visible)], batch)
    found = evaluator.compute()
    assert found["AP"] == pytest.approx(100 * (1 + 2 * 3 / 4) / 3)  # the wrong one stands second of four
    assert found["APmoving"] == pytest.approx(100)
    assert found["APstanding"] == pytest.approx(100 * 2 / 3)
    assert found["AP car"] == pytest.approx(50)  # one of two is called a person
    assert found["AP person"] == pytest.approx(100)  # whose probability puts the wrong one behind
    assert found["mAPwords"] == pytest.approx(75)
    assert found["size"] == pytest.approx(0.1 / 3, abs=1e-6)
    assert found["visible"] == pytest.approx(1.5)
    evaluator.reset()
    evaluator.update([Found(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.int64), scores[:0], visible[:0])], batch)
    assert evaluator.compute() == {"AP": 0, "APmoving": 0, "APstanding": 0}


# The stand-in ---------------------------------------------------------------------------------------------------------------------------


def test_the_stand_in_knows_its_words_and_says_which() -> None:
    assert bag_of_words("A violet Car, a car!").sum() == 3
    with pytest.raises(InputError, match=r"query: got a stroller, .*vehicle.*; a CLIP knows others"):
        bag_of_words("a stroller")
    vision = StandIn(standin.learn(0), ["car", "pedestrian"])
    frame = DrivingWorld(3, WorldSpec(cameras=1, beams=8, azimuths=60)).frame()
    features = vision.of_points(frame)(frame.points[:, :3])
    seen = np.abs(features).sum(1) > 0
    ahead = frame.points[:, 0] > np.abs(frame.points[:, 1]) + 0.1
    assert seen[ahead].mean() > 0.5
    assert not seen[frame.points[:, 0] < 0].any()
    np.testing.assert_allclose(np.linalg.norm(features[seen], axis=1), 1, rtol=1e-4)
    assert vision.of_points(Frame(frame.points, frame.columns))(frame.points[:, :3]).shape == (len(frame.points), FEATURES)


# Runs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_stand_in: None) -> Path:
    out = tmp_path_factory.mktemp("upvl") / "run"
    assert main(["run", "upvl", "--data", SEQUENCES, *SHORT, "--out", str(out)]) == 0
    return out


def test_a_run_measures_labels_and_detectors_and_says_who_named(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == [*WAYS, "detector-motion", "detector", "lifted", "upvl"]
    assert metrics["baseline"] == "detector-motion"
    assert {"AP", "APmoving", "APstanding"} <= set(metrics["stages"]["upvl"][0]["metrics"])
    assert metrics["stages"]["upvl"][0]["history"][0]["train/feature"] > 0
    page = (run / "report.html").read_text()
    assert "a small stand-in that learned made-up streets by captions" in page
    assert "training frames got" in page
    card = json.loads((run / "student.json").read_text())
    assert (card["model"], card["classes"]) == (f"upvl:{STUDENT},features={FEATURES},language=own", ["object"])


def test_the_student_is_asked_with_words(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "frame.npy", DrivingWorld(4, WorldSpec(beams=16, azimuths=120, reach=12)).frame().points)
    file = str(tmp_path / "frame.npy")
    words = ["--query", "a person pushing a stroller", "--query", "violet car", "--threshold", "0", "--json"]
    assert main(["predict", str(run), file, *words]) == 0
    found = json.loads(capsys.readouterr().out)["nuscenes"]
    assert {box["detection_name"] for box in found} <= {"a person pushing a stroller", "violet car"}
    student: Any = load(run)
    frame = DrivingWorld(4, WorldSpec(beams=16, azimuths=120, reach=12)).frame()
    boxes, scores, _ = student.detect(frame, threshold=0.0)
    again, named, labels = student.detect(frame, threshold=0.0, texts=student.texts(["car", "pedestrian"]))
    assert len(boxes) == len(again) == len(found)
    assert set(labels.tolist()) <= {0, 1}
    assert named.sum() <= scores.sum()
    assert main(["predict", str(run), file, "--query", "stroller"]) == 2
    assert "that the stand-in knows" in capsys.readouterr().err
    assert main(["predict", str(run), file, "--query", " "]) == 2
    assert "a word or phrase" in capsys.readouterr().err
    assert main(["predict", str(run / "seed0/detector"), file, "--query", "car"]) == 2
    assert "none: this student finds object" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "student.onnx")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "upvl+labels"), "--arms"),
        (("--arms", "detector+lifted"), "a detector that is trained last"),
        (("--boxes", "true"), "--boxes: got true"),
        (("--boxes", "given"), "--clip: got own"),
        (("--overlap", "half"), "--overlap: got half"),
        (("--subset", "3"), "whole sequences"),
        (("--paste", "3"), "no true box is cut out"),
        (("--student", "stillroom/voxel-small"), "on pillars"),
        (("--language-weight", "-1"), "feature"),
        (("--clip", "/nowhere"), "/nowhere"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "upvl", "--data", SEQUENCES, *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_labelling_goes_on_at_the_sequence_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label, counted = targets._sequence, {"calls": 0}

    def falling(*arguments: Any) -> Any:
        counted["calls"] += 1
        if counted["calls"] == 2:
            raise KeyboardInterrupt
        return label(*arguments)

    words = ["run", "upvl", "--data", SEQUENCES, *SHORT, "--arms", "upvl", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(targets, "_sequence", falling)
    main(words)
    assert counted["calls"] == 2
    assert main(words) == 0
    assert counted["calls"] == 3  # the first is not labelled again, and without arms of labels nothing is that is measured
    assert (tmp_path / "run/student.json").exists()


# The paper's setting, and one's own labels ----------------------------------------------------------------------------------------------


def write_frames(folder: Path) -> Path:
    """The generic layout with pictures, as the paper's data would be exported."""
    (folder / "lidar").mkdir(parents=True)
    told, cameras = [], {}
    for number, split in enumerate(("train", "val")):
        for at, frame in enumerate(DrivingWorld((11, number), WorldSpec(cameras=1, frames=2, beams=16, azimuths=120, reach=12)).frames()):
            name = f"lidar/{number}{at}.bin"
            frame.points.astype("<f4").tofile(folder / name)
            (view,) = frame.views
            Image.fromarray(view.image).save(folder / f"{number}{at}.png")
            cameras["ahead"] = {"intrinsics": view.intrinsics.tolist(), "cam2ego": view.cam2ego.tolist()}
            boxes = [{"name": "car", "box": box.tolist()} for box in frame.boxes]
            place = {"sequence": f"{number}", "time_s": frame.time, "ego2global": frame.ego2global.tolist(), "split": split}  # type: ignore[union-attr]
            told.append({"lidar": name, "images": {"ahead": f"{number}{at}.png"}, "boxes": boxes, **place})
    content = {"columns": list(frame.columns), "classes": ["car"], "cameras": cameras, "frames": told}
    (folder / "frames.json").write_text(json.dumps(content))
    return folder


def test_the_paper_s_setting_takes_a_step_on_frames_of_the_generic_layout(tmp_path: Path, clip_folder: Path) -> None:  # noqa: F811
    words = ["run", "upvl", "--preset", "paper", "--data", f"points:{write_frames(tmp_path / 'frames')}", "--clip", str(clip_folder)]
    words += ["--reach", "[-12.8,-12.8,-2,12.8,12.8,4]", "--epochs", "1", "--batch-size", "2", "--accelerator", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    card = json.loads((tmp_path / "run/student.json").read_text())
    assert card["model"] == "upvl:stillroom/centerpoint-pillar,cell=0.32,features=12,language=clip"
    assert card["clip"] == str(clip_folder)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics["summary"]) == ["detector-motion", "upvl"]
    student: Any = load(tmp_path / "run")
    assert student.texts(["a person pushing a stroller"]).shape == (12, 12)


def test_what_label_3d_wrote_is_learned(tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (tmp_path / "words.txt").write_text("car\nperson\n")
    clip = ["--vocabulary", str(tmp_path / "words.txt"), "--clip", str(clip_folder), "--background", "2", "--points"]
    assert main(["label-3d", SEQUENCES.replace("val=1", "val=1,seed=4"), *clip, "--out", str(tmp_path / "labels")]) == 0
    words = ["run", "upvl", "--data", f"points:{tmp_path / 'labels'},val=0.5", "--boxes", "given", *SHORT]
    assert main([*words, "--clip", str(clip_folder), "--out", str(tmp_path / "run")]) == 0
    assert "Measured against the given labels" in (tmp_path / "run/report.html").read_text()
    for file in (tmp_path / "labels").rglob("features.npz"):
        file.unlink()
    capsys.readouterr()
    assert main([*words, "--clip", str(clip_folder), "--out", str(tmp_path / "other")]) == 2
    assert "what stillroom label-3d --clip --points wrote" in capsys.readouterr().err


# Kills and processes --------------------------------------------------------------------------------------------------------------------


def test_killed_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_continued(UPVL, train, tmp_path, monkeypatch)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, processes: Processes) -> None:
    two_processes_as_one(processes, train, tmp_path, "upvl")
