"""`stillroom label-3d` as people meet it: boxes and tracks of what moves and stands, once, gone on with, refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from stillroom.cli import main
from stillroom.methods.upvl import flow, job, sequence
from stillroom.methods.upvl.flow import FlowSpec, Problem, local_flow
from stillroom.methods.upvl.job import open_sequences
from stillroom.methods.upvl.labelling import LabelSpec, Scan, carried, proposals, scan_motions, scan_of, tracks_of
from stillroom.methods.upvl.lifting import otsu
from stillroom.methods.upvl.loss import box_labels, feature_loss
from stillroom.methods.upvl.proposals import clusters, ground_height
from stillroom.methods.upvl.vision import BACKGROUND, VisionLanguage, squares
from stillroom.modules.clip import Clip, ClipShape, TowerShape
from stillroom.tasks.images.clips import open_clip, write_clip
from stillroom.tasks.images.tokens import learnt
from stillroom.tasks.points.folder import open_folder
from stillroom.tasks.points.frames import Frame, View

FRAMES = 4


def box_points(random: np.random.Generator, centre: tuple[float, float], size: tuple[float, float, float], count: int) -> np.ndarray:
    """Points on the rear and the right side of a box that stands on the ground: what a scanner at the origin sees of it."""
    along, across, height = size
    rear, flank = np.full(count, -along / 2), random.uniform(-along / 2, along / 2, count)
    first = np.column_stack((rear, random.uniform(-across / 2, across / 2, count)))
    second = np.column_stack((flank, np.full(count, -across / 2)))
    flat = np.concatenate((first, second)) + centre
    return np.column_stack((flat, random.uniform(0, height, 2 * count)))


def write_sequence(
    folder: Path, *, frames: int = FRAMES, speed: float = 6.0, change: Callable[[list[np.ndarray]], None] | None = None
) -> Path:
    """SemanticKITTI's layout: the ground, a car that drives ahead, one that stands, seen by a vehicle that drives at 2 m/s."""
    (folder / "velodyne").mkdir(parents=True)
    poses = []
    for k in range(frames):
        random = np.random.default_rng(k)
        pose = np.eye(4)
        pose[0, 3] = 0.2 * k
        ground = np.column_stack((random.uniform(2, 30, 900), random.uniform(-12, 12, 900), random.normal(0, 0.01, 900)))
        car = box_points(random, (10 + speed * 0.1 * k, 3.0), (4.2, 1.8, 1.5), 150)
        parked = box_points(np.random.default_rng(99), (12.0, -5.0), (3.9, 1.7, 1.4), 150)
        points = np.concatenate((ground, car, parked)) - pose[:3, 3] - [0, 0, 1.7]
        np.column_stack((points, np.zeros(len(points)))).astype("<f4").tofile(folder / "velodyne" / f"{k:06d}.bin")
        poses.append(pose)
    if change is not None:
        change(poses)
    np.savetxt(folder / "poses_velodyne.txt", np.array([pose[:3].ravel() for pose in poses]))
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("label3d")
    source, out = write_sequence(folder / "drive"), folder / "labels"
    assert main(["label-3d", str(source), "--out", str(out)]) == 0
    return source, out


def test_what_drives_and_what_stands_get_whole_boxes_and_tracks(labelled: tuple[Path, Path]) -> None:
    _, out = labelled
    frames = json.loads((out / "sequence" / "frames.json").read_text())["frames"]
    assert len(frames) == FRAMES
    for k, frame in enumerate(frames):
        moving, standing = ([box for box in frame["boxes"] if box["moving"] is wanted] for wanted in (True, False))
        assert len(moving) == len(standing) == 1
        x, y, z, dx, dy, dz, yaw, vx, vy = moving[0]["box"]
        assert abs(x - (10 + 0.6 * k - 0.2 * k)) < 0.3  # in the coordinates of the vehicle, which drives
        assert abs(y - 3) < 0.3
        assert dx == pytest.approx(4.2, abs=0.4)
        assert dy == pytest.approx(1.8, abs=0.3)
        assert z - dz / 2 == pytest.approx(-1.7, abs=0.15)  # it stands on the ground
        assert abs(yaw) < 0.15  # it heads where it goes
        assert vx == pytest.approx(6.0, abs=1.0)
        assert abs(vy) < 1.0
        assert standing[0]["box"][:2] == pytest.approx([12 - 0.2 * k, -5], abs=0.3)
        assert standing[0]["box"][3:5] == pytest.approx([3.9, 1.7], abs=0.4)  # ends are cut by 2.5 % of the points
        assert standing[0]["box"][7:] == [0, 0]
    assert len({box["track"] for frame in frames for box in frame["boxes"]}) == 2


def test_kitti_and_nuscenes_forms_and_a_page(labelled: tuple[Path, Path]) -> None:
    _, out = labelled
    folder = out / "sequence"
    own = json.loads((folder / "frames.json").read_text())["frames"][2]
    nuscenes, kitti = (json.loads((folder / name).read_text()) for name in ("nuscenes.json", "kitti.json"))
    for box, there, theirs in zip(own["boxes"], nuscenes["results"][own["lidar"]], kitti[own["lidar"]], strict=True):
        x, _, z, dx, dy, dz = box["box"][:6]
        assert there["translation"][0] == pytest.approx(x + 0.4, abs=1e-3)  # of the world
        assert there["size"] == pytest.approx([dy, dx, dz], abs=1e-3)
        assert there["tracking_id"] == str(box["track"])
        assert theirs["dimensions"] == pytest.approx([dz, dy, dx], abs=1e-3)
        assert theirs["location"][2] == pytest.approx(z - dz / 2, abs=1e-3)
    page = (out / "report.html").read_text()
    assert page.count("<img") == 3  # three frames from above: there are no pictures
    assert "http" not in page.replace("http-equiv", "")
    assert not (folder / "begun").exists()


def test_done_is_done_and_a_job_that_was_stopped_goes_on(
    labelled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = labelled
    whole = (out / "sequence" / "frames.json").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("flow was fitted again")

    with monkeypatch.context() as patched:
        patched.setattr(sequence, "scan_motions", never)
        assert main(["label-3d", str(source), "--out", str(out)]) == 0
        assert "done before" in capsys.readouterr().out
        # stopped behind the flow: what was fitted is read again
        patched.undo()
        patched.setattr(job, "write_labels", never)
        with pytest.raises(AssertionError):
            main(["label-3d", str(source), "--out", str(tmp_path / "out")])
        patched.undo()
        patched.setattr(sequence, "scan_motions", never)
        assert main(["label-3d", str(source), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "sequence" / "frames.json").read_bytes() == whole
    assert main(["label-3d", str(source), "--flow", "thorough", "--out", str(out)]) == 2
    assert "which holds labels that were made otherwise, expected another folder, or --overwrite" in capsys.readouterr().err


def test_only_what_the_job_wrote_is_replaced(
    labelled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = labelled
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "sequence" / "notes.txt").write_text("a thesis")
    asked = ["label-3d", str(source), "--flow", "thorough", "--overwrite", "--out", str(copy)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "label_sequence", stop)
    (copy / "sequence" / "kitti.json").write_text("mine")
    assert main(asked) == 2
    assert "kitti.json, which is not as Stillroom wrote it" in capsys.readouterr().err
    assert (copy / "sequence" / "frames.json").exists()
    shutil.copy(out / "sequence" / "kitti.json", copy / "sequence" / "kitti.json")
    with suppress(KeyboardInterrupt):
        main(asked)
    assert (copy / "sequence" / "notes.txt").read_text() == "a thesis"
    assert not (copy / "sequence" / "frames.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("my own")
    assert main(["label-3d", str(source), "--out", str(mine)]) == 2
    assert "report.html, which Stillroom did not write" in capsys.readouterr().err
    assert (mine / "report.html").read_text() == "my own"


def jump(poses: list[np.ndarray]) -> None:
    poses[2][0, 3] += 40


def test_what_cannot_be_labelled_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["label-3d", *arguments, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    jumps = write_sequence(tmp_path / "jumps", change=jump)
    assert "velodyne/000002.bin, 40.2 m from the frame before it" in refused(str(jumps))
    lost = write_sequence(tmp_path / "lost")
    (lost / "poses_velodyne.txt").unlink()
    assert "which has no pose" in refused(str(lost))
    back = write_sequence(tmp_path / "back")
    np.savetxt(back / "times.txt", [0.0, 0.1, 0.05, 0.2])
    assert "000002.bin, whose time is not after the one before it" in refused(str(back))
    empty = write_sequence(tmp_path / "empty")
    for file in (empty / "velodyne").iterdir():
        file.write_bytes(b"")
    assert "none of whose frames has a point above the ground" in refused(str(empty))
    (empty / "velodyne" / "000001.bin").write_bytes(b"12345")
    assert "whose 5 bytes are no multiple of 16" in refused(str(empty))
    (tmp_path / "nothing").mkdir()
    assert "velodyne/*.bin" in refused(str(tmp_path / "nothing"))
    other = tmp_path / "out" / "sequence"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir(parents=True)
    (other / "frames.json").write_text("mine")
    assert "frames.json, which Stillroom did not write" in refused(str(write_sequence(tmp_path / "whole")))
    assert (other / "frames.json").read_text() == "mine"
    words = tmp_path / "words.txt"
    words.write_text("car\n")
    assert "--clip: got nothing" in refused(str(lost), "--vocabulary", str(words))
    assert "--flow: got no" in refused(str(lost), "--flow", "no")
    words.write_text("\n")
    assert "without a word" in refused(str(lost), "--vocabulary", str(words), "--clip", "x")


def test_a_sequence_of_one_frame_and_a_frame_without_points(tmp_path: Path) -> None:
    one = write_sequence(tmp_path / "one", frames=1)
    assert main(["label-3d", str(one), "--points", "--out", str(tmp_path / "out1")]) == 0
    again = open_folder(str(tmp_path / "out1" / "sequence"), "data").listed().frame(0)  # what is written is data to train on
    assert again.points[:, :3] == pytest.approx(open_sequences(str(one)).frame(0).points[:, :3])
    assert len(again.boxes) == 2
    boxes = json.loads((tmp_path / "out1" / "sequence" / "frames.json").read_text())["frames"][0]["boxes"]
    assert len(boxes) == 2
    assert not any(box["moving"] for box in boxes)
    gap = write_sequence(tmp_path / "gap", frames=5)
    (gap / "velodyne" / "000002.bin").write_bytes(b"")
    assert main(["label-3d", str(gap), "--out", str(tmp_path / "out2")]) == 0
    frames = json.loads((tmp_path / "out2" / "sequence" / "frames.json").read_text())["frames"]
    standing = [[box["track"] for box in frame["boxes"] if not box["moving"]] for frame in frames]
    assert standing[1] == standing[2] == standing[3]  # what stands is there in the frame that shows nothing, too
    assert len(standing[2]) == 1


# Names ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = learnt(["a photo of a car", "a red truck", *BACKGROUND] * 3, 600, 12)
    towers = {"image": TowerShape.of(24, 2, 3, 40), "text": TowerShape.of(32, 2, 4)}
    shape = ClipShape(**towers, embedding=12, image_size=16, patch=8, context=12, vocabulary=600, end=599)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, Clip(replace(shape, vocabulary=tokenizer.size, end=tokenizer.end)).eval(), tokenizer, (0.5,) * 3, (0.5,) * 3)
    return folder


def test_patches_are_read_through_the_values_of_the_last_attention(clip_folder: Path) -> None:
    vision = VisionLanguage(open_clip(clip_folder), ["car", "truck"])
    assert vision.texts.shape == (2 + len(BACKGROUND), 12)
    images = torch.randn(2, 3, 16, 16)
    assert vision.dense(images).shape == (2, 12, 2, 2)
    changed = images.clone()
    changed[:, :, 8:, 8:] += 1
    tower = vision.tower
    # with blocks before the last taken away, a patch says nothing of the others
    blocks = tower.transformer.resblocks
    tower.transformer.resblocks = blocks[-1:]
    before, after = vision.dense(images), vision.dense(changed)
    tower.transformer.resblocks = blocks
    torch.testing.assert_close(before[:, :, 0], after[:, :, 0])
    assert not torch.allclose(before[:, :, 1, 1], after[:, :, 1, 1])


def test_squares_of_a_picture_are_cameras_that_see_the_same() -> None:
    picture = np.zeros((20, 50, 3), np.uint8)
    picture[10, 42] = 255
    found = squares(View("c", picture, np.eye(3), np.eye(4)), 60)
    assert {tuple(pixels.shape) for pixels, _ in found} == {(3, 60, 60)}
    pixels, matrix = found[-1]
    u, v, _ = matrix @ [42, 10, 1]
    assert pixels[0].argmax() // 60 == round(v)
    assert pixels[0].argmax() % 60 == round(u)


def test_with_a_clip_what_stands_is_named_or_dropped_by_cameras(clip_folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# of the road\ncar\ntruck\n")
    clip = ["--vocabulary", str(words), "--clip", str(clip_folder), "--background", "2"]
    assert main(["label-3d", "streets:train=1,frames=3,cameras=1,azimuths=240,seed=4", *clip, "--out", str(tmp_path / "seen")]) == 0
    (folder,) = (path for path in (tmp_path / "seen").iterdir() if path.is_dir())
    content = json.loads((folder / "frames.json").read_text())
    names = [box["name"] for frame in content["frames"] for box in frame["boxes"]]
    assert content["classes"] == ["car", "truck"]
    assert names
    assert set(names) <= {"car", "truck"}
    with np.load(folder / "features.npz") as arrays:
        assert arrays["feature"].dtype == np.float16
        assert arrays["feature"].shape[1] == 12
    blind = write_sequence(tmp_path / "blind")  # without pictures: no camera sees what stands
    assert main(["label-3d", str(blind), *clip, "--out", str(tmp_path / "blind-out")]) == 0
    content = json.loads((tmp_path / "blind-out" / "sequence" / "frames.json").read_text())
    assert {box["moving"] for frame in content["frames"] for box in frame["boxes"]} == {True}


# Parts ----------------------------------------------------------------------------------------------------------------------------------


def test_clusters_are_those_of_dbscan() -> None:
    from sklearn.cluster import DBSCAN

    random = np.random.default_rng(0)
    points = random.normal(0, 1, (400, 3)) * [4, 4, 1]
    np.testing.assert_array_equal(clusters(points, 0.7, 5), DBSCAN(eps=0.7, min_samples=5).fit_predict(points))
    weight = random.integers(1, 4, 400)
    expected = DBSCAN(eps=0.5, min_samples=6).fit_predict(points, sample_weight=weight)
    np.testing.assert_array_equal(clusters(points, 0.5, 6, weight), expected)
    np.testing.assert_array_equal(clusters(points, np.full(400, 0.7), 5), clusters(points, 0.7, 5))
    assert clusters(points[:0]).shape == (0,)


def test_ground_rises_and_walls_are_none() -> None:
    random = np.random.default_rng(0)
    flat = random.uniform(-30, 30, (6000, 2))
    ground = np.column_stack((flat, 0.04 * flat[:, 0] + random.normal(0, 0.02, 6000)))
    wall = np.column_stack((np.full(400, 15.0), random.uniform(-6, 6, 400), random.uniform(0.6, 4, 400)))
    height = ground_height(np.concatenate((ground, wall)))
    far = np.hypot(*flat.T) > 2
    assert (np.abs(height[:6000] - ground[:, 2]) < 0.25)[far].mean() > 0.97
    assert (wall[:, 2] - height[6000:] > 0.25).mean() > 0.9


def test_flow_follows_what_moves_and_is_zero_where_the_fit_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    cloud = random.uniform(-1, 1, (60, 3)) * [2, 0.9, 0.7]
    there, step = np.array([8.0, 0, 0]), np.array([0.6, 0.1, 0])
    problem = Problem(cloud + there, np.zeros(60, int), cloud + there + step)
    found = local_flow([problem, Problem(cloud[:0], np.zeros(0, int), cloud)], 0.1, FlowSpec(width=32, layers=3, steps=150))
    assert np.linalg.norm(found[0].flow.mean(0) - step) < 0.12
    assert found[1].flow.shape == (0, 3)
    monkeypatch.setattr(flow, "_fitted", lambda *clouds: torch.full((1, 60, 3), torch.nan))
    lost = local_flow([problem], 0.1)[0]
    assert not lost.flow.any()
    assert lost.diverged == 1


def test_no_point_no_cluster_no_track() -> None:
    spec = LabelSpec()
    empty = Frame(np.zeros((0, 4), np.float32), ("x", "y", "z", "intensity"))
    scans: list[Scan] = [scan_of(empty, np.eye(4), spec) for _ in range(3)]
    motions = scan_motions(list(pairwise(scans)), 0.1, spec)
    motions.append(carried(scans[1], motions[-1], scans[2]))
    found = [one for at in range(3) for one in proposals(scans, motions, at, 0.1, spec)]
    assert found == tracks_of(scans, found, 0.1, spec) == []


def test_points_that_no_camera_sees_teach_nothing() -> None:
    predicted = torch.randn(6, 4, requires_grad=True)
    target = torch.zeros(6, 4)
    loss = feature_loss(predicted, target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not predicted.grad.any()  # type: ignore[union-attr]
    target[:2] = normalize(torch.randn(2, 4), dim=1)
    expected = (1 - torch.cosine_similarity(predicted[:2], target[:2])).mean()
    torch.testing.assert_close(feature_loss(predicted, target), expected)
    probability, label = box_labels(predicted, torch.zeros(1, 6), torch.randn(3, 4), [0])
    assert probability.tolist()[0] == pytest.approx([1 / 3] * 3)
    assert int(label) == 1  # of nothing but equals the first


def test_otsu_lies_between_two_heaps() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate((random.normal(0.1, 0.02, 500), random.normal(0.4, 0.02, 300)))
    assert 0.16 < otsu(values) < 0.35


def test_places_of_sequences(tmp_path: Path) -> None:
    source = write_sequence(tmp_path / "drive", frames=2)
    shutil.make_archive(str(tmp_path / "packed"), "zip", source)
    for place in (str(source), str(tmp_path / "packed.zip"), "streets:train=1,frames=2"):
        assert len(open_sequences(place)) == 2
