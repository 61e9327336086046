"""Incremental detection: what its losses promise, what each step sees, how heads grow, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from transformers import AutoModelForObjectDetection

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.iod.data import IncrementalData
from stillroom.methods.iod.distiller import IOD, Answers, of_queries
from stillroom.methods.iod.groups import forgetting, image_shares, increment_metrics, named_groups
from stillroom.methods.iod.loss import (
    Interaction,
    distance_matrix_distillation,
    foreground,
    interactive_feature_distillation,
    pseudo_objects,
)
from stillroom.methods.iod.pages import Course
from stillroom.methods.iod.recipe import ARMS, PRESETS, Steps
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.detr_models import build as build_detr
from stillroom.tasks.detection.loaded import load
from stillroom.tasks.detection.models import build_detector
from tests.methods.iod_job import SURE, grown, network, rt_network, train
from tests.processes import Processes
from tests.tasks.detection.boxed import Picture, coco, pictures
from tests.tasks.detection.test_queries import detector

TINY = "scenes:train=48,val=24,teacher=48"
SOLID, HOLLOW = ("disc", "rectangle", "triangle"), ("hollow disc", "hollow rectangle", "hollow triangle")
COCO_NAMES = [f"class {number:02d}" for number in range(80)]


@pytest.fixture(scope="module")
def data() -> IncrementalData:
    return IncrementalData(TINY, batch_size=8)


def batch_of(data: IncrementalData) -> DetectionBatch:
    batch: DetectionBatch = next(iter(data.train_loader(seed=0)))
    return batch


def without_boxes(batch: DetectionBatch) -> DetectionBatch:
    none = torch.zeros(0, dtype=torch.long)
    return batch._replace(boxes=[torch.zeros(0, 4)] * 8, labels=[none] * 8, crowd=[none] * 8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Losses ---------------------------------------------------------------------------------------------------------------------------------


def plainly(scores: Tensor, boxes: Tensor, new: Tensor) -> list[int]:
    """The specification's rule in a loop over one image's queries."""
    best, labels = scores.max(1)
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    there = torch.cat((new[:, :2] - new[:, 2:] / 2, new[:, :2] + new[:, 2:] / 2), 1)
    kept: list[int] = []
    for query in sorted(range(len(best)), key=lambda q: (-float(best[q]), q)):
        rivals = [q for q in kept if labels[q] == labels[query]]
        if best[query] > 0.3 and not (box_iou(corners[query, None], corners[rivals]) > 0.7).any():
            kept.append(query)
    return [query for query in kept if not (box_iou(corners[query, None], there) > 0.7).any()]


def test_pseudo_objects_of_a_batch_are_those_of_its_images() -> None:
    generator = torch.Generator().manual_seed(4)
    scores = (torch.rand(5, 40, 3, generator=generator) * 10).round() / 10  # many are equal
    centres = (torch.rand(5, 40, 2, generator=generator) * 3).round() / 3
    boxes = torch.cat((centres, 0.3 + 0.05 * torch.rand(5, 40, 2, generator=generator)), 2)
    new = [boxes[image, :image].clone() for image in range(5)]
    found = pseudo_objects(scores, boxes, new)
    wanted = [plainly(*one) for one in zip(scores, boxes, new, strict=True)]
    assert [found.queries[found.images == image].tolist() for image in range(5)] == wanted
    assert len(found.queries) > 20
    assert torch.equal(found.boxes, boxes[found.images, found.queries])
    nothing = pseudo_objects(scores[:0], boxes[:0], [torch.zeros(0, 4)])
    assert len(nothing.queries) == 0


def test_distances_are_kept_in_any_scale_and_place() -> None:
    teacher, labels = normal(9, 6), torch.tensor([0, 4, 4, 7, 0, 7, 7, 4, 0])
    same = distance_matrix_distillation(teacher + 3, teacher, labels)  # moved together
    torch.testing.assert_close(same.loss, torch.tensor(0.0), rtol=0, atol=1e-10)
    student = normal(9, 6, seed=1)
    losses = [distance_matrix_distillation(scale * student, scale * teacher, labels).loss for scale in (1.0, 50.0)]
    torch.testing.assert_close(*losses)
    plain = [distance_matrix_distillation(scale * student, scale * teacher, labels, normalise=False).loss for scale in (1.0, 50.0)]
    torch.testing.assert_close(plain[1], 2500 * plain[0])


def test_a_single_class_or_none_has_no_distances_but_a_graph() -> None:
    for rows in (3, 0):
        student = normal(rows, 4).requires_grad_()
        found = distance_matrix_distillation(student, normal(rows, 4, seed=1), torch.full((rows,), 2))
        assert float(found.loss.detach()) == 0
        found.loss.backward()
        features = student.reshape(rows, 1, 2, 2)
        interactive_feature_distillation(student, student.detach(), features, features.detach()).loss.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_the_interaction_holds_features_the_more_the_further_the_meaning_is() -> None:
    queries, features = normal(2, 8), normal(2, 4, 7, 7)
    near_and_far = torch.stack((queries[0] + 0.01, queries[1] + 1.0)).requires_grad_()
    moved = (features + 0.5).requires_grad_()
    cases: tuple[tuple[Interaction, bool], ...] = (("product", True), ("guided", False), ("sum", True))
    for interaction, to_queries in cases:
        loss = interactive_feature_distillation(near_and_far, queries, moved, features, interaction=interaction).loss
        of_queries, of_features = torch.autograd.grad(loss, (near_and_far, moved), allow_unused=True)
        assert (of_queries is not None) == to_queries
        ratio = of_features[1].norm() / of_features[0].norm()
        assert ratio == pytest.approx(1 if interaction == "sum" else 100, rel=1e-3)
    with pytest.raises(InputError, match="interaction"):
        interactive_feature_distillation(queries, queries, features, features, interaction="none")  # type: ignore[arg-type]


def test_features_are_those_of_the_box_in_any_padding() -> None:
    level = torch.arange(64.0).reshape(1, 1, 8, 8)
    padded = torch.nn.functional.pad(level, (0, 8, 0, 4), value=1e6)
    inside = foreground([level], torch.tensor([[0.5, 0.5, 0.25, 0.5]]), torch.tensor([0]))
    same = foreground([padded], torch.tensor([[0.25, 1 / 3, 0.125, 1 / 3]]), torch.tensor([0]))
    torch.testing.assert_close(inside, same, rtol=1e-5, atol=1e-3)
    assert float(inside.mean()) == pytest.approx(31.5)  # of the map's middle


# Groups ---------------------------------------------------------------------------------------------------------------------------------


def test_groups_by_name_and_by_number() -> None:
    classes = ("a", "b", "c", "d", "e")
    assert named_groups("a, b|c|d,e", classes, order="sorted", seed=0) == (("a", "b"), ("c",), ("d", "e"))
    assert named_groups("e|a", classes, order="sorted", seed=0) == (("e",), ("a",))  # others take no part
    assert named_groups("2+1x3", classes, order="sorted", seed=0) == (("a", "b"), ("c",), ("d",), ("e",))
    assert named_groups("3+2", classes, order="last_first", seed=0) == (("c", "d", "e"), ("a", "b"))
    assert named_groups("+c,d|e", classes, order="sorted", seed=0, known=(("a",), ("b",))) == (("a",), ("b",), ("c", "d"), ("e",))
    shuffled = named_groups("coco:70+10", COCO_NAMES, order="shuffled", seed=123)
    assert [len(group) for group in shuffled] == [70, 10]
    expected = np.arange(80)
    np.random.RandomState(123).shuffle(expected)
    assert shuffled[0][:3] == tuple(COCO_NAMES[number] for number in expected[:3])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat|bird", "the class 'bird'"),
        ("cat|dog,cat", "the class 'cat' a second time"),
        ("cat||dog", "names of classes"),
        ("1+2", "sizes of at least 1 that sum to 2"),
        ("voc:1+1", "the 20 classes of VOC"),
    ],
)
def test_groups_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        named_groups(text, ("cat", "dog"), order="sorted", seed=0)
    with pytest.raises(InputError, match=r"a second time|behind a plus|further classes"):
        named_groups(text if text == "1+2" else "+cat", ("cat", "dog"), order="sorted", seed=0, known=(("cat",),))


def test_the_shares_of_disjoint_images() -> None:
    owner = image_shares(801, [70, 10], 3)
    assert np.bincount(owner).tolist() == [701, 100]
    assert np.array_equal(owner, image_shares(801, [70, 10], 3))
    assert not np.array_equal(owner, np.sort(owner))


def test_forgetting_and_gaps() -> None:
    matrix = np.array([[50, np.nan, np.nan], [40, 30, np.nan], [42, 10, 20.0]])
    assert forgetting(matrix) == pytest.approx((8 + 20) / 2)
    gap = increment_metrics([40, 30], [40, 60])
    assert (gap.absolute, gap.relative, gap.omega) == (30, 0.5, 0.75)
    scores = [{"AP": np.array(row), "AP50": np.array(row)} for row in ([40.0, 60], [30.0, 50, 20])]
    together = [scores[0], {"AP": np.array([50.0, 70, 40])}]
    found = Course([2, 1], 1, scores).metrics(Course([2, 1], 1, together))
    assert (found["old"], found["new"], found["forgetting"]) == (40, 20, 10)
    assert found["gap"] == pytest.approx(160 / 3 - 100 / 3)
    assert found["omega"] == pytest.approx((1 + 100 / 160) / 2)
    assert (found["omega_old"], found["omega_new"]) == (pytest.approx(40 / 60), pytest.approx(20 / 40))


# Data -----------------------------------------------------------------------------------------------------------------------------------


def test_a_step_sees_its_group_alone_and_is_measured_on_all_seen_so_far(data: IncrementalData) -> None:
    whole = data.source.train
    assert data.groups == (SOLID, HOLLOW)
    for step, rows in enumerate(((0, 1, 2), (3, 4, 5))):
        shown = data.step(step)
        assert shown.num_classes == 3 * (step + 1)
        assert len(shown.trained) == sum(np.isin(labels, rows).any() for labels in whole.labels)
        assert set(np.concatenate(shown.trained.labels)) <= set(rows)
        assert all(len(labels) for labels in shown.trained.labels)
        assert len(shown.truth) == 24  # also those without an object
        seen = np.concatenate(data.source.val.labels) < 3 * (step + 1)
        assert len(np.concatenate(shown.truth.labels)) == seen.sum()
        chosen = shown.indices["train"]
        first = whole.boxes[chosen[0]][np.isin(whole.labels[chosen[0]], rows)]
        assert np.array_equal(shown.trained.boxes[0], first)
    joint = data.joint(1)
    assert len(joint.trained) == sum(len(labels) > 0 for labels in whole.labels)
    assert len({data.fingerprint, joint.fingerprint, data.step(0).fingerprint, data.step(1).fingerprint}) == 4


def test_the_order_of_classes_is_stored_printed_and_that_of_the_labels() -> None:
    given = IncrementalData(TINY, groups="hollow disc,disc|triangle")
    assert given.classes == ("hollow disc", "disc", "triangle")
    assert any("hollow disc, disc | triangle" in line for line in given.first_lines())
    assert given.describe()["groups"] == [["hollow disc", "disc"], ["triangle"]]
    number = {0: 1, 2: 2, 3: 0}  # of the scenes' own labels
    wanted = [[number[k] for k in labels.tolist() if k in number] for labels in given.source.val.labels]
    assert [labels.tolist() for labels in given.truth.labels] == wanted
    shuffled = IncrementalData(TINY, groups="3+3", class_order="shuffled")
    assert any("(shuffled, seed 123)" in line for line in shuffled.first_lines())
    assert shuffled.fingerprint != IncrementalData(TINY, groups="3+3").fingerprint


def test_ids_with_gaps_crowds_and_images_without_boxes_are_as_in_any_detection(tmp_path: Path) -> None:
    made = pictures(9)
    made[1].things = [("dog", (2, 2, 9, 9), True), ("cat", (10, 4, 20, 12), False)]  # a crowd of the new class selects no image
    made[3].things = []
    given = IncrementalData(f"{coco(tmp_path, made)},empty=keep", groups="1+1")
    assert given.classes == ("cat", "dog")
    labels = [labels.tolist() for labels in given.step(1).trained.labels]
    assert labels
    assert {1} == {label for found in labels for label in found}
    assert all(1 in found for found in labels)
    crowds = [int(crowd.sum()) for crowd in given.step(1).trained.crowd]
    assert sum(crowds) == 0


def test_disjoint_images_belong_to_one_step() -> None:
    given = IncrementalData(TINY, groups="2+2+2", protocol="disjoint")
    parts = [set(given.step(step).indices["train"].tolist()) for step in range(3)]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_a_group_without_images_is_one_line(tmp_path: Path) -> None:
    made = pictures(9)
    for one in made:
        one.things = [thing for thing in one.things if thing[0] == "cat"]
    spec = coco(tmp_path, made, ("cat", "dog", "cow"))
    with pytest.raises(InputError, match=r"groups: got group 2 \(dog\) without an object in a training image, expected at least one"):
        IncrementalData(spec, groups="cat|dog")


# A step ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [network, rt_network])
def test_old_rows_are_bit_equal_when_the_head_grows(make: Any) -> None:
    old = make()
    new = grown(old, 5)
    layers: list[tuple[Any, Any]] = list(zip(old.class_layers(), new.class_layers(), strict=True))
    for before, after in layers:
        assert torch.equal(after.weight[:3], before.weight[:3])
        if isinstance(before, torch.nn.Linear):
            assert torch.equal(after.bias[:3], before.bias[:3])
            assert torch.allclose(after.bias[3:], torch.tensor(-4.5951), atol=1e-3)
            assert after.weight[3:].abs().max() < 0.1


@pytest.mark.parametrize("maps", ["encoder", "backbone"])
@pytest.mark.parametrize("make", [network, rt_network])
def test_a_copy_differs_in_nothing_and_a_changed_student_is_pulled_back(data: IncrementalData, make: Any, maps: Any) -> None:
    batch, teacher = without_boxes(batch_of(data.step(1))), make().eval()  # which could take a query from its pseudo object
    student = grown(teacher).eval()
    told = Teacher(Answers(teacher, maps), precision="fp32", fold=False)
    made = IOD(student, told, score_threshold=SURE, feature_maps=maps)
    losses = made.losses(batch)
    assert float(losses.distill["dmd"].detach()) < 1e-6
    assert 0 < float(losses.distill["ifd"].detach()) < 1e-8  # 1e-6 times 1e-6, or the rounding of another layout
    losses.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    moved = made.losses(batch)
    assert float(moved.distill["dmd"].detach()) > 1e-4
    assert float(moved.distill["ifd"].detach()) > 1e-4


def test_pseudo_objects_are_targets_behind_the_annotations(data: IncrementalData) -> None:
    batch, teacher = batch_of(data.step(1)), network().eval()
    made = IOD(grown(teacher), teacher, score_threshold=SURE)
    told = Answers(teacher)((batch.images, batch.sizes))
    pseudo = made.pseudo(batch, told)
    boxes, labels = made.extended(batch, pseudo, told["frames"])
    assert len(pseudo.queries) > 8
    for image, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        count = len(batch.labels[image])
        assert torch.equal(box[:count], batch.boxes[image])
        assert label[:count].min() >= 3
        assert (label[count:] < 3).all()
        mine = pseudo.queries[pseudo.images == image]
        absolute = teacher.raw(batch.images, batch.sizes).boxes[-1][image, mine]
        torch.testing.assert_close(box[count:], absolute, rtol=1e-4, atol=1e-3)


def test_a_batch_without_any_object_has_finite_losses_with_a_graph(data: IncrementalData) -> None:
    empty, teacher = without_boxes(batch_of(data.step(1))), network()
    made = IOD(grown(teacher), teacher, score_threshold=1.0)  # nobody is so sure
    losses = made.losses(empty)
    assert float(losses.distill["dmd"].detach()) == float(losses.distill["ifd"].detach()) == 0
    assert all(torch.isfinite(term) for term in losses.terms.values())
    losses.total.backward()


def test_networks_of_other_widths_and_families_pair_through_their_pseudo_objects(data: IncrementalData) -> None:
    batch, teacher = batch_of(data.step(1)), rt_network()
    student = grown(network(queries=9))
    made = IOD(student, teacher, score_threshold=SURE)
    assert {name.partition(".")[0] for name, _ in made.named_parameters()} == {"student", "queries_map", "features_map"}
    losses = made.losses(batch)
    losses.total.backward()
    assert float(losses.distill["ifd"].detach()) > 0
    assert made.queries_map.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]
    assert made.shipped() is student


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda old: IOD(grown(old), grown(old)), "teacher: got a detector of 6 classes, expected one of fewer than the student's 6"),
        (lambda old: IOD(build_detector("stillroom/gfl_24", num_classes=3).network), "student: got GFL"),
        (lambda old: IOD(old, dmd_weight=-1), "dmd_weight"),
        (lambda old: IOD(old, score_threshold=2), "score_threshold"),
        (lambda old: IOD(old, class_distance="taxi"), "class_distance"),
        (lambda old: IOD(old, feature_maps="neck"), "feature_maps"),
    ],
)
def test_arguments_that_cannot_be_used(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(network())


def test_the_backbone_learns_slowly_where_it_is_asked_to() -> None:
    made = IOD(network(), slow_rate=0.1)
    made.plan = Training(lr=1.0)
    rest, slow = made.parameter_groups()
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    assert slow["lr"] == pytest.approx(0.1)
    parts = {part for parameter in slow["params"] for part in names[id(parameter)].split(".")}
    assert {"backbone", "sampling_offsets", "reference_points"} <= parts
    assert len(rest["params"]) + len(slow["params"]) == len(names)


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    alone = train(tmp_path / "one", 1)
    noted = processes.on_two_ranks(train, tmp_path / "two", 2)
    for whole, first, second in zip(alone, *noted, strict=True):
        assert first["pseudo"] + second["pseudo"] == whole["pseudo"]
        shared = {name: (first[name] + second[name]) / 2 for name in whole if name != "pseudo"}
        assert shared == pytest.approx({name: whole[name] for name in shared}, rel=2e-3, abs=1e-4)
        assert min(whole["dmd"], whole["ifd"]) > 1e-3
    one, two = (read_weights(tmp_path / name / "seed0/distilled") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)


class Killed(Exception):
    """Stands for a kill."""


def test_killed_in_each_stage_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = IncrementalData("scenes:train=16,val=12,teacher=16", groups="disc|rectangle", batch_size=16)  # a step is an epoch
    losses, count = IOD.losses, {"steps": 0, "fall_at": 0}

    def falling(self: IOD, batch: DetectionBatch) -> Losses:
        count["steps"] += 1
        if count["steps"] == count["fall_at"]:
            raise Killed
        return losses(self, batch)

    monkeypatch.setattr(IOD, "losses", falling)

    def run(out: Path, fall_at: int = 0) -> dict[str, Tensor]:
        count.update(steps=0, fall_at=fall_at)
        lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
        plan = Training(epochs=3, optimizer="adamw", lr=2e-3)
        steps = Steps(lab, given, plan, "stillroom/deformable-detr_64", 3, lambda *both: IOD(*both, score_threshold=0.05))
        begun = steps.begin()
        ended = {arm: steps.increments(arm, begun)[-1] for arm in ("iod", "joint")}
        return {f"{arm} {name}": value for arm, stage in ended.items() for name, value in read_weights(stage.folder).items()}

    whole = run(tmp_path / "whole")
    assert count["steps"] == 9
    for step in (2, 4, 4):  # the second step of each stage, counted from where the one before goes on
        with pytest.raises(Killed):
            run(tmp_path / "killed", step)
    continued = run(tmp_path / "killed")
    assert count["steps"] == 2
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two steps."""
    out = tmp_path_factory.mktemp("runs") / "iod"
    small = ["--data", TINY, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "16", "--accelerator", "cpu"]
    arms = ["--arms", "fine-tuning+pseudo+dmd+ifd+iod+joint"]
    assert main(["run", "iod", *small, *arms, "--groups", "hollow rectangle|disc,rectangle", "--out", str(out)]) == 0
    return out


def test_the_command_ends_with_a_report_a_matrix_and_an_ordinary_student(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics["summary"]) == [*ARMS]
    assert metrics["baseline"] == "fine-tuning"
    assert {"old", "new", "forgetting", "gap", "omega"} <= set(metrics["summary"]["iod"]["metrics"])
    assert "AP by step and group" in (finished / "report.html").read_text()
    steps = json.loads((finished / "seed0/steps.json").read_text())
    assert steps["groups"] == [["hollow rectangle"], ["disc", "rectangle"]]
    first, second = steps["arms"]["iod"]["AP"]
    assert first[1] is None
    assert second[0] == pytest.approx(metrics["stages"]["iod"][0]["metrics"]["old"])
    mean = (second[0] + 2 * second[1]) / 3
    assert mean == pytest.approx(metrics["stages"]["iod"][0]["metrics"]["AP"], abs=1e-3)
    student = load(finished)
    assert student.classes == ("hollow rectangle", "disc", "rectangle")
    assert student.network.num_classes == 3
    assert all(found.label in student.classes for found in student.detect(Image.new("RGB", (48, 48)), threshold=0.0))


def test_a_run_goes_on_with_a_further_group(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "more"
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    words = ["--extend", str(finished), "--groups", "+triangle", "--arms", "fine-tuning+iod+joint", "--out", str(out)]
    assert main(["run", "iod", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    card = json.loads((out / "student.json").read_text())
    assert card["groups"] == [["hollow rectangle"], ["disc", "rectangle"], ["triangle"]]
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["data"], settings["batch_size"], settings["epochs"]) == (TINY, 16, 1)  # as they were
    steps = json.loads((out / "seed0/steps.json").read_text())["arms"]["iod"]["AP"]
    assert len(steps) == 2
    old = json.loads((finished / "seed0/steps.json").read_text())["arms"]["iod"]["AP"][-1]
    assert steps[0][:2] == pytest.approx(old)  # what it knew before
    student, earlier = load(out), load(finished)
    assert student.network.num_classes == 4
    assert student.card.model == earlier.card.model
    capsys.readouterr()
    assert main(["run", "iod", "--extend", str(finished), "--groups", "+disc", "--out", str(tmp_path / "none")]) == 2
    assert "the class 'disc' a second time" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_detector_of_transformers_is_a_start_too(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    model = detector("rt-detr", queries=20).model
    model.config.id2label = {0: "disc", 1: "rectangle", 2: "unicorn"}
    model.save_pretrained(folder)
    out = tmp_path / "run"
    small_job = ["--data", TINY, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "16", "--accelerator", "cpu"]
    words = [*small_job, "--extend", str(folder), "--groups", "+triangle", "--arms", "fine-tuning+iod+joint", "--out", str(out)]
    assert main(["run", "iod", *words]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert "joint" not in metrics["summary"]  # nobody has boxes of unicorns
    grown_run = load(out)
    assert grown_run.classes == ("disc", "rectangle", "unicorn", "triangle")
    assert grown_run.network.num_classes == 4
    theirs = AutoModelForObjectDetection.from_pretrained(out / "student")
    assert theirs.config.id2label == {0: "disc", 1: "rectangle", 2: "unicorn", 3: "triangle"}
    ours = of_queries(grown_run.network, "run").model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


def test_the_papers_preset_takes_a_step_on_a_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "iod", "--preset", "paper", "--print_config"])
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert (values["lr"], values["weight_decay"], values["epochs"], values["clip_norm"], values["slow_rate"]) == (2e-4, 1e-4, 50, 0.1, 0.1)
    assert (values["score_threshold"], values["nms_iou"], values["duplicate_iou"], values["region_bins"]) == (0.3, 0.7, 0.7, 7)
    made = [
        Picture(things=[(COCO_NAMES[(7 * i + j) % 80], (2 + j, 2, 12 + j, 14), False) for j in range(8)], file=f"{i:06d}.jpg")
        for i in range(36)
    ]
    given = IncrementalData(coco(tmp_path, made, COCO_NAMES), groups=values["groups"], batch_size=2, image_size=64, max_size=96)
    assert [len(group) for group in given.groups] == [40, 40]
    teacher = build_detr("deformable-detr_r50", 40, "student")
    assert teacher.model.config.num_queries == 300
    options = {name: values[name] for name in ("dmd_weight", "ifd_weight", "across_processes", "slow_rate")}
    made_step = IOD(grown(teacher, 80), teacher, **options, score_threshold=0.01)
    made_step.plan = Training(optimizer="adamw", lr=values["lr"])
    optimizer = made_step.configure_optimizers()
    losses = made_step.losses(batch_of(given.step(1, (48, 64))))
    assert set(losses.distill) == {"dmd", "ifd"}
    losses.total.backward()
    optimizer.step()
    assert all(torch.isfinite(term) for term in losses.terms.values())
    assert PRESETS["paper"]["student"] == "transformers/deformable-detr_r50"
