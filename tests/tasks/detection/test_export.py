"""Files of Faster R-CNN; what a file of a DETR is checked by, and what it takes for padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from stillroom.cli import main
from stillroom.engine.weights import save_weights
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.export import in_order, unpadded
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.task import TASK


@settings(deadline=None)  # other work may keep the machine busy
@given(st.integers(0, 100))
def test_answers_are_brought_into_order_and_no_answer_serves_twice(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, boxes = torch.rand(2, 9, 3, generator=generator), 400 * torch.rand(2, 9, 4, generator=generator)
    order = torch.randperm(9, generator=generator)
    for found, own in zip(in_order((scores[:, order], boxes[:, order]), (scores, boxes)), (scores, boxes), strict=True):
        assert torch.equal(found, own)
    twice = scores[:, order].clone(), boxes[:, order].clone()
    for part in twice:
        part[:, 1] = part[:, 0]
    assert any((found - own).abs().max() > 1e-3 for found, own in zip(in_order(twice, (scores, boxes)), (scores, boxes), strict=True))


def test_zeros_up_to_the_rim_are_padding_and_others_are_not() -> None:
    images = torch.ones(4, 3, 6, 8)
    images[0, :, 4:] = 0
    images[1, :, :, 5:] = 0
    images[1, :, 2] = 0
    images[2, :2] = 0
    images[3] = 0
    assert unpadded(images).tolist() == [[4, 8], [6, 5], [6, 8], [1, 1]]


def finished(folder: Path, model: str) -> Path:
    folder.mkdir()
    network = build_detector(model, num_classes=6).network
    save_weights(network, folder / "student.safetensors")
    TASK.ship(folder, network, model, DetectionData("scenes:train=4,val=4,teacher=4"))
    return folder


def test_faster_rcnn_is_exported_for_any_batch_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "run", "stillroom/faster-rcnn_24")
    assert main(["export", str(run), "--format", "torch"]) == 0
    assert "batches of 1, 5 and 2 of another size" in capsys.readouterr().out
    about = {"detections": "", "transform": ""}
    program = torch.export.load(run / "student.pt2", extra_files=about).module()
    rules = json.loads(about["detections"])
    assert rules == {"score_threshold": 0.05, "nms_threshold": 0.5, "most": 100}
    detector: Any = build_detector(f"stillroom/faster-rcnn_24@{run / 'student.safetensors'}", num_classes=6).network.eval()
    side = json.loads(about["transform"])["divisor"]
    images, sizes = torch.randn(2, 3, 3 * side, 5 * side), torch.tensor([[3 * side, 5 * side], [2 * side, 4 * side - 3]])
    images[1, :, 2 * side :] = 0
    images[1, :, :, 4 * side - 3 :] = 0
    for scores, boxes, expected in zip(*program(images), detector.detect(images, sizes), strict=True):
        place, label = (scores > rules["score_threshold"]).nonzero(as_tuple=True)
        kept = batched_nms(boxes[place], scores[place, label], label, rules["nms_threshold"])[: rules["most"]]
        torch.testing.assert_close(scores[place, label][kept], expected.scores)
        torch.testing.assert_close(boxes[place][kept], expected.boxes, rtol=0, atol=1e-3)
        assert torch.equal(label[kept], expected.labels)
        assert len(kept) > 10


def test_a_run_that_does_not_say_how_large_images_are_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "run", "stillroom/rt-detr_32")
    card = json.loads((run / "student.json").read_text())
    assert card.pop("canvas") == [48, 48]
    (run / "student.json").write_text(json.dumps(card))
    assert main(["export", str(run)]) == 2
    assert "student.json does not say how large images are" in capsys.readouterr().err
