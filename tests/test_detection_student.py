"""A detection run's student afterwards: loaded, asked on the command line, exported; and the page that tells how to use the file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import stillroom
from stillroom.cli import main
from stillroom.commands import export, predict
from stillroom.engine.export import SUFFIXES
from stillroom.engine.weights import save_weights
from stillroom.errors import StillroomError
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.loaded import LoadedDetector
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.preparation import Preparation
from stillroom.tasks.detection.task import TASK
from tests.tasks.classification.miniatures import pictures_of_every_mode

PAGE = Path(__file__).parents[1] / "docs" / "detection.md"
(WITH_ONNX,) = re.findall(r"<!-- a test runs this block -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
((OWN_FILE, OWN),) = re.findall(r"<!-- a test runs this block: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NETS = """
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

STRIDES = (4, 8)


class Backbone(nn.Module):
    out_channels = 32

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.pyramid = FeaturePyramidNetwork([8, 12], self.out_channels)

    def forward(self, images):
        first = self.first(images).relu()
        return self.pyramid({"0": first, "1": self.second(first).relu()})


def fcos(num_classes):
    made = FCOS(Backbone(), num_classes, anchor_generator=AnchorGenerator(((4,), (8,)), ((1.0,),) * 2))
    made.strides = STRIDES
    return made


def retinanet(num_classes):
    made = RetinaNet(Backbone(), num_classes, anchor_generator=AnchorGenerator(((8, 12), (16, 24)), ((0.5, 1.0, 2.0),) * 2))
    made.strides = STRIDES
    return made
"""


DETRS = """
import transformers
from stillroom.tasks.detection.detr_models import deformable_detr, rt_detr

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
WIDTHS = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
LAYERS = {**WIDTHS, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12}


def rt_detr_(num_classes):
    resnet = transformers.RTDetrResNetConfig(**RESNET, out_features=["stage1", "stage2"])
    levels = {"feat_strides": [4, 8], "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 2, "num_feature_levels": 2}
    return rt_detr(resnet, num_classes, **WIDTHS, **levels, encode_proj_layers=[1], decoder_layers=2, num_queries=12, num_denoising=0)


def detr(num_classes):
    resnet = transformers.ResNetConfig(**RESNET, out_features=["stage2"])
    return transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=resnet, num_labels=num_classes, **LAYERS))


def deformable_detr_(num_classes):
    resnet = transformers.ResNetConfig(**RESNET, out_features=["stage1", "stage2"])
    return deformable_detr(resnet, num_classes, **LAYERS, num_feature_levels=3)
"""


def finished_run(folder: Path, model: str, image_size: int | None = None) -> Path:
    """What a run leaves of its student, without the training: random weights that make scores differ."""
    torch.manual_seed(0)
    data = DetectionData("scenes:train=4,val=4,teacher=4", image_size=image_size)
    network = build_detector(model, num_classes=6).network
    for name, parameter in network.named_parameters():
        if name.endswith(("gfl_cls.weight", "cls_logits.weight")):
            nn.init.normal_(parameter, std=0.2)
        if name.endswith("weight") and ("class_embed." in name or "score_head" in name or "labels_classifier" in name):
            nn.init.normal_(parameter, std=0.5)
        if name.endswith(("gfl_cls.bias", "cls_logits.bias")):
            nn.init.constant_(parameter, -1)
    save_weights(network, folder / "student.safetensors")
    TASK.ship(folder, network, model, data)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "bckd", "stillroom/gfl_24")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two scenes, one of them on its side by EXIF, and a file that is no image."""
    data, root = DetectionData("scenes:train=4,val=4,teacher=4"), tmp_path / "photos"
    root.mkdir()
    data.val_image(0).save(root / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    data.val_image(1).resize((80, 48)).save(root / "1.png", exif=exif)
    (root / "2.jpg").write_bytes(b"no image")
    return root


def detector(run: Path, *, trusted: bool = False) -> LoadedDetector:
    loaded = stillroom.load(run, trust_pickle=trusted)
    assert isinstance(loaded, LoadedDetector)
    return loaded


def test_objects_are_printed_as_lines_of_json(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StillroomError, match="1 of 3 could not be read"):
        predict.run([str(finished), str(photos), "--json", "--threshold", "0.4"], "")
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png"]
    for line in lines:
        found = detector(finished).detect(line["file"], threshold=0.4)
        assert len(found) == len(line["objects"]) > 1
        for one, told in zip(found, line["objects"], strict=True):
            assert (one.label, one.score, list(one.box)) == (told["class"], pytest.approx(told["score"]), pytest.approx(told["box"]))
        scores = [told["score"] for told in line["objects"]]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) > 0.4
    assert max(told["box"][3] for told in lines[1]["objects"]) > 48, "boxes are in the upright image, 48 x 80"
    assert err.startswith(f"stillroom: {photos / '2.jpg'}: ")


def test_objects_are_printed_in_a_table(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.run([str(finished), str(photos / "0.png")], "")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", "score", "box", "(x1,", "y1,", "x2,", "y2)"]
    assert len(rows) == len(detector(finished).detect(photos / "0.png")) > 1
    assert re.fullmatch(r"\S+0\.png +(hollow )?\w+ +0\.\d\d +(\d+\.\d, ){3}\d+\.\d *", rows[0])
    predict.run([str(finished), str(photos / "0.png"), "--threshold", "1"], "")
    assert capsys.readouterr().out.splitlines()[1].split() == [str(photos / "0.png"), "nothing"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--threshold", "1.5"], "--threshold: got 1.5, expected a number from 0 to 1"),
        (["--top", "3"], "--top: got 3, expected none, since this run's student is a detector"),
    ],
)
def test_options_that_do_not_fit(option: list[str], message: str, finished: Path, photos: Path) -> None:
    with pytest.raises(StillroomError, match=re.escape(message)):
        predict.run([str(finished), str(photos), *option], "")


def differences(out: str) -> dict[str, tuple[float, float, float]]:
    """Of what `stillroom export` prints: by output, the difference, the largest answer, the tolerance."""
    told = r"largest difference from the student's (\w+): (\S+) \(batches of 1, 5 and 2 of another size; \w+ up to (\S+); tolerance (\S+)\)"
    found = [re.fullmatch(told, line) for line in out.splitlines()[1:]]
    assert all(found), out
    return {match[1]: (float(match[2]), float(match[3]), float(match[4])) for match in found if match}


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_torchvisions_detectors_are_exported_for_any_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    run = finished_run(Path("run"), f"nets.py:{kind}")
    for format in ("torch", "safetensors"):
        export.run([str(run), "--format", format, "--trust-code"], "")
        out, err = capfd.readouterr()
        assert err == ""
        for name, unit in (("scores", 1), ("boxes", 96)):
            difference, largest, tolerance = differences(out)[name]
            assert difference <= tolerance == pytest.approx(1e-4 * unit)
            assert largest > 0.05, "answers so small that every tolerance is kept"
    assert {file.suffix for file in run.iterdir()} == {".json", ".safetensors", SUFFIXES["torch"]}
    about = dict.fromkeys(("task", "classes", "transform", "model", "detections"), "")
    program = torch.export.load(run / "student.pt2", extra_files=about).module()
    student = detector(run, trusted=True)
    assert (about["task"], about["model"]) == ("detection", f"nets.py:{kind}")
    assert Preparation.from_json(json.loads(about["transform"])) == student.preparation
    assert json.loads(about["detections"]) == {"score_threshold": 0.05, "nms_threshold": 0.6, "most": 100}
    count = sum(len(level) for level in student.network.raw(torch.zeros(1, 3, 48, 80), torch.zeros(1, 2)).anchors)
    assert [tuple(answer.shape) for answer in program(torch.zeros(3, 3, 48, 80))] == [(3, count, 6), (3, count, 4)]
    described = build_detector(f"nets.py:{kind}@{run / 'student_described.safetensors'}", num_classes=6)
    assert all(torch.equal(a, b) for a, b in zip(described.network.parameters(), student.network.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["rt_detr_", "detr", "deformable_detr_"])
def test_detrs_are_exported_for_images_of_one_size(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(DETRS)
    run = finished_run(Path("run"), f"nets.py:{kind}")
    export.run([str(run), "--trust-code"], "")
    out, err = capfd.readouterr()
    assert err == ""
    *told, last = out.splitlines()
    assert last == "reads images of 48 x 48 pixels: smaller ones are padded with zeros at the right and the bottom"
    for name, unit in (("scores", 1), ("boxes", 48)):
        line = next(line for line in told if f"student's {name}: " in line)
        found = re.search(r": (\S+) \(batches of 1 and 5; \w+ up to (\S+); tolerance (\S+)\)", line)
        assert found is not None, line
        difference, largest, tolerance = map(float, found.groups())
        assert difference <= tolerance == pytest.approx(1e-4 * unit)
        assert largest > 0.05, "answers so small that every tolerance is kept"
    session = onnxruntime.InferenceSession(run / "student.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["transform"])["divisor"] == json.loads(about["transform"])["max_size"] == 48
    assert json.loads(about["detections"]) == {"score_threshold": 0.0, "nms_threshold": 1.0, "most": 100}
    images, student = torch.zeros(1, 3, 48, 48), detector(run, trusted=True)
    images[0, :, :32, :40] = student.preparation(DetectionData("scenes:train=1,val=1,teacher=1").val_image(0).resize((40, 32)))
    scores, boxes = (torch.from_numpy(output[0]) for output in session.run(None, {"images": images.numpy()}))
    expected = student.network.detect(images, torch.tensor([[32, 40]]))[0]
    best, at = scores.flatten().max(0)
    torch.testing.assert_close(best, expected.scores[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes[at // 6], expected.boxes[0], rtol=0, atol=0.01)


def test_the_page_tells_how_to_get_boxes_from_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished_run(Path("runs/bckd"), "stillroom/gfl_24")
    DetectionData("scenes:train=1,val=1,teacher=1").val_image(0).resize((100, 60)).save("photo.jpg", quality=95)
    export.run([str(run)], "")
    out, err = capfd.readouterr()
    assert err == ""
    found = differences(out)
    assert found["scores"][0] <= 1e-4 < 0.3 < found["scores"][1]
    assert found["boxes"][0] <= found["boxes"][2] == pytest.approx(96e-4)
    # As the student is, and as one whose images are resized: by another library here than there.
    for image_size, score_apart, box_apart in ((None, 0.006, 0.06), (40, 0.02, 1)):
        finished_run(run, "stillroom/gfl_24", image_size)
        student = detector(run)
        file = onnx.load(run / "student.onnx")
        for entry in file.metadata_props:
            if entry.key == "transform":
                entry.value = json.dumps(student.preparation.to_json())
        onnx.save(file, run / "student.onnx")
        exec(compile(WITH_ONNX, str(PAGE), "exec"), {})
        lines = [line.split() for line in capfd.readouterr().out.splitlines()]
        expected = student.detect("photo.jpg")
        assert len(lines) == len(expected) > 1
        for (*label, score, x1, y1, x2, y2), one in zip(lines, expected, strict=True):
            assert " ".join(label) == one.label
            assert float(score) == pytest.approx(one.score, abs=score_apart)
            assert [float(side) for side in (x1, y1, x2, y2)] == pytest.approx(list(one.box), abs=box_apart)
    for file in pictures_of_every_mode(Path("modes"), (100, 60)):
        shutil.copy(file, "photo.jpg")
        exec(compile(WITH_ONNX, str(PAGE), "exec"), {})
        lines = [line.split() for line in capfd.readouterr().out.splitlines()]
        scores = sorted(float(line[-5]) for line in lines)
        assert scores == pytest.approx(sorted(one.score for one in student.detect("photo.jpg")), abs=0.02), file


def test_the_pages_own_detector_is_distilled_and_its_folder_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(OWN_FILE).write_text(OWN)
    (command,) = re.findall(r"stillroom (run bckd .*--out runs/own-detector)", PAGE.read_text())
    assert main(shlex.split(command)) == 0
    report = Path("runs/own-detector/report.html").read_text()
    assert "Class by class" in report
    assert "16 images to train on, 4 to measure with, 16 for a teacher that is trained; 48 × 48 pixels" in report
    DetectionData("scenes:train=1,val=1,teacher=1").val_image(0).save("photo.png")
    capsys.readouterr()
    assert main(["predict", "runs/own-detector", "photo.png", "--json", "--threshold", "0", "--trust-code"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"]
