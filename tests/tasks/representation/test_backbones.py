"""Backbones: any network without its head; what a run ships is a start for others, answers with embeddings, and is exported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model

from stillroom.cli import main
from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Losses, Networks, Report, Training
from stillroom.engine.run.seeds import run_seeds
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.tasks.images.classifiers import build_backbone, build_classifier
from stillroom.tasks.representation import TASK, Pair, RepresentationData, pairs_section, warp_view

NETS_PY = """
from torch import nn

def maps():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, 4)
    def forward(self, images):
        return {"tokens": 0} if images is None else self.patch(images).flatten(2).mT

class Classifier(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)
    def forward(self, images):
        return self.head(self.body(images).relu().mean((2, 3)))

def words():
    class Words(nn.Module):
        def forward(self, images):
            return "no features"
    return Words()
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS_PY)
    return str(tmp_path / "nets.py")


@pytest.mark.parametrize(
    ("spec", "width"),
    [
        ("timm/resnet10t", 512),
        ("timm/vit_tiny_patch16_224", 192),
        ("torchvision/mobilenet_v2", 1280),
        ("torchvision/squeezenet1_1", 512),
        ("stillroom/resnet20", 64),
        ("stillroom/convnet24", 48),
    ],
)
def test_any_network_without_its_head(spec: str, width: int) -> None:
    network = build_backbone(spec, image_size=32).network
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 32, 32)).shape[0] == 2
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, width)


def test_ones_own_modules_give_features_of_maps_tokens_and_classifiers(nets: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    for name, width in (("maps", 8), ("Tokens", 6), ("Classifier", 8)):
        assert build_backbone(f"{nets}:{name}", image_size=16).network(images).shape == (2, width)
    maps = build_backbone(f"{nets}:maps", image_size=16).network
    torch.testing.assert_close(maps(images), maps[1](maps[0](images)).mean((2, 3)))
    with pytest.raises(InputError, match="features"):
        build_backbone(f"{nets}:words", image_size=16)
    with pytest.raises(InputError, match="reads images"):
        build_backbone(f"{nets}:maps", image_size=1)


def test_a_classifiers_weights_whatever_their_head_answers_for(tmp_path: Path) -> None:
    for classes in (10, 37):
        network = build_classifier("stillroom/resnet8", num_classes=classes).network.eval()
        save_weights(network, tmp_path / "w.safetensors")
        backbone = build_backbone(f"stillroom/resnet8@{tmp_path / 'w.safetensors'}", image_size=32).network.eval()
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(network.fc(backbone(images)), network(images))


class Paired(Distiller):
    """Features of two views are alike, and their dimensions unlike."""

    def training_data(self, data: RepresentationData) -> RepresentationData:
        return data.in_views(warp_view(data), warp_view(data), said="two")

    def losses(self, batch: Any) -> Losses:
        one, other = (torch.nn.functional.normalize(self.student(view), dim=0) for view in batch.views)
        return Losses(task={"cross": (one.T @ other - torch.eye(one.shape[1])).square().mean()})


def recipe(lab: Lab, data: RepresentationData, plan: Training = TASK.plan, networks: Networks = TASK.networks) -> Report:
    experiment = Experiment(lab, data, plan, networks)
    experiment.rehearse(lambda student, _: Paired(student))
    built = experiment.network(networks.student, "student")
    stages = {
        "untrained": lab.evaluate(built.network, data, name="untrained", model=built.spec),
        "paired": experiment.trained("paired", Paired),
    }
    report = lab.report("kd", data, stages, baseline="untrained", ship="paired")
    report.method_sections = [pairs_section("Pairs", data, [Pair(0, 3, True, "0.9"), Pair(1, 2, False)])]
    return report


def run(out: Path, student: str, spec: str = "digits", **options: Any) -> Report:
    few: dict[str, Any] = {"subset": 40, "val_subset": 20} if spec == "digits" else {}
    data = RepresentationData(spec, batch_size=16, workers=0, **few, **options)
    plan = Training(epochs=1, optimizer="adamw", lr=1e-3)
    return run_seeds(recipe, LabOptions(out=out, accelerator="cpu"), data, {"plan": plan, "networks": Networks("", student)})


@pytest.mark.parametrize("student", ["timm/test_resnet", "torchvision/squeezenet1_1", "stillroom/resnet8", "stillroom/resnet20"])
def test_supervised_and_kd_start_from_a_backbone(tmp_path: Path, student: str, capsys: pytest.CaptureFixture[str]) -> None:
    size: dict[str, Any] = {} if student.startswith("stillroom") else {"image_size": 32}
    run(tmp_path / "features", student, **size)
    weights = load_file(tmp_path / "features/student.safetensors")
    job = ["--data", "digits", "--subset", "40", "--val-subset", "20", "--batch-size", "20", "--epochs", "1", "--accelerator", "cpu"]
    job += ["--student", f"{student}@{tmp_path / 'features'}", "--lr", "1e-6", *(["--image-size", "32"] if size else [])]
    assert main(["run", "supervised", *job, "--out", str(tmp_path / "tuned")]) == 0
    assert "they have no head" in " ".join(capsys.readouterr().out.split())
    tuned = load_file(tmp_path / "tuned/student.safetensors")
    new = tuned.keys() - weights.keys()
    assert len(new) in (1, 2)  # a head's weight and bias
    floats = [name for name in weights if weights[name].is_floating_point() and "running" not in name]
    assert all(torch.allclose(weights[name], tuned[name], atol=1e-4) for name in floats)
    if student == "stillroom/resnet8":
        assert main(["run", "kd", *job, "--teacher", "stillroom/resnet8", "--out", str(tmp_path / "kd"), "--accept-teacher"]) == 0


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "features"
    run(out, "timm/test_resnet", image_size=32)
    return out


def photos(folder: Path) -> list[Path]:
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((50 + number, 40), 80).convert("RGB").save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return sorted(folder.iterdir())


def test_predict_writes_embeddings(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "p")
    words = ["predict", str(done), str(tmp_path / "p")]
    assert main([*words, "--json", "--out", str(tmp_path)]) != 0  # one could not be read, and all others were answered
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    with np.load(tmp_path / "embeddings.npz") as written:
        assert written["embeddings"].dtype == np.float32
        np.testing.assert_allclose(written["embeddings"], [line["embedding"] for line in lines], rtol=1e-6)
        assert [Path(file).name for file in written["files"]] == ["0.png", "1.png", "2.png"]
    assert main([*words, "--out", str(tmp_path / "e.csv")]) != 0
    with (tmp_path / "e.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["file", "0", "1"]
    np.testing.assert_allclose([float(value) for value in rows[1][1:]], lines[0]["embedding"], rtol=1e-6)
    student = TASK.load(done, trust_pickle=False)
    torch.testing.assert_close(student.embed(tmp_path / "p/0.png")[0], torch.tensor(lines[0]["embedding"]), rtol=1e-4, atol=1e-5)
    assert main([*words, "--out", str(tmp_path / "none/e.csv")]) == 2
    assert "a folder that exists" in capsys.readouterr().err
    assert main([*words, "--top", "3"]) == 2


def test_export_is_checked_and_timm_loads_the_folder(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(done), "--out", str(tmp_path / "s.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"))
    images = torch.randn(3, 3, 32, 32)
    (answer,) = session.run(["embedding"], {"images": images.numpy()})
    network = timm.create_model(f"local-dir:{done / 'student'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), network(images), rtol=1e-3, atol=1e-4)
    card = json.loads((done / "student.json").read_text())
    assert (card["task"], card["classes"]) == ("representation", [])


def test_the_page_shows_neighbours_pairs_and_what_was_measured(done: Path) -> None:
    page = (done / "report.html").read_text()
    for said in ("Nearest neighbours", "Pairs", "not taken", "effective rank", "T = 0.07", "k = 20", "40 draws"):
        assert said in page


def test_without_labels_the_run_says_that_nothing_is_scored(tmp_path: Path) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    for number in range(30):
        Image.effect_noise((16, 16), 10 + 5 * number).convert("RGB").save(folder / f"{number}.png")
    report = run(tmp_path / "out", "stillroom/resnet8", f"images:{folder},val=0.3")
    assert set(report.arms["paired"][0].metrics) == {"rank", "spread"}
    page = (tmp_path / "out/report.html").read_text()
    assert "without labels there are no scores" in page


class Collapsed(nn.Module):
    """One feature for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.feature + 0 * images.mean((1, 2, 3))[:, None]


def test_a_collapse_is_said_and_that_pictures_are_drawn(tmp_path: Path) -> None:
    data = RepresentationData("shapes,train=2,val=1", workers=0)
    assert data.first_lines()[0].startswith("procedural data")
    lab = Lab(LabOptions(out=tmp_path, accelerator="cpu"))
    report = lab.report("kd", data, {"alone": lab.evaluate(Collapsed(), data, name="alone")}, ship="alone")
    said = " ".join(TASK.remarks(report, data))
    assert "collapsed" in said
    assert "procedural data" in said


def test_a_torchvision_backbone_fits_torchvisions_own_network(tmp_path: Path) -> None:
    network = build_backbone("torchvision/squeezenet1_1", image_size=64).network
    save_weights(network, tmp_path / "w.safetensors")
    own = get_model("squeezenet1_1", weights=None)
    missing, unexpected = own.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) == {"classifier.1.weight", "classifier.1.bias"}
