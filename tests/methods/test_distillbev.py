"""DistillBEV: odd regions, every kind of student, and the experiment as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stillroom.cli import main
from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError
from stillroom.methods.distillbev import DistillBEV, build
from stillroom.methods.distillbev.distiller import Tap, adapter, taps_in
from stillroom.methods.distillbev.loss import TapLoss, Upsampled, Weights
from stillroom.methods.distillbev.recipe import PRESETS
from stillroom.methods.distillbev.regions import Regions, mistaken_cells, regions_of, resized
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.grid import BevGrid
from tests.methods.distillbev_job import CAMERA, LIDAR, REACH, TINY, detector, made, tiny, train
from tests.methods.kills import killed_and_continued, two_processes_as_one
from tests.processes import Processes
from tests.tasks.points import made_up

SHORT = ["--epochs", "1", "--teacher-epochs", "1", "--batch-size", "3", "--accelerator", "cpu", "--teacher", LIDAR, "--student", CAMERA]
SHORT += ["--data", TINY, "--reach", str(list(REACH)), "--accept-teacher"]
GRID = BevGrid((-4.0, 4.0), (-4.0, 4.0), 1.0)


@pytest.fixture(scope="module")
def data() -> Detection3dData:
    return tiny(3)


@pytest.fixture(scope="module")
def batch(data: Detection3dData) -> FrameBatch:
    found: FrameBatch = next(iter(data.train_loader(seed=0)))
    return found


def box(x: float, y: float, dx: float, dy: float, yaw: float = 0.0) -> Tensor:
    return torch.tensor([[x, y, dx, dy, yaw]])


# Regions --------------------------------------------------------------------------------------------------------------------------------


def test_an_object_weighs_as_the_root_of_its_cells_and_the_first_box_counts() -> None:
    found = regions_of([box(0, 0, 4, 2)], GRID)
    assert found.foreground.sum() == 8
    assert float((found.foreground * found.foreground_scale).sum()) == pytest.approx(8 / 8**0.5)
    both = regions_of([torch.cat((box(0, 0, 2, 2), box(0, 0, 8, 8)))], GRID)
    assert both.foreground_scale[0, 0, 3, 3] == 0.5
    assert both.foreground_scale[0, 0, 0, 0] == pytest.approx(1 / 8)
    assert not both.background_scale.any()  # no cell is left


def test_a_box_smaller_than_a_cell_may_cover_none_and_one_without_a_size_is_an_error() -> None:
    assert not regions_of([box(0, 0, 0.1, 0.1)], GRID).foreground.any()
    with pytest.raises(InputError, match="box 1 of"):
        regions_of([torch.cat((box(0, 0, 1, 1), box(0, 0, 0, 1)))], GRID)


def test_nobody_s_mistakes_are_an_exact_zero() -> None:
    regions = regions_of([box(0, 0, 2, 2)], GRID).with_mistaken(torch.zeros(1, 1, 8, 8))
    student = torch.rand(1, 3, 8, 8, requires_grad=True)
    terms = TapLoss(Weights())(student, torch.rand(1, 3, 8, 8), regions)
    assert terms["mistaken"] == 0
    assert all(term.isfinite() for term in terms.values())


def test_a_cell_of_the_tap_is_mistaken_where_any_finer_one_is() -> None:
    cells = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    cells[0, 0, 1, 2] = True
    assert resized(cells, (2, 3))[0, 0].nonzero().tolist() == [[0, 1]]
    assert resized(cells, (8, 12)).sum() == 4
    with pytest.raises(InputError, match="integer multiples"):
        resized(cells, (3, 6))
    with pytest.raises(InputError, match="student's heatmaps are not given"):
        mistaken_cells(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), None, (4, 4), mode="student")


def test_patches_are_divided_by_their_true_size() -> None:
    cells = torch.zeros(1, 1, 8, 8)
    cells[0, 0, 0, :3], cells[0, 0, 4, 4], cells[0, 0, 5, 5] = 1, 1, 1  # a corner is no neighbour
    blank = torch.zeros(1, 1, 8, 8)
    found = Regions(blank, blank, blank).with_mistaken(cells, "dfs").mistaken_scale
    assert found is not None
    assert found[0, 0, 0, :3].tolist() == pytest.approx([1 / 3] * 3)
    assert found[0, 0, 4, 4] == found[0, 0, 5, 5] == 1
    assert float(found.sum()) == pytest.approx(3)


def test_attention_and_teacher_get_no_gradient() -> None:
    student, teacher = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8, requires_grad=True)
    regions = regions_of([box(0, 0, 4, 2), torch.zeros(0, 5)], GRID)
    terms = TapLoss(Weights(channels=0.25), channel_mask=True)(student, teacher, regions)
    sum(terms.values(), torch.zeros(())).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()


# Taps and students ----------------------------------------------------------------------------------------------------------------------


def test_taps_are_the_last_two_stages_and_the_necks_unless_others_are_named() -> None:
    assert [tap.name for tap in taps_in(None, 3, 2)] == ["1:0", "2:1", "neck"]
    assert taps_in("neck", 0, 2) == (Tap(None, None),) == taps_in(None, 0, 2)
    assert [tap.name for tap in taps_in("2:0+neck", 3, 2)] == ["2:0", "neck"]
    for wrong in ("3:0", "0:2", "neck+neck", "stages.1", ""):
        with pytest.raises(InputError, match="map_pairs"):
            taps_in(wrong, 3, 2)
    shapes = [torch.Size((1, 4, side, side)) for side in (8, 16, 12)]
    assert isinstance(adapter(shapes[0], shapes[1]), Upsampled)
    assert adapter(shapes[1], shapes[2])(torch.zeros(shapes[1])).shape == shapes[2]


@pytest.mark.parametrize("student", ["bevdet-small", "bevdepth-small", "bevformer-small"])
def test_every_kind_of_camera_student_learns_and_looks_at_pictures_alone(student: str, data: Detection3dData, batch: FrameBatch) -> None:
    distiller = made(data, f"stillroom/{student},cell=2")
    losses = distiller.losses(batch)
    losses.total.backward()
    assert {"foreground", "background", "attention", "mistaken"} <= losses.distill.keys()
    assert ("depth" in losses.task) == (student == "bevdepth-small")
    asked = [name for name, parameter in distiller.named_parameters() if parameter.grad is None and not name.startswith("teacher")]
    assert not asked, asked
    network = distiller.student.eval()
    blind = batch.inputs._replace(points=batch.inputs.points[:0], batch_index=batch.inputs.batch_index[:0])
    torch.testing.assert_close(network(batch.inputs)["heatmap"], network(blind)["heatmap"])
    with pytest.raises(InputError, match="frames without pictures"):
        network(batch.inputs._replace(images=None))


def test_the_frame_before_is_brought_to_where_the_vehicle_is_now() -> None:
    data = tiny(2, TINY + ",frames=2", look_back=True, augment="none")
    batch: FrameBatch = next(iter(data.train_loader(seed=0)))
    assert batch.previous is not None
    network: Any = detector("stillroom/bevdepth-small,cell=2", data).eval()
    still = network.raw(batch.inputs, batch.inputs).stages[0]
    torch.testing.assert_close(still, network.raw(batch.inputs).stages[0])  # without one before, the present stands for it
    assert batch.inputs.images is not None
    assert batch.inputs.ego2global is not None
    darker = batch.inputs._replace(images=batch.inputs.images / 4)
    assert not torch.allclose(network.raw(batch.inputs, darker).stages[0], still, atol=1e-5)
    away = batch.inputs.ego2global.clone()
    away[:, 0, 3] -= 6.0  # the vehicle has driven on by 6 m, 3 cells
    behind = batch.inputs._replace(ego2global=away)
    lifted = network.lifted(batch.inputs, *network.seen(batch.inputs))[0]
    moved = network._where_it_is_now(lifted, batch.inputs, behind)
    turned = batch.inputs.ego2global[0, :3, :3] @ torch.tensor([1.0, 0, 0], dtype=torch.float64)
    if abs(turned[0]) > 0.99:  # it drives along x
        shift = 3 if turned[0] > 0 else -3
        torch.testing.assert_close(moved[0, :, :, 4:8], lifted[0, :, :, 4 + shift : 8 + shift], rtol=1e-3, atol=1e-4)


def test_the_student_begins_with_the_teacher_s_branches(data: Detection3dData) -> None:
    distiller = made(data)
    large: Any = distiller.teacher.networks[0]
    mine: Any = distiller.student.head
    for name, value in large.head.tasks.state_dict().items():
        assert torch.equal(mine.tasks.state_dict()[name], value)
    with pytest.raises(InputError, match="inherit_head"):
        made(data, "stillroom/bevdet-small-w0.5,cell=2")
    assert isinstance(made(data, "stillroom/bevdet-small-w0.5,cell=2", inherit_head=False), DistillBEV)


def test_maps_of_other_metres_are_refused(data: Detection3dData) -> None:
    other = Detection3dData(TINY, batch_size=2, reach=(-8.0, -16.0, -1.0, 8.0, 16.0, 5.0))
    with pytest.raises(InputError, match="x_range"):
        build(detector(CAMERA, data), Teacher(detector(LIDAR, other)), data)


# The experiment -------------------------------------------------------------------------------------------------------------------------


def test_a_run_with_plainer_imitations(tmp_path: Path) -> None:
    assert main(["run", "distillbev", *SHORT, "--arms", "mse+even+distillbev", "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "mse", "even", "distillbev"]
    (stage,) = metrics["stages"]["distillbev"]
    assert stage["history"][0]["train/foreground"] > 0
    assert json.loads((tmp_path / "run/student.json").read_text())["model"] == CAMERA


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "hint"), "--arms: got hint"),
        (("--map-pairs", "9:9"), "--map-pairs: got 9:9"),
        (("--student", "stillroom/bevdet-small,cell=1.5"), "x_range"),
        (("--data", TINY.replace("cameras=2", "cameras=0")), "frames without pictures"),
        (("--mistaken", "nobody"), "--mistaken"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "distillbev", *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


# The paper's settings -------------------------------------------------------------------------------------------------------------------


def test_the_paper_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "distillbev", "--preset", "paper", "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {"foreground_weight": 6e-3, "background_weight": 4e-2, "mistaken_weight": 6e-2, "attention_weight": 2.5e-3}
    expected |= {"attention_temperature": 0.5, "heatmap_threshold": 0.1, "lr": 2e-4, "weight_decay": 0.01, "clip_norm": 5.0, "epochs": 24}
    assert {name: values[name] for name in expected} == expected
    assert (values["distill_scale"], values["sample"], values["look_back"]) == (1.0, "corner", True)


@pytest.mark.parametrize("preset", ["paper", "paper:bevformer"])
def test_a_step_of_the_paper_s_networks_on_its_data_in_small(preset: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = PRESETS[preset]
    made_up.nuscenes(tmp_path)
    # the networks are whole; the ground that they see is smaller than the paper's
    options = {"look_back": bool(chosen.get("look_back")), "augment": "none"}
    data = Detection3dData(f"nuscenes:{tmp_path},version=v1.0-mini", batch_size=1, reach=(-12.8, -12.8, -5.0, 12.8, 12.8, 3.0), **options)
    student, large = (build_detector(chosen[name], Wanted.of(data.describe())).network for name in ("student", "teacher"))
    own = {name: chosen[name] for name in ("map_pairs", "attention", "mistaken", "sample", "inherit_head") if name in chosen}
    distiller = build(student, Teacher(large), data, **own)
    losses: Losses = distiller.losses(next(iter(data.train_loader(seed=0))))
    losses.total.backward()
    assert all(term.isfinite() for term in losses.terms.values())


# Kills and processes --------------------------------------------------------------------------------------------------------------------


def test_killed_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_continued(DistillBEV, train, tmp_path, monkeypatch)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, processes: Processes) -> None:
    two_processes_as_one(processes, train, tmp_path, "distillbev")
