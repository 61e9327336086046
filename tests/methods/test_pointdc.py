"""PointDC: its parts, its stages, and runs as a user has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from stillroom import load
from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.methods.pointdc.distiller import CMD, Clusters, IterativeClustering, WarmUp
from stillroom.methods.pointdc.lifting import lifted, region_targets, seen
from stillroom.methods.pointdc.loss import cmd_loss, pseudo_label_loss
from stillroom.methods.pointdc.recipe import PRESETS
from stillroom.methods.pointdc.teacher import dense_vicreg, open_encoder, scene_targets, train_own
from stillroom.tasks.points.rooms import RoomSpec, RoomWorld
from stillroom.tasks.points.supervoxels import SupervoxelSpec, grown, merged, normals, supervoxels
from stillroom.tasks.segmentation3d import Segmentation3dData
from stillroom.tasks.segmentation3d.backbone import Pyramid, PyramidSpec
from stillroom.tasks.segmentation3d.clustering import kmeans, lloyd_steps, pseudo_labels, unit
from stillroom.tasks.segmentation3d.segmenter import SceneSegmenter
from tests.methods import pointdc_job
from tests.processes import Processes
from tests.tasks.points import made_up
from tests.torture.kill import differences, kill_in

TINY = ["--data", "rooms:train=3,val=2,views=2", "--student", "stillroom/fpn4_4_4_4_to8_k3", "--batch-size", "2", "--teacher-steps", "4"]
SHORT = ["--epochs", "1", "--warm-epochs", "1", "--svc-epochs", "2", "--recluster-every", "1"]


@pytest.fixture(scope="module")
def data() -> Segmentation3dData:
    return Segmentation3dData("rooms:train=3,val=2,views=2", batch_size=2)


# Parts ----------------------------------------------------------------------------------------------------------------------------------


def test_imitation_is_a_cosine_and_unseen_points_count_for_nothing() -> None:
    student, target = torch.randn(9, 7, requires_grad=True), torch.randn(9, 7)
    target[:3] = 0
    loss = cmd_loss(student, target)
    cosines = torch.cosine_similarity(student, target)[3:]
    torch.testing.assert_close(loss, (2 * (1 - cosines) / 7).mean())
    (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient[:3] == 0).all()
    torch.testing.assert_close((gradient * student).sum(1), torch.zeros(9), atol=1e-7, rtol=0)  # the length is free
    nothing = cmd_loss(student, torch.zeros(9, 7))
    assert nothing == 0
    assert torch.autograd.grad(nothing, student)[0].abs().sum() == 0
    assert pseudo_label_loss(student, torch.full((9,), -1)) == 0


def test_without_a_depth_map_near_points_hide_far_ones() -> None:
    points = torch.tensor([[0.0, 0, 2], [0, 0, 4], [0.5, 0, 2], [0, 0, -1], [9, 0, 2]])
    intrinsics, pose = torch.tensor([[20.0, 0, 16], [0, 20, 12], [0, 0, 1]]), torch.eye(4)
    found, uv = seen(points, intrinsics, pose, None, (24, 32))
    assert found.tolist() == [True, False, True, False, False]
    assert uv[0].tolist() == [16, 12]
    depth = torch.full((24, 32), 4.0)
    depth[:, 20:] = 0  # unknown
    assert seen(points, intrinsics, pose, depth, (24, 32))[0].tolist() == [False, True, False, False, False]


def test_targets_are_those_of_the_pieces_and_scans_never_mix() -> None:
    features, sees = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]), torch.tensor([True, True, False, False])
    found = region_targets(features, sees, torch.tensor([0, 0, 0, 1]))
    assert found.tolist() == [[0.5, 0.5]] * 3 + [[0, 0]]
    assert lifted([(torch.tensor([True, False]), torch.tensor([[3.0, 4.0]]))], 2, 2).tolist() == [pytest.approx([0.6, 0.8]), [0, 0]]


def test_clusters_are_never_empty_and_too_few_vectors_are_refused() -> None:
    vectors = unit(torch.randn(40, 5))
    start = torch.cat((vectors[:2], -10 * torch.ones(1, 5)))  # nothing is near the third
    found = lloyd_steps(vectors, start, 20)
    assert found.isfinite().all()
    assert len(torch.unique((vectors @ found.T).argmax(1))) == 3
    assert torch.equal(kmeans(vectors, 4, seed=1), kmeans(vectors, 4, seed=1))
    same = kmeans(vectors[:1].expand(9, -1), 3, seed=0)
    assert same.isfinite().all()
    with pytest.raises(InputError, match="41 clusters of 40 super-voxels"):
        kmeans(vectors, 41, seed=0)
    ties = pseudo_labels(torch.zeros(3, 5), torch.tensor([0, 0, -1]), found)
    assert ties.tolist() == [0, 0, 0]


def test_supervoxels_follow_surfaces_and_know_no_label() -> None:
    frame = RoomWorld(2, RoomSpec(views=4)).frame()
    spec = SupervoxelSpec(0.08, 0.5, colour=2.0, angle=5.0)
    pieces = supervoxels(frame.points[:, :3], frame.points[:, 3:], spec)
    assert np.unique(pieces).tolist() == list(range(pieces.max() + 1))
    pure = sum(np.bincount(frame.point_labels[pieces == k]).max() for k in range(pieces.max() + 1)) / len(pieces)
    assert pure > 0.93
    assert 20 < pieces.max() < len(pieces) / 8
    again = supervoxels(frame.points[:, :3] + [3.0, -2.0, 0.0], frame.points[:, 3:], spec)
    assert abs(int(again.max()) - int(pieces.max())) < 0.5 * pieces.max()
    assert len(supervoxels(np.zeros((0, 3)), None)) == 0
    assert supervoxels(np.zeros((1, 3)), None).tolist() == [0]
    assert merged(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 2, 5, 3])).tolist() == [0, 0, 0, 1, 1]


def test_regions_end_where_the_surface_turns() -> None:
    flat = np.stack(np.meshgrid(np.arange(12), np.arange(12)), -1).reshape(-1, 2) * 0.1
    floor = np.column_stack((flat, np.zeros(len(flat))))
    wall = np.column_stack((np.full(len(flat), -0.1), flat[:, 0], flat[:, 1] + 0.1))
    points = np.concatenate((floor, wall))
    slopes, bend, near = normals(points)
    regions = grown(slopes, bend, near, 8.0)
    inner = (points[:, 0] > 0.3) | (points[:, 2] > 0.4)
    assert len(np.unique(regions[inner])) == 2
    assert abs(slopes[5 * 12 + 5, 2]) > 0.99


def test_the_pyramid_reads_voxels_and_is_blind_to_empty_scans(data: Segmentation3dData) -> None:
    assert str(PyramidSpec.parse("stillroom/fpn32_64_128_256_to128", "student")) == "stillroom/fpn32_64_128_256_to128_k5"
    network = Pyramid(PyramidSpec((4, 4, 8, 8), 6, 3), data.voxel).eval()
    batch = data.eval_loader().__iter__().__next__()
    whole = network(batch.inputs)
    assert whole.shape == (len(batch.rows), 6)
    first = batch.scene(0)
    alone = batch.inputs._replace(points=batch.inputs.points[first], batch_index=batch.inputs.batch_index[first], batch_size=3)
    torch.testing.assert_close(network(alone), whole[first], atol=1e-5, rtol=1e-4)  # scans do not see each other; two are empty
    doubled = torch.cat((alone.points, alone.points[:5]))
    again = network(alone._replace(points=doubled, batch_index=torch.zeros(len(doubled), dtype=torch.int64)))
    torch.testing.assert_close(again[-5:], again[:5])  # points of one voxel share their features


def test_a_scan_is_changed_but_its_rows_are_known(data: Segmentation3dData) -> None:
    batch = data.train_loader(seed=0).first(2)
    for number, index in enumerate(batch.ids.tolist()):
        frame, mine = data.train_frame(index), batch.scene(number)
        assert (batch.regions[mine].numpy() == frame.meta["regions"][batch.rows[mine].numpy()]).all()
        assert not torch.allclose(batch.inputs.points[mine][:, :3], torch.from_numpy(frame.points[:, :3]))
        assert torch.equal(batch.inputs.points[mine][:, 3:], torch.from_numpy(frame.points[:, 3:]))
    cropped = Segmentation3dData("rooms:train=3,val=2,views=2", batch_size=2, crop=1.5).train_loader(seed=0).first(2)
    assert len(cropped.rows) < len(batch.rows)
    assert (cropped.inputs.points[:, :3].amax(0) - cropped.inputs.points[:, :3].amin(0)).max() < 12


# Stages ---------------------------------------------------------------------------------------------------------------------------------


def test_small_pieces_are_labelled_by_their_own_points(data: Segmentation3dData) -> None:
    network = SceneSegmenter(pointdc_job.Pointwise(), 8).eval()
    centroids, labels = Clusters(data, seed=0, least=30)(network)
    assert centroids.norm(dim=1) == pytest.approx(torch.ones(8))
    batch = next(iter(data.train_eval_loader()))
    with torch.no_grad():
        features = network(batch.inputs)
    mine = batch.scene(0)
    regions = batch.regions[mine]
    counts = torch.bincount(regions)
    small = counts[regions] < 30
    assert small.any()
    torch.testing.assert_close(labels[0][small], (unit(features[mine][small]) @ centroids.T).argmax(1))
    for piece in torch.unique(regions[~small])[:5]:
        assert len(torch.unique(labels[0][regions == piece])) == 1


def test_labels_and_classifier_change_together_and_are_kept_in_checkpoints(data: Segmentation3dData) -> None:
    sizes = {index: len(data.train_frame(index).points) for index in range(3)}
    made = IterativeClustering(SceneSegmenter(pointdc_job.Pointwise(), 8), sizes, Clusters(data, seed=0), every=2)
    made.at(0, steps_per_epoch=2, epochs=4)
    assert made.select() is None
    first, centres = made.pseudo.clone(), made.student.centres.clone()
    made.student.backbone.layers[0].weight.data.normal_()
    made.at(2, steps_per_epoch=2, epochs=4)
    made.select()
    assert torch.equal(made.pseudo, first)
    made.at(4, steps_per_epoch=2, epochs=4)
    made.select()
    assert not torch.equal(made.student.centres, centres)
    assert {"pseudo", "student.centres"} <= set(made.state_dict())
    batch = data.train_loader(seed=0).first(2)
    expected = torch.cat([made.pseudo[sum(sizes[k] for k in range(i)) :][: sizes[i]] for i in batch.ids.tolist()])
    assert torch.equal(made.labels_of(batch), expected.long())
    assert made.losses(batch).total.requires_grad
    made.at(0, steps_per_epoch=2, epochs=40)
    assert made.rate(1.0) == 1
    made.at(2 * 5, steps_per_epoch=2, epochs=40)
    assert made.rate(1.0) == pytest.approx(0.8)


def test_the_warm_up_s_optimiser_is_damped(data: Segmentation3dData) -> None:
    sizes = {index: len(data.train_frame(index).points) for index in range(3)}
    made = WarmUp(SceneSegmenter(pointdc_job.Pointwise(), 8), sizes, {k: torch.zeros(n, dtype=torch.int64) for k, n in sizes.items()})
    group = made.configure_optimizers().param_groups[0]
    assert group["dampening"] == 0.1
    assert any(p is made.classifier for p in group["params"])


def test_two_processes_end_as_one(tmp_path: Path, processes: Processes) -> None:
    alone = pointdc_job.train(tmp_path / "one", 1)
    first, _ = processes.on_two_ranks(pointdc_job.train, tmp_path / "two", 2)
    assert first == pytest.approx(alone, abs=1e-3)
    for name in ("cmd", "svc"):
        one, two = (load_file(tmp_path / out / "seed0" / name / "student.safetensors") for out in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=1e-4, rtol=1e-3, msg=key)


# Teachers -------------------------------------------------------------------------------------------------------------------------------


def test_the_stand_in_learns_the_same_from_the_same_pictures() -> None:
    images = torch.randint(0, 255, (6, 3, 24, 32), dtype=torch.uint8)
    first, again, longer = (train_own(images, steps, 0) for steps in (2, 2, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.0.weight"], longer["last.0.weight"])
    features = torch.randn(64, 8)
    assert dense_vicreg(features, features) < dense_vicreg(features, features.roll(1, 0))
    assert dense_vicreg(torch.zeros(64, 8), torch.zeros(64, 8)) > 20  # all the same is no answer


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_a_backbone_of_timm_teaches_with_its_weights(name: str, tmp_path: Path, data: Segmentation3dData) -> None:
    torch.manual_seed(1)
    save_file(timm.create_model(name, num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    encoder = open_encoder(f"timm/{name}@{tmp_path / 'weights.safetensors'}", 48, trust_pickle=False)
    found = encoder.features(data.train_frame(0).views[0].image, torch.device("cpu"))
    assert found.shape[0] == encoder.channels
    assert found.shape[1:] == ((3, 4) if "vit" in name else (2, 2))
    table, count = scene_targets(data.train_frame(0), encoder, torch.device("cpu"))
    assert table.shape == (data.train_frame(0).meta["regions"].max() + 1, encoder.channels)
    assert count > 0.5 * len(data.train_frame(0).points)
    with pytest.raises(InputError, match="with weights"):
        open_encoder(f"timm/{name}", 48, trust_pickle=False)


# Runs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pointdc") / "run"
    assert main(["run", "pointdc", *TINY, *SHORT, "--arms", "colour+lifted+cmd+points+svc", "--out", str(out)]) == 0
    return out


def test_the_report_shows_every_arm_the_teacher_and_the_scans(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["colour", "lifted", "cmd", "points", "svc"]
    assert metrics["baseline"] == "cmd"
    page = (run / "report.html").read_text()
    for said in ("By class", "Scans", "The 2D teacher: a small stand-in", "super-voxels of the training scans", "cabinet"):
        assert said in page


def test_the_student_segments_scans_and_says_why_it_is_not_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = RoomWorld(5, RoomSpec(views=2)).frame()
    np.save(tmp_path / "room.npy", frame.points)
    (tmp_path / "bad.pcd").write_bytes(b"nothing")
    assert main(["predict", str(run), str(tmp_path), "--json", "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr()
    answer = json.loads(out.out)
    labels = np.load(answer["labels"])
    assert len(labels) == len(frame.points) == sum(answer["points"])
    assert Path(answer["cloud"]).read_bytes().startswith(b"ply")
    assert "bad.pcd" in out.err
    student: Any = load(run)
    assert (student.segment(frame) == labels).all()
    assert main(["export", str(run)]) == 2
    assert "sparse convolutions cannot be exported" in capsys.readouterr().err


def test_a_run_that_is_killed_while_it_clusters_ends_the_same(run: Path, tmp_path: Path, processes: Processes) -> None:
    words = ["run", "pointdc", *TINY, *SHORT, "--arms", "cmd+svc", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    running = processes.start("stillroom.cli", *words, str(tmp_path / "killed"))
    kill_in(running, tmp_path / "killed/seed0/svc", 1, 0.0)
    last = processes.start("stillroom.cli", *words, str(tmp_path / "killed"), merged=True)
    output, _ = last.communicate(timeout=200)
    assert last.returncode == 0, output
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_the_papers_setting_takes_a_step_on_a_miniature_of_scannet(tmp_path: Path) -> None:
    made_up.scannet(tmp_path / "set")
    preset = PRESETS["paper"]
    assert preset["teacher"].startswith("timm/vit_base_patch8_224.dino")
    words = ["run", "pointdc", "--preset", "paper", "--data", f"scannet:{tmp_path / 'set'}", "--teacher", "own", "--teacher-steps", "2"]
    words += ["--epochs", "1", "--warm-epochs", "1", "--svc-epochs", "1", "--arms", "svc", "--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    card = json.loads((tmp_path / "run/student.json").read_text())
    assert (card["model"], card["voxel_size"], card["clusters"]) == ("stillroom/fpn32_64_128_256_to128_k5", 0.02, 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "cmd+magic"), "--arms: got magic"),
        (("--arms", "cmd+lifted"), "one that trains a network last"),
        (("--student", "stillroom/unet8_3"), "stillroom/fpnWIDTH"),
        (("--teacher", "timm/resnet18"), "a network with weights"),
        (("--voxel-size", "0"), "voxel_size"),
        (("--warm-epochs", "0"), "warm_epochs"),
        (("--data", "scannet:/nowhere"), "exists"),
        (("--data", "nyu:x"), "rooms"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "pointdc", *TINY, *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error.replace("-", "_") or said in error
    assert "Traceback" not in error


def test_labels_out_of_range_name_the_scan(tmp_path: Path) -> None:
    made_up.scannet(tmp_path, scenes=2)
    data = Segmentation3dData(f"scannet:{tmp_path},val=0.5", voxel_size=0.1)
    frame = data.source.train.frame(0)
    with pytest.raises(InputError, match="with labels from"):
        data.prepared(frame.__class__(**{**vars(frame), "point_labels": frame.point_labels + 30}))
    assert CMD(SceneSegmenter(pointdc_job.Pointwise(), 20, 3), {0: torch.ones(2, 3)}).taught
