"""Networks for nuclei: trained by a command, used on pictures, exported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stillroom import load
from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.nuclei import NucleiData, Supervised, build_nuclei_network
from stillroom.tasks.nuclei.networks import hovernet, small_network
from tests.tasks.nuclei.miniatures import consep, maps, picture

WORDS = ("run", "supervised", "--task", "nuclei", "--data", "drawn:train=24,val=4", "--batch-size", "8", "--student", "stillroom/nuclei4_2")
SHORT = ("--epochs", "2", "--accelerator", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nuclei") / "run"
    assert main([*WORDS, *SHORT, "--apart", "plasma+eosinophil", "--window-size", "48", "--out", str(out)]) == 0
    return out


def test_the_report_has_classes_and_pictures(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())["stages"]["alone"][0]
    assert {"mPQ", "mDice", "type F1", "PQ", "Dice", "AJI", "detection F1", "mPQ apart"} <= metrics["metrics"].keys()
    page = (run / "report.html").read_text()
    assert "procedural data: 24 training + 4 validation images of 6 classes" in page
    assert "plasma (apart)" in page
    assert "truth: " in page


def test_predict_writes_maps_cells_and_overlays_as_evaluation_sees_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = NucleiData("drawn:train=4,val=2", window_size=48, batch_size=2)
    student: Any = load(run)
    with torch.no_grad():
        # a network that has learnt little: every bright pixel is nucleus, so that there is something to write
        student.network.heads["nuclei"].bias[:] = torch.tensor([-3.0, 3.0])
    batch = next(iter(data.eval_loader()))
    distiller = Supervised(student.network).eval()
    with torch.no_grad():
        expected = distiller.predict(batch)
    files = []
    for number in range(2):
        files.append(tmp_path / f"p{number}.png")
        data.val_image(number).save(files[-1])
    answers = list(student.predict(files, unreadable=lambda error: None, out=str(tmp_path / "out")))
    for answer, truth in zip(answers, expected, strict=True):
        shown = np.asarray(Image.open(answer.instances))
        assert (shown == truth.instances).all()
        with answer.cells.open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["id"]) for row in rows] == list(range(1, truth.instances.max() + 1))
        assert rows[0]["class"] in data.classes
        y, x = np.nonzero(shown == 1)
        assert (float(rows[0]["x"]), float(rows[0]["y"])) == pytest.approx((x.mean(), y.mean()), abs=0.01)
        assert int(rows[0]["area"]) == len(y)
        assert Image.open(answer.overlay).size == (48, 48)
    assert main(["predict", str(run), str(files[0]), "--json", "--out", str(tmp_path / "cli")]) == 0
    assert {"instances", "cells", "overlay", "counts"} <= json.loads(capsys.readouterr().out).keys()


def test_windows_or_the_whole_make_the_same_map_of_a_picture_of_any_size(run: Path) -> None:
    student: Any = load(run)
    instances, kinds = maps(0, 5)
    found = student.outline(picture(instances, kinds, 0).resize((70, 53)))
    assert found.instances.shape == (53, 70)


def test_the_export_answers_as_the_network(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--out", str(tmp_path / "s.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["nuclei", "distances", "types"]
    images = torch.rand(3, 3, 48, 48)
    student: Any = load(run)
    with torch.no_grad():
        expected = student.network(images)
    for found, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--edge-kernel", "4"), "--edge-kernel: got 4, expected an odd number"),
        (("--apart", "lymph"), "--apart: got lymph, expected one of neutrophil"),
        (("--student", "stillroom/unet8_3"), "--student: got stillroom/unet8_3"),
        (("--data", "drawn:domain=other"), "domain: got other, expected one of source, target"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *SHORT, *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_hovernet_has_the_paper_s_shapes_and_takes_a_step_on_consep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "supervised", "--task", "nuclei", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["student"] == "stillroom/hovernet"
    with torch.device("meta"):
        network = hovernet(6)
    decoder: Any = network.decoders["types"]
    assert [part.weight.shape for part in (decoder.u3[0], decoder.u3[2], decoder.u2[0], decoder.u2[2], decoder.u1)] == [
        (256, 1024, 3, 3),
        (512, 512, 1, 1),
        (128, 512, 3, 3),
        (256, 256, 1, 1),
        (64, 256, 3, 3),
    ]
    data = NucleiData(f"consep:{consep(tmp_path, 2, 1)}", batch_size=2, image_size=16, augment=values["augment"])
    torch.manual_seed(0)
    distiller = Supervised(build_nuclei_network("stillroom/hovernet", num_classes=4).network)
    loss = distiller.losses(next(iter(data.train_loader(seed=0)))).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in distiller.parameters())


def test_another_function_s_network_must_be_one_for_nuclei(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from torch import nn\ndef build(num_classes):\n    return nn.Conv2d(3, num_classes, 1)\n")
    with pytest.raises(InputError, match=r"which makes a Conv2d, expected a stillroom\.tasks\.nuclei\.NucleiNetwork"):
        build_nuclei_network(f"{tmp_path / 'nets.py'}:build", num_classes=2)


def test_a_picture_whose_sides_are_no_multiple_is_answered_in_its_size() -> None:
    network = small_network(2, 3, 2).eval()
    with torch.no_grad():
        found = network(torch.rand(1, 3, 21, 34))
    assert [part.shape[2:] for part in found] == [(21, 34)] * 3
