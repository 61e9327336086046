"""Scores in three dimensions: perfect answers, few objects, absent classes, two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.points.grid import KITTI, ClassList
from stillroom.tasks.points.kitti_metric import KittiMetric, kitti_difficulty
from stillroom.tasks.points.metrics import ATTRIBUTES, BoxMetric, IouMetric, NuScenesMetric, default_attributes
from stillroom.tasks.points.point_metrics import FlowMetric, SegmentationMetric

CLASSES = ClassList(("car", "barrier", "bicycle"), radius=(50.0, 30.0, 40.0))
Sample = dict[str, Tensor]


def boxes(count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    there = torch.rand(count, 9) * torch.tensor([0.0, 0, 1, 1, 1, 1, 6, 1, 1]) + torch.tensor([0.0, 0, 0, 3, 1, 1, 0, 0, 0])
    there[:, 0], there[:, 1] = torch.arange(count) % 6 * 8 - 20, torch.arange(count) // 6 * 8 - 20
    return there


def perfect(truth: Sample) -> Sample:
    return {"boxes": truth["boxes"], "labels": truth["labels"], "scores": torch.linspace(0.9, 0.5, len(truth["labels"]))}


@pytest.mark.parametrize(("count", "percent"), [(2, 2.5), (20, 47.5), (41, 100.0), (60, 100.0)])
def test_kitti_reads_its_curve_at_no_more_places_than_there_are_objects(count: int, percent: float) -> None:
    metric = KittiMetric(KITTI)
    truth = {"boxes": boxes(count), "labels": torch.zeros(count, dtype=torch.int64)}
    metric.update([perfect(truth)], [truth])
    answer = metric.compute()
    assert answer["ap"][0].tolist() == pytest.approx([percent / 100] * 3)
    assert answer["objects"][0].tolist() == [count] * 3


def test_kitti_ignores_what_a_difficulty_does_not_ask() -> None:
    count = 60
    truth = {"boxes": boxes(count), "labels": torch.zeros(count, dtype=torch.int64)}
    truth["difficulty"] = kitti_difficulty(torch.full((count,), 50.0), torch.arange(count) % 2, torch.zeros(count))
    assert truth["difficulty"].tolist() == [0, 1] * 30
    found = perfect(truth)
    found["boxes"] = torch.cat((found["boxes"], found["boxes"] + torch.tensor([3.0, 3, 0, 0, 0, 0, 0, 0, 0])))  # as many wrong ones
    found["labels"], found["scores"] = truth["labels"].repeat(2), torch.cat((found["scores"], torch.full((count,), 0.99)))
    found["pixels"] = torch.cat((torch.full((count,), 50.0), torch.full((count,), 30.0)))  # too small to be wrong where easy is asked
    metric = KittiMetric(KITTI)
    metric.update([found], [truth])
    easy, moderate, _ = metric.compute()["ap"][0].tolist()
    assert easy == pytest.approx(29 / 40)
    assert 0.3 < moderate < 0.6
    assert metric.compute()["objects"][0].tolist() == [30, 60, 60]
    vans = {**truth, "ignored": torch.ones(count)}
    metric = KittiMetric(KITTI)
    metric.update([perfect(truth)], [vans])
    assert metric.compute()["objects"][0].tolist() == [0, 0, 0]


def test_truth_as_prediction_is_perfect_and_a_turned_one_costs_orientation() -> None:
    truth = {"boxes": boxes(30), "labels": torch.arange(30) % 3, "points": torch.ones(30)}
    metric = NuScenesMetric(CLASSES)
    metric.update([perfect(truth)], [truth])
    answer = metric.compute()
    assert answer["mAP"].item() == pytest.approx(1)
    assert answer["tp"][:, :3].abs().max() < 1e-6
    assert answer["without_truth"] == 0
    assert IouMetric(CLASSES)(*([side] for side in (perfect(truth), truth)))["mAP"].item() == pytest.approx(1)
    turned = perfect(truth)
    turned["boxes"] = truth["boxes"] + torch.tensor([0, 0, 0, 0, 0, 0, math.pi, 0, 0])
    metric.reset()
    metric.update([turned], [truth])
    answer = metric.compute()
    assert answer["mAP"].item() == pytest.approx(1)  # centres alone decide
    assert answer["tp"][0, 2].item() == pytest.approx(math.pi, abs=1e-4)
    assert answer["tp"][1, 2].item() == pytest.approx(0, abs=1e-4)  # a barrier has no front


def test_a_class_without_truth_counts_as_nothing_found() -> None:
    truth = {"boxes": boxes(20), "labels": torch.zeros(20, dtype=torch.int64)}
    metric = NuScenesMetric(CLASSES)
    metric.update([perfect(truth)], [truth])
    answer = metric.compute()
    assert answer["mAP"].item() == pytest.approx(1 / 3)
    assert answer["without_truth"] == 2
    assert answer["tp"][2].tolist() == [1] * 5
    empty = NuScenesMetric(CLASSES)
    none = {"boxes": torch.zeros(0, 9), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    empty.update([none], [none])
    assert empty.compute()["mAP"] == 0
    assert empty.compute()["NDS"] == 0


def test_what_lies_too_far_holds_no_point_or_stands_in_a_rack_is_not_scored() -> None:
    here, far, rack = [10.0, 0, 0, 2, 1, 1, 0, 0, 0], [45.0, 0, 0, 2, 1, 1, 0, 0, 0], [0.0, 9, 0, 2, 1, 1, 0, 0, 0]
    truth = {
        "boxes": torch.tensor([here, far, here, rack]),
        "labels": torch.tensor([2, 2, 0, 2]),
        "points": torch.tensor([3, 3, 0, 3]),
        "racks": torch.tensor([[0.0, 9, 0, 4, 4, 4, 0]]),
    }
    metric = NuScenesMetric(CLASSES)
    metric.update([perfect(truth)], [truth])
    assert metric.collected()[1]["boxes"][:, 0].tolist() == [10]
    assert len(metric.collected()[0]["boxes"]) == 2  # the find at the empty box is wrong


@pytest.mark.parametrize(
    "made", [NuScenesMetric(CLASSES), KittiMetric(CLASSES), IouMetric(CLASSES)], ids=lambda metric: type(metric).__name__
)
def test_what_several_processes_saw_counts_once(made: BoxMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = [{"boxes": boxes(8, seed), "labels": torch.arange(8) % 2} for seed in range(4)]
    found = [perfect(sample) for sample in truth]
    for sample in found:
        sample["boxes"] = sample["boxes"] + torch.rand(8, 9) * 0.8
    made.update(found, truth, torch.arange(4))
    alone = made.compute()["mAP"]
    parts = []
    for process, mine in ((0, [0, 2]), (1, [1, 3, 0])):  # the sampler gave the first sample out twice
        monkeypatch.setattr("stillroom.tasks.points.metrics.rank", lambda process=process: process)
        made.reset()
        made.update([found[place] for place in mine], [truth[place] for place in mine], torch.tensor(mine))
        parts.append({name: torch.cat(getattr(made, name)) for name in ("found_rows", "true_rows", "seen")})
    for name in parts[0]:
        setattr(made, name, torch.cat([part[name] for part in parts]))
    made._computed = None
    assert made.compute()["mAP"] == alone


def test_labels_flow_and_attributes() -> None:
    metric = SegmentationMetric(3, matched=True)
    truth = torch.tensor([0, 0, 1, 1, 2, 2, -1])
    metric.update(torch.tensor([2, 2, 0, 0, 1, 0, 1]), truth)
    answer = metric.compute()
    assert answer["assignment"].tolist() == [1, 2, 0]
    assert answer["oAcc"].item() == pytest.approx(5 / 6)
    assert answer["iou"].tolist() == pytest.approx([1, 2 / 3, 0.5])
    with pytest.raises(InputError, match="found"):
        metric.update(torch.tensor([3]), torch.tensor([0]))
    flow = FlowMetric()
    flow.update(torch.tensor([[1.0, 0, 0], [0.0, 0, 0], [5.0, 0, 0]]), torch.tensor([[1.04, 0, 0], [0.0, 0.2, 0], [torch.nan, 0, 0]]))
    answer = flow.compute()
    assert answer["EPE"].item() == pytest.approx(0.12, abs=1e-6)
    assert answer["strict"].item() == pytest.approx(0.5)
    moving = torch.zeros(3, 9)
    moving[:, 7] = torch.tensor([1.0, 0.0, 0.0])
    found = default_attributes(moving, torch.tensor([0, 0, 1]), CLASSES)
    assert [ATTRIBUTES[place] for place in found[:2].tolist()] == ["vehicle.moving", "vehicle.parked"]
    assert found[2] == -1
