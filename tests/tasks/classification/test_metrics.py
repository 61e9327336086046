"""Figures against what they are by hand, in one process and in two."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stillroom.errors import InputError
from stillroom.tasks.classification.metrics import ClassificationEvaluator, agreement
from stillroom.tasks.images.batches import Batch

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(60, 8, generator=GENERATOR) * 2, torch.randint(0, 8, (60,), generator=GENERATOR)


def batch(labels, ids=None):
    return Batch(torch.empty(len(labels), 0), labels, torch.arange(len(labels)) if ids is None else ids)


def evaluated(logits, labels, classes=8, ids=None, size=25, groups=None):
    evaluator = ClassificationEvaluator(classes, groups)
    ids = torch.arange(len(labels)) if ids is None else ids
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        evaluator.update(logits[part], batch(labels[part], ids[part]))
    return evaluator


def test_figures_by_hand():
    figures = evaluated(LOGITS, LABELS).compute()
    order = LOGITS.argsort(1, descending=True)
    hits = order == LABELS[:, None]
    assert figures["top1"] == pytest.approx(100 * hits[:, 0].float().mean().item())
    assert figures["top5"] == pytest.approx(100 * hits[:, :5].any(1).float().mean().item())
    assert figures["nll"] == pytest.approx(-LOGITS.log_softmax(1).gather(1, LABELS[:, None]).mean().item(), rel=1e-5)
    confidence = LOGITS.softmax(1).amax(1)
    bins = (confidence * 15).long()
    gaps = [(hits[bins == b, 0].float().sum() - confidence[bins == b].sum()).abs().item() for b in range(15)]
    assert figures["ece"] == pytest.approx(100 * sum(gaps) / 60, rel=1e-4)


def test_top5_needs_more_than_five_classes():
    assert set(evaluated(LOGITS[:, :5], LABELS % 5, 5).compute()) == {"top1", "nll", "ece"}


def test_top1_and_top5_stay_apart_when_the_first_batch_is_all_right():
    logits = torch.eye(8)
    evaluator = evaluated(logits, torch.arange(8))
    evaluator.update(logits, batch((torch.arange(8) + 1) % 8))
    figures = evaluator.compute()
    assert figures["top1"] == pytest.approx(50)
    assert figures["top5"] > 50


def test_details_are_in_the_order_of_ids():
    shuffled = torch.randperm(60, generator=GENERATOR)
    details = evaluated(LOGITS[shuffled], LABELS[shuffled], ids=shuffled).details()
    assert details["ids"].tolist() == list(range(60))
    assert details["labels"].tolist() == LABELS.tolist()
    assert details["predicted"].tolist() == LOGITS.argmax(1).tolist()
    assert details["confidence"] == pytest.approx(LOGITS.softmax(1).amax(1).numpy())


def test_reset_forgets():
    evaluator = evaluated(LOGITS, LABELS)
    evaluator.reset()
    evaluator.update(torch.eye(8), batch(torch.arange(8)))
    assert evaluator.compute()["top1"] == 100
    assert len(evaluator.details()["ids"]) == 8


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_broken_logits_are_wrong_and_say_so(wrong):
    logits = torch.eye(8) * 5
    logits[0] = wrong
    evaluator = evaluated(logits, torch.arange(8))
    figures = evaluator.compute()
    assert figures["top1"] == figures["top5"] == pytest.approx(87.5)
    assert math.isnan(figures["nll"])
    assert math.isnan(figures["ece"])
    details = evaluator.details()
    assert details["predicted"].tolist() == [-1, *range(1, 8)]
    assert agreement(details, details) == pytest.approx(87.5)


def test_agreement():
    first = evaluated(LOGITS, LABELS).details()
    second = {**first, "predicted": np.where(np.arange(60) < 15, (first["predicted"] + 1) % 8, first["predicted"])}
    assert agreement(first, first) == 100
    assert agreement(first, second) == pytest.approx(75)
    with pytest.raises(InputError, match="details_b"):
        agreement(first, {name: column[:10] for name, column in first.items()})


def test_half_precision_is_scored_in_single():
    half = LOGITS.bfloat16()
    assert evaluated(half, LABELS).compute() == pytest.approx(evaluated(half.float(), LABELS).compute())


GROUPS = {"many": torch.arange(8) < 3, "few": torch.arange(8) >= 6}


def test_a_groups_accuracy_is_the_mean_over_its_classes_of_the_accuracy_within_each():
    figures = evaluated(LOGITS, LABELS, groups=GROUPS).compute()
    hits = LOGITS.argmax(1) == LABELS
    for name, classes in (("many", (0, 1, 2)), ("few", (6, 7))):
        assert figures[name] == pytest.approx(100 * np.mean([hits[c == LABELS].float().mean().item() for c in classes]))
    assert {name: figures[name] for name in evaluated(LOGITS, LABELS).compute()} == evaluated(LOGITS, LABELS).compute()


def test_a_class_counts_in_its_group_however_few_samples_it_has():
    labels = torch.tensor([0] * 9 + [1])
    figures = evaluated(torch.eye(8)[torch.zeros(10, dtype=torch.int64)], labels, groups=GROUPS).compute()
    assert figures["top1"] == pytest.approx(90)
    assert figures["many"] == pytest.approx(50)  # classes 0 and 1; class 2 has no sample
    assert math.isnan(figures["few"])


def test_a_broken_answer_is_wrong_in_its_group():
    logits = torch.eye(8)
    logits[0] = float("nan")
    figures = evaluated(logits, torch.arange(8), groups=GROUPS).compute()
    assert figures["many"] == pytest.approx(100 * 2 / 3)
    assert figures["few"] == 100


def test_groups_are_forgotten_with_the_rest():
    evaluator = evaluated(LOGITS, LABELS, groups=GROUPS)
    evaluator.reset()
    evaluator.update(torch.eye(8), batch(torch.arange(8)))
    assert evaluator.compute()["many"] == 100


@pytest.mark.parametrize(
    "groups", [{"few": torch.zeros(8, dtype=torch.bool)}, {"few": torch.ones(7, dtype=torch.bool)}, {"few": torch.ones(8)}]
)
def test_a_group_must_be_a_mask_of_the_classes(groups):
    with pytest.raises(InputError, match="groups: got few"):
        ClassificationEvaluator(8, groups)


def test_a_group_cannot_take_a_figures_name():
    with pytest.raises(InputError, match="another name"):
        ClassificationEvaluator(8, {"top1": torch.ones(8, dtype=torch.bool)})


def _share():
    dist.init_process_group("gloo")
    mine = torch.arange(0, 45) if dist.get_rank() == 0 else torch.arange(45, 60)
    evaluator = evaluated(LOGITS[mine], LABELS[mine], ids=mine, groups=GROUPS)
    answer = evaluator.compute(), evaluator.details()
    dist.destroy_process_group()
    return answer


def test_two_processes_report_as_one(processes):
    alone = evaluated(LOGITS, LABELS, groups=GROUPS)
    for figures, details in processes.on_two_ranks(_share):
        assert figures == pytest.approx(alone.compute())
        assert all(np.array_equal(details[name], column) for name, column in alone.details().items())
