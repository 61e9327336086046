"""Teachers as people have them: their answers, inputs and classes; and one that cannot be right is caught before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.engine.lab import Trained
from stillroom.engine.teacher import Teacher
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData, build_classifier
from stillroom.tasks.classification.doubts import doubts, permutation
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.images.configurations import class_names, rows_of

STUDENT = "stillroom/convnet4"


class Brightness(nn.Module):
    """Logits of how dark and how bright an image is, in a form that `answer` gives them."""

    def __init__(self, answer: Callable[[Tensor], Any], classes: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-4, 4, classes))
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images.mean((1, 2, 3))[:, None] * self.scale)


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Fields:
    hidden: Tensor
    logits: Tensor


def features(logits: Tensor) -> Tensor:
    return logits.repeat(1, 4)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda z: (z, features(z)),
    "features first": lambda z: (features(z), z),
    "dictionary": lambda z: {"features": features(z), "logits": z, "shifted": z + 9},
    "another name": lambda z: {"hidden": features(z), "out": z},
    "named tuple": lambda z: Pair(features(z), z),
    "object": lambda z: Fields(features(z), z),
    "nested": lambda z: [{"a": features(z)}, (z,)],
    "maps": lambda z: z[:, :, None, None],
    "one row": lambda z: z.squeeze(0),
}


def module_file(folder: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[int], nn.Module]) -> str:
    """A specification of a network that `make` gives."""
    monkeypatch.setattr(__import__(__name__, fromlist=["made"]), "made", make, raising=False)
    file = folder / "nets.py"
    file.write_text(f"import {__name__} as here\n\ndef build(num_classes):\n    return here.made(num_classes)\n")
    return f"{file}:build"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "p", ("bright", "dark"))


def pictures(root: Path, classes: tuple[str, ...], count: int = 10, size: int = 12) -> Path:
    """Images that are darker from class to class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            level = max(250 - 200 * number // (len(classes) - 1) - index, 0)
            Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(root / name / f"{index}.png")
    return root


def data_of(folder: Path, **options: Any) -> ImageData:
    return ImageData(f"imagefolder:{folder}", batch_size=4, **options)


def taught(spec: str, data: ImageData, out: Path, **options: Any) -> tuple[Lab, Trained]:
    lab = Lab(LabOptions(out=out, teacher_precision="fp32"))
    return lab, Experiment(lab, data, Training(epochs=1), ClassifierNetworks(spec, STUDENT, **options)).teacher()


# Answers --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_any_answer_and_teach(folder: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(FORMS[form]))
    network = build_classifier(spec, num_classes=2, image_size=12).network
    batch = 1 if form == "one row" else 3
    images = torch.randn(batch, 3, 12, 12)
    expected = Brightness(lambda z: z)(images)
    assert torch.equal(network(images), expected)
    torch.testing.assert_close(Teacher(network, precision="fp32")(images), expected.detach())
    assert torch.equal(network.train()(images), expected)


def test_a_student_with_such_answers_is_exported_for_batches_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(FORMS["dictionary"]))
    network = build_classifier(spec, num_classes=2, image_size=12).network.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(3, 3, 12, 12),), dynamic_shapes=({0: batch},)).module()
    for images in (torch.randn(1, 3, 12, 12), torch.randn(5, 3, 12, 12)):
        torch.testing.assert_close(program(images), network(images))


def test_what_was_taken_of_an_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(FORMS["another name"]))
    (note,) = build_classifier(spec, num_classes=2, image_size=12).notes
    assert note == "it answers with dict of hidden [1, 8], out [1, 2], of which out is taken for its logits"


def test_a_network_that_answers_otherwise_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(classes: int) -> nn.Module:
        return torchvision.models.googlenet(num_classes=classes, aux_logits=True, init_weights=False)

    network = build_classifier(module_file(tmp_path, monkeypatch, make), num_classes=5, image_size=64).network
    assert network.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert network.train()(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_features_alone_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(features))
    with pytest.raises(InputError, match=r"logits \[1, 2\], not with \[1, 8\] \(features want a head .*--teacher-classes\)$"):
        build_classifier(spec, num_classes=2, image_size=12, argument="teacher")


def test_probabilities_are_recognised_and_taken_by_their_logarithm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: z.softmax(1)))
    weights = tmp_path / "w.safetensors"
    bright_first = Brightness(lambda z: z)
    bright_first.scale.data.neg_()
    save_weights(bright_first, weights)
    data = data_of(folder)
    _, plain = taught(f"{spec}@{weights}", data, tmp_path / "plain")
    assert any("WARNING: the teacher: it answers with probabilities" in note for note in plain.notes)
    assert "WARNING: it answers with probabilities" in capsys.readouterr().out
    lab, logs = taught(f"{spec}@{weights}", data, tmp_path / "logs", teacher_answers="probabilities")
    assert logs.notes == ()
    save_weights(bright_first, weights)
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: z))
    with pytest.raises(InputError, match=r"teacher_answers: got probabilities of a teacher whose answers go from -"):
        taught(f"{spec}@{weights}", data, tmp_path / "no", teacher_answers="probabilities")
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: (z + 1).sigmoid()))
    _, squashed = taught(f"{spec}@{weights}", data, tmp_path / "squashed")
    assert any("all numbers from 0 to 1, as behind a sigmoid" in note for note in squashed.notes)
    assert logs.result.metrics["nll"] < plain.result.metrics["nll"]
    batch = next(iter(data.eval_loader()))
    expected = bright_first(batch.images).log_softmax(1)
    torch.testing.assert_close(lab.teach(logs)(batch).log_softmax(1), expected.detach(), rtol=1e-4, atol=1e-4)
    assert lab.teach(logs).fingerprint() != lab.teach(plain).fingerprint()


# Inputs ---------------------------------------------------------------------------------------------------------------------------------

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def vit(path: Path, size: int) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=2, img_size=size).state_dict(), path)
    return path


def test_statistics_are_those_of_the_models_configuration(folder: Path, tmp_path: Path) -> None:
    weights = vit(tmp_path / "vit.pth", 32)
    data = data_of(folder, image_size=32)
    lab, found = taught(f"timm/test_vit@{weights}", data, tmp_path / "a", accept_teacher=True)
    assert "its images are normalised as timm's configuration of test_vit says: mean [0.5, 0.5, 0.5]" in found.result.origin
    batch, own = next(iter(data.eval_loader())), next(iter(data_of(folder, image_size=32, **HALF).eval_loader()))
    network = build_classifier(f"timm/test_vit@{weights}", num_classes=2, image_size=32).network.eval()
    torch.testing.assert_close(lab.teach(found)(batch), network(own.images).detach(), rtol=1e-3, atol=1e-3)


def test_what_was_typed_wins_and_the_conflict_is_said(folder: Path, tmp_path: Path) -> None:
    weights = vit(tmp_path / "vit.pth", 32)
    data = data_of(folder, image_size=32, teacher_mean=(0.4, 0.4, 0.4))
    _, found = taught(f"timm/test_vit@{weights}", data, tmp_path / "a", accept_teacher=True)
    assert found.renormalise is not None
    assert (found.renormalise.to_mean, found.renormalise.to_std) == ((0.4, 0.4, 0.4), HALF["std"])
    assert "timm's configuration of test_vit says otherwise: mean [0.5, 0.5, 0.5]" in found.result.origin


def test_what_lies_beside_the_weights_is_nearer_than_the_library(folder: Path, tmp_path: Path) -> None:
    weights = vit(tmp_path / "model.bin", 32)
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32], "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": config}))
    _, found = taught(f"timm/test_vit@{weights}", data_of(folder, image_size=32), tmp_path / "a", accept_teacher=True)
    assert found.renormalise is not None
    assert found.renormalise.to_mean == (0.1, 0.2, 0.3)
    assert "timm's configuration of test_vit says otherwise" in found.result.origin


def test_weights_of_a_run_want_that_runs_statistics(folder: Path, tmp_path: Path) -> None:
    stage = tmp_path / "run" / "seed0" / "alone"
    save_weights(build_classifier(STUDENT, num_classes=2).network, stage / "student.safetensors")
    card = {"model": STUDENT, "num_classes": 2, "classes": ["bright", "dark"], "transform": {"mean": [0.3] * 3, "std": [0.2] * 3}}
    (tmp_path / "run" / "student.json").write_text(json.dumps(card))
    spec = f"{STUDENT}@{stage / 'student.safetensors'}"
    _, found = taught(spec, data_of(folder), tmp_path / "a", accept_teacher=True)
    assert found.renormalise is not None
    assert found.renormalise.to_mean == (0.3, 0.3, 0.3)


def test_a_teacher_of_another_image_size_sees_the_students_crop_resized(folder: Path, tmp_path: Path) -> None:
    weights = vit(tmp_path / "vit.pth", 64)
    data = data_of(folder, image_size=32, teacher_image_size=64)
    lab, found = taught(f"timm/test_vit@{weights}", data, tmp_path / "a", accept_teacher=True)
    assert "the student's crops, resized to 64 x 64 pixels (bicubic)" in found.result.origin
    batch = next(iter(data_of(folder, image_size=32, **HALF).eval_loader()))
    larger = nn.functional.interpolate(batch.images, (64, 64), mode="bicubic", antialias=True, align_corners=False)
    network = build_classifier(f"timm/test_vit@{weights}", num_classes=2, image_size=64).network.eval()
    answers = lab.teach(found)(next(iter(data.eval_loader())))
    torch.testing.assert_close(answers, network(larger).detach(), rtol=1e-3, atol=1e-3)
    assert found.result.footprint.macs is not None
    assert data.cache_key["teacher_image_size"] == [64, 64]
    assert "teacher_image_size" not in data_of(folder).cache_key


def test_images_that_are_no_squares(folder: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=2, img_size=(64, 32)).state_dict(), tmp_path / "vit.pth")
    data = data_of(folder, image_size=32, teacher_image_size=(64, 32))
    lab, found = taught(f"timm/test_vit@{tmp_path / 'vit.pth'}", data, tmp_path / "a", accept_teacher=True)
    assert lab.teach(found)(next(iter(data.eval_loader()))).shape == (4, 2)
    with pytest.raises(InputError, match="teacher_image_size"):
        data_of(folder, teacher_image_size=(3, 0))


def test_position_embeddings_are_resampled_as_timm_does_and_said(folder: Path, tmp_path: Path) -> None:
    weights = vit(tmp_path / "vit.pth", 64)
    _, found = taught(f"timm/test_vit@{weights}", data_of(folder, image_size=32), tmp_path / "a", accept_teacher=True)
    assert "resampled for this size of images: pos_embed from [1, 17, 64] to [1, 5, 64]" in found.result.origin
    state = torch.load(weights)
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], (2, 2), num_prefix_tokens=1)
    assert found.network is not None
    torch.testing.assert_close(found.network.state_dict()["pos_embed"], expected)


def test_a_teacher_that_is_trained_here_reads_the_students_images(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher_image_size: got \[64, 64\] .*without weights, expected none"):
        taught(STUDENT, data_of(folder, teacher_image_size=64), tmp_path / "a")


@pytest.mark.parametrize("size", [32, 64])
def test_a_teacher_that_is_fine_tuned_reads_its_own_statistics_and_size(folder: Path, tmp_path: Path, size: int) -> None:
    """And so it does when it teaches, and when a later run takes it as it is."""
    torch.save(timm.create_model("test_vit", num_classes=5, img_size=size).state_dict(), tmp_path / "vit.pth")
    data = data_of(folder, image_size=32, **({} if size == 32 else {"teacher_image_size": size}))
    lab, found = taught(f"timm/test_vit@{tmp_path / 'vit.pth'}", data, tmp_path / "a", teacher_epochs=1)
    assert found.result.epochs == 1
    assert "timm's configuration of test_vit" in found.result.origin
    own = next(iter(data_of(folder, image_size=32, **HALF).eval_loader())).images
    if size != 32:
        own = nn.functional.interpolate(own, (size, size), mode="bicubic", antialias=True, align_corners=False)
    network = build_classifier("timm/test_vit", num_classes=2, image_size=size).network.eval()
    network.load_state_dict(load_file(found.folder / "student.safetensors"))
    answers = network(own).detach()
    torch.testing.assert_close(lab.teach(found)(next(iter(data.eval_loader()))), answers, rtol=1e-3, atol=1e-3)
    if size == 32:
        _, again = taught(str(found.folder), data, tmp_path / "b", accept_teacher=True)
        assert again.renormalise is not None
        assert again.renormalise.to_mean == HALF["mean"]
        assert again.result.metrics["top1"] == found.result.metrics["top1"]


# Transformers ---------------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_transformers(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], id2label={0: "dark", 1: "grey", 2: "bright"})
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model", max_shard_size="2KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 12}, "resample": 3, "do_normalize": True}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    data = data_of(folder)
    lab, found = taught(f"transformers/{tmp_path / 'model'}", data, tmp_path / "a", accept_teacher=True)
    assert "of which logits is taken" in found.result.origin
    assert "of the 3 classes that it answers for the data's 2 are taken, by their names" in found.result.origin
    own = next(iter(data_of(folder, mean=(0.5,) * 3, std=(0.25,) * 3).eval_loader()))
    expected = model(own.images).logits[:, [2, 0]].detach()
    torch.testing.assert_close(lab.teach(found)(next(iter(data.eval_loader()))), expected, rtol=1e-3, atol=1e-3)


# Classes --------------------------------------------------------------------------------------------------------------------------------


def bright_to_dark(path: Path, classes: int) -> Path:
    """Weights of a teacher whose rows go from the darkest to the brightest."""
    save_weights(Brightness(lambda z: z, classes), path)
    return path


def test_rows_are_picked_and_ordered_by_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: z, classes))
    weights, data = bright_to_dark(tmp_path / "w.safetensors", 4), data_of(folder)
    (tmp_path / "names.txt").write_text("Dark\nevening\nmorning\nbright\n")
    lab, found = taught(f"{spec}@{weights}", data, tmp_path / "a", teacher_classes=tmp_path / "names.txt")
    assert found.result.metrics["top1"] == 100
    batch = next(iter(data.eval_loader()))
    expected = Brightness(lambda z: z, 4)(batch.images)[:, [3, 0]].detach()
    torch.testing.assert_close(lab.teach(found)(batch), expected)
    student = build_classifier(STUDENT, num_classes=2).network
    assert torch.isfinite(KD(student, lab.teach(found)).losses(batch).total)
    (tmp_path / "names.txt").write_text("Dark\nevening\nmorning\nnight\n")
    with pytest.raises(InputError, match=r"teacher_classes: got 4 names without bright, expected the names of all the data's classes"):
        taught(f"{spec}@{weights}", data, tmp_path / "b", teacher_classes=tmp_path / "names.txt")
    with pytest.raises(InputError, match=r"teacher_classes: .*without weights"):
        taught(STUDENT, data, tmp_path / "b", teacher_classes=tmp_path / "names.txt")
    assert not (tmp_path / "b").exists()


def test_a_run_that_knows_its_classes_in_another_order(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    network = build_classifier(STUDENT, num_classes=2).network
    save_weights(network, run / "student.safetensors")
    (run / "student.json").write_text(json.dumps({"model": STUDENT, "num_classes": 2, "classes": ["dark", "bright"]}))
    lab, found = taught(str(run), data_of(folder), tmp_path / "a", accept_teacher=True)
    batch = next(iter(data_of(folder).eval_loader()))
    torch.testing.assert_close(lab.teach(found)(batch), network.eval()(batch.images).flip(1).detach(), rtol=1e-4, atol=1e-5)
    assert "its classes are in another order than the data's" in found.result.origin
    with pytest.raises(InputError, match="their order differs"):  # a student is to answer in the data's order
        Experiment(Lab(LabOptions(out=tmp_path / "b")), data_of(folder), Training(epochs=1), Networks("", str(run))).network(
            str(run), "student"
        )


def test_names_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "names"
    for text in ("cat\ndog\n", "\ufeffcat\r\n\r\n dog ", '["cat", "dog"]', '{"1": "dog", "0": "cat"}'):
        file.write_text(text, encoding="utf-8")
        assert class_names(file, "teacher_classes") == ("cat", "dog")
    for text, said in (
        ("cat\ncat\n", "cat twice"),
        ("", "0 names"),
        ("{", "which is JSON"),
        ('{"a": "b"}', "which is JSON"),
        ("[1", "JSON"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=f"^teacher_classes: .*{said}"):
            class_names(file, "teacher_classes")
    assert rows_of(["great white", "b"], ["B", "Great_White"]) == (1, 0)
    assert rows_of(["c", "c++"], ["C++", "C"]) is None
    assert rows_of(["c", "c++"], ["c++", "c"]) == (1, 0)


def test_classes_that_are_numbers_are_suspected_of_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "n", ("1", "10", "2"))
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: z, classes))
    weights = bright_to_dark(tmp_path / "w.safetensors", 3)
    _, found = taught(f"{spec}@{weights}", data_of(folder), tmp_path / "a", accept_teacher=True)
    assert any("the data's classes are numbers, in the order 1, 10, 2; in which its own are" in note for note in found.notes)


# Doubts ---------------------------------------------------------------------------------------------------------------------------------


def details(labels: list[int], predicted: list[int]) -> dict[str, np.ndarray]:
    return {"labels": np.array(labels), "predicted": np.array(predicted)}


@pytest.mark.parametrize(
    ("labels", "predicted", "said"),
    [
        ([0, 1] * 10, [0, 1] * 10, []),
        ([0, 1] * 10, [0] * 20, ["no more than chance (50.0 % with 2 classes)"]),
        ([0, 1] * 10, [1, 0] * 10, ["is right for 0.0 %", "it says a for b, b for a; with them exchanged 100.0 % would be right"]),
        ([0] * 15 + [1] * 5, [0] * 10 + [1] * 5 + [1] * 4 + [0], ["less than who always says a (75.0 %)"]),
        ([0, 1] * 100, [0] * 110 + [1] * 90, ["no more than chance"]),  # 51 %: within two standard errors
        ([0, 1, 2, 3] * 20, [0, 2, 3, 1] * 20, ["no more than chance", "it says b for d, c for b, d for c"]),
        ([0, 1, 2, 3] * 20, [0, 1, 3, 2] * 20, ["is right for 50.0 %", "it says c for d, d for c"]),
        ([0, 1, 2, 3] * 20, [0, 1, 2, 2] * 20, []),
        ([0, 1], [-1, -1], ["is right for 0.0 %"]),
    ],
)
def test_what_is_said_against_a_teacher(labels: list[int], predicted: list[int], said: list[str]) -> None:
    found = doubts(details(labels, predicted), "abcd"[: max(labels) + 1])
    assert len(found) == len(said)
    assert all(words in clause for words, clause in zip(said, found, strict=True))


def test_no_permutation_is_named_that_chance_would_find() -> None:
    random = np.random.default_rng(0)
    for count, images in ((2, 30), (10, 60), (10, 200), (60, 120)):
        for _ in range(20):
            assert permutation(random.integers(0, count, images), random.integers(0, count, images), count) is None


def test_a_bad_teacher_stops_the_run_and_leaves_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.scale = nn.Parameter(torch.tensor([-4.0, 4.0]))\n\n    def forward(self, x):\n"
        "        return x.mean((1, 2, 3))[:, None] * self.scale\n\n\ndef build(num_classes):\n    return Net()\n"
    )
    weights = bright_to_dark(tmp_path / "w.safetensors", 2)
    words = ["run", "kd", "--data", f"imagefolder:{folder}", "--epochs", "1", "--batch-size", "4", "--student", STUDENT, "--seeds", "1"]
    words += ["--teacher", f"{tmp_path / 'nets.py'}:build@{weights}", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "which is right for 0.0 % of the validation images, no more than chance" in told.err
    assert "it says bright for dark, dark for bright; with them exchanged 100.0 % would be right" in told.err
    assert told.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main([*words, "--accept-teacher", "true"]) == 0
    told = capsys.readouterr()
    assert "teacher: WARNING: the teacher is right for 0.0 % of the validation images" in told.out
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert any("was accepted all the same" in note for note in report["notes"])
    assert "above its teacher" not in told.out
    (tmp_path / "names.txt").write_text("dark\nbright\n")
    assert main([*words[:-1], str(tmp_path / "named"), "--teacher-classes", str(tmp_path / "names.txt")]) == 0


def test_a_teacher_far_below_the_student_alone_stops_before_it_teaches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = pictures(tmp_path / "many", ("bright", "dark"), count=100)
    # bright is what is brighter than 210: right for 40 % of the bright ones
    spec = module_file(tmp_path, monkeypatch, lambda classes: Brightness(lambda z: -z + torch.tensor([0, 13.2])))
    weights = bright_to_dark(tmp_path / "w.safetensors", 2)
    plan = Training(epochs=3, lr=0.05)

    def run(out: str, **options: Any) -> Any:
        networks = ClassifierNetworks(f"{spec}@{weights}", STUDENT, **options)
        return Experiment(Lab(LabOptions(out=tmp_path / out)), data_of(many), plan, networks).run("kd", {"distilled": KD})

    with pytest.raises(InputError, match=r"far worse than the student alone \(top1 .*\), expected a better one, or --accept-teacher"):
        run("run")
    assert not (tmp_path / "run" / "seed0" / "distilled").exists()
    report = run("run", accept_teacher=True)
    assert any("far worse than the student alone" in note for note in report.notes)
