from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.nn.functional import normalize

from stillroom.errors import InputError
from stillroom.losses.contrast import crd_loss
from stillroom.modules.contrast_memory import ContrastMemory
from tests.processes import Processes


def embeddings(batch: int, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, width, generator=generator)
    return normalize(student, dim=1), normalize(teacher, dim=1)


def memory(samples: int = 30, negatives: int = 8, **options: object) -> ContrastMemory:
    torch.manual_seed(0)
    return ContrastMemory(samples, 16, negatives=negatives, **options)  # type: ignore[arg-type]


layouts = st.lists(st.integers(-3, 5), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1)


@settings(max_examples=60, deadline=None)
@given(layout=layouts)
def test_exact_negatives_are_all_samples_of_other_classes_and_no_others(layout: list[int]) -> None:
    labels = torch.tensor(layout)
    ids = torch.arange(len(layout)).flip(0)
    drawn = ContrastMemory(len(layout), 2, negatives=2000, labels=labels).draw_negatives(ids)
    assert drawn.shape == (len(ids), 2000)
    for row, id_ in zip(drawn, ids, strict=True):
        assert set(row.tolist()) == set((labels != labels[id_]).nonzero().flatten().tolist())


def test_negatives_are_uniform() -> None:
    labels = torch.tensor([0, 1, 0, 2, 2, 1, 0, 1])
    drawn = ContrastMemory(8, 2, negatives=50_000, labels=labels).draw_negatives(torch.tensor([0]))
    counts = drawn.flatten().bincount(minlength=8)
    assert counts[labels == 0].sum() == 0
    torch.testing.assert_close(counts[labels != 0] / 50_000, torch.full((5,), 0.2), atol=0.01, rtol=0)


def test_without_labels_any_other_sample_is_a_negative() -> None:
    drawn = ContrastMemory(5, 2, negatives=500).draw_negatives(torch.arange(5))
    for id_, row in enumerate(drawn):
        assert set(row.tolist()) == set(range(5)) - {id_}


def test_negatives_come_from_torchs_generator() -> None:
    bank = memory()
    torch.manual_seed(3)
    first = bank.draw_negatives(torch.arange(4))
    torch.manual_seed(3)
    assert torch.equal(bank.draw_negatives(torch.arange(4)), first)


@pytest.mark.parametrize("samples", [30, 3000])  # against all rows at once; row by row
@pytest.mark.parametrize("batch", [1, 6])
def test_scores_are_the_normalised_exponentials(samples: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = memory(samples, temperature=0.2)
    student, teacher = embeddings(batch)
    ids = torch.arange(batch) + 3
    negatives = bank.draw_negatives(ids)
    monkeypatch.setattr(bank, "draw_negatives", lambda _: negatives)
    by_student, by_teacher = bank(student, teacher, ids)
    for scores, anchors, rows in ((by_student, student, bank.teacher_bank), (by_teacher, teacher, bank.student_bank)):
        chosen = torch.cat([ids[:, None], negatives], dim=1)
        raw = ((rows[chosen] * anchors[:, None]).sum(2) / 0.2).exp()
        torch.testing.assert_close(scores, raw / (raw.mean() * samples), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("samples", [30, 3000])
def test_both_ways_of_reading_the_bank_give_one_gradient(samples: int) -> None:
    bank = memory(samples, negatives=20)  # at 30 samples some are drawn twice
    anchor = embeddings(4)[0]
    chosen = torch.cat([torch.arange(4)[:, None], bank.draw_negatives(torch.arange(4))], dim=1)
    weights = torch.randn(chosen.shape)
    results = []
    for dots in (lambda a: bank._dots(a, bank.teacher_bank, chosen), lambda a: (a[:, None] * bank.teacher_bank[chosen].float()).sum(2)):
        leaf = anchor.clone().requires_grad_()
        value = (dots(leaf) * weights).sum()
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_first_training_batch_fixes_the_normalisers() -> None:
    bank = memory(negatives=500)
    student, teacher = embeddings(4)
    ids = torch.arange(4)
    bank.eval()
    scores, _ = bank(student, teacher, ids)
    torch.testing.assert_close(scores.mean(), torch.tensor(1 / 30))
    assert not bank.calibrated
    bank.train()
    bank(student, teacher, ids)
    kept = bank.log_normalisers.clone()
    assert bank.calibrated
    bank(*embeddings(4, seed=1), ids)
    assert torch.equal(bank.log_normalisers, kept)


@pytest.mark.parametrize("samples", [30, 3000])
def test_agreement_with_the_bank_lowers_the_loss_and_gradient_points_there(samples: int) -> None:
    bank = memory(samples)
    ids = torch.tensor([4, 9])
    student = embeddings(2)[0].requires_grad_()
    teacher = embeddings(2)[1].requires_grad_()
    by_student, by_teacher = bank(student, teacher, ids)
    loss = crd_loss(by_student, samples)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.autograd.grad(crd_loss(by_teacher, samples), student, allow_unused=True) == (None,)
    agreeing, _ = bank(bank.teacher_bank[ids], teacher, ids)
    assert crd_loss(agreeing, samples) < loss
    # a small step against the gradient turns the student towards its positive
    stepped = normalize(student.detach() - 1e-3 * gradient, dim=1)
    assert ((stepped * bank.teacher_bank[ids]).sum(1) > (student.detach() * bank.teacher_bank[ids]).sum(1)).all()


def test_update_is_the_momentum_mean_on_the_unit_sphere_and_touches_no_other_row() -> None:
    bank = memory(momentum=0.25)
    before = copy.deepcopy(bank.state_dict())
    student, teacher = embeddings(2)
    ids = torch.tensor([7, 2])
    bank.update(student, teacher, ids)
    for name, embedding in (("student_bank", student), ("teacher_bank", teacher)):
        after = bank.state_dict()[name]
        torch.testing.assert_close(after[ids], normalize(0.25 * before[name][ids] + 0.75 * embedding, dim=1))
        others = torch.ones(30, dtype=torch.bool)
        others[ids] = False
        assert torch.equal(after[others], before[name][others])


def test_rows_are_joined_by_id_not_by_position() -> None:
    one, other = memory(), memory()
    student, teacher = embeddings(5)
    ids, order = torch.tensor([3, 11, 29, 0, 8]), torch.tensor([4, 2, 0, 1, 3])
    one.update(student, teacher, ids)
    other.update(student[order], teacher[order], ids[order])
    assert torch.equal(one.student_bank, other.student_bank)
    assert torch.equal(one.teacher_bank, other.teacher_bank)


def test_of_two_embeddings_for_one_id_the_first_counts() -> None:
    one, other = memory(), memory()
    student, teacher = embeddings(4)
    one.update(student, teacher, torch.tensor([5, 1, 5, 5]))
    other.update(student[:2], teacher[:2], torch.tensor([5, 1]))
    assert torch.equal(one.student_bank, other.student_bank)


def test_rows_keep_unit_length() -> None:
    bank = memory()
    for step in range(20):
        torch.testing.assert_close(bank.student_bank.norm(dim=1), torch.ones(30))
        torch.testing.assert_close(bank.teacher_bank.norm(dim=1), torch.ones(30))
        bank.update(*embeddings(10, seed=step), torch.randperm(30)[:10])


@pytest.mark.parametrize("samples", [30, 3000])
def test_a_graph_made_before_an_update_stays_valid(samples: int) -> None:
    bank = memory(samples)
    student, teacher = (one.requires_grad_() for one in embeddings(4))
    ids = torch.arange(4)
    torch.manual_seed(1)
    loss = crd_loss(bank(student, teacher, ids)[0], samples)
    expected = torch.autograd.grad(loss, student, retain_graph=True)
    bank.update(student, teacher, ids)
    assert not bank.student_bank.requires_grad
    torch.testing.assert_close(torch.autograd.grad(loss, student), expected)


def test_state_survives_a_checkpoint() -> None:
    bank, ids = memory(), torch.arange(6)
    bank(*embeddings(6), ids)
    bank.update(*embeddings(6), ids)
    torch.manual_seed(9)
    restored = ContrastMemory(30, 16, negatives=8)
    restored.load_state_dict(bank.state_dict())
    results = []
    for one in (bank, restored):
        torch.manual_seed(5)
        results.append(one(*embeddings(6, seed=2), ids))
        one.update(*embeddings(6, seed=2), ids)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    for name, value in bank.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name])
    assert set(bank.state_dict()) == {"student_bank", "teacher_bank", "log_normalisers", "calibrated"}


def test_bf16_embeddings_and_autocast_give_float32_scores() -> None:
    bank, ids = memory(), torch.arange(2)
    with torch.autocast("cpu", torch.bfloat16):
        scores = bank(*(one.bfloat16() for one in embeddings(2)), ids)
    assert all(one.dtype == torch.float32 and one.isfinite().all() for one in scores)
    bank.update(*(one.bfloat16() for one in embeddings(2)), ids)
    torch.testing.assert_close(bank.student_bank.norm(dim=1), torch.ones(30))


def test_a_low_temperature_does_not_overflow() -> None:
    bank = memory(temperature=0.01)
    ids = torch.arange(3)
    scores, _ = bank(bank.teacher_bank[ids].clone(), embeddings(3)[1], ids)
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"negatives": 0},
        {"samples": 1},
        {"labels": torch.zeros(30, dtype=torch.int64)},
        {"labels": torch.arange(29)},
    ],
    ids=str,
)
def test_refuses_arguments_out_of_range(options: dict[str, object]) -> None:
    argument = "num_samples" if "samples" in options else next(iter(options))
    with pytest.raises(InputError, match=f"^{argument}: "):
        memory(**options)  # type: ignore[arg-type]


def test_refuses_shapes_that_do_not_fit() -> None:
    bank, (student, teacher) = memory(), embeddings(3)
    with pytest.raises(InputError, match=r"^student_BE: .*\[2, 16\]"):
        bank(student, teacher, torch.arange(2))
    with pytest.raises(InputError, match=r"^teacher_BE: "):
        bank.update(student, teacher[:, :4], torch.arange(3))
    with pytest.raises(InputError, match=r"^ids_B: "):
        bank(student, teacher, torch.tensor(1))


def test_ranks_keep_equal_banks_and_the_mean_normaliser(processes: Processes) -> None:
    first, second = processes.on_two_ranks(_on_a_rank)
    for name in ("student_bank", "teacher_bank", "log_normalisers"):
        assert torch.equal(first["state"][name], second["state"][name])
    alone = memory()
    both_ranks = (torch.cat(parts) for parts in zip(embeddings(3, seed=0), embeddings(3, seed=1), strict=True))
    alone.update(*both_ranks, torch.tensor([0, 1, 2, 2, 4, 5]))
    assert torch.equal(first["state"]["student_bank"], alone.student_bank)
    mean_of_both = (first["own_log_z"].exp() + second["own_log_z"].exp()) / 2
    torch.testing.assert_close(first["state"]["log_normalisers"].exp(), mean_of_both)


def _on_a_rank() -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    bank = memory()
    lone = copy.deepcopy(bank)
    student, teacher = embeddings(3, seed=rank)
    ids = torch.tensor([[0, 1, 2], [2, 4, 5]])[rank]
    torch.manual_seed(rank)
    lone(student, teacher, ids)
    distributed.init_process_group("gloo")
    torch.manual_seed(rank)
    bank(student, teacher, ids)
    bank.update(student, teacher, ids)
    distributed.destroy_process_group()
    return {"state": bank.state_dict(), "own_log_z": lone.log_normalisers}
