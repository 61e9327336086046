"""The Lab's promises: stages are not run twice, a killed run ends with the same numbers, other arguments are refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.run.checkpoints import AtomicCheckpointIO
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, Interrupted, NonFiniteLoss, NonFiniteWeights
from stillroom.methods.dot import DOT
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch, ImageData, Supervised, build_classifier

PLAN = Training(epochs=3, milestones=(0.5,))


class Killed(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


class FallingKD(KD):
    """KD that is killed before a step of the tests' choosing."""

    fall_at: int | None = None

    def losses(self, batch: Batch) -> Losses:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().losses(batch)


def student() -> nn.Module:
    torch.manual_seed(5)
    network = build_classifier("stillroom/convnet4", num_classes=10).network
    return nn.Sequential(network, nn.Dropout(0.1))  # dropout: the step's own randomness must be replayed too


def teacher() -> Teacher:
    torch.manual_seed(6)
    return Teacher(build_classifier("stillroom/convnet24", num_classes=10).network)


def run(out: Path, data: ImageData, *, dot: bool = False, plan: Training = PLAN, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains in `out`; answers the stage's record without times, and the student's weights."""
    lab = Lab(LabOptions(out=out, accelerator="cpu", **{"checkpoint_steps": 2, **options}))
    host = FallingKD(student(), teacher())
    trained = lab.fit(DOT(host) if dot else host, data, plan, name="distilled")
    record = json.loads((trained.folder / "stage.json").read_text())["result"]
    for line in record["history"]:
        del line["seconds"], line["samples_per_second"]
    return {key: record[key] for key in ("metrics", "best", "history", "epochs")}, read_weights(trained.folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    data = ImageData("digits", batch_size=32, subset=160, val_subset=80)
    return {dot: run(tmp_path_factory.mktemp("whole"), data, dot=dot) for dot in (False, True)}


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (5,), (9, 10), (2, 7, 13), (14,)])
def test_killed_run_ends_with_the_same_numbers(
    tmp_path: Path, digits: ImageData, uninterrupted: dict[bool, Any], steps: tuple[int, ...], dot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in steps:  # killed before the first checkpoint, inside an epoch, at its last step, at its first, twice in a row
        monkeypatch.setattr(FallingKD, "fall_at", step)
        with pytest.raises(Killed):
            run(tmp_path, digits, dot=dot)
    monkeypatch.setattr(FallingKD, "fall_at", None)
    record, weights = run(tmp_path, digits, dot=dot)
    expected_record, expected_weights = uninterrupted[dot]
    assert record == expected_record
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


@pytest.mark.parametrize(("seconds", "written"), [(1e9, 0), (1.5, 1), (0, 12)], ids=["never", "once", "at every step"])
def test_checkpoints_on_the_clock_alone(
    tmp_path: Path, digits: ImageData, uninterrupted: dict[bool, Any], seconds: float, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes a second of this clock; the run is killed in its third, and does again what no checkpoint has."""
    saved: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def noted(io: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        saved.append(checkpoint["global_step"])
        save(io, checkpoint, path, storage_options)

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 0.2  # asked after each of an epoch's five steps, and when something is saved
            return cls.now

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    monkeypatch.setattr("stillroom.engine.run.checkpoints.time", Clock)
    monkeypatch.setattr(FallingKD, "fall_at", 12)
    options = {"checkpoint_steps": None, "checkpoint_seconds": seconds}
    with pytest.raises(Killed):
        run(tmp_path, digits, **options)
    assert len(saved) == written
    assert all(after - before <= 5 * (seconds + 1) for before, after in zip([0, *saved], [*saved, 12], strict=True))
    monkeypatch.setattr(FallingKD, "fall_at", None)
    record, weights = run(tmp_path, digits, **options)
    assert saved[-1] == 15
    assert record == uninterrupted[False][0]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[False][1].items())


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(
    tmp_path: Path, digits: ImageData, uninterrupted: dict[bool, Any]
) -> None:
    again, weights = run(tmp_path / "same", digits)
    assert again == uninterrupted[False][0]
    _, other = run(tmp_path / "other", digits, seed=1)
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


def test_finished_stage_is_read_not_run(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    first, weights = run(tmp_path, digits)
    monkeypatch.setattr(FallingKD, "fall_at", 0)  # a single step would raise
    second, again = run(tmp_path, digits)
    assert second == first
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"plan": Training(epochs=4)}, "epochs was 3, now 4"), ({"seed": 3}, "seed was 0, now 3"), ({"dot": True}, "method was")],
)
def test_other_arguments_are_refused_and_named(tmp_path: Path, digits: ImageData, change: dict[str, Any], named: str) -> None:
    lab = Lab(LabOptions(out=tmp_path))
    with lab.shared():  # a folder that does not depend on the seed
        lab.fit(FallingKD(student(), teacher()), digits, PLAN, name="stage")
    changed = Lab(LabOptions(out=tmp_path, seed=change.get("seed", 0)))
    host = FallingKD(student(), teacher())
    with changed.shared(), pytest.raises(InputError, match=named):
        changed.fit(DOT(host) if change.get("dot") else host, digits, change.get("plan", PLAN), name="stage")


def test_networks_built_at_the_same_place_start_equal(tmp_path: Path, digits: ImageData) -> None:
    lab = Lab(LabOptions(out=tmp_path))
    first = build_classifier("stillroom/convnet4", num_classes=10).network
    start = {name: value.clone() for name, value in first.state_dict().items()}
    lab.fit(Supervised(first), digits, Training(epochs=1), name="one")
    second = build_classifier("stillroom/convnet4", num_classes=10).network
    assert all(torch.equal(start[name], value) for name, value in second.state_dict().items())


class ExplodingKD(KD):
    """KD whose distillation loss becomes infinite at step 7."""

    def losses(self, batch: Batch) -> Losses:
        losses = super().losses(batch)
        if self.progress.step == 7:
            losses = Losses(losses.task, {"kd": losses.distill["kd"] * float("inf")})
        return losses


def test_non_finite_loss_stops_naming_step_terms_and_ids_and_keeps_the_last_good_checkpoint(tmp_path: Path, digits: ImageData) -> None:
    lab = Lab(LabOptions(out=tmp_path, checkpoint_steps=2))
    with pytest.raises(NonFiniteLoss) as caught:
        lab.fit(ExplodingKD(student(), teacher()), digits, PLAN, name="distilled")
    assert caught.value.exit_code == 3
    assert caught.value.step == 7
    assert list(caught.value.terms) == ["kd"]
    assert len(caught.value.ids) == 32
    assert "step 7" in str(caught.value)
    assert caught.value.files == [digits.train_name(index) for index in caught.value.ids]
    assert f"the batch's samples are {', '.join(caught.value.files[:5])} and 27 more" in str(caught.value)
    checkpoint = torch.load(tmp_path / "seed0/distilled/last.ckpt", weights_only=False)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


class SteepKD(KD):
    """KD with a term that is finite and has an infinite slope from step 4 on."""

    def losses(self, batch: Batch) -> Losses:
        losses = super().losses(batch)
        if self.progress.step >= 4:  # the last step of the first epoch
            weight = next(self.student.parameters())
            losses = Losses(losses.task, {"kd": losses.distill["kd"] + (weight - weight.detach()).abs().sum().sqrt()})
        return losses


def test_weights_that_a_finite_loss_spoilt_are_never_written(tmp_path: Path, digits: ImageData) -> None:
    lab = Lab(LabOptions(out=tmp_path, checkpoint_steps=2, accelerator="cpu"))
    with pytest.raises(NonFiniteWeights) as caught:
        lab.fit(SteepKD(student(), teacher()), digits, PLAN, name="distilled")
    assert (caught.value.exit_code, caught.value.step) == (3, 4)
    assert not (tmp_path / "seed0/distilled/best.safetensors").exists()
    checkpoint = torch.load(tmp_path / "seed0/distilled/last.ckpt", weights_only=False)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_student_without_a_parameter_to_learn_is_refused(tmp_path: Path, digits: ImageData) -> None:
    frozen = student().requires_grad_(False)
    with pytest.raises(InputError, match=r"student: got Sequential, expected a network that learns"):
        Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(KD(frozen, teacher()), digits, PLAN, name="distilled")


class InterruptedKD(KD):
    """KD during whose eighth step somebody presses Ctrl-C, `presses` times."""

    presses = 1

    def losses(self, batch: Batch) -> Losses:
        if self.progress.step == 7:
            for _ in range(self.presses):
                os.kill(os.getpid(), signal.SIGINT)
        return super().losses(batch)


@pytest.mark.parametrize(
    ("presses", "says"),
    [
        (1, "stopped in epoch 2; everything is saved, the same command goes on"),
        (2, "stopped at once; the same command goes on from the last"),
    ],
)
def test_ctrl_c_once_saves_and_twice_ends_at_once(tmp_path: Path, digits: ImageData, presses: int, says: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    impatient = InterruptedKD(student(), teacher())
    impatient.presses = presses
    with pytest.raises(Interrupted, match=f"^distilled: {says}") as caught:
        Lab(LabOptions(out=tmp_path, accelerator="cpu", checkpoint_steps=5)).fit(impatient, digits, PLAN, name="distilled")
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = torch.load(tmp_path / "seed0/distilled/last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == (8 if presses == 1 else 5)


class Terminated(KD):
    """KD whose whole process group is told to end in its eighth step: the loader's workers are gone first."""

    def losses(self, batch: Batch) -> Losses:
        if self.progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        return super().losses(batch)


def test_a_loader_that_ends_by_the_same_signal_is_no_failure(tmp_path: Path, digits: ImageData) -> None:
    with pytest.raises(Interrupted, match=r"^distilled: stopped at once; the same command goes on from the last"):
        Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(Terminated(student(), teacher()), digits, PLAN, name="distilled")


@pytest.mark.parametrize(("devices", "started", "fits"), [(1, "2", False), (2, "2", True), (2, "4", False), (1, "1", True)])
def test_as_many_processes_as_torchrun_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, started: str, fits: bool
) -> None:
    options = LabOptions(out=tmp_path, devices=devices)
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", started), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    if fits:
        Lab(options)
        return
    with pytest.raises(InputError, match=f"devices: got {devices} .*as many processes in all as torchrun started, {started}"):
        Lab(options)


def test_every_term_lr_and_throughput_is_in_the_history_and_the_events(tmp_path: Path, digits: ImageData) -> None:
    record, _ = run(tmp_path, digits)
    line = json.loads((tmp_path / "seed0/distilled/stage.json").read_text())["result"]["history"][-1]
    assert {"train/ce", "train/kd", "train/total", "lr", "samples_per_second", "val/top1", "seconds"} <= line.keys()
    assert [row["lr"] for row in record["history"]] == pytest.approx([0.05, 0.05, 0.005])
    events = EventAccumulator(str(tmp_path / "seed0/distilled/events")).Reload()
    assert set(events.Tags()["scalars"]) >= {"train/ce", "train/kd", "train/total", "lr", "samples_per_second", "val/top1"}
    written = [[event.value for event in events.Scalars(name)] for name in ("train/kd", "lr", "val/top1")]
    for values, name in zip(written, ("train/kd", "lr", "val/top1"), strict=True):
        assert values == pytest.approx([row[name] for row in record["history"]])


@pytest.mark.usefixtures("kept_checkpoints")
def test_teacher_is_in_no_checkpoint(tmp_path: Path, digits: ImageData) -> None:
    run(tmp_path, digits)
    checkpoint = torch.load(tmp_path / "seed0/distilled/last.ckpt", weights_only=False)
    assert checkpoint["state_dict"].keys() == KD(student(), teacher()).state_dict().keys()
    assert all(name.startswith("student.") for name in checkpoint["state_dict"])


def test_overwrite_discards_the_run_and_nothing_else(tmp_path: Path, digits: ImageData) -> None:
    run(tmp_path, digits)
    (tmp_path / "thesis.tex").write_text("years of work")
    before = (tmp_path / "seed0/distilled/stage.json").stat().st_mtime_ns
    run(tmp_path, digits, overwrite=True)
    assert (tmp_path / "seed0/distilled/stage.json").stat().st_mtime_ns > before
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_refuses_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="discards nothing else"):
        Lab(LabOptions(out=tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.usefixtures("kept_checkpoints")
def test_killed_between_the_last_checkpoint_and_the_record(tmp_path: Path, digits: ImageData, uninterrupted: dict[bool, Any]) -> None:
    run(tmp_path, digits)
    folder = tmp_path / "seed0/distilled"
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({"fingerprint": record["fingerprint"], "finished": False}))
    (folder / "student.safetensors").unlink()
    (folder / "details.npz").unlink()
    again, weights = run(tmp_path, digits)
    assert again == uninterrupted[False][0]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[False][1].items())
