"""`stillroom export` and `stillroom predict`, and the page that tells what to do with the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import stillroom
from stillroom.commands import export, predict
from stillroom.engine.export import SUFFIXES
from stillroom.engine.weights import save_weights
from stillroom.errors import StillroomError
from stillroom.tasks.classification import ImageData, build_classifier
from stillroom.tasks.classification.task import TASK
from stillroom.tasks.images.folders import find_images
from tests.tasks.classification.miniatures import pictures_of_every_mode

PAGE = Path(__file__).parents[1] / "docs" / "use-the-student.md"
BLOCKS = re.findall(r"<!-- a test runs this block -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def finished_run(folder: Path, model: str, size: int, augment: str | None = None) -> Path:
    """What a run leaves of its student, without the training: random weights and statistics that make logits differ."""
    torch.manual_seed(0)
    data = ImageData("digits", image_size=size, augment=augment)
    network = build_classifier(model, num_classes=10, image_size=size).network
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average of what comes
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, size, size))
        head = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        nn.init.normal_(head.weight, std=0.3)
    save_weights(network, folder / "student.safetensors")
    TASK.ship(folder, network.eval(), model, data)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "kd", "stillroom/convnet4", 8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five digits, two of them deeper down and one hidden; and what is no image."""
    data, root = ImageData("digits"), tmp_path / "photos"
    for i, name in enumerate(("1.png", "2.png", "deep/[red]3.PNG", "deep/4.png", ".hidden/5.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data.val_image(i).save(root / name)
    (root / "notes.txt").write_text("not an image")
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("stillroom/convnet4", 8),
        ("stillroom/shufflenetv2", 32),
        ("stillroom/wrn_16_2", 16),
        ("timm/test_resnet", 32),
        ("timm/test_vit", 32),
    ],
)
def test_students_are_exported_to_onnx(model: str, size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "run", model, size)
    export.run([str(run)], "stillroom export")
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"{run / 'student.onnx'}: ")
    found = re.search(r"difference from the student's logits: (\S+) \(batches of 1 and 5; logits up to (\S+); tolerance 0\.0001\)\n$", out)
    assert found is not None, out
    assert float(found[1]) <= 1e-4
    assert float(found[2]) > 0.01, "logits so small that every tolerance is kept"


def test_every_format_says_what_it_is(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = files(run)
    for format in SUFFIXES:
        export.run([str(run), "--format", format], "")
    after = files(run)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"student.onnx", "student.pt2", "student_described.safetensors"}
    about = dict.fromkeys(("task", "classes", "transform", "model", "stillroom"), "")
    torch.export.load(run / "student.pt2", extra_files=about)
    card = json.loads((run / "student.json").read_text())
    assert about["task"] == "classification"
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(about["transform"]) == card["transform"]
    assert about["model"] == "stillroom/convnet4"
    assert about["stillroom"] == stillroom.__version__
    for name in ("student_described.safetensors", "student.safetensors"):
        assert build_classifier(f"stillroom/convnet4@{run / name}", num_classes=10).weights == str(run / name)


def test_a_network_of_the_users_file_is_named_without_its_folder(tmp_path: Path) -> None:
    source = "from torch import nn\ndef build(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n"
    (tmp_path / "nets.py").write_text(source.replace("LazyLinear(", "Linear(192, "))
    run = finished_run(tmp_path / "run", f"{tmp_path / 'nets.py'}:build", 8)
    export.run([str(run), "--format", "torch", "--out", str(tmp_path / "out.pt2"), "--trust-code"], "")
    about = {"model": ""}
    torch.export.load(tmp_path / "out.pt2", extra_files=about)
    assert about["model"] == "nets.py:build"


def test_out_is_a_file_or_a_folder(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, written in ((tmp_path, "student_described.safetensors"), (tmp_path / "new" / "mine", "new/mine")):
        export.run([str(finished), "--format", "safetensors", "--out", str(out)], "")
        assert capsys.readouterr().out.startswith(f"{tmp_path / written}: ")
        assert (tmp_path / written).is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "--format", "onxx"], 2, "--format: got onxx, expected one of onnx, torch, safetensors"),
        (["RUN", "--tolerance", "-1"], 2, "--tolerance: got -1.0"),
        (["RUN", "--tolerance", "small"], 2, "--tolerance: invalid float value: 'small'"),
        (["RUN", "--form", "onnx"], 2, "unrecognized arguments: --form"),
        (["RUN", "--format", "safetensors", "--out", "RUN/student.json/x"], 2, "--out: got "),
        (["RUN/absent"], 2, "the folder of a finished run"),
        (["RUN", "--tolerance", "1e-30"], 1, "more than the tolerance of 1e-30; nothing was written"),
        ([], 2, "required: RUN"),
    ],
)
def test_exports_that_are_refused(arguments: list[str], code: int, message: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(StillroomError) as raised:
        export.run([argument.replace("RUN", str(run)) for argument in arguments], "")
    assert raised.value.exit_code == code
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("style", [None, "imagenet"])
def test_the_page_tells_how_to_use_the_files(
    style: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's preprocessing gives what the student's own gives, of a photograph that is not square."""
    run = finished_run(tmp_path / "runs" / "kd", "stillroom/convnet4", 28, style)
    Image.effect_noise((131, 80), 90).convert("RGB").save(tmp_path / "photo.jpg")
    for format in ("onnx", "torch"):
        export.run([str(run), "--format", format], "")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with_onnx, with_torch = BLOCKS
    told: dict[str, object] = {}
    exec(compile(with_onnx, str(PAGE), "exec"), told)
    student = stillroom.load(run)
    assert capsys.readouterr().out.split() == student.classify(tmp_path / "photo.jpg")
    logits = torch.from_numpy(told["logits"])
    torch.testing.assert_close(logits.softmax(-1), student.probabilities(tmp_path / "photo.jpg"), atol=1e-5, rtol=0)
    files = pictures_of_every_mode(tmp_path / "modes")
    (logits_BC,) = told["session"].run(None, {"images": np.stack([told["prepare"](str(file)) for file in files])})  # type: ignore[attr-defined, operator]
    torch.testing.assert_close(torch.from_numpy(logits_BC).softmax(-1), student.probabilities(*files), atol=1e-5, rtol=0)
    exec(compile(with_torch, str(PAGE), "exec"), told)
    assert np.shape(told["logits"]) == (8, 10)


def test_images_are_predicted_in_a_table(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.run([str(finished), str(photos)], "")
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["file", "class", "confidence", "runner-up"]
    names = [photos / name for name in ("1.png", "2.png", "deep/4.png", "deep/[red]3.PNG")]
    assert [row.split()[0] for row in rows] == [str(name) for name in names]
    assert [row.split()[1] for row in rows] == stillroom.load(finished).classify(*names)
    assert re.fullmatch(r"\S+ +\d +\d+\.\d% +\d \d+\.\d% *", rows[0])
    assert err == f"stillroom: passed over 1 file other than images, the first {photos / 'notes.txt'}\n"


def test_images_are_predicted_as_lines_of_json(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = stillroom.load(finished)
    many = photos / "many"  # more than a batch
    many.mkdir()
    for i in range(40):
        shutil.copy(photos / f"{1 + i % 2}.png", many / f"{i:02}.png")
    for top in (1, 3, 99):
        predict.run([str(finished), str(many), "--json", "--top", str(top)], "")
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [answer["file"] for answer in answers] == [str(many / f"{i:02}.png") for i in range(40)]
        for answer in answers[31:34]:
            probabilities = student.probabilities(answer["file"])[0]
            best = probabilities.argsort(descending=True)[:top].tolist()
            assert [entry["class"] for entry in answer["top"]] == [student.classes[i] for i in best]
            assert [entry["confidence"] for entry in answer["top"]] == pytest.approx(probabilities[best].tolist(), abs=1e-6)
            assert {"class": answer["class"], "confidence": answer["confidence"]} == answer["top"][0]


def test_what_cannot_be_read_does_not_keep_the_rest(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "half.png").write_bytes((photos / "1.png").read_bytes()[:60])
    (photos / "empty").mkdir()
    given = [str(photos), str(photos / "notes.txt"), str(photos / "absent.png"), str(photos / "empty"), str(photos / "*.gif")]
    with pytest.raises(StillroomError, match="6 of 10 could not be read") as raised:
        predict.run([str(finished), *given, "--json"], "")
    assert raised.value.exit_code == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["1.png", "2.png", "4.png", "[red]3.PNG"]
    lines = err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("stillroom: ") for line in lines)
    for name in ("zero.jpg", "half.png", "notes.txt", "absent.png", "empty", "*.gif"):
        assert sum(f"{photos / name}: " in line for line in lines) == 1


def test_files_folders_and_patterns(photos: Path) -> None:
    everything = [photos / name for name in ("1.png", "2.png", "deep/4.png", "deep/[red]3.PNG")]
    notes = [photos / "notes.txt"]
    assert find_images([str(photos)]) == (everything, [], notes)
    assert find_images([str(photos / "2.png"), str(photos)]) == ([everything[1], everything[0], *everything[2:]], [], notes)
    assert find_images([f"{photos}/**/[0-9].png", f"{photos}/*.gif"]) == (everything[:3], [f"{photos}/*.gif"], [])
    assert find_images([f"{photos}/d*p"]) == (everything[2:], [], [])
    assert find_images([str(photos / "deep/[red]3.PNG")]) == (everything[3:], [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "required: IMAGE"),
        (["RUN", "RUN", "--top", "0"], "--top: got 0"),
        (["RUN", "RUN", "--threshold", "0.5"], "--threshold: got 0.5, expected none, since this run's student is a classifier"),
        (["RUN", "RUN", "--jsn"], "unrecognized arguments: --jsn"),
        (["RUN", "RUN"], "IMAGE: got "),
        (["RUN/absent", "RUN"], "the folder of a finished run"),
    ],
)
def test_predictions_that_are_refused(arguments: list[str], message: str, finished: Path) -> None:
    with pytest.raises(StillroomError) as raised:
        predict.run([argument.replace("RUN", str(finished)) for argument in arguments], "")
    assert raised.value.exit_code == 2
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
