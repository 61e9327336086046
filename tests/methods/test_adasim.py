"""AdaSim: the memory, the window, the vote, the gate and the draw; and the experiment around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.methods.adasim.arms import RULES, named_rules
from stillroom.methods.adasim.bootstrap import AdaSim
from stillroom.methods.adasim.memory import NeighbourMemory
from stillroom.methods.adasim.selection import drawn, nearest_other, vote
from stillroom.methods.adasim.window import Window
from tests.methods.adasim_job import Falling, Killed, train
from tests.processes import Processes


class Pair(NamedTuple):
    """What the block reads of a batch."""

    ids: Tensor
    others: Tensor


def block(images: int = 12, width: int = 4, *, rule: str = "adasim", **options: Any) -> AdaSim:
    found = RULES[rule]
    assert found is not None
    return AdaSim(images, width, rule=found, **{"window": 2, "topk": 3, "sampling_temperature": 0.05, **options})


def epoch(made: AdaSim, number: int, features: Tensor, *, batch: int = 4) -> np.ndarray:
    """One pass over all images in order, two equal views each; what was shown in each one's place."""
    shown = []
    for ids in np.arange(len(features)).reshape(-1, batch):
        others = made.others(number, ids, ids + 100 * number)
        shown.append(others)
        made.take_in(Pair(torch.from_numpy(ids), torch.from_numpy(others)), features[ids].repeat(2, 1))
    return np.concatenate(shown)


def groups(images: int = 12, *, spread: float = 0.05) -> Tensor:
    """Features of four groups of images, image i in group i % 4."""
    torch.manual_seed(0)
    return torch.eye(4)[torch.arange(images) % 4] + spread * torch.randn(images, 4)


# The vote -----------------------------------------------------------------------------------------------------------------------


def test_equal_sums_go_to_the_smaller_id_but_the_image_itself_wins_the_first_place() -> None:
    ids, similarities = torch.tensor([[[5, 3, 7]]]), torch.tensor([[[0.5, 0.5, 0.5]]])
    assert vote(ids, similarities, torch.tensor([7])).candidates.tolist() == [[7, 3, 5]]
    assert vote(ids, similarities, torch.tensor([9])).candidates.tolist() == [[3, 5, 7]]
    # no first place, no privilege
    assert vote(torch.tensor([[[5, 3, 7]]]), torch.tensor([[[0.5, 0.6, 0.5]]]), torch.tensor([7])).candidates.tolist() == [[3, 5, 7]]


def test_an_image_that_was_never_seen_has_its_gate_shut_even_if_it_is_number_zero() -> None:
    zeros = torch.zeros(1, 3, 2, dtype=torch.long)
    found = vote(zeros, torch.zeros(1, 3, 2), torch.tensor([0]))
    assert found.candidates[0, 0] == 0
    assert not found.gate
    assert not found.seen


def test_being_persistent_counts_as_much_as_being_close() -> None:
    ids = torch.tensor([[[1, 2], [2, 1], [2, 3]]])
    similarities = torch.tensor([[[0.9, 0.5], [0.6, 0.1], [0.5, 0.4]]])
    found = vote(ids, similarities, torch.tensor([2]))
    assert found.candidates.tolist() == [[2, 1]]
    assert found.sums[0].tolist() == pytest.approx([1.6, 1.0])
    assert found.gate


def test_fewer_candidates_than_k_are_padded_and_never_drawn() -> None:
    ids = torch.zeros(1, 2, 3, dtype=torch.long) + 4
    found = vote(ids, torch.full((1, 2, 3), 0.3), torch.tensor([4]))
    assert found.candidates.tolist() == [[4, -1, -1]]
    probabilities = found.probabilities(2, 0.001)
    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]
    for number in (0.0, 0.5, 1 - 1e-16):
        assert drawn(found.candidates, probabilities, torch.tensor([number], dtype=torch.float64)).tolist() == [4]


def test_draws_follow_the_probabilities() -> None:
    candidates = torch.tensor([[3, 8, 5]]).expand(4000, 3)
    probabilities = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).expand(4000, 3)
    found = drawn(candidates, probabilities, torch.linspace(0, 1 - 1e-9, 4000, dtype=torch.float64))
    assert [round(float((found == one).double().mean()), 2) for one in (3, 8, 5)] == [0.7, 0.2, 0.1]


def test_the_nearest_other_image_is_never_the_image_itself() -> None:
    neighbours = torch.tensor([[4, 1], [2, 6], [9, 9]])
    assert nearest_other(neighbours, torch.tensor([4, 0, 9])).tolist() == [1, 2, 9]


# The memory ---------------------------------------------------------------------------------------------------------------------


def test_a_zero_feature_stays_zero_and_keeps_its_gate_shut() -> None:
    made = block()
    features = groups()
    features[5] = 0
    for number in range(3):
        shown = epoch(made, number, features)
    assert made.memory.features[5].abs().sum() == 0
    assert shown[5] == 5
    ids, similarities = made.window.rows(np.array([5]))
    assert not vote(ids, similarities, torch.tensor([5])).gate


def test_reduced_precision_is_widened_before_anything_is_compared() -> None:
    memory = NeighbourMemory(4, 3, topk=2)
    with torch.autocast("cpu", torch.bfloat16):
        memory.update(torch.arange(4), torch.randn(8, 3).bfloat16())
        memory.update(torch.arange(4), torch.randn(8, 3).bfloat16())
    assert memory.features.dtype == memory.similarities.dtype == torch.float32
    assert torch.allclose(memory.features.norm(dim=1), torch.ones(4), atol=1e-6)


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 4, 1], [-1, 0, 1]])
def test_ids_twice_or_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match="ids"):
        NeighbourMemory(4, 3, topk=2).update(torch.tensor(ids), torch.randn(6, 3))
    with pytest.raises(InputError, match="ids"):
        block(4).others(0, np.array(ids), np.array(ids))


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"topk": 13}, "topk"), ({"window": 0}, "window"), ({"sampling_temperature": 0.0}, "sampling_temperature")],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        block(**options)


# The choice over epochs ---------------------------------------------------------------------------------------------------------


def test_nothing_is_bootstrapped_before_the_window_is_full_and_neighbours_are_right_then() -> None:
    made, features = block(), groups()
    shown = [epoch(made, number, features) for number in range(4)]
    itself = np.arange(12)
    assert (shown[0] == itself).all()
    assert (shown[1] == itself).all()
    assert (shown[2] != itself).any()
    assert (np.concatenate(shown[2:]) % 4 == np.tile(itself % 4, 2)).all()


def test_a_low_temperature_is_plain_self_distillation_and_a_shut_gate_too() -> None:
    cold, features = block(sampling_temperature=1e-7), groups()
    assert all((epoch(cold, number, features) == np.arange(12)).all() for number in range(4))
    # images that find others before themselves: the features of all are new in every epoch
    strangers = [torch.nn.functional.one_hot(torch.randperm(12), 12).float() for _ in range(4)]
    gated, ungated = block(width=12), block(width=12, rule="ungated")
    assert (np.stack([epoch(gated, n, f) for n, f in enumerate(strangers)])[2:] == np.arange(12)).mean() > 0.8
    assert (np.stack([epoch(ungated, n, f) for n, f in enumerate(strangers)])[2:] != np.arange(12)).mean() > 0.5


def test_the_arms_are_what_they_say() -> None:
    features = groups()
    naive = block(rule="naive")
    assert (epoch(naive, 0, features) == np.arange(12)).all()
    second = epoch(naive, 1, features) != np.arange(12)
    assert second[4:].all()  # but for the very first batch, which met an empty memory
    assert (epoch(naive, 2, features) != np.arange(12)).all()
    assert block(rule="window1").window.size == 1
    assert list(named_rules("adasim + baseline")) == ["adasim", "baseline"]
    for wrong in ("adasim+other", "naive+naive"):
        with pytest.raises(InputError, match="arms"):
            named_rules(wrong)


def test_the_choice_does_not_depend_on_how_images_are_batched() -> None:
    whole, parts, features = block(), block(), groups()
    for number in range(3):
        one, many = epoch(whole, number, features, batch=12), epoch(parts, number, features, batch=3)
        if number == 2:
            assert (one == many).all()
        parts.memory.load_state_dict(whole.memory.state_dict())  # a batch is looked up before it is written, so batches matter there


def test_without_the_first_epoch_its_slot_has_no_vote() -> None:
    kept, skipped = block(window=3), block(window=3, skip_first_epoch=True)
    for number in range(3):
        for made in (kept, skipped):
            epoch(made, number, groups())
    for made in (kept, skipped):
        made.others(3, np.arange(4), np.arange(4))
    ids = np.arange(12)
    assert kept.window.rows(ids, without=kept.skipped)[1][:, 0].abs().sum() > 0
    assert skipped.window.rows(ids, without=skipped.skipped)[1][:, 0].abs().sum() == 0


def test_figures_say_how_many_choices_are_right() -> None:
    made = block(labels=np.arange(12) % 4)
    epoch(made, 0, groups())
    figures = made.take_in(Pair(torch.arange(4), torch.tensor([4, 1, 3, 7])), groups()[:4].repeat(2, 1))
    assert figures["bootstrap/share"] == 0.75
    assert figures["bootstrap/right"] == 0.5  # images 0 and 3; image 1 is shown itself
    assert figures["retrieval/top2"] == 1
    assert "bootstrap/right" not in block().take_in(Pair(torch.arange(4), torch.arange(4)), groups()[:4].repeat(2, 1))


# The window: checkpoints and files ----------------------------------------------------------------------------------------------


def test_a_shorter_window_takes_the_newest_slots_of_a_checkpoint() -> None:
    long, short = Window(3, 2, 4), Window(3, 2, 2)
    for number in range(4):
        long.push(number, torch.full((3, 2), number), torch.full((3, 2), float(number)))
    short.load_state_dict(long.state_dict())
    assert short.rows(np.arange(3))[0][0].tolist() == [[2, 2], [3, 3]]
    with pytest.raises(InputError, match="window"):
        Window(4, 2, 2).load_state_dict(long.state_dict())


def test_a_window_in_files_is_the_same_and_a_killed_run_finds_the_files_of_its_checkpoint(tmp_path: Path) -> None:
    plain, mapped, features = block(window=3), block(window=3, window_memory=0.0), groups()
    mapped.keep_in(tmp_path / "files")
    saved: dict[str, Any] = {}
    for number in range(6):
        assert (epoch(plain, number, features) == epoch(mapped, number, features)).all()
        if number == 3:
            mapped.checkpoint()
            saved = {"buffers": {k: v.clone() for k, v in mapped.state_dict().items()}, "window": mapped.checkpoint()}
    assert isinstance(mapped.window.slots[0].ids, np.memmap)
    again = block(window=3, window_memory=0.0)
    again.keep_in(tmp_path / "files")
    again.load_state_dict(saved["buffers"])
    again.restore(saved["window"])
    for number in (4, 5):
        epoch(again, number, features)
    assert all(torch.equal(a, b) for a, b in zip(again.window.rows(np.arange(12)), plain.window.rows(np.arange(12)), strict=True))
    for _ in range(2):
        again.checkpoint()
    assert len(list((tmp_path / "files").glob("*.npy"))) == 6  # two files for each of the slots that are still needed
    lost = block(window=3, window_memory=0.0)
    lost.keep_in(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be read"):
        lost.restore(saved["window"])


# Runs ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A training that was left alone."""
    return train(tmp_path_factory.mktemp("whole"))


def test_neighbours_are_shown_once_the_window_is_full(whole: dict[str, Tensor]) -> None:
    share = whole["history"][:, 1]
    assert share[:2].tolist() == [0, 0]
    assert (share[2:] > 0).all()


@pytest.mark.parametrize("window_memory", [1.0, 0.0])
def test_killed_and_continued_ends_with_the_same_numbers(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_memory: float
) -> None:
    for step in (9, 12, 17):  # within an epoch, before the first batch of one, and after a checkpoint of the epoch before
        monkeypatch.setattr(Falling, "fall_at", step)
        with pytest.raises(Killed):
            train(tmp_path, window_memory=window_memory)
    monkeypatch.setattr(Falling, "fall_at", None)
    continued = train(tmp_path, window_memory=window_memory)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items() if name != "history")
    assert torch.allclose(whole["history"], continued["history"])
    assert not list((tmp_path / "seed0/adasim").glob("checkpoint*"))  # the window's files go with the checkpoint that needs them


def test_two_processes_equal_one(whole: dict[str, Tensor], tmp_path: Path, processes: Processes) -> None:
    first, second = processes.on_two_ranks(train, tmp_path, 2)
    for name in whole.keys() - {"neighbours.examples.rows"}:  # which each process notes of its own images
        if name.startswith(("neighbours.memory", "window", "loss")):
            assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], whole[name], rtol=1e-4, atol=5e-5)


SMALL = ["--data", "digits", "--subset", "48", "--val-subset", "40", "--batch-size", "16", "--accelerator", "cpu"]
HEADS = ["--host_options", '{"prototypes": 16, "hidden": 32, "bottleneck": 8}']


def test_the_report_shows_neighbours_and_another_run_starts_from_the_backbone(tmp_path: Path) -> None:
    words = [*SMALL, *HEADS, "--image-size", "32", "--student", "timm/test_vit", "--epochs", "3", "--window", "1", "--topk", "3"]
    out = tmp_path / "adasim"
    assert main(["run", "adasim", *words, "--arms", "baseline+ungated", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["pixels", "random", "baseline", "ungated"]
    assert (metrics["baseline"], metrics["primary"]) == ("baseline", "knn")
    shares = [row["train/bootstrap/share"] for row in metrics["stages"]["ungated"][0]["history"]]
    assert shares[0] == 0 < min(shares[1:])
    page = (out / "report.html").read_text()
    assert "Views of other images" in page
    shown = page.partition("Neighbours of the last epoch: ungated")[2].partition("<h2")[0]
    assert "taken" in shown
    assert "over the window" in shown
    again = tmp_path / "again"
    assert main(["run", "adasim", *words, "--arms", "baseline+ungated", "--out", str(out)]) == 0  # finished stages, their pictures too
    assert shown == (out / "report.html").read_text().partition("Neighbours of the last epoch: ungated")[2].partition("<h2")[0]
    start = ["--student", f"timm/test_vit@{out}", "--teacher", "stillroom/convnet4", "--image-size", "32", "--epochs", "1"]
    assert main(["run", "kd", *SMALL, *start, "--out", str(again)]) == 0
    assert "starts from the weights" in json.loads((again / "metrics.json").read_text())["stages"]["distilled"][0]["origin"]


def test_a_window_longer_than_the_training_is_the_baseline_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, *HEADS, "--student", "stillroom/mlp_256_128", "--epochs", "1", "--arms", "adasim"]
    assert main(["run", "adasim", *words, "--out", str(tmp_path)]) == 0
    assert "shows no other image before epoch 51" in capsys.readouterr().out
    assert any("no other image" in one for one in json.loads((tmp_path / "metrics.json").read_text())["notes"])


@pytest.mark.parametrize(
    ("option", "value"), [("host_options", '{"prototype": 4}'), ("arms", "baseline+other"), ("topk", "49"), ("sampling_temperature", "0")]
)
def test_wrong_arguments_are_named_before_anything_is_trained(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "adasim", *SMALL, f"--{option}", value, "--out", str(tmp_path / "run")]) == 2
    assert option in capsys.readouterr().err.replace("-", "_")
    assert not (tmp_path / "run").exists()
