"""BOSS: what is proposed, who is handed on, what a trial minimises, and whole small searches on digits."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Training
from stillroom.engine.study.searches import read_searches
from stillroom.engine.study.space import Float
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Trial
from stillroom.errors import InputError, StillroomError
from stillroom.methods.boss import BOSS, Search, run_search
from stillroom.methods.boss.parzen import Dimension, Parzen, propose, split
from stillroom.methods.boss.search import COMPARED, WAYS, sampler_of
from stillroom.methods.boss.selection import draw, draw_teacher, ranked
from stillroom.methods.boss.semi import SemiSupervised, pseudo_labels
from stillroom.methods.boss.space import CIFAR, SMALL, plan_of
from stillroom.methods.boss.strength import Moved, strengthened
from stillroom.methods.boss.trial import TrialTraining
from stillroom.tasks.classification import TASK, Batch, ImageData, ViewBatch
from tests.tasks.classification.miniatures import cifar100

PLAN = Training(epochs=2, lr=0.1, schedule="cosine", step_per="epoch")
LOG, FLOAT, INT = Dimension(1e-3, 1.0, log=True), Dimension(-1.0, 3.0), Dimension(64, 256, integer=True)


# The surrogate ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [LOG, FLOAT], ids=["log", "float"])
@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_the_density_is_one_over_the_range(dimension: Dimension, count: int) -> None:
    generator = np.random.default_rng(0)
    low, high = dimension.bounds
    inside = generator.uniform(low, high, count)
    density = Parzen.of(np.exp(inside) if dimension.log else inside, dimension)
    grid = np.linspace(low, high, 20001)
    values = np.exp(density.log_density(np.exp(grid) if dimension.log else grid))
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=1e-4)


def test_whole_numbers_share_the_mass_among_them() -> None:
    density = Parzen.of([64, 64, 100, 256], INT)
    assert np.exp(density.log_density(np.arange(64, 257))).sum() == pytest.approx(1, abs=1e-9)


def test_far_tails_and_equal_observations_are_finite() -> None:
    density = Parzen.of([1e-3] * 40, LOG)
    assert np.isfinite(density.log_density([1e-3, 1.0])).all()
    assert (density.widths > 0).all()


@pytest.mark.parametrize("dimension", [LOG, FLOAT, INT], ids=["log", "float", "int"])
@pytest.mark.parametrize("finished", [0, 12])
def test_proposals_stay_in_the_range_and_ends_can_be_reached(dimension: Dimension, finished: int) -> None:
    generator = np.random.default_rng(1)
    seen = [dimension.outside(np.asarray(generator.uniform(*dimension.bounds))) for _ in range(finished)]
    drawn = [propose(seen, np.arange(finished), dimension, generator) for _ in range(50)]
    assert min(drawn) >= dimension.low
    assert max(drawn) <= dimension.high
    assert not dimension.integer or all(value == int(value) for value in drawn)
    assert propose([], [], Dimension(5, 5, integer=True), generator) == 5
    integers = {propose([], [], Dimension(1, 3, integer=True), generator) for _ in range(60)}
    assert integers == {1, 2, 3}


def test_proposals_gather_where_trials_were_good() -> None:
    generator = np.random.default_rng(2)
    seen = list(np.exp(generator.uniform(math.log(1e-3), 0, 40)))
    drawn = [propose(seen, [-abs(math.log(x / 0.05)) for x in seen], LOG, generator) for _ in range(30)]
    assert 0.02 < np.exp(np.log(drawn).mean()) < 0.12


def test_ties_are_the_earlier_trials_and_a_lacking_dimension_is_left_out() -> None:
    below, above = split([1.0, 2.0, 2.0, 2.0] * 5)
    assert below.tolist() == [1, 2]
    assert len(above) == 18
    assert 0 <= propose([0.5, math.nan] * 8, np.arange(16), Dimension(0, 1), np.random.default_rng(0)) <= 1


def test_the_sampler_serves_optuna_and_ignores_running_trials(tmp_path: Path) -> None:
    def score(trial: Trial) -> float:
        return -abs(math.log10(trial.params["lr"]) + 1.5) + 0.001 * trial.params["batch_size"]

    space = {name: CIFAR[name] for name in ("lr", "batch_size")}
    study = Study(tmp_path, "s", space, partial(sampler_of, "parzen", 5, False), trials=30)
    done = study.run(score)
    late = [abs(math.log10(trial.params["lr"]) + 1.5) for trial in done[15:]]
    assert np.mean(late) < np.mean([abs(math.log10(trial.params["lr"]) + 1.5) for trial in done[:5]])
    again = Study(tmp_path / "again", "s", space, partial(sampler_of, "parzen", 5, False), trials=8)
    running = again.claim()
    assert running is not None
    assert running.params == done[0].params


# Who is handed on -------------------------------------------------------------------------------------------------------------------------


def test_student_and_teacher_are_two_of_the_best() -> None:
    pool = ranked([1.0, 5.0, 3.0, 5.0, 4.0], 3)
    assert pool.tolist() == [1, 3, 4]
    for number in range(30):
        drawn = draw(pool, number)
        assert {drawn.student, drawn.teacher} <= set(pool.tolist())
        assert drawn.student != drawn.teacher
        assert draw(pool, number) == drawn
        assert draw_teacher(pool, number).student is None
    with pytest.raises(InputError, match="two completed trials"):
        draw([3], 0)


# What a trial minimises -------------------------------------------------------------------------------------------------------------------


class Forbidden(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a teacher that counts for nothing is not asked")


def test_alpha_divides_between_labels_and_the_teachers_raw_logits() -> None:
    student, teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    batch = Batch(torch.randn(6, 3, 2, 2), torch.arange(6) % 5, torch.arange(6))
    half = BOSS(student, teacher, alpha=0.5).losses(batch)
    only = BOSS(student, teacher, alpha=0.0).losses(batch)
    logits, taught = student(batch.images), teacher(batch.images)
    torch.testing.assert_close(only.total, (logits - taught).square().mean())
    torch.testing.assert_close(half.total, 0.5 * nn.functional.cross_entropy(logits, batch.labels) + 0.5 * only.total)
    labels = BOSS(student, Forbidden(), alpha=1.0).losses(batch)
    torch.testing.assert_close(labels.total, nn.functional.cross_entropy(logits, batch.labels))
    same = BOSS(student, student, alpha=0.0).losses(batch)
    assert float(same.total.detach()) == 0
    with pytest.raises(InputError, match="alpha"):
        BOSS(student, teacher, alpha=1.5)


def test_m_is_one_minus_momentum() -> None:
    assert plan_of(PLAN, {"m": 1e-3}).momentum == pytest.approx(0.999)
    assert plan_of(PLAN, {"m": 1.0, "batch_size": 64, "alpha": 0.5}).momentum == 0
    assert plan_of(PLAN, {}) == PLAN


# Whole searches ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(digits: ImageData) -> ImageData:
    return digits.holding_out(0.25)


def lab_in(folder: Path) -> Lab:
    lab = Lab(LabOptions(out=folder, accelerator="cpu", checkpoint_seconds=1e9))
    lab.begin()
    return lab


def small(**options: Any) -> Search:
    return Search(**{"space": SMALL, "trials": 6, "warmup_trials": 3, "pool": 2, "startup": 2, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, held: ImageData) -> tuple[Lab, Any]:
    lab = lab_in(tmp_path_factory.mktemp("boss") / "run")
    return lab, run_search("boss", small(), lab, held, PLAN, "stillroom/convnet3")


def test_main_trials_have_a_teacher_and_a_start_and_search_alpha(finished: tuple[Lab, Any]) -> None:
    _, found = finished
    warmup, main_trials = found.trials[:3], found.trials[3:]
    assert [trial.number for trial in found.trials] == [0, 1, 2, 0, 1, 2]  # numbers restart in the main study
    assert all("alpha" not in trial.params and "teacher" not in trial.told for trial in warmup)
    for trial in main_trials:
        assert 0 <= trial.params["alpha"] <= 1
        assert trial.told["student"] != trial.told["teacher"]
        assert trial.told["teacher_images"] == trial.told["images"] > 0
    assert main_trials[0].params["lr"] != warmup[0].params["lr"]
    assert found.best.score == max(trial.score for trial in found.trials)
    assert all(trial.score == max(trial.told["curve"]) for trial in found.trials)


def test_only_weights_that_can_still_be_drawn_are_kept(finished: tuple[Lab, Any]) -> None:
    lab, found = finished
    kept = {path.stem for path in lab.folder.glob("weights/**/*.safetensors")}
    best = [found.trials[int(place)].told["weights"] for place in ranked([trial.score for trial in found.trials], 2)]
    assert set(best) <= kept
    assert len(kept) <= 4  # two of each phase
    assert not list(lab.folder.glob("**/trials/**/*.safetensors"))


def test_a_search_that_is_finished_is_read_and_a_longer_one_goes_on(finished: tuple[Lab, Any], held: ImageData) -> None:
    lab, found = finished
    again = run_search("boss", small(), lab, held, PLAN, "stillroom/convnet3")
    assert again.trials == found.trials
    longer = run_search("boss", small(trials=7), lab, held, PLAN, "stillroom/convnet3")
    assert longer.trials[:6] == found.trials
    assert len(longer.trials) == 7
    with pytest.raises(InputError, match="student was stillroom/convnet3, now stillroom/convnet4"):
        run_search("boss", small(), lab, held, PLAN, "stillroom/convnet4")


def test_a_start_and_a_teacher_are_the_weights_of_the_trials_that_were_drawn(
    tmp_path: Path, held: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    original = TrialTraining._prepare

    def seen(self: TrialTraining, trial: Trial, network: nn.Module, teacher: nn.Module | None) -> bool:
        answer = original(self, trial, network, teacher)
        if self.before is not None:
            assert teacher is not None
            files = {
                f"{phase.study.name}, trial {one.number}": phase.weights.path(one.told["weights"]) for phase, one in self._candidates()
            }
            for role, module in (("student", network), ("teacher", teacher)):
                from safetensors.torch import load_file

                for name, value in load_file(files[trial.told[role]]).items():
                    torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)
            prepared.append((trial.told["student"], {}, {}))
        return answer

    monkeypatch.setattr(TrialTraining, "_prepare", seen)
    run_search("boss", small(trials=5, warmup_trials=2), lab_in(tmp_path / "run"), held, PLAN, "stillroom/convnet3")
    assert len(prepared) == 3


def test_a_trial_that_diverges_is_failed_and_never_drawn(tmp_path: Path, held: ImageData) -> None:
    space = {"lr": Float(1e-3, 1e8, log=True)}
    lab = lab_in(tmp_path / "run")
    found = run_search("boss", small(space=space, trials=8, warmup_trials=5), lab, held, PLAN, "stillroom/convnet3")
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert all("finite" in trial.reason for trial in failed)
    drawn = {trial.told[role].rpartition(" ")[2] for trial in found.trials[5:] for role in ("student", "teacher") if role in trial.told}
    assert not drawn & {str(trial.number) for trial in failed if trial in found.trials[:5]}


def test_without_two_completed_trials_it_says_so(tmp_path: Path, held: ImageData) -> None:
    space = {"lr": Float(1e29, 1e30)}
    with pytest.raises(StillroomError, match="two completed trials"):
        run_search("boss", small(space=space, trials=4, warmup_trials=2), lab_in(tmp_path / "run"), held, PLAN, "stillroom/convnet3")


def test_missing_weights_are_warned_of_and_not_drawn(finished: tuple[Lab, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from stillroom.engine.study.weights import WeightStore
    from stillroom.methods.boss.trial import Phase

    lab, found = finished
    study = Study(lab.folder, "run-seed0-boss", {}, partial(sampler_of, "random", 1, False), trials=1)
    training = TrialTraining(lab.options, 0, {}, None, PLAN, "", WAYS["boss"], 2, Phase(study, WeightStore(tmp_path)))  # type: ignore[arg-type]
    scored = [(training.phase, trial) for trial in found.trials[3:]]
    with pytest.raises(InputError, match="two completed trials"):
        training._drawn(scored, 0)
    assert "weights of 2 trials are missing" in capsys.readouterr().out


# Images without labels, and how far images are changed ------------------------------------------------------------------------------------


def test_only_what_a_network_is_sure_of_becomes_a_label() -> None:
    weak = torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 5.0]], requires_grad=True)
    strong = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0]], requires_grad=True)
    loss = pseudo_labels(weak, strong, 0.9)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 3  # the second is not sure, and counts in the mean
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert weak.grad is None
    assert strong.grad is not None
    assert strong.grad[1].abs().sum() == 0


@torch.no_grad()
def test_semi_supervised_terms_are_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    weak, strong = torch.randn(2, 5, 3, 2, 2, generator=generator).unbind()
    labels = torch.tensor([1, -1, 2, -1, -1])
    batch = ViewBatch((weak, strong), labels, torch.arange(5))
    distiller = SemiSupervised(student, teacher, alpha=0.3, unlabelled_weight=2.0, threshold=0.4)
    found = distiller.losses(batch)
    z, z_strong, z_teacher = student(weak), student(strong), teacher(weak)
    kept = labels >= 0
    assert found.task["ce"].item() == pytest.approx(0.3 * float(nn.functional.cross_entropy(z[kept], labels[kept])), rel=1e-5)
    assert found.task["pseudo"].item() == pytest.approx(0.3 * 2 * float(pseudo_labels(z[~kept], z_strong[~kept], 0.4)), rel=1e-5)
    assert found.distill["consistency"].item() == pytest.approx(0.7 * float((z - z_teacher).square().mean()), rel=1e-5)
    assert not SemiSupervised(student).losses(batch).distill
    none_labelled = SemiSupervised(student).losses(batch._replace(labels=torch.full((5,), -1)))
    assert set(none_labelled.task) == {"pseudo"}
    assert set(SemiSupervised(student).losses(batch._replace(labels=torch.zeros(5, dtype=torch.long))).task) == {"ce"}
    with pytest.raises(InputError, match="weak and a strong view"):
        distiller.losses(Batch(weak, labels, torch.arange(5)))  # type: ignore[arg-type]


def test_images_with_labels_are_an_eighth_of_what_is_shown() -> None:
    data = ImageData("digits,unlabelled=digits", subset=20, batch_size=32)
    shown = SemiSupervised(nn.Flatten()).training_data(data)
    assert shown.unlabelled == 0
    labels = torch.cat([batch.labels for batch in shown.train_loader(seed=0)])
    assert float((labels >= 0).float().mean()) == pytest.approx(1 / 8, abs=0.02)
    batch = next(iter(shown.train_loader(seed=0)))
    assert isinstance(batch, ViewBatch)
    assert not torch.equal(*batch.views)


def test_how_far_an_image_is_changed_is_the_strength() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seeds = np.arange(8)

    def moved(strength: float) -> torch.Tensor:
        change = Moved(strength)
        return change.apply(images, change.draw(seeds, (16, 16)))

    torch.testing.assert_close(moved(0), images / 255, rtol=0, atol=1e-5)
    assert (moved(0.2) - images / 255).abs().mean() < (moved(1) - images / 255).abs().mean()
    change = Moved(1)
    drawn = change.draw(seeds, (16, 16))
    assert torch.equal(change.apply(images[3:4], {name: value[3:4] for name, value in drawn.items()}), moved(1)[3:4])
    data = ImageData("digits", subset=20)
    assert strengthened(data, 0.5).fingerprint != strengthened(data, 0.6).fingerprint
    with pytest.raises(InputError, match="augment_strength"):
        strengthened(data, 2)


def test_dimensions_that_say_nothing_about_the_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, "--out", str(tmp_path / "run")]
    assert main(["run", "boss", *given, "--space", "semi"]) == 2
    assert "--space: got unlabelled_weight" in capsys.readouterr().err
    assert main(["run", "boss", *given, "--data", "digits,unlabelled=digits", "--space", "medical"]) == 2
    assert "--space: got augment_strength" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_searches_over_images_without_labels_and_over_the_strength(tmp_path: Path) -> None:
    semi = [*TINY, "--data", "digits,unlabelled=digits", "--subset", "60", "--batch-size", "128", "--out", str(tmp_path / "semi")]
    assert main(["run", "boss", *semi]) == 0
    report = json.loads((tmp_path / "semi/metrics.json").read_text())
    assert report["stages"]["boss"][0]["metrics"]["teacher images"] > 0
    assert report["stages"]["bo"][0]["metrics"]["images"] > 4 * 800  # of an epoch: those without labels, too
    strength = [*TINY, "--searches", "bo", "--space", "medical", "--out", str(tmp_path / "medical")]
    assert main(["run", "boss", *strength]) == 0
    assert "augment_strength" in (tmp_path / "medical/report.html").read_text()


@pytest.mark.parametrize("preset", ["paper:semi", "paper:medical", "paper:noisy"])
def test_a_search_of_the_papers_other_settings_on_a_miniature(preset: str, tmp_path: Path) -> None:
    data = f"cifar100:{cifar100(tmp_path / 'data')}"
    data += f",unlabelled={data}" if preset == "paper:semi" else ",noise=0.4"
    few = ["--data", data, "--subset", "20", "--val-subset", "10", "--held-out", "0.5", "--workers", "0", "--accelerator", "cpu"]
    few += ["--epochs", "1", "--trials", "3", "--warmup-trials", "2", "--pool", "2", "--searches", "boss", "--batch-size", "8"]
    assert main(["run", "boss", "--preset", preset, *few, "--student", "stillroom/convnet3", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["boss"][0]["metrics"]["trials"] == 3


# The command ------------------------------------------------------------------------------------------------------------------------------

TINY = ["--data", "digits,noise=0.2", "--subset", "120", "--val-subset", "60", "--student", "stillroom/convnet3", "--epochs", "1"]
TINY += ["--trials", "4", "--warmup-trials", "2", "--pool", "2"]


def test_all_arms_have_as_many_trials_and_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = "random,bo,sd,warm-start,teacher,boss"
    out = tmp_path / "run"
    assert main(["run", "boss", *TINY, "--searches", arms, "--sampler", "random", "--out", str(out)]) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert list(report["stages"]) == ["alone", *arms.split(",")]
    assert {arm: stage[0]["metrics"]["trials"] for arm, stage in report["stages"].items()} == {"alone": 1} | dict.fromkeys(
        arms.split(","), 4
    )
    asked = {arm: stage[0]["metrics"]["teacher images"] for arm, stage in report["stages"].items()}
    assert asked["bo"] == asked["random"] == asked["warm-start"] == 0
    assert asked["sd"] > 0
    assert asked["boss"] > 0
    page = (out / "report.html").read_text()
    assert "The search" in page
    assert "Best trials of boss" in page
    assert (out / "student.safetensors").exists()
    assert "best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--warmup-trials", "1"], "--warmup-trials: got 1"),
        (["--pool", "1"], "--pool: got 1"),
        (["--searches", "nosuch"], "--searches: got nosuch"),
        (["--searches", "bo,bo"], "--searches"),
        (["--space", "{nosuch: [1, 2]}"], "--space: got nosuch"),
        (["--sampler", "nosuch"], "--sampler: got nosuch"),
        (["--held-out", "1"], "--held-out: got 1"),
        (["--devices", "2"], "--devices: got 2.*--jobs"),
        (["--storage", "nosuch://x"], "--storage: got nosuch"),
    ],
)
def test_wrong_input_is_said_before_anything_is_trained(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main(["run", "boss", *TINY, *options, "--out", str(tmp_path / "run")]) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "run").exists()


def test_the_papers_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "boss", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {"trials": 128, "warmup_trials": 32, "pool": 8, "epochs": 164, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    expected |= {"batch_size": 128, "schedule": "cosine", "step_per": "epoch", "startup": 10, "seed": 888, "sampler": "parzen"}
    assert {name: values[name] for name in expected} == expected


def test_a_step_of_the_papers_network_on_the_papers_data(tmp_path: Path) -> None:
    data = f"cifar100:{cifar100(tmp_path / 'cifar')}"
    images = ImageData(data, batch_size=4, subset=10)
    network = TASK.build("stillroom/vgg16_five_pools", images, TASK.networks, trust_pickle=False, argument="student").network
    assert network.pool[0](network.block4(torch.zeros(1, 512, 2, 2))).shape == (1, 512, 1, 1)
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == 5
    small_run = ["--data", data, "--subset", "12", "--val-subset", "5", "--held-out", "0.5", "--workers", "0", "--accelerator", "cpu"]
    small_run += [
        "--epochs",
        "1",
        "--trials",
        "3",
        "--warmup-trials",
        "2",
        "--pool",
        "2",
        "--searches",
        "boss",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["run", "boss", "--preset", "paper", *small_run]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["boss"][0]["metrics"]["trials"] == 3


def test_searches_by_name() -> None:
    assert read_searches("bo, boss", COMPARED) == ["bo", "boss"]
    assert read_searches(["sd"], COMPARED) == ["sd"]
    for wrong in ("", "alone", "bo,bo"):
        with pytest.raises(InputError, match="searches"):
            read_searches(wrong, COMPARED)
