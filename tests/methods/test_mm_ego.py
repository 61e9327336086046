"""Multimodal distillation: the ensemble and its weights at their edges, caches in teachers' places, the experiment as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Networks, Teacher, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.mm_ego import MultimodalDistiller, MultimodalTeacher, recipe
from stillroom.methods.mm_ego.ensemble import check_present, held_out_weights, present_weights, weights_of_losses
from stillroom.methods.mm_ego.recipe import PRESETS, read_arms
from stillroom.methods.mm_ego.scoring import weights_by_head
from stillroom.methods.mm_ego.teacher import ensemble_logits, uniform
from stillroom.tasks.video import Supervised, VideoBatch, VideoData, build_video_network, load
from tests.tasks.video.miniatures import class_folders, epic, something

HEADS = {"verb": 8, "noun": 6}
SMALL = ("--student", "stillroom/cnn3d2", "--teacher", "stillroom/cnn3d2", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8")
TINY = ("--data", "actions:train=24,val=12", *SMALL, "--accelerator", "cpu")


@pytest.fixture(scope="module")
def data() -> VideoData:
    return VideoData("actions:train=24,val=12", batch_size=8, workers=0)


def network(spec: str = "stillroom/cnn3d2", shape: tuple[int, ...] = (8, 3, 32, 32)) -> nn.Module:
    return build_video_network(spec, HEADS, torch.zeros(1, *shape), frames=8).network


def ensemble(*modalities: str, weights: dict[str, Tensor] | None = None, **options: Any) -> MultimodalTeacher:
    made = {"boxes": ("stillroom/stlt16_1_1", (8, 14, 8))}
    members = {name: Teacher(network(*made.get(name, ())), precision="fp32") for name in modalities}
    equal = uniform(dict.fromkeys(modalities, tuple(HEADS)), tuple(HEADS))
    return MultimodalTeacher(members, ("rgb", "flow", "boxes", "audio"), weights or equal, **options)


# The ensemble ---------------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_a_large_gamma_gives_equal_weights_and_a_small_one_the_best_teacher_alone(seed: int) -> None:
    losses = 3 * torch.rand(4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(weights_of_losses(losses, 1e6), torch.full((4,), 0.25), atol=1e-5, rtol=0)
    assert int(weights_of_losses(losses, 1e-6).argmax()) == int(losses.argmin())
    torch.testing.assert_close(weights_of_losses(losses + 7, 0.5), weights_of_losses(losses, 0.5))


def test_a_teacher_without_the_head_or_the_modality_has_no_say() -> None:
    verb, noun = torch.randn(3, 8), torch.randn(3, 6)
    answers = {"rgb": {"verb": verb, "noun": noun}, "boxes": {"verb": 2 * verb}}
    weights = uniform({name: tuple(one) for name, one in answers.items()}, tuple(HEADS))
    assert {head: known.tolist() for head, known in weights.items()} == {"verb": [0.5, 0.5], "noun": [1, 0]}
    found = ensemble_logits(answers, weights, torch.tensor([[1, 1], [1, 0], [0, 1]]))
    torch.testing.assert_close(found["verb"], verb * torch.tensor([[1.5], [1], [2]]))
    torch.testing.assert_close(found["noun"][:2], noun[:2])
    with pytest.raises(InputError, match=r"1 clip.*the first no. 2"):
        check_present(weights["noun"], torch.tensor([[1, 1], [1, 0], [0, 1]]))
    torch.testing.assert_close(
        present_weights(torch.tensor([0.2, 0.8]), torch.tensor([[1, 1], [0, 1]])), torch.tensor([[0.2, 0.8], [0, 1]])
    )


def test_weights_count_the_clips_that_a_teacher_has_its_modality_of() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    good = 3 * torch.eye(2)[labels]
    logits = torch.stack([good, good], 1)
    logits[2:, 1] = -5 * good[2:]  # where its modality is missing the second one's answers mean nothing
    present = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    torch.testing.assert_close(held_out_weights(logits, labels, 1.0, present), torch.tensor([0.5, 0.5]))
    assert held_out_weights(logits, labels, 1.0)[0] > 0.9
    with pytest.raises(InputError, match="a mean of nothing"):
        held_out_weights(logits[:0], labels[:0], 1.0)
    shared = {"present": torch.ones(4, 1, dtype=torch.bool), "labels.verb": labels}
    with pytest.raises(InputError, match="answers for the head verb"):
        weights_by_head({"rgb": dict(shared)}, ("rgb",), ("verb",), 1.0)
    assert weights_by_head({"rgb": {**shared, "verb": good}}, ("rgb",), ("verb",), 1.0)["verb"].tolist() == [1]


def test_the_ensemble_answers_with_the_mean_of_what_each_says_of_its_own_modality(data: VideoData) -> None:
    teacher = ensemble("rgb", "flow", "boxes")
    batch = next(iter(data.of("rgb", "flow", "boxes").train_loader(seed=0)))
    each = [member.networks[0].eval()(batch.of(name).inputs)["verb"] for name, member in teacher.teachers.items()]
    torch.testing.assert_close(teacher(batch)["verb"], torch.stack(each).mean(0))
    assert not teacher(batch)["verb"].requires_grad


def test_weights_of_every_sample_follow_its_own_losses(data: VideoData) -> None:
    teacher = ensemble("rgb", "flow", scheme="per-sample", weight_temperature=1e-6)
    batch = next(iter(data.of("rgb", "flow").train_loader(seed=0)))
    each = torch.stack([member(batch.of(name))["verb"] for name, member in teacher.teachers.items()], 1)
    best = each.log_softmax(-1)[torch.arange(8), :, batch.labels["verb"]].argmax(1)
    torch.testing.assert_close(teacher(batch)["verb"], each[torch.arange(8), best])


# The student ----------------------------------------------------------------------------------------------------------------------------


def test_a_student_that_answers_as_the_ensemble_has_nothing_to_learn_but_heads_of_weight_0_are_left_alone(data: VideoData) -> None:
    batch = next(iter(data.of("rgb", "flow").train_loader(seed=0)))
    made = MultimodalDistiller(network(), ensemble("flow"), head_weights={"verb": 2.0, "noun": 0.0})
    losses = made.losses(batch)
    losses.total.backward()
    assert made.student.classifiers["noun"].weight.grad is None  # type: ignore[union-attr, index]
    same = network()
    own = MultimodalTeacher({"rgb": Teacher(same)}, data.modalities, uniform({"rgb": tuple(HEADS)}, tuple(HEADS)))
    distilled = MultimodalDistiller(same.eval(), own, head_weights=dict.fromkeys(HEADS, 1.0)).losses(batch)
    assert float(distilled.distill["kd"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"temperature": 0}, "temperature"),
        ({"kd_weight": 0}, "kd_weight"),
        ({"head_weights": {"verb": 0.0, "noun": 0.0}}, "head_weights"),
        ({"head_weights": {"verb": -1.0, "noun": 0.0}}, "head_weights"),
    ],
)
def test_numbers_that_cannot_be_used_are_named(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        MultimodalDistiller(network(), ensemble("rgb"), **{"head_weights": dict.fromkeys(HEADS, 1.0), **options})


def test_arms_are_read_from_words(data: VideoData) -> None:
    assert [arm.name for arm in read_arms(None, data)] == ["rgb", "rgb+flow+boxes, uniform", "rgb+flow+boxes, held-out"]
    for wrong in ("rgb+depth", "rgb:best", "rgb,rgb"):
        with pytest.raises(InputError, match="arms"):
            read_arms(wrong, data)


# The command ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all modalities."""
    out = tmp_path_factory.mktemp("runs") / "mm-ego"
    words = ["--arms", "rgb,flow+boxes:per-sample,rgb+flow+boxes+audio", "--test-views", "[3x1]", "--out", str(out)]
    words += ["--teachers", "{boxes: stillroom/stlt16_1_1, audio: stillroom/spectrum2}"]
    assert main(["run", "mm-ego", *TINY, *words]) == 0
    return out


def test_the_command_ends_with_a_report_and_a_student_of_rgb(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    arms = ["teacher rgb", "teacher flow", "teacher boxes", "teacher audio", "teacher", "alone", "rgb", "flow+boxes, per-sample"]
    assert list(metrics["summary"]) == [*arms, "rgb+flow+boxes+audio, held-out"]
    assert {"top1", "verb top1", "noun top5", "ece", "ece scaled", "top1 3x1"} <= set(metrics["summary"]["rgb"]["metrics"])
    page = (run / "report.html").read_text()
    assert "The ensemble" in page
    assert "Views and cost" in page
    student = load(run)
    assert (student.modality, student.network.backbone.__class__.__name__) == ("rgb", "Convolutions3d")
    indices = json.loads((run / "teacher-flow/indices.json").read_text())
    assert sorted([*indices["train"], *indices["held out"]]) == list(range(24))
    assert len(indices["held out"]) == 5


def test_teachers_of_an_earlier_run_teach_again_and_their_answers_can_be_kept(run: Path, tmp_path: Path) -> None:
    shared = ["--data", "actions:train=24,val=12", *SMALL[4:], "--accelerator", "cpu", "--teacher-precision", "fp32"]
    for name in ("rgb", "flow"):
        words = ["--task", "video", "--modality", name, "--teacher", str(run / f"teacher-{name}"), "--accept-teacher", "true"]
        assert main(["cache", *shared, *words, "--dtype", "fp32", "--views", "2", "--out", str(tmp_path / name)]) == 0
    student = ["--student", "stillroom/cnn3d2", "--arms", "rgb+flow:uniform", "--accept-teacher", "true", "--epochs", "2"]
    caches = ["--teacher", f"cache:{tmp_path / 'rgb'}", "--teachers", f"{{flow: cache:{tmp_path / 'flow'}}}"]
    networks = ["--teacher", str(run / "teacher-rgb"), "--teachers", f"{{flow: {run / 'teacher-flow'}}}"]
    assert main(["run", "mm-ego", *shared, *student, *caches, "--out", str(tmp_path / "cached")]) == 0
    assert main(["run", "mm-ego", *shared, *student, *networks, "--out", str(tmp_path / "asked")]) == 0
    assert main(["run", "mm-ego", *shared, *student, *networks, "--teacher-views", "2", "--out", str(tmp_path / "stored")]) == 0
    asked = read_weights(tmp_path / "asked" / "student.safetensors")
    for name in ("cached", "stored"):
        found = read_weights(tmp_path / name / "student.safetensors")
        for key, value in asked.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3, msg=f"{name} {key}")


def test_clips_without_a_modality_are_taught_by_the_other_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "clips")
    words = ["--data", f"clips:{root}", "--image-size", "16", "--frames", "3", *SMALL, "--accelerator", "cpu", "--workers", "0"]
    assert main(["run", "mm-ego", *words, "--teachers-held-out", "0.5", "--out", str(tmp_path / "run")]) == 0
    assert "Some clips lack a modality" in (tmp_path / "run/report.html").read_text()
    assert main(["run", "mm-ego", *words, "--arms", "flow", "--teachers-held-out", "0.5", "--out", str(tmp_path / "flow")]) == 2
    assert "without the modality of any teacher" in capsys.readouterr().err


# The paper's setting --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "paper:epic"])
def test_the_paper_s_numbers(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "mm-ego", "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {
        "epochs": 30,
        "lr": 1e-4,
        "weight_decay": 0.02,
        "warmup_epochs": 3,
        "clip_norm": 5,
        "temperature": 10,
        "batch_size": 16,
        "teacher_epochs": 30,
    }
    expected |= {"frames": 16} if preset == "paper" else {"frames": 32, "frame_stride": 2, "test_clips": 4}
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(("preset", "written"), [("paper", something), ("paper:epic", epic)])
def test_a_step_of_the_paper_s_networks_on_its_data_in_small(preset: str, written: Any, tmp_path: Path) -> None:
    setting: dict[str, Any] = PRESETS[preset]
    kind = setting["data"].partition(":")[0]
    shape = {name: setting[name] for name in ("frames", "sampling", "frame_stride", "augment") if name in setting}
    data = VideoData(f"{kind}:{written(tmp_path)}", image_size=32, batch_size=2, workers=0, **shape)  # 224 in the paper
    heads = {head: len(names) for head, names in data.heads.items()}
    spec = setting["student"].partition("@")[0]

    def built() -> nn.Module:
        return build_video_network(spec, heads, data.example_inputs(), frames=data.frames, whole=True).network

    taught = [name for name in ("rgb", "flow") if name in data.modalities]
    teacher = MultimodalTeacher(
        {name: Teacher(built()) for name in taught}, data.modalities, uniform(dict.fromkeys(taught, tuple(heads)), tuple(heads))
    )
    made = MultimodalDistiller(built(), teacher, head_weights=dict.fromkeys(heads, 1.0), temperature=setting["temperature"])
    made.plan = Training(**{name: setting[name] for name in ("epochs", "optimizer", "lr", "weight_decay", "schedule", "warmup_epochs")})
    optimizer = made.configure_optimizers()
    losses = made.losses(next(iter(made.training_data(data).train_loader(seed=0))))
    losses.total.backward()
    optimizer.step()
    assert losses.total.isfinite()


# Kills ----------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


def test_killed_in_each_stage_and_continued_ends_with_the_same_numbers(
    data: VideoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = {"steps": 0, "fall_at": 0}

    def falling(made: type[Any]) -> None:
        losses = made.losses

        def counted(self: Any, batch: VideoBatch) -> Losses:
            if self.plan.epochs == 2 and self._place is not None and self.training and len(batch.ids) == 8:
                count["steps"] += 1
                if count["steps"] == count["fall_at"]:
                    raise Killed
            return losses(self, batch)

        monkeypatch.setattr(made, "losses", counted)

    falling(Supervised)
    falling(MultimodalDistiller)

    def run(out: Path, fall_at: int = 0) -> dict[str, Tensor]:
        count.update(steps=0, fall_at=fall_at)
        lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
        plan = Training(epochs=2, optimizer="adamw", lr=1e-3, schedule="linear")
        recipe(lab, data, plan, Networks("stillroom/cnn3d2", "stillroom/cnn3d2"), arms="rgb+flow")
        return read_weights(out / "student.safetensors")

    whole = run(tmp_path / "whole")
    assert count["steps"] == 2 * 2 + 2 * 2 + 3 * 2 + 3 * 2
    for step in (2, 4, 6, 8):  # a step within each stage, counted from where the one before goes on
        with pytest.raises(Killed):
            run(tmp_path / "killed", step)
    continued = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
