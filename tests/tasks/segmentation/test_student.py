"""Networks by name, plain training, and what becomes of a finished run's student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine.loading import Draw
from stillroom.errors import InputError
from stillroom.tasks.images.pixel_classes import pixel_cross_entropy
from stillroom.tasks.segmentation import SegmentationData, Supervised, UNet, build_segmenter, load, predicted_classes
from tests.tasks.segmentation.miniatures import numbers, picture, voc

TINY = ["--batch-size", "4", "--epochs", "30", "--warmup-epochs", "0", "--lr", "0.02", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain training on a miniature of VOC; measured in windows smaller than the pictures."""
    root = tmp_path_factory.mktemp("segmentation")
    words = ["run", "supervised", "--task", "segmentation", "--data", f"voc:{voc(root / 'set', 8, 3)}", "--student", "stillroom/unet4_2"]
    windows = ["--image-size", "16", "--augment", "mirror", "--eval-size", "24", "--window-size", "16", "--stride", "8"]
    assert main([*words, *windows, *TINY, "--out", str(root / "run")]) == 0
    return root / "run"


def test_a_small_network_learns_to_tell_two_colours(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    found = metrics["summary"]["alone"]["metrics"]
    assert found["mIoU"]["mean"] > 60
    assert {"mIoU without background", "pixel accuracy"} <= found.keys()
    report = (run / "report.html").read_text()
    assert "IoU by class" in report
    assert "truth: background, cat, dog" in report


def test_predict_writes_masks_and_overlays_of_the_photos_own_sizes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    labels = numbers(50, (40, 61))
    picture(labels, 50).save(photo)
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["predict", str(run), str(photo), str(tmp_path / "broken.png"), "--json", "--out", str(tmp_path / "out")]) == 1
    answer = json.loads(capsys.readouterr().out)
    mask = Image.open(answer["mask"])
    assert (mask.size, mask.mode) == ((61, 40), "P")
    assert answer["classes"] == ["background", "cat", "dog"]
    assert (np.asarray(mask) == labels).mean() > 0.8
    assert sum(answer["shares"].values()) == pytest.approx(1)
    overlay, before = (np.asarray(Image.open(file)) for file in (answer["overlay"], photo))
    ground = np.asarray(mask) == 0
    assert np.array_equal(overlay[ground], before[ground])
    assert not np.array_equal(overlay[~ground], before[~ground])
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert "background" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--classes", "cat,grass"), ("--threshold", "0.5")])
def test_a_student_of_fixed_classes_says_so(run: Path, tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    picture(numbers(1), 1).save(tmp_path / "a.png")
    assert main(["predict", str(run), str(tmp_path / "a.png"), *option]) == 2
    assert "this student finds the classes that it was trained on (background, cat, dog" in capsys.readouterr().err


def test_the_student_is_exported_and_used_as_a_start(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "s.pt2")]) == 0
    program = torch.export.load(tmp_path / "s.pt2").module()
    assert program(torch.zeros(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    built = build_segmenter(str(run), num_classes=3)
    assert built.classes == ("background", "cat", "dog")
    assert torch.equal(built.network.classifier.weight, load(run).network.classifier.weight)


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (5, 7)])
def test_the_small_network_answers_in_any_size(size: tuple[int, int]) -> None:
    assert UNet(2, 3, 4).eval()(torch.randn(2, 3, *size)).shape == (2, 4, *size)


def test_networks_of_libraries_and_of_ones_own(tmp_path: Path) -> None:
    network = build_segmenter("torchvision/lraspp_mobilenet_v3_large", num_classes=4).network.eval()
    assert network(torch.randn(1, 3, 70, 64)).shape == (1, 4, 70, 64)
    own = ["from torch import nn", "def good(c): return nn.Conv2d(3, c, 1)", "def bad(c): return nn.Conv2d(3, c + 1, 1)"]
    (tmp_path / "nets.py").write_text("\n".join(own))
    assert isinstance(build_segmenter(f"{tmp_path}/nets.py:good", num_classes=5).network, nn.Conv2d)
    with pytest.raises(InputError, match=r"answers with \[1, 6, 64, 64\], expected a network from .* to scores \[1, 5, 64, 64\]"):
        build_segmenter(f"{tmp_path}/nets.py:bad", num_classes=5)
    with pytest.raises(InputError, match=r"a segmentation model of torchvision: .*deeplabv3"):
        build_segmenter("torchvision/deeplabv4", num_classes=5)


def test_a_transformers_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    built = build_segmenter(f"transformers/{tmp_path}", num_classes=3)
    assert built.network.eval()(torch.randn(1, 3, 64, 48)).shape == (1, 3, 64, 48)
    assert built.weights == str(tmp_path)
    with pytest.raises(InputError, match="of 3 classes, expected a model of 4 classes"):
        build_segmenter(f"transformers/{tmp_path}", num_classes=4)


def test_pixels_that_count_nowhere_have_no_loss_and_a_batch_of_none_has_no_nan() -> None:
    scores, masks = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    masks[0] = 255
    torch.testing.assert_close(pixel_cross_entropy(scores, masks), pixel_cross_entropy(scores[1:], masks[1:]))
    nothing = pixel_cross_entropy(scores, torch.full_like(masks, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_scores_that_are_no_numbers_are_no_answer() -> None:
    with pytest.raises(InputError, match="scores are no numbers"):
        predicted_classes(lambda windows: windows * torch.nan, [torch.randn(3, 8, 8)], [(8, 8)], 8, 8)


def test_pictures_and_masks_are_cut_alike(tmp_path: Path) -> None:
    for augment in ("crop", "mirror", "none"):
        data = SegmentationData(f"voc:{voc(tmp_path / augment)}", image_size=24, augment=augment, batch_size=2)
        samples = data._samples(data._train, training=True, told=True)
        for seed in range(6):
            batch, drawn = samples.__getitems__([Draw(0, seed), Draw(1, seed + 100)])
            red = batch.images[:, 0] > batch.images[:, 2] + 0.8  # class 1 is red, see `picture`
            agree = (red == (batch.masks == 1))[batch.masks != 255]
            assert agree.float().mean() > 0.97, (augment, seed)
            assert drawn["crop"].shape == (2, 4)
    assert torch.equal(batch.images, samples.__getitems__([Draw(0, 99), Draw(1, 7)])[0].images)  # without random changes


def test_a_network_that_answers_with_the_truth_is_perfect_in_windows() -> None:
    data = SegmentationData("objects:train=4,val=3", eval_size=64, window_size=24, stride=10)

    class Oracle(nn.Module):
        """Finds the window that it is shown in the pictures."""

        def forward(self, windows: Tensor) -> Tensor:
            scores = torch.zeros(len(windows), 9, *windows.shape[2:])
            for number, window in enumerate(windows):
                image, top, left = next(
                    (i, t, left)
                    for i, picture in enumerate(batch.images)
                    for t in (*range(0, 40, 10), 40)
                    for left in (*range(0, 40, 10), 40)
                    if torch.equal(picture[:, t : t + 24, left : left + 24], window)
                )
                scores[number].scatter_(0, batch.masks[image][None, top : top + 24, left : left + 24].long(), 1.0)
            return scores

    batch = next(iter(data.eval_loader()))
    evaluator = data.evaluator()
    evaluator.update(Supervised(Oracle()).predict(batch), batch)
    assert evaluator.compute()["mIoU"] == 100.0
