"""KD^3 as a whole: its terms, its choice of images, its run, and what is left of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import stillroom
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Progress, Training
from stillroom.engine.run.recorder import evaluating
from stillroom.engine.weights import read_weights
from stillroom.losses.contrast import nt_xent
from stillroom.methods.kd3 import KD3
from stillroom.methods.kd3.loss import weighted_feature_loss
from stillroom.methods.kd3.recipe import PRESETS
from stillroom.methods.kd3.selection import teacher_weight
from stillroom.tasks.classification import Batch, ImageData
from tests.methods.kd3_job import made, small_data
from tests.methods.kd3_job import main as train
from tests.processes import Processes
from tests.tasks.classification.miniatures import cifar100, classes_of_pictures, picture

SMALL = ("--data", "digits", "--subset", "40", "--val-subset", "20", "--epochs", "2")
SMALL += ("--batch-size", "8", "--accelerator", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


def batch(size: int = 6) -> Batch:
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.full((size,), -1), torch.arange(size))


# The terms -------------------------------------------------------------------------------------------------------------------------------


def test_terms_are_those_of_the_paper(data: ImageData) -> None:
    distiller, shown = made(data, contrast_weight=0.5, contrast_temperature=0.3), batch()
    torch.manual_seed(1)
    losses = distiller.losses(shown)
    assert set(losses.terms) == {"feature", "contrast"}
    assert not losses.task

    again = made(data, contrast_weight=0.5, contrast_temperature=0.3)
    student, (network,) = again.student, again.teacher.networks
    torch.manual_seed(1)
    mixed = again.mix(shown.images)
    maps = [student.map(images) for images in (shown.images, mixed)]
    caught: list[Tensor] = []
    handle = network.get_submodule("layer4").register_forward_hook(lambda module, inputs, output: caught.append(output.detach()))
    logits = [network(images).detach() for images in (shown.images, mixed)]
    handle.remove()
    connected, student_logits = student.connected(maps[0])
    weight = (student_logits - logits[0] + 1e-6).norm(dim=1).sigmoid()
    feature = (weight.view(-1, 1, 1, 1) * (connected - caught[0]).square()).mean()
    torch.testing.assert_close(losses.distill["feature"], feature, rtol=1e-4, atol=1e-6)

    def embedded(head: Any, features: Tensor) -> Tensor:
        return head.linear(features.mean((2, 3)))

    student_views = [embedded(again.student_embedding, features) for features in maps]
    teacher_views = [embedded(again.teacher_embedding, features) for features in caught]
    contrast = 0.5 * (nt_xent(*student_views, 0.3) + nt_xent(*teacher_views, 0.3))
    torch.testing.assert_close(losses.distill["contrast"], contrast, rtol=1e-4, atol=1e-6)


def reached(distiller: KD3, loss: Tensor) -> set[str]:
    names, parameters = zip(*((n, p) for n, p in distiller.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def test_each_term_reaches_its_own_parameters(data: ImageData) -> None:
    distiller = made(data)
    losses = distiller.losses(batch())
    names = {name for name, parameter in distiller.named_parameters() if parameter.requires_grad}
    backbone = {name for name in names if name.startswith("student.backbone.")}
    connector = {name for name in names if name.startswith("student.connector.")}
    assert reached(distiller, losses.distill["feature"]) == backbone | connector
    assert reached(distiller, losses.distill["contrast"]) == names - connector
    assert not any(name.startswith("student.classifier.") for name in names)


def test_the_teachers_contrast_trains_its_embedding_alone_unless_they_cross(data: ImageData) -> None:
    embeddings = [torch.randn(5, 8, requires_grad=True) for _ in range(4)]
    a_s, b_s, a_t, b_t = embeddings
    separate = made(data).contrasts(*embeddings)
    cross = made(data, contrast="cross").contrasts(*embeddings)
    torch.testing.assert_close(separate, nt_xent(a_s, b_s, 0.3) + nt_xent(a_t, b_t, 0.3))
    torch.testing.assert_close(cross - separate, nt_xent(a_s, b_t, 0.3) + nt_xent(a_t, b_s, 0.3))
    own, crossed = (torch.autograd.grad(loss, (a_t, b_t)) for loss in (separate, cross))
    for one, other in zip(own, crossed, strict=True):  # what crosses reaches the student only
        torch.testing.assert_close(one, other)


def test_without_the_contrast_there_is_one_view_and_no_embedding(data: ImageData) -> None:
    passes = {}
    for weight in (0.0, 0.1):
        distiller = made(data, contrast_weight=weight)
        counters = [value for name, value in distiller.student.backbone.named_buffers() if name.endswith("num_batches_tracked")]
        before = counters[0].item()
        losses = distiller.losses(batch())
        passes[weight] = counters[0].item() - before
        assert ("contrast" in losses.terms) == hasattr(distiller, "student_embedding") == bool(weight)
    assert passes == {0.0: 1, 0.1: 2}


def test_a_student_that_feels_as_the_teacher_has_nothing_to_learn(data: ImageData) -> None:
    distiller = made(data, contrast_weight=0.0)
    _, features = distiller.teacher.tap("layer4")(batch().images)
    distiller.student.connector.forward = lambda maps: features["layer4"]  # type: ignore[method-assign]
    assert distiller.losses(batch()).distill["feature"] == 0


def test_no_weights_is_a_plain_mean(data: ImageData) -> None:
    distiller = made(data, contrast_weight=0.0)
    _, features = distiller.teacher.tap("layer4")(batch().images)
    plain = weighted_feature_loss(distiller.student.connected(distiller.student.map(batch().images))[0], features["layer4"])
    torch.testing.assert_close(made(data, contrast_weight=0.0, weighted=False).losses(batch()).distill["feature"], plain)


def test_reduced_precision_is_no_matter_for_the_terms(data: ImageData) -> None:
    torch.manual_seed(1)
    full = made(data).losses(batch())
    torch.manual_seed(1)
    distiller = made(data)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = distiller.losses(batch())
    for name, term in reduced.terms.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(full.terms[name].item(), rel=0.3)
    reduced.total.backward()


# The choice ------------------------------------------------------------------------------------------------------------------------------


def chosen(distiller: KD3, epoch: int = 1, epochs: int = 8) -> Tensor:
    distiller.progress = Progress(epoch, epochs)
    torch.manual_seed(0)
    with evaluating(distiller):
        ids = distiller.select()
    assert ids is not None
    return ids


def test_the_choice_is_that_of_the_paper_image_by_image(data: ImageData) -> None:
    distiller = made(data, scoring="plain", cutoff=0.5)
    kept = chosen(distiller, epoch=2)
    alpha = teacher_weight(2, switch_off=4, offset=16 / 3)
    images = torch.cat([shown.images for shown in distiller.training_data(data).scoring_loader(seed=0, plain=True)])
    with evaluating(distiller):
        z = alpha * distiller.teacher(images) + (1 - alpha) * distiller.student(images)
    confidence, labels = z.softmax(1).max(1)
    counts = labels.bincount(minlength=10) / labels.bincount().max()
    threshold = 0.5 * counts / (2 - counts)
    assert kept.tolist() == [i for i in range(len(z)) if confidence[i] > threshold[labels[i]]]
    assert 2 < len(kept) < len(z)


def test_the_choice_follows_the_random_changes_and_the_plain_one_does_not(data: ImageData) -> None:
    for scoring, equal in (("changed", False), ("plain", True)):
        distiller, kept = made(data, scoring=scoring, cutoff=0.5), []
        for seed in (1, 1, 2):
            distiller.progress = Progress(1, 8)
            torch.manual_seed(seed)
            with evaluating(distiller):
                ids = distiller.select()
            assert ids is not None
            kept.append(ids.tolist())
        assert kept[0] == kept[1]
        assert (kept[0] == kept[2]) == equal


def test_a_teacher_without_a_say_is_not_asked(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller, asked = made(data), []
    monkeypatch.setattr(type(distiller.teacher), "__call__", lambda self, images: asked.append(1) or torch.zeros(len(images), 10))
    chosen(distiller, epoch=3)
    assert asked
    asked.clear()
    chosen(distiller, epoch=4)
    assert not asked


def test_where_nothing_is_sure_a_batch_of_the_surest_is_shown_with_a_warning(data: ImageData, caplog: pytest.LogCaptureFixture) -> None:
    distiller = made(data, cutoff=1.0)
    with torch.no_grad():
        distiller.student.classifier.weight.zero_()
    with caplog.at_level(logging.WARNING):
        assert len(chosen(distiller, epoch=8)) == 16
    assert "no web image was sure enough; the 16 surest are shown" in caplog.text


def test_no_selection_shows_all(data: ImageData) -> None:
    assert made(data, selection=False).select() is None


# A run -----------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


class Falling(KD3):
    """KD^3 that is killed before a step of the tests' choosing."""

    fall_at: tuple[int, int] | None = None
    steps: int = 0

    def select(self) -> Tensor | None:
        type(self).steps = 0
        return super().select()

    def losses(self, batch: Batch) -> Any:
        if (self.progress.epoch, type(self).steps) == type(self).fall_at:
            raise Killed
        type(self).steps += 1
        return super().losses(batch)


def fit(out: Path, data: ImageData, *, steady: bool, epochs: int = 4) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    distiller = made(data, steady=steady, kind=Falling, cutoff=0.5, switch_off=3.0, offset=200.0)
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
    trained = lab.fit(distiller, distiller.training_data(data), Training(epochs=epochs), name="kd3")
    record = json.loads((trained.folder / "stage.json").read_text())["result"]
    for line in record["history"]:
        del line["seconds"], line["samples_per_second"]
    kept = json.loads((trained.folder / "selection.json").read_text())
    return {key: record[key] for key in ("metrics", "best", "history")}, read_weights(trained.folder), kept


@pytest.mark.parametrize("steady", [False, True])
def test_a_killed_run_ends_with_the_same_numbers(data: ImageData, tmp_path: Path, steady: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    record, weights, kept = fit(tmp_path / "whole", data, steady=steady)
    sizes = [entry["kept"] for entry in kept.values()]
    assert len(sizes) == 4
    assert len(set(sizes)) > 1
    for place in ((1, 0), (1, 1), (2, 0), (2, 3)):
        monkeypatch.setattr(Falling, "fall_at", place)
        with pytest.raises(Killed):
            fit(tmp_path / "killed", data, steady=steady)
    monkeypatch.setattr(Falling, "fall_at", None)
    again = fit(tmp_path / "killed", data, steady=steady)
    assert again[0] == record
    assert again[2] == kept
    assert all(torch.equal(again[1][name], value) for name, value in weights.items())


def test_two_processes_choose_what_one_does(tmp_path: Path, processes: Processes) -> None:
    """Batch norm and the contrast see each process's own share, so that only the first choice, before any step, is that of one process."""
    train(tmp_path / "one", 1)
    processes.on_two_ranks(train, tmp_path / "two", 2)
    one, two = (json.loads((tmp_path / out / "seed0/distilled/selection.json").read_text()) for out in ("one", "two"))
    assert one["1"] == two["1"]
    assert 16 < one["1"]["kept"] < 83
    assert [entry["of"] for entry in two.values()] == [83, 83]


# The command -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A user's things: a labelled set of letters, a teacher trained on it, and a pile of other pictures, of which one is broken."""
    root = tmp_path_factory.mktemp("user")
    classes_of_pictures(root / "letters", "abc", count=8)
    for number in range(30):
        picture(root / "pile" / str(number % 4) / f"{number}.jpg", (8 * number, 200 - 5 * number, 3 * number), (20 + number, 30))
    (root / "pile" / "broken.jpg").write_text("broken")
    common = ("--data", f"imagefolder:{root / 'letters'}", "--batch-size", "8", "--accelerator", "cpu", "--workers", "0")
    teacher = ("--student", "stillroom/wrn_16_1", "--epochs", "1", "--out", str(root / "teacher"))
    assert main(["run", "supervised", *common, *teacher]) == 0
    options = ("--teacher", str(root / "teacher"), "--student", "stillroom/resnet8", "--epochs", "2", "--unlabelled", str(root / "pile"))
    options += ("--accept-teacher", "true")  # after one epoch it may be no better than chance
    assert main(["run", "kd3", *common, *options, "--out", str(root / "run")]) == 0
    return {"root": root, "run": root / "run", "pile": root / "pile"}


def test_a_users_run_leaves_a_student_that_can_be_used(user: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = user["run"]
    card = json.loads((run / "student.json").read_text())
    assert card["model"].startswith("shared:stillroom/resnet8,layer=layer3,channels=64,size=3x3,factor=2")
    loaded = stillroom.load(run)
    teacher = stillroom.load(user["root"] / "teacher").network
    assert torch.equal(loaded.network.classifier.weight, teacher.fc.weight)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.classify(Image.new("RGB", (30, 20)))[0] in loaded.classes
    assert main(["predict", str(run), str(user["pile"] / "0" / "0.jpg")]) == 0
    for format in ("torch", "safetensors"):
        assert main(["export", str(run), "--format", format, "--out", str(tmp_path / f"student.{format}")]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "kd", "kd3"]
    record = json.loads((run / "seed0/kd3/selection.json").read_text())
    assert [record[epoch]["of"] for epoch in ("1", "2")] == [30, 30]


def test_the_students_run_can_be_distilled_into_again(user: dict[str, Path], tmp_path: Path) -> None:
    common = ("--data", f"imagefolder:{user['root'] / 'letters'}", "--batch-size", "8", "--accelerator", "cpu", "--workers", "0")
    options = ("--teacher", str(user["run"]), "--student", str(user["run"]), "--unlabelled", str(user["pile"]), "--epochs", "1")
    options += ("--accept-teacher", "true")
    assert main(["run", "kd3", *common, *options, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/student.json").read_text())["model"].startswith("shared:shared:stillroom/resnet8,")
    assert stillroom.load(tmp_path / "again").classes == ("a", "b", "c")


def test_it_is_compared_with_others(tmp_path: Path) -> None:
    assert main(["compare", "kd", "kd3", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert set(json.loads((tmp_path / "run/metrics.json").read_text())["summary"]) == {"teacher", "alone", "kd", "kd3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unlabelled", "nowhere"), "--unlabelled: got nowhere, expected a folder or a zip file that exists"),
        (("--cutoff", "0"), "--cutoff: got 0.0, expected a number above 0 and up to 1"),
        (("--mix-beta", "0"), "--mix-beta: got 0.0, expected a finite number above 0"),
        (("--contrast", "both"), "--contrast: got both, expected one of separate, cross"),
        (("--unlabelled-augment", "crop"), "--unlabelled-augment: got crop, expected one of cifar"),
        (
            ("--student", "timm/test_vit", "--image-size", "32"),
            "--student-layer: got nothing, expected the module path of the last feature map",
        ),
        (
            ("--teacher-layer", "layer1"),
            "--teacher-classifier: got fc, expected what makes the logits of the average over pixels of layer1",
        ),
        (("--student-layer", "layr4"), "--student-layer: got 'layr4', expected a module path of the model"),
        (("--factor", "0"), "--factor: got 0, expected a whole number of at least 1"),
        (("--switch-off", "0"), "--switch-off: got 0.0, expected a finite number above 0"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "kd3", *SMALL, *options, "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_cache_is_no_teacher_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ("--data", "digits", "--subset", "40", "--val-subset", "20", "--epochs", "1")
    cache += ("--accelerator", "cpu", "--out", str(tmp_path / "cache"))
    assert main(["cache", *cache]) == 0
    capsys.readouterr()
    options = ("--teacher", f"cache:{tmp_path / 'cache'}", "--out", str(tmp_path / "run"))
    assert main(["run", "kd3", *SMALL, *options, "--batch-size", "64"]) == 2
    assert "expected a network: a cache has no answers to web images" in capsys.readouterr().err


# The paper's numbers ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_the_numbers_are_the_papers(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "kd3", "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {
        "teacher": "stillroom/resnet34",
        "student": "stillroom/resnet18",
        "cutoff": 0.95,
        "switch_off": 120,
        "offset": 160,
        "steepness": 5,
        "factor": 2,
        "mix_beta": 0.1,
        "mix_probability": 1,
        "partners": "random",
        "contrast_temperature": 0.3,
        "contrast_weight": 0.001,
        "contrast": "separate",
        "embed_dim": 128,
        "scoring": "changed",
        "selection": True,
        "weighted": True,
        "equal_updates": False,
        "batch_size": 1024,
        "optimizer": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "epochs": 240,
        "schedule": "multistep",
        "milestones": [150, 180, 210],
        "decay": 0.1,
        "warmup_epochs": 0,
    }
    assert {name: values[name] for name in expected} == expected


def test_a_step_on_the_papers_data(tmp_path: Path) -> None:
    """The paper's networks on CIFAR's files and a folder of web images, in small."""
    for number in range(12):
        picture(tmp_path / "web" / f"n{number % 3}" / f"{number}.JPEG", (20 * number, 99, 10), (32, 32))
    small = ["--data", f"cifar100:{cifar100(tmp_path / 'cifar')}", "--unlabelled", f"imagefolder:{tmp_path / 'web'}", "--epochs", "1"]
    small += ["--batch-size", "4", "--subset", "8", "--val-subset", "5", "--workers", "0", "--accelerator", "cpu"]
    assert main(["run", "kd3", "--preset", "paper:cifar100", *small, "--out", str(tmp_path / "run")]) == 0
    card = json.loads((tmp_path / "run/student.json").read_text())
    assert card["model"] == "shared:stillroom/resnet18,layer=layer4,channels=512,size=4x4,factor=2"
    assert (tmp_path / "run/seed0/kd3/selection.json").exists()
