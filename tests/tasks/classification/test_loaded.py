"""What a run leaves behind can be used: by `stillroom.load`, by timm, as a teacher; and so can weights from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

import stillroom
from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.delivered import deliver
from stillroom.tasks.images.networks import ConvNet
from stillroom.tasks.images.stores import UnreadableImage
from tests.tasks.classification.miniatures import classes_of_pictures

SMALL = ("--data", "digits", "--subset", "100", "--val-subset", "40", "--epochs", "1")
SMALL += ("--accelerator", "cpu", "--teacher-precision", "fp32", "--accept-teacher", "true")  # one epoch makes no good teachers


def run(out: Path, *options: str) -> Path:
    assert main(["run", "kd", *SMALL, "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("digits") / "run")


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])  # one that reads every size, one that is made for a size
def timm_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("timm") / "run", "--student", f"timm/{request.param}", "--image-size", "32")


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on ten classes that are no digits, and its data."""
    root = tmp_path_factory.mktemp("other")
    data = f"imagefolder:{classes_of_pictures(root / 'letters', 'abcdefghij', size=(8, 8))}"
    options = ("--subset", "null", "--val-subset", "null", "--teacher", "stillroom/convnet4")
    return run(root / "run", "--data", data, *options), data


def logits(network: torch.nn.Module, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network.eval()(images_BCHW)
    return answer


def digit_images(count: int = 8, size: int = 8) -> Tensor:
    data = ImageData("digits", image_size=size, batch_size=count)
    images: Tensor = next(iter(data.eval_loader())).images
    return images


def test_a_run_is_loaded(digits_run: Path) -> None:
    loaded = stillroom.load(digits_run)
    network = ConvNet(4, num_classes=10)
    network.load_state_dict(load_file(digits_run / "student.safetensors"))
    assert not loaded.network.training
    assert torch.equal(logits(loaded.network, digit_images()), logits(network, digit_images()))
    assert loaded.classes == tuple("0123456789")
    assert stillroom.load(str(digits_run)).classes == loaded.classes


def test_images_are_classified(digits_run: Path, tmp_path: Path) -> None:
    loaded, data = stillroom.load(digits_run), ImageData("digits")
    images = [data.val_image(i) for i in range(6)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(6)]
    expected = logits(loaded.network, digit_images(6))
    assert loaded.classify(*images) == [loaded.classes[i] for i in expected.argmax(-1).tolist()]
    assert loaded.classify(str(files[0]), files[1], images[2]) == loaded.classify(*images[:3])
    torch.testing.assert_close(loaded.probabilities(*files), expected.softmax(-1))


def test_photographs_are_turned_upright_and_keep_their_sixteen_bits(digits_run: Path, tmp_path: Path) -> None:
    loaded = stillroom.load(digits_run)
    grey = np.asarray(ImageData("digits").val_image(0).convert("L"))
    upright = loaded.probabilities(Image.fromarray(grey))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    lying = Image.fromarray(np.rot90(grey).copy())
    exif = lying.getexif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    lying.save(tmp_path / "lying.png", exif=exif)
    torch.testing.assert_close(loaded.probabilities(tmp_path / "deep.png", tmp_path / "lying.png"), upright.expand(2, -1))
    assert torch.equal(loaded.probabilities(Image.open(tmp_path / "lying.png")), upright)


def test_images_that_cannot_be_classified(digits_run: Path, tmp_path: Path) -> None:
    loaded = stillroom.load(digits_run)
    with pytest.raises(InputError, match="images: got none"):
        loaded.classify()
    with pytest.raises(UnreadableImage, match=r"absent\.png: no such file$"):
        loaded.classify(tmp_path / "absent.png")


def test_folders_that_hold_no_run(digits_run: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"run: got .*student\.json"):
            stillroom.load(folder)
    shutil.copy(digits_run / "student.json", tmp_path)
    with pytest.raises(InputError, match=r"run: got .*student\.safetensors.* does not exist"):
        stillroom.load(tmp_path)
    (tmp_path / "student.json").write_text(json.dumps({"classes": ["a"], "model": "stillroom/convnet4", "num_classes": 1}))
    with pytest.raises(InputError, match="classes and transform"):
        stillroom.load(tmp_path)


def test_timm_loads_its_networks(timm_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network = timm.create_model(f"local-dir:{timm_run / 'student'}", pretrained=True)
    loaded = stillroom.load(timm_run)
    assert torch.equal(logits(network, digit_images(size=32)), logits(loaded.network, digit_images(size=32)))
    assert [file.suffix for file in sorted((timm_run / "student").iterdir())] == [".json", ".safetensors"]
    assert json.loads((timm_run / "student" / "config.json").read_text())["label_names"] == list(loaded.classes)
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network, use_test_size=True))
    photograph = Image.effect_noise((80, 60), 90).convert("RGB")
    torch.testing.assert_close(prepare(photograph), loaded.transform(photograph), atol=1e-5, rtol=0)


def test_a_run_is_a_teacher(digits_run: Path, tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--teacher", str(digits_run))
    assert not (out / "teacher" / "student.safetensors").exists()  # its stage says where the weights are
    teacher, student = stillroom.load(out / "teacher").network.state_dict(), load_file(digits_run / "student.safetensors")
    assert all(torch.equal(teacher[name], student[name]) for name in student)


def test_weights_of_a_loop_outside(tmp_path: Path) -> None:
    """A state dict that a loop around DataParallel saved is the teacher, and where a student starts."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    scans = load_digits()
    images_BCHW = interpolate(torch.from_numpy(scans.images[:64])[:, None].float() / 16, 32).expand(-1, 3, -1, -1)
    labels_B = torch.from_numpy(scans.target[:64]).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(network(images_BCHW), labels_B).backward()
        optimizer.step()
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "weights.pth")
    spec = f"timm/test_resnet@{tmp_path / 'weights.pth'}"
    out = run(tmp_path / "run", "--teacher", spec, "--student", spec, "--image-size", "32", "--lr", "0")
    expected = logits(network, digit_images(size=32))
    assert torch.equal(logits(stillroom.load(out / "teacher").network, digit_images(size=32)), expected)
    shipped = dict(stillroom.load(out).network.named_parameters())  # a rate of 0 leaves all but the running statistics
    assert all(torch.equal(shipped[name], value) for name, value in network.named_parameters())
    assert json.loads((out / "student.json").read_text())["model"] == "timm/test_resnet"


@pytest.mark.parametrize("as_weights", [False, True])
def test_a_teacher_of_other_classes_is_a_start(
    digits_run: Path, other_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_weights: bool
) -> None:
    _, letters = other_run
    out, teacher = tmp_path / "run", f"stillroom/convnet4@{digits_run}" if as_weights else str(digits_run)
    command = ["run", "kd", "--data", letters, "--teacher", teacher, "--epochs", "1", "--teacher-epochs", "2", "--accelerator", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    said = "without their head, since its head answers for 0, 1, 2, ..., not for the data's classes; 2 epochs"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (out / "report.html").read_text().replace("&#39;", "'")
    assert json.loads((out / "teacher" / "stage.json").read_text())["result"]["epochs"] == 2


def test_a_teacher_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["run", "kd", "--teacher", str(tmp_path / "empty"), "--out", str(tmp_path / "run")]) == 2
    assert "teacher: got" in (error := capsys.readouterr().err)
    assert "student.json" in error
    assert main(["run", "kd", "--teacher", f"timm/test_resnet@{tmp_path / 'absent.pth'}", "--out", str(tmp_path / "run")]) == 2
    assert "absent.pth" in capsys.readouterr().err


def test_a_folder_for_timm_is_replaced_file_by_file(timm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(timm_run / "student", tmp_path / "student")
    before = {file.name: file.read_bytes() for file in (tmp_path / "student").iterdir()}

    def broken(network: torch.nn.Module, folder: str, **_: object) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("killed meanwhile")

    model = json.loads((timm_run / "student.json").read_text())["model"]
    network, data = stillroom.load(timm_run).network, ImageData("digits", image_size=32)
    with monkeypatch.context() as patch:
        patch.setattr("timm.models.save_for_hf", broken)
        with pytest.raises(OSError, match="killed meanwhile"):
            deliver(tmp_path, network, model, data)
    assert {file.name: file.read_bytes() for file in (tmp_path / "student").iterdir()} == before
    deliver(tmp_path, network, model, data)
    assert {file.name: file.read_bytes() for file in (tmp_path / "student").iterdir()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["student"]
