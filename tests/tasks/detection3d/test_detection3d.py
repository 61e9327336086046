"""Detection in three dimensions, as a user runs it: data, training, evaluation, the report, and the student that is left."""

import json
import re

import numpy as np
import pytest
import torch

import stillroom
from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.metrics import Evaluator3d
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.task import NUSCENES, TASK
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.worlds import DrivingWorld, WorldSpec
from tests.tasks.points import made_up

TINY = "streets:train=6,val=3,azimuths=60,beams=8,reach=12"
# 13.6 m to every side are 34 cells of 0.8 m, which the network's strides do not divide
FIT = ["--reach", "[-12.8,-12.8,-1,12.8,12.8,5]"]
STUDENT = "stillroom/pillar-small-w0.25,cell=0.8"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection3d") / "run"
    words = [
        "run",
        "supervised",
        "--task",
        "detection3d",
        "--data",
        f"{TINY},cameras=1",
        *FIT,
        "--student",
        STUDENT,
        "--image-size",
        "24",
    ]
    assert main([*words, "--batch-size", "3", "--epochs", "2", "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_a_report_with_frames_from_above_and_in_the_camera(run):
    page = (run / "report.html").read_text()
    for said in ("By class", "Objects found", "In the cameras", "car", "6 training + 3 validation frames", "data:image/jpeg"):
        assert said in page
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"mAP", "AP1m", "translation", "orientation"} <= set(str(metrics).replace("'", " ").split())
    assert "<script" not in page or "http" not in "".join(re.findall("<script[^>]*>", page))


def test_a_student_finds_boxes_in_point_files(run, tmp_path, capsys):
    student = stillroom.load(run)
    assert student.classes == ("car", "pedestrian", "cyclist")
    frame = DrivingWorld((0, 1, 0), WorldSpec(azimuths=60, beams=8)).frame()
    boxes, scores, _ = student.detect(frame, threshold=0.0)
    assert boxes.shape[1] == 9
    assert (np.diff(scores) <= 0).all()
    np.save(tmp_path / "a.npy", frame.points)
    frame.points.astype("<f4").tofile(tmp_path / "b.bin")
    (tmp_path / "c.bin").write_bytes(b"123")
    (tmp_path / "photo.jpg").write_bytes(b"")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path), "--json", "--threshold", "0"]) == 1
    out = capsys.readouterr()
    first, second = map(json.loads, out.out.splitlines())
    assert "c.bin" in out.err
    assert first["nuscenes"] == second["nuscenes"]
    entry = first["nuscenes"][0]
    assert entry["translation"] == pytest.approx(boxes[0, :3].tolist(), abs=1e-3)
    assert entry["size"] == pytest.approx(boxes[0, [4, 3, 5]].tolist(), abs=1e-3)  # width, length, height
    assert first["kitti"][0]["location"][2] == pytest.approx(boxes[0, 2] - boxes[0, 5] / 2, abs=1e-3)  # the bottom
    assert 2 * np.arctan2(entry["rotation"][3], entry["rotation"][0]) == pytest.approx(boxes[0, 6], abs=1e-3)
    empty = student.detect(frame.take_points(np.zeros(0, np.int64)), threshold=1.0)
    assert empty[0].shape == (0, 9)


def test_points_that_are_elsewhere_or_lack_a_column_are_said_to(run, tmp_path, caplog):
    points = DrivingWorld((0, 1, 0), WorldSpec(azimuths=60, beams=8)).frame().points
    np.save(tmp_path / "bare.npy", points[:, :3])
    (points * [1e5, 1e5, 1, 1, 1]).astype("<f4").tofile(tmp_path / "far.bin")
    assert main(["predict", str(run), str(tmp_path), "--json"]) == 0
    told = [record.getMessage() for record in caplog.records]
    assert any("bare.npy: without intensity" in one and "taken for 0" in one for one in told)
    assert any("far.bin: none of its" in one and "is within reach" in one for one in told)


def test_the_dense_part_is_exported_and_said_to_be_that(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "dense.pt2")]) == 0
    assert "behind the encoder" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "dense.pt2").module()
    student = stillroom.load(run)
    canvas = torch.zeros(2, student.network.input_channels, 32, 32)
    heatmap, codes = program(canvas)
    assert heatmap.shape == (2, 3, 8 * 2, 8 * 2)
    assert codes.shape[1] == 10


def test_truth_given_as_answer_is_perfect_and_half_a_height_off_is_not(tmp_path):
    made_up.kitti(tmp_path, frames=3)
    kitti, streets = Detection3dData(f"kitti:{tmp_path},val=0.5,cameras=0"), Detection3dData(TINY)
    for data, shift in ((kitti, [0, 0, 0.8, 0, 0, 0, 0]), (streets, [5, 0, 0, 0, 0, 0, 0])):
        scores = {}
        for name, by in (("truth", torch.zeros(7)), ("moved", torch.tensor(shift))):
            evaluator = data.evaluator()
            for batch in data.eval_loader():
                every = zip(batch.boxes, batch.labels, strict=True)
                evaluator.update([Detections(boxes[:, :7] + by, torch.ones(len(boxes)), labels) for boxes, labels in every], batch)
            scores[name] = evaluator.compute()["mAP"]
            objects = evaluator.details()["objects"]
        present = (objects > 0).mean()
        if data is streets:
            assert scores["truth"] == pytest.approx(100 * present, abs=0.1)
        else:  # with n true objects KITTI's sampling reaches (n - 1) / 40
            assert scores["truth"] == pytest.approx(np.mean([max(0, min(n, 41) - 1) / 40 * 100 for n in objects]), abs=0.1)
        assert scores["moved"] < 2


def test_a_frame_without_points_and_frames_out_of_range_train(tmp_path):
    frames = [DrivingWorld((2, k), WorldSpec(azimuths=60)).frame() for k in range(4)]
    frames[1] = frames[1].take_points(np.zeros(0, np.int64))
    frames[3].points[:, :2] += 500
    frames[2].points[4, 0] = np.nan
    made_up.plain(tmp_path / "set", frames)
    told = json.loads((tmp_path / "set/frames.json").read_text())
    told["frames"][0]["boxes"].append({"name": "car", "box": [1, 1, 1, 0, 2, 1, 0]})
    (tmp_path / "set/frames.json").write_text(json.dumps(told))
    data = Detection3dData(f"points:{tmp_path / 'set'},val=0.5", batch_size=2, reach=(-12.8, -12.8, -1, 12.8, 12.8, 5), augment="none")
    network = TASK.build(STUDENT, data, TASK.networks, trust_pickle=False, argument="student").network
    distiller = TASK.supervised(network)
    for loader in (data.train_eval_loader(), data.eval_loader()):
        for batch in loader:
            assert batch.inputs.batch_size == 2
            losses = distiller.losses(batch).total
            losses.backward()
            assert losses.isfinite()
            network.eval()
            assert len(network.detect(batch.inputs)) == 2
            network.train()
    assert any("no number" in line for line in data.met.lines())
    assert any("without a size" in line for line in data.met.lines())


def test_velocity_that_is_not_known_costs_no_loss():
    data = Detection3dData(TINY, batch_size=3, reach=(-12.8, -12.8, -1, 12.8, 12.8, 5))
    network = TASK.build(STUDENT, data, TASK.networks, trust_pickle=False, argument="student").network
    batch = data.train_loader(seed=0).first(3)
    unknown = batch._replace(boxes=[torch.cat((boxes[:, :7], torch.full((len(boxes), 2), torch.nan)), 1) for boxes in batch.boxes])
    losses = TASK.supervised(network).losses(unknown)
    assert losses.total.isfinite()
    assert losses.task["box"] > 0


def test_pasting_balancing_and_looking_back():
    options = {"batch_size": 2, "reach": (-12.8, -12.8, -1, 12.8, 12.8, 5)}
    plain = Detection3dData(TINY, **options)
    pasted = Detection3dData(TINY, paste=8, **options)
    counts = [sum(map(len, data.train_loader(seed=0).first(2).boxes)) for data in (plain, pasted)]
    assert counts[1] > counts[0]
    balanced = Detection3dData(TINY, resample=True, **options)
    held = np.array([np.isin(np.arange(3), balanced.train_frame(k).labels) for k in range(balanced.train_size)])
    before = np.array([np.isin(np.arange(3), plain.train_frame(k).labels) for k in range(plain.train_size)])
    assert np.ptp(held.sum(0)) <= np.ptp(before.sum(0)) + held.shape[0] - before.shape[0]
    assert len({plain.fingerprint, pasted.fingerprint, balanced.fingerprint}) == 3
    back = Detection3dData(TINY.replace("val=3", "val=2,frames=2"), look_back=True, augment="none", **options)
    batch = next(iter(back.eval_loader()))
    assert torch.equal(batch.previous.points[batch.previous.batch_index == 1], batch.points[batch.batch_index == 0])
    assert torch.equal(batch.previous.ego2global[1], batch.inputs.ego2global[0])


def wanted(**changes):
    data = Detection3dData(TINY, reach=(-12.8, -12.8, -1, 12.8, 12.8, 5)).describe()
    return Wanted.of({**data, **changes})


def test_names_of_networks():
    pillar = build_detector("stillroom/pillar-small,cell=0.4", wanted()).network
    small = build_detector("stillroom/pillar-small-w0.5,cell=0.4", wanted()).network
    count = [sum(p.numel() for p in network.parameters()) for network in (pillar, small)]
    assert 3 < count[0] / count[1] < 5
    voxel = build_detector("stillroom/voxel-small-w0.5,cell=0.4", wanted()).network
    assert voxel.grid.cell == pytest.approx(3.2)
    only_bev = build_detector("stillroom/pillar-small,bev=0.5,cell=0.4", wanted()).network
    assert only_bev.input_channels == pillar.input_channels
    for spec, said in (
        ("stillroom/pillar-tiny", "pillar-small"),
        ("stillroom/pillar-small,cell=-1", "above 0"),
        ("stillroom/pillar-small,size=2", "an option"),
        ("stillroom/pillar-small,cell=0.9", "whole number"),
        ("stillroom/pillar-small,cell=1.6", "multiples of 4"),
        ("nothing", "stillroom/NAME"),
    ):
        with pytest.raises(InputError, match=said):
            build_detector(spec, wanted(reach=(-12.8, -12.8, -1, 14.4, 12.8, 5)) if "1.6" in spec else wanted())


def test_the_papers_detectors_have_the_papers_maps():
    reach = (-12.8, -12.8, -5.0, 12.8, 12.8, 3.0)
    groups = [["car"], ["pedestrian", "cyclist"]]
    for spec, channels, cell in (("stillroom/centerpoint-pillar", 384, 0.8), ("stillroom/centerpoint-voxel", 512, 0.8)):
        network = build_detector(spec, wanted(reach=reach, groups=groups)).network.eval()
        batch = Detection3dData(TINY, reach=reach).train_loader(seed=0).first(1)
        outputs = network.raw(batch.inputs)
        assert outputs.neck.shape == (1, channels, 32, 32)
        assert network.grid.cell == pytest.approx(cell)
        assert [p["heatmap"].shape[1] for p in outputs.predictions] == [1, 2]
    assert {"data", "teacher", "student", "epochs"} <= set(NUSCENES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "streets:reach=2"], "at least 8"),
        (["--data", "kitti:/nowhere"], "exists"),
        (["--data", "lidar:x"], "streets"),
        (["--data", TINY, "--reach", "[1,1,1,0,0,0]"], "six numbers"),
        (["--data", TINY, "--subset", "9"], "from 1 to 6"),
        (["--data", TINY, "--augment", "mosaic"], "turn"),
    ],
)
def test_what_cannot_be_used_is_one_line(words, said, capsys):
    assert main(["run", "supervised", "--task", "detection3d", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_evaluation_counts_every_frame_once_whatever_the_order():
    data = Detection3dData(TINY)
    batch = next(iter(data.eval_loader()))
    found = [Detections(b, torch.ones(len(b)), k) for b, k in zip(batch.boxes, batch.labels, strict=True)]
    evaluator = Evaluator3d(data.source.classes, "distance")
    evaluator.update(found, batch)
    evaluator.update(found, batch)
    details = evaluator.details()
    assert len(details["scores"]) == sum(map(len, batch.boxes))
    assert details["by_class"].shape == (3,)
