"""RDD: which regions are compared, what its terms are where they are odd, and the experiment as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillroom.cli import main
from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError
from stillroom.methods.rdd import RDD, RivalDistiller, Selection
from stillroom.methods.rdd.distiller import Answer
from stillroom.methods.rdd.loss import disparity, hint_loss_where, pair_losses
from stillroom.methods.rdd.recipe import PRESETS, build
from stillroom.methods.rdd.rivals import _best_cells, _codes_told
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.points.anchor_head import AnchorHead
from stillroom.tasks.points.center_head import center_targets
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.grid import BevGrid, ClassList
from tests.methods.kills import killed_and_continued, two_processes_as_one
from tests.methods.rdd_job import LARGE, REACH, SMALL, TINY, detector, tiny, train
from tests.processes import Processes
from tests.tasks.points import made_up

CLASSES = ClassList(("car", "pedestrian", "cyclist"))
SHORT = ["--epochs", "1", "--teacher-epochs", "1", "--batch-size", "3", "--accelerator", "cpu", "--teacher", LARGE, "--accept-teacher"]


@pytest.fixture(scope="module")
def data() -> Detection3dData:
    return tiny(3)


@pytest.fixture(scope="module")
def batch(data: Detection3dData) -> FrameBatch:
    made: FrameBatch = next(iter(data.train_loader(seed=0)))
    return made


def answer(grid: BevGrid, *peaks: tuple[float, float]) -> Answer:
    """Boxes of 4 x 2 m of the first class, their centres at these places and nowhere else."""
    heat, codes = torch.full((1, 3, grid.ny, grid.nx), 0.01), torch.zeros(1, 8, grid.ny, grid.nx)
    codes[:, 3:5] = torch.tensor([4.0, 2.0]).log()[:, None, None]
    for x, y in peaks:
        column, row = grid.to_cells(torch.tensor([x, y])).tolist()
        heat[0, 0, int(row), int(column)] = 0.9
        codes[0, :2, int(row), int(column)] = torch.tensor([column % 1, row % 1])
    return Answer(grid.positions().permute(2, 0, 1)[None], heat, codes, grid)


def test_regions_of_both_are_the_same_metres_on_maps_of_any_resolution(data: Detection3dData) -> None:
    distiller = RDD(detector(SMALL, data), Teacher(detector(LARGE, data)), selection=Selection(sparsity=0.0))
    fine, coarse = (BevGrid((-12.8, 12.8), (-12.8, 12.8), cell) for cell in (0.8, 1.6))
    mine, theirs = answer(coarse, (5.1, 4.2)), answer(fine, (-3.3, 2.1), (5.1, 4.2))
    rectangles, sample = distiller.regions(mine, theirs)
    assert sample.tolist() == [0, 0, 0]  # what both see is there twice
    torch.testing.assert_close(rectangles.view(-1, 2, 2).mean(1), torch.tensor([[-3.3, 2.1], [5.1, 4.2], [5.1, 4.2]]))
    assert (rectangles[:, 2] - rectangles[:, 0]).tolist() == pytest.approx([4.0, 4.0, 8.0])  # (2 r + 1) cells of the proposing map
    # both maps hold their own positions: where neither ends, the crops of a pair are one
    found = distiller.pairs(mine, theirs)
    assert found.disparity.max() < 1e-3
    distiller.student_proposals = False
    assert len(distiller.regions(mine, theirs)[0]) == 2


def test_no_proposal_is_an_exact_zero_that_reaches_the_adapter(data: Detection3dData, batch: FrameBatch) -> None:
    for student, teacher in ((SMALL, LARGE), ("stillroom/pointpillars-w0.125,cell=0.8", "stillroom/pointpillars-w0.125,cell=0.4")):
        network = detector(student, data)
        distiller = RDD(network, Teacher(detector(teacher, data)), proposal_threshold=1.0)
        losses = distiller.losses(batch)
        assert [float(losses.distill[name].detach()) for name in ("feature", "logit")] == [0, 0]
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_equal_crops_have_no_gradient_and_ties_are_not_chosen() -> None:
    crop = torch.rand(2, 4, 7, 7, requires_grad=True)
    d = disparity(crop, crop.detach())
    assert d.tolist() == pytest.approx([1e-6, 1e-6])
    d.sum().backward()
    assert crop.grad is not None
    assert not crop.grad.isnan().any()
    assert not crop.grad.any()
    values = torch.tensor([0.1, 0.3, 0.3, 0.2])
    assert Selection(sparsity=0.2).weights(values).tolist() == [0, 1, 1, 0]
    assert Selection("ratio", ratio=0.25).weights(values).tolist() == [0, 1, 0, 0]
    assert Selection("ratio", ratio=0.0).weights(values).tolist() == [0, 1, 0, 0]
    assert Selection("projected_gradient", sparsity=0.2).weights(values).tolist() == pytest.approx([0, 1, 1, 0.5], abs=1e-5)
    empty = torch.zeros(0, 4, 7, 7)
    found = pair_losses(empty, empty, empty, empty, Selection("ratio"))
    assert found.feature == found.logit == 0


def test_a_pair_counts_though_it_was_not_selected() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, 7, 7), torch.randn(4, 5, 7, 7)
    student[0] = teacher[0]
    probs = torch.rand(4, 2, 7, 7), torch.rand(4, 2, 7, 7)
    found = pair_losses(student, teacher, *probs, Selection(sparsity=0.01))
    assert found.weights.tolist() == [0, 1, 1, 1]
    assert found.feature.item() == pytest.approx(found.disparity[1:].sum().item() / 4)


def test_rivals_train_what_they_say_and_nothing_else(data: Detection3dData, batch: FrameBatch) -> None:
    teacher = Teacher(detector(LARGE, data))
    for kind in ("hint", "fg", "gid-f", "gid-l", "lad", "pp"):
        distiller = RivalDistiller(detector(SMALL, data), teacher, kind=kind)  # type: ignore[arg-type]
        losses = distiller.losses(batch)
        assert all(term.isfinite() for term in losses.terms.values())
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in distiller.parameters() if parameter.requires_grad), kind
        assert (distiller.adapter[0].weight.grad is not None) == (kind in ("hint", "fg", "gid-f"))
    apart = torch.ones(1, 1, 2, 2, requires_grad=True)
    assert hint_loss_where(apart, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


def test_the_teacher_assigns_among_the_nine_cells_around_a_centre() -> None:
    grid = BevGrid((0.0, 8.0), (0.0, 8.0), 1.0)
    boxes = torch.tensor([[3.5, 3.5, 0, 4, 2, 1, 0], [0.2, 0.2, 0, 4, 2, 1, 0], [-50.0, 0, 0, 4, 2, 1, 0]])
    heat = torch.zeros(3, 8, 8)
    heat[0, 4, 2], heat[1, 0, 1], heat[0, 6, 6] = 0.5, 0.5, 0.9
    cells = _best_cells(boxes, torch.tensor([0, 1, 0]), heat, grid)
    assert cells[:2].tolist() == [[2, 4], [1, 0]]
    targets = center_targets([boxes], [torch.tensor([0, 1, 0])], CLASSES, grid, cells=[cells])
    assert targets.mask[0, 0].sum() == 2
    assert targets.index[0, 0, [0, 2]].tolist() == [4 * 8 + 2, 1]  # the one outside keeps its slot empty
    assert targets.codes[0, 0, 0, :2].tolist() == pytest.approx([1.5, -0.5])


def test_codes_of_a_finer_teacher_are_told_in_the_student_s_cells() -> None:
    fine, coarse = (BevGrid((-8.0, 8.0), (-8.0, 8.0), cell) for cell in (0.5, 2.0))
    boxes, labels = [torch.tensor([[1.3, -2.1, 0.2, 4.0, 1.8, 1.5, 0.7], [-5.0, 6.6, 0, 1, 1, 1, 2]])], [torch.tensor([0, 2])]
    known, wanted = (center_targets(boxes, labels, CLASSES, grid) for grid in (fine, coarse))
    codes = torch.zeros(1, 8, fine.ny * fine.nx)
    codes[0][:, known.index[0, 0, :2]] = known.codes[0, 0, :2].T
    theirs = Answer(codes, codes, codes.view(1, 8, fine.ny, fine.nx), fine)
    torch.testing.assert_close(_codes_told(theirs, wanted, known, coarse)[0, 0, :2], wanted.codes[0, 0, :2])


def test_detectors_that_cannot_be_compared_are_refused(data: Detection3dData) -> None:
    student, teacher = detector(SMALL, data), Teacher(detector(LARGE, data))
    other = Wanted.of({**data.describe(), "classes": ("car", "bus", "cyclist"), "groups": [["car"], ["bus", "cyclist"]]})
    refused: list[tuple[Any, str]] = [
        (lambda: RDD(student, build_detector(LARGE, other).network), "the student's classes and groups"),
        (lambda: RDD(student, torch.nn.Linear(1, 1)), "a detector of this task"),
        (lambda: build(student, teacher, data, sparsity=-1.0), "sparsity"),
        (lambda: build(student, teacher, data, channel_temperature=0.0), "channel_temperature"),
        (lambda: build(student, teacher, data, mode="best"), "mode"),  # type: ignore[arg-type]
        (lambda: build(student, Teacher(detector("stillroom/pointpillars-w0.125,cell=0.4", data)), data), "AnchorHead"),
        (lambda: RivalDistiller(detector("stillroom/pointpillars-w0.125,cell=0.4", data), teacher, kind="pp"), "AnchorHead"),
        (lambda: build_detector("stillroom/pointpillars", other), "no usual size"),
    ]
    for made, said in refused:
        with pytest.raises(InputError, match=said):
            made()


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def test_an_experiment_with_rivals_leaves_a_report_and_a_student(tmp_path: Path) -> None:
    words = ["--data", TINY, "--reach", str(list(REACH)), "--student", SMALL, "--arms", "hint+rdd-all+rdd", "--proposals", "10"]
    assert main(["run", "rdd", *words, *SHORT, "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "hint", "rdd-all", "rdd"]
    (stage,) = metrics["stages"]["rdd"]
    assert stage["history"][0]["train/feature"] > 0
    assert json.loads((tmp_path / "run/student.json").read_text())["model"] == SMALL
    assert "From above" in (tmp_path / "run/report.html").read_text() or "above" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "rdd+rdd"), "--arms"),
        (("--sparsity", "-0.1"), "--sparsity: got -0.1"),
        (("--proposals", "0"), "--proposals: got 0"),
        (("--student", "stillroom/pointpillars,cell=0.8"), "AnchorHead"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "rdd", "--data", TINY, "--reach", str(list(REACH)), *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_frames_without_points_or_boxes_train(data: Detection3dData, batch: FrameBatch) -> None:
    """0 points, points that are no numbers, none in range; no box, boxes without a size: the others still teach."""
    distiller = build(detector(SMALL, data), Teacher(detector(LARGE, data)), data)
    nothing = batch.inputs.points[:0], batch.inputs.batch_index[:0]
    far = torch.full_like(batch.inputs.points, 500.0)
    far[::2] = torch.nan
    for points, index in (nothing, (far, batch.inputs.batch_index)):
        boxes = [torch.zeros(0, 9), torch.zeros(1, 9), torch.full((1, 9), torch.nan)]
        labels = [torch.zeros(len(some), dtype=torch.int64) for some in boxes]
        odd = batch._replace(inputs=batch.inputs._replace(points=points, batch_index=index), boxes=boxes, labels=labels)
        losses = distiller.losses(odd)
        losses.total.backward()
        assert all(term.isfinite() for term in losses.terms.values())
        assert len(distiller.predict(odd)) == 3


# The paper's settings -------------------------------------------------------------------------------------------------------------------


def test_the_paper_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "rdd", "--preset", "paper", "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {
        "mode": "threshold",
        "sparsity": 0.1,
        "channel_temperature": 4.0,
        "feature_weight": 0.2,
        "logit_weight": 0.2,
        "proposals": 100,
    }
    expected |= {"epochs": 20, "lr": 1e-3, "weight_decay": 0.01, "optimizer": "adamw", "clip_norm": 35.0}
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("preset", ["paper", "paper:kitti"])
def test_a_step_of_the_paper_s_networks_on_its_data_in_small(preset: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = PRESETS[preset]
    getattr(made_up, "nuscenes" if preset == "paper" else "kitti")(tmp_path)
    # the networks are whole; the ground that they see is smaller than the paper's
    reach = {"paper": (-12.8, -12.8, -5.0, 12.8, 12.8, 3.0), "paper:kitti": (0.0, -6.4, -3.0, 12.8, 6.4, 1.0)}[preset]
    kind = "nuscenes:{},version=v1.0-mini,cameras=0" if preset == "paper" else "kitti:{}"
    data = Detection3dData(kind.format(tmp_path), batch_size=1, reach=reach)
    student, large = (build_detector(chosen[name], Wanted.of(data.describe())).network for name in ("student", "teacher"))
    assert sum(p.numel() for p in student.parameters()) < 0.65 * sum(p.numel() for p in large.parameters())
    distiller = build(student, Teacher(large), data, proposal_threshold=0.05)
    assert isinstance(distiller.student.head, AnchorHead) == (preset == "paper:kitti")
    losses: Losses = distiller.losses(next(iter(data.train_loader(seed=0))))
    losses.total.backward()
    assert all(term.isfinite() for term in losses.terms.values())
    assert distiller.adapter[0].weight.shape[:2] == (512, student.head.in_channels)


# Kills and processes --------------------------------------------------------------------------------------------------------------------


def test_killed_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_continued(RDD, train, tmp_path, monkeypatch)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, processes: Processes) -> None:
    two_processes_as_one(processes, train, tmp_path, "rdd")
