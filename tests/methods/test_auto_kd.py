"""Auto-KD: distillers around one layer or several, sparse candidates, offline teachers, and whole small searches."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Teacher, Training
from stillroom.engine.study.median_pruner import MedianSoFar
from stillroom.engine.study.searches import read_searches
from stillroom.errors import InputError
from stillroom.losses.similarity import linear_cka
from stillroom.methods.auto_kd.candidate import Candidate, sparse_weights
from stillroom.methods.auto_kd.distiller import Aligned, Searched, build, features_of, weigh
from stillroom.methods.auto_kd.offline import Grams, ScoreEvaluator
from stillroom.methods.auto_kd.reward import reward_of
from stillroom.methods.auto_kd.search import WAYS, Proxy, Search, distiller_of, prepare, run_search
from stillroom.methods.auto_kd.space import FULL, SMALL, can_be_trained, composition_of, read_levels
from stillroom.tasks.classification import TASK, Batch, ImageData
from tests.tasks.classification.miniatures import cifar100

SHORT = Training(epochs=3, lr=0.05, milestones=(0.67,))


def net(width: int, stride: int = 1) -> nn.Sequential:
    """Layers 0 and 2 are maps, 4 is the pooled vector, 5 the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def batch(size: int = 8) -> Batch:
    return Batch(torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 4, torch.arange(size))


def searched(student: nn.Module, teacher: nn.Module, distiller: str = "position>l2*3", layer: str = "2", **options: Any) -> Any:
    options = {"student_layer": layer, "teacher_layer": layer, "example": torch.zeros(2, 3, 8, 8), **options}
    return options.pop("kind", Searched)(student, Teacher(teacher, precision="fp32"), distiller=distiller, **options)


# The distiller ----------------------------------------------------------------------------------------------------------------------------


def test_terms_are_cross_entropy_and_the_distance_of_aligned_maps() -> None:
    student, teacher, data = net(6), net(6), batch()
    losses = searched(student, teacher).losses(data)
    torch.testing.assert_close(losses.task["ce"], cross_entropy(student(data.images), data.labels))
    torch.testing.assert_close(losses.distill["distiller"], 3 * mse_loss(student[:3](data.images), teacher.eval()[:3](data.images)))


def test_channels_are_projected_and_the_larger_map_is_averaged_down() -> None:
    ours, theirs = Aligned(6, 10)(torch.randn(2, 6, 8, 4), torch.randn(2, 10, 4, 8))
    assert ours.shape == theirs.shape == (2, 10, 4, 4)
    assert not list(Aligned(6, 6).parameters())
    made = searched(net(6), net(10, stride=2))
    losses = made.losses(batch())
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert {name.split(".")[0] for name in made.state_dict()} == {"student", "aligned"}


def test_several_layers_and_teachers_are_weighed() -> None:
    student, teachers, data = net(6), [net(6), net(6)], batch()
    options: dict[str, Any] = {"layer": "0+2", "more_teachers": [(Teacher(teachers[1], precision="fp32"), "0+2")]}
    weights = [[0.5, 1.5], [0.25, 0.0]]
    loss = searched(student, teachers[0], weights=weights, **options).losses(data).distill["distiller"]
    parts = [[searched(student, teacher, layer=layer).losses(data).distill["distiller"] for layer in ("0", "2")] for teacher in teachers]
    torch.testing.assert_close(loss, sum(w * p for row, of in zip(weights, parts, strict=True) for w, p in zip(row, of, strict=True)))


def test_weights_without_training_favour_what_is_similar_already(digits: ImageData) -> None:
    student, other = (
        TASK.build(f"stillroom/convnet{width}", digits, TASK.networks, trust_pickle=False, argument="student").network for width in (4, 9)
    )
    itself, strange = Teacher(student, precision="fp32"), Teacher(other, precision="fp32")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = weigh(student, "layer2+layer4", [(itself, "layer2+layer4"), (strange, "layer2+layer4")], digits)
    assert sum(map(sum, found)) == pytest.approx(4, abs=1e-4)
    assert sum(found[0]) > sum(found[1])
    assert weigh(student, "layer2+layer4", [(itself, "layer2+layer4"), (strange, "layer2+layer4")], digits) == found
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert weigh(student, "layer4", [(itself, "layer4")], digits) == [[1.0]]


def test_tokens_become_maps_without_those_before_them() -> None:
    tokens = torch.randn(2, 1 + 16, 5)
    (found,) = features_of({"blocks.1": tokens})
    torch.testing.assert_close(found[0, :, 0, 1], tokens[0, 2])
    assert found.shape == (2, 5, 4, 4)
    assert [one.shape for one in features_of({"a": [torch.zeros(2, 3, 4, 4)], "b": torch.zeros(2, 7)})] == [(2, 3, 4, 4), (2, 7, 1, 1)]


def test_a_transformer_learns_from_a_convolutional_network(digits: ImageData) -> None:
    import timm

    student = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=12, depth=1, num_heads=2, num_classes=10)
    teacher = TASK.build("stillroom/convnet4", digits, TASK.networks, trust_pickle=False, argument="teacher").network
    made = build(student, Teacher(teacher, precision="fp32"), digits, distiller="satt>channel>kl4")
    losses = made.losses(digits.train_loader(seed=0).first(4))
    losses.total.backward()
    assert losses.distill["distiller"] > 0
    assert student.patch_embed.proj.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("distiller", {"distiller": "nonsense"}),
        ("student_layer", {"layer": "nowhere"}),
        ("teacher_layer", {"student_layer": "0+2"}),
    ],
)
def test_refuses_what_it_cannot_use(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: "):
        searched(net(6), net(6), **options)


# A candidate ------------------------------------------------------------------------------------------------------------------------------


def test_half_of_the_weights_but_of_the_first_convolution_and_the_classifier(digits: ImageData, tmp_path: Path) -> None:
    student = TASK.build("stillroom/convnet4", digits, TASK.networks, trust_pickle=False, argument="student").network
    weights = sparse_weights(student)
    assert "linear.weight" not in weights
    assert len(weights) == sum(isinstance(module, nn.Conv2d) for module in student.modules()) - 1
    teacher = TASK.build("stillroom/convnet4", digits, TASK.networks, trust_pickle=False, argument="teacher").network
    for death_rate in (0.0, 0.5):
        made = Candidate(
            student,
            Teacher(teacher, precision="fp32"),
            distiller="channel>kl4",
            student_layer="layer4",
            teacher_layer="layer4",
            example=digits.example_inputs(),
            density=0.5,
            death_rate=death_rate,
        )
        first = {name: mask.clone() for name, mask in made._masks.items()}
        scored = digits.derive(f"scored {death_rate}", evaluator=lambda: ScoreEvaluator([[[torch.eye(80)]]], 80))
        lab = Lab(LabOptions(out=tmp_path / str(death_rate), accelerator="cpu", checkpoint_seconds=1e9), quiet=True)
        lab.fit(made, scored, SHORT, name="one")
        for name, weight in sparse_weights(made.student).items():
            assert int((weight != 0).sum()) <= round(weight.numel() / 2)
            assert int(made._masks[name].sum()) == round(weight.numel() / 2)
            assert torch.equal(made._masks[name].cpu(), first[name]) == (death_rate == 0)
        whole = sum(weight.numel() for weight in student.parameters())
        assert made.trained_parameters == whole - sum(weight.numel() - round(weight.numel() / 2) for weight in weights.values())


def test_all_candidates_have_one_mask() -> None:
    first, second = (searched(net(6), net(6), kind=Candidate, density=0.5) for _ in range(2))
    assert all(torch.equal(mask, second._masks[name]) for name, mask in first._masks.items())


def test_scores_do_not_depend_on_the_batches() -> None:
    features, others = torch.randn(300, 5), torch.randn(300, 7)
    logits, labels = torch.randn(300, 4), torch.arange(300) % 4
    grams = Grams(300)
    grams.add([others])
    found = []
    for size in (300, 64):
        evaluator = ScoreEvaluator([grams.found], 300)
        for part in torch.arange(300).split(size):
            evaluator.update((logits[part], [features[part]]), Batch(torch.zeros(1), labels[part], part))
        found.append(evaluator.compute())
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0]["gap"] == pytest.approx(1 - linear_cka(features, others).item(), rel=1e-4)
    assert found[0]["score"] == pytest.approx((cross_entropy(logits, labels).item() + found[0]["gap"]) / 2, rel=1e-5)


def test_rewards_are_bounded() -> None:
    assert reward_of(1.2, 1.2) == 0.5
    assert reward_of(math.nan, 1.2) == reward_of(math.inf, 1.2) == 0
    assert 0 <= reward_of(1e30, 1.2) < 1e-9
    assert reward_of(0.5, 1.2) > reward_of(1.0, 1.2) > 0.5


def test_the_pruner_compares_with_all_that_came_so_far() -> None:
    study = optuna.create_study(pruner=MedianSoFar())
    given_up = []
    for score in (3.0, 1.0, 2.5, 1.5):
        trial = study.ask()
        trial.report(score, 2)
        given_up.append(trial.should_prune())
        study.tell(trial, state=optuna.trial.TrialState.PRUNED) if given_up[-1] else study.tell(trial, score)
    assert given_up == [False, False, True, False]  # 2.5 is worse than the median of 3 and 1; 1.5 better than that of 3, 1 and 2.5


# The space --------------------------------------------------------------------------------------------------------------------------------


def test_levels_and_their_options() -> None:
    assert math.prod(map(len, FULL.values())) == 2520
    assert math.prod(map(len, SMALL.values())) == 576
    assert read_levels(None) is FULL
    mine = read_levels({"weight": [1, 2], "normalise": ["none", "unit"], "distance": ["l1"]})
    assert list(mine) == ["global", "intra", "inter", "normalise", "distance", "weight"]
    assert str(composition_of({name: options[-1] for name, options in mine.items()})) == "mask>local4>sample>unit>l1*2"
    assert not can_be_trained(1, {"inter": "sample", "distance": "gl2"})
    assert Search({**FULL}, 10**6, Proxy(SHORT)).candidates(1) == 2520 - 4 * 5 * 6


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"nosuch": [1]}, "space: got nosuch"),
        ({"weight": [0]}, "space.weight: got 0"),
        ({"distance": ["kl3"]}, "space.distance: got kl3"),
        ({"weight": {"low": 1, "high": 2}}, "space.weight"),
        ("huge", "space: got huge"),
    ],
)
def test_refuses_spaces(space: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_levels(space)


def test_searches_by_name() -> None:
    assert read_searches("random, auto-kd", WAYS) == ["random", "auto-kd"]
    for wrong in ("", "nosuch", "random,random"):
        with pytest.raises(InputError, match="searches"):
            read_searches(wrong, WAYS)


# Whole searches ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> tuple[Lab, Any, Search]:
    from dataclasses import replace

    lab = Lab(LabOptions(out=tmp_path_factory.mktemp("auto-kd") / "run", accelerator="cpu", checkpoint_seconds=1e9), quiet=True)
    networks = replace(TASK.networks, teacher="stillroom/convnet4", student="stillroom/convnet3")
    taught = Experiment(lab, digits, Training(epochs=1), networks).teacher()
    search = Search(SMALL, 5, Proxy(SHORT, share=0.75), finalists=2)
    return lab, taught, search


def stand(bench: tuple[Lab, Any, Search], digits: ImageData, **proxy: Any) -> Any:
    from dataclasses import replace

    lab, taught, search = bench
    search = replace(search, proxy=replace(search.proxy, **proxy))
    return prepare(lab, digits, search, "stillroom/convnet3", [taught], None, None, "equal")


def test_a_search_is_kept_and_a_longer_one_goes_on(bench: tuple[Lab, Any, Search], digits: ImageData) -> None:
    from dataclasses import replace

    lab, _, search = bench
    ground = stand(bench, digits)
    found = run_search("auto-kd", search, lab, ground)
    assert len({distiller_of(trial) for trial in found.trials}) == 5
    assert found.noted("teacher_images") == 0
    assert ground.asked == 120  # three quarters of 160 images, each asked about once
    assert found.distiller in found.finals
    assert found.finals[found.distiller] == min(found.finals.values())
    assert 0 < ground.trained_parameters[0] < ground.trained_parameters[1]
    assert not list(lab.folder.glob("**/trials/**/*.safetensors"))
    again = stand(bench, digits)
    assert again.baseline == ground.baseline
    assert run_search("auto-kd", search, lab, again).trials == found.trials
    longer = run_search("auto-kd", replace(search, trials=6), lab, again)
    assert longer.trials[:5] == found.trials
    with pytest.raises(InputError, match="begun otherwise"):
        run_search("auto-kd", replace(search, explore=1.0), lab, ground)


def test_candidates_do_not_see_what_judges_them(bench: tuple[Lab, Any, Search], digits: ImageData) -> None:
    held = Proxy(SHORT, share=0.75).images(digits)
    assert (held.train_size, len(held.val_labels)) == (96, 24)
    assert not set(held.indices["train"]) & set(held.indices["held out"])
    assert held.augment == "none"


def test_an_online_teacher_gives_what_its_stored_answers_give(bench: tuple[Lab, Any, Search], digits: ImageData) -> None:
    offline, online = stand(bench, digits).training, stand(bench, digits, offline=False, views=1).training
    online.data = offline.data  # the same images without random changes
    first, second = (training.train("same", "channel>kl4*1")[0]["score"] for training in (offline, online))
    assert first == pytest.approx(second, rel=2e-3)  # answers are stored in half precision
    assert (offline.asked, online.asked) == (0, 1)


# The command ------------------------------------------------------------------------------------------------------------------------------

TINY = ["--data", "digits", "--subset", "160", "--val-subset", "60", "--student", "stillroom/convnet3", "--teacher", "stillroom/convnet4"]
TINY += ["--epochs", "1", "--trials", "3", "--proxy-share", "0.75", "--proxy-epochs", "2", "--finalists", "1", "--space", "small"]


def test_both_searches_have_as_many_trials_and_one_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", "auto-kd", *TINY, "--out", str(out)]) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert list(report["stages"]) == ["teacher", "alone", "random", "auto-kd"]
    assert {report["stages"][arm][0]["metrics"]["trials"] for arm in ("random", "auto-kd")} == {3}
    page = (out / "report.html").read_text()
    for words in ("The search", "Best candidates of auto-kd", "The tree", "mean reward", "images trained on"):
        assert words in page, words
    found = re.search(r"Monte Carlo tree search\): (\S+), the best of 3", page.replace("&gt;", ">"))
    assert found is not None
    teacher = ["--teacher", str(out / "teacher")]
    more = ["--data", "digits", "--subset", "160", "--val-subset", "60", "--student", "stillroom/convnet3", "--epochs", "1"]
    again = ["run", "searched", *more, *teacher, "--distiller", found[1], "--more-teachers", str(out), "--out", str(tmp_path / "b")]
    assert main([*again, "--accept-teacher", "true"]) == 0
    assert list(json.loads((tmp_path / "b/metrics.json").read_text())["stages"]) == ["teacher", "teacher 2", "alone", "distilled"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--searches", "nosuch"], "--searches: got nosuch"),
        (["--space", "{nosuch: [1, 2]}"], "--space: got nosuch"),
        (["--proxy-share", "0"], "--proxy-share: got 0"),
        (["--density", "0"], "--density: got 0"),
        (["--pruner", "nosuch"], "--pruner: got nosuch"),
        (["--held-out", "1"], "--held-out: got 1"),
        (["--trials", "0"], "--trials: got 0"),
        (["--devices", "2"], "--devices: got 2.*--jobs"),
        (["--teacher", "cache:nowhere"], "--teacher: got cache:nowhere"),
        (["--more-teachers", "stillroom/convnet4"], "--more-teachers: got stillroom/convnet4"),
        (["--storage", "nosuch://x"], "--storage: got nosuch"),
    ],
)
def test_wrong_input_is_said_before_anything_is_trained(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "auto-kd", *TINY, *options, "--out", str(tmp_path / "run")]) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "run").exists()


def test_a_wrong_distiller_is_said_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "searched", "--data", "digits", "--distiller", "channel>kl3", "--out", str(tmp_path / "run")]) == 2
    assert "'kl3', which is no such word" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_by_their_pyramid_and_segmenters_by_their_maps(task: str, tmp_path: Path) -> None:
    data = {"detection": "scenes:size=32,train=8,val=8,teacher=8", "segmentation": ""}[task]
    options = ["--data", data] if data else ["--subset", "8", "--val-subset", "4"]
    options += ["--batch-size", "4", "--epochs", "1", "--teacher-epochs", "1", "--accelerator", "cpu", "--distiller", "channel>kl4*3"]
    assert main(["run", "searched", "--task", task, *options, "--out", str(tmp_path / "run")]) == 0
    line = json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["distilled"][0]["history"][0]
    assert line["train/distiller"] > 0


def test_a_step_of_the_papers_setting_on_the_papers_data(tmp_path: Path) -> None:
    data = f"cifar100:{cifar100(tmp_path / 'cifar')}"
    small = ["--data", data, "--val-subset", "5", "--workers", "0", "--accelerator", "cpu", "--epochs", "1", "--teacher-epochs", "1"]
    small += ["--teacher", "stillroom/resnet8", "--trials", "1", "--proxy-share", "1", "--proxy-epochs", "2", "--finalists", "1"]
    small += ["--held-out", "0.3"]
    assert main(["run", "auto-kd", "--preset", "paper", *small, "--searches", "auto-kd", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stages"]["auto-kd"][0]["metrics"]["trials"] == 1
