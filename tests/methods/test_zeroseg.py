"""ZeroSeg: assignments, masks, views and losses at their edges; the vocabulary; and the experiment as a user runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, NonFiniteLoss
from stillroom.methods.zeroseg import ZeroSeg, ZeroSegNetwork, ZeroSegSpec
from stillroom.methods.zeroseg.decoding import class_probabilities, pixel_scores, with_background
from stillroom.methods.zeroseg.grouping import GroupingBlock, assign, gumbel_noise
from stillroom.methods.zeroseg.loss import matching_loss, multi_scale_loss, nearest_views
from stillroom.methods.zeroseg.masking import positions, random_mask, visible_patches
from stillroom.methods.zeroseg.network import parse
from stillroom.methods.zeroseg.recipe import PRESETS, ZeroSegNetworks
from stillroom.methods.zeroseg.scoring import Floor, segment_figures
from stillroom.methods.zeroseg.teacher import SINGLE, Taught, ViewTeacher, cached_views, single_objects
from stillroom.methods.zeroseg.views import boxes, views
from stillroom.tasks.images.clips import ImageText, write_clip
from stillroom.tasks.images.tokens import learnt, of_words
from stillroom.tasks.segmentation import SegmentationBatch, SegmentationData, SegmentationDistiller, Vocabulary, load
from tests.methods.kills import killed_at
from tests.methods.zeroseg_job import SPEC, AnyTower, train
from tests.processes import Processes
from tests.tasks.images.test_clips import HALF, SHAPE, made
from tests.tasks.segmentation.miniatures import numbers, picture, voc

TINY = ("--data", "objects:train=24,val=4", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--accelerator", "cpu")
SMALL = (*TINY, "--student", "vit16_1_16", "--group-tokens", "[4,2]", "--projector-hidden", "8", "--reconstruction", "vit16_1")
SHORT = ("--teacher-data", f"{SINGLE},train=300,val=60", "--teacher-epochs", "3", "--accept-teacher", "true", "--threshold-pictures", "6")


def vocabulary(classes: tuple[str, ...], background: Any = "threshold", threshold: float = 0.5, dim: int = 8) -> Vocabulary:
    words = tuple(dict.fromkeys((*classes, "background", "spare")))
    rows = [torch.randn(dim, generator=torch.Generator().manual_seed(sum(map(ord, word)))) for word in words]
    table = normalize(torch.stack(rows), dim=-1)
    return Vocabulary(words, table, "", 20.0, classes, background, threshold)


# Assignment and grouping ----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_each_token_belongs_to_one_segment_and_has_the_gradient_of_the_softmax(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, upstream = (torch.randn(2, 4, 7, generator=generator) for _ in range(2))
    logits.requires_grad_()
    hard = assign(logits)
    assert torch.equal(hard.detach().sum(1), torch.ones(2, 7))
    assert set(hard.detach().unique().tolist()) <= {0.0, 1.0}
    (straight,) = torch.autograd.grad(hard, logits, upstream)
    (soft,) = torch.autograd.grad(logits.softmax(1), logits, upstream)
    torch.testing.assert_close(straight, soft)


def test_the_lowest_of_equal_segments_wins_and_what_is_no_number_stays_none() -> None:
    assert assign(torch.zeros(1, 3, 2)).argmax(1).tolist() == [[0, 0]]
    assert assign(torch.full((1, 3, 2), torch.nan)).isnan().all()
    assert assign(torch.randn(1, 3, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_an_empty_segment_and_all_tokens_in_one_are_defined() -> None:
    block = GroupingBlock(8, 2, 3, 3).eval()
    nn.init.zeros_(block.assign.q_proj.weight)
    block.assign.q_proj.bias.data.zero_()  # all logits equal: everything is in segment 0
    found = block(torch.randn(1, 5, 8), torch.randn(1, 3, 8))
    assert found.hard[0].sum(1).tolist() == [5, 0, 0]
    assert found.segments.isfinite().all()


def test_noise_is_drawn_in_training_alone_and_differs_between_generators() -> None:
    block, tokens, groups = GroupingBlock(8, 2, 3, 3), torch.randn(4, 50, 8), torch.randn(4, 3, 8)
    first, second = block(tokens, groups).hard, block(tokens, groups).hard
    assert not torch.equal(first, second)
    block.eval()
    assert torch.equal(block(tokens, groups).hard, block(tokens, groups).hard)
    torch.manual_seed(0)
    one = gumbel_noise(torch.zeros(1000, 50))
    torch.manual_seed(1)
    assert not torch.equal(one, gumbel_noise(torch.zeros(1000, 50)))
    assert one.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert one.var().item() == pytest.approx(np.pi**2 / 6, rel=0.02)


def test_assignments_are_made_in_float32_under_reduced_precision() -> None:
    block, tokens, groups = GroupingBlock(8, 2, 3, 3).eval(), torch.randn(2, 9, 8), torch.randn(2, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(tokens, groups)
    assert found.soft.dtype == found.hard.dtype == torch.float32
    torch.testing.assert_close(found.soft, block(tokens, groups).soft, rtol=0.1, atol=0.05)


# Masks, positions, views ----------------------------------------------------------------------------------------------------------------


def test_masks_at_their_ends() -> None:
    noise = torch.rand(2, 10)
    whole = random_mask(noise, 0.0)
    assert whole.keep.shape == (2, 10)
    assert not whole.removed.any()
    assert visible_patches(196, 0.6) == 78
    with pytest.raises(InputError, match=r"mask_ratio: got 0\.95, expected a ratio that leaves one of 10 patches"):
        random_mask(noise, 0.95)
    with pytest.raises(InputError, match="mask_ratio: got 1"):
        visible_patches(10, 1.0)


def test_positions_tell_every_patch_apart_and_follow_any_grid() -> None:
    table = positions(5, 7, 16)
    assert table.shape == (35, 16)
    assert len(table.unique(dim=0)) == 35
    assert torch.equal(positions(9, 7, 16)[:35], table)  # rows are appended
    with pytest.raises(InputError, match="a multiple of 4"):
        positions(2, 2, 6)


def test_boxes_have_floor_boundaries_and_every_pixel_once() -> None:
    assert boxes(7, 5, [2]) == [(0, 3, 0, 2), (0, 3, 2, 5), (3, 7, 0, 2), (3, 7, 2, 5)]
    seen = torch.zeros(7, 5)
    for top, bottom, left, right in boxes(7, 5, [3]):
        seen[top:bottom, left:right] += 1
    assert bool((seen == 1).all())
    with pytest.raises(InputError, match="at most 2 cells a side of an image of 9 x 2 pixels"):
        boxes(2, 9, [1, 3])
    with pytest.raises(InputError, match="different whole numbers"):
        boxes(9, 9, [2, 2])
    assert views(torch.rand(2, 3, 9, 9), [1, 2, 3], 4).shape == (2, 14, 3, 4, 4)


# Losses ---------------------------------------------------------------------------------------------------------------------------------


def test_matching_takes_the_nearest_local_view_the_first_of_equal_ones_and_no_gradient_of_the_teacher() -> None:
    seen = torch.tensor([[[0.0, 0.0], [4.0, 4.0], [1.0, 1.0], [1.0, 1.0]]], requires_grad=True)
    segments = torch.tensor([[[0.0, 0.0], [0.5, 1.0], [9.0, 9.0]]], requires_grad=True)
    assert nearest_views(segments, seen, 1).tolist() == [[2, 2, 1]]  # never the whole image; one view may be chosen twice
    loss = matching_loss(segments, seen, 1)
    assert loss.item() == pytest.approx(1.0 + 0.25 + 5.0)
    loss.backward()
    assert seen.grad is None
    assert segments.grad is not None
    assert segments.grad[0, 0].tolist() == [-0.5, -0.5]
    assert nearest_views(segments, seen, 0)[0, 0] == 0  # without scale 1 every view is local
    with pytest.raises(InputError, match="a scale above 1"):
        matching_loss(segments, seen[:, :1], 1)


def test_cached_half_precision_is_widened() -> None:
    z, seen = torch.randn(2, 4), torch.randn(2, 3, 4).half()
    assert multi_scale_loss(z, seen).dtype == torch.float32
    torch.testing.assert_close(multi_scale_loss(z, seen), (z[:, None] - seen.float()).abs().mean())


def distiller(teacher: Teacher | None = None, **options: Any) -> ZeroSeg:
    torch.manual_seed(0)
    return ZeroSeg(ZeroSegNetwork(SPEC), teacher, **{"reconstruction": "vit16_1", **options})


def teacher_of(scales: tuple[int, ...] = (1, 2), dim: int = 8) -> Teacher:
    torch.manual_seed(5)
    clip = ImageText(AnyTower(dim), lambda texts: torch.empty(0), 8, HALF, HALF, 1.0, "here")
    return Teacher(ViewTeacher(clip, scales), precision="fp32", channels_last=False)


def batch_of(size: tuple[int, int] = (32, 32), count: int = 3) -> SegmentationBatch:
    images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))
    return SegmentationBatch(images, torch.full((count, *size), 255, dtype=torch.uint8), torch.arange(count))


def test_the_terms_of_the_arms() -> None:
    terms = {
        name: distiller(teacher_of(), scales=(1, 2), **options).losses(batch_of())
        for name, options in (("both", {}), ("base", {"multi_scale": False, "match_weight": 0.0}), ("whole", {"mask_ratio": 0.0}))
    }
    assert set(terms["both"].terms) == {"reconstruction", "multi_scale", "match"}
    assert set(terms["base"].terms) == {"reconstruction", "multi_scale"}
    assert set(terms["whole"].terms) == {"multi_scale", "match"}
    found = distiller(teacher_of(), scales=(1, 2), multi_scale=False, match_weight=0.0, mask_ratio=0.0)
    found.eval()
    answers, seen = found.student.segmented(batch_of().images), teacher_of()(batch_of())
    torch.testing.assert_close(found.losses(batch_of()).terms["multi_scale"], multi_scale_loss(answers.image, seen[:, :1]))


def test_every_parameter_learns_and_normalised_targets_compare_directions() -> None:
    found = distiller(teacher_of(), scales=(1, 2))
    found.losses(batch_of()).total.backward()
    assert [name for name, parameter in found.named_parameters() if parameter.grad is None] == []
    directions = distiller(teacher_of(), scales=(1, 2), normalise_targets=True, mask_ratio=0.0).eval()
    terms = directions.losses(batch_of()).terms
    directions.student.projector.fc2.weight.data *= 3
    directions.student.projector.fc2.bias.data *= 3
    torch.testing.assert_close(directions.losses(batch_of()).terms["multi_scale"], terms["multi_scale"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scales": (1,)}, "match_weight 0"),
        ({"scales": (2, 3), "multi_scale": False}, "scale 1 among them"),
        ({"scales": (2, 1)}, "the smallest first"),
        ({"mask_ratio": 1.0}, "from 0 and below 1"),
        ({"match_weight": -1.0}, "at least 0"),
        ({"reconstruction": "mlp"}, "vitWIDTH"),
    ],
)
def test_numbers_that_contradict_each_other(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        distiller(None, **options)


def test_a_batch_of_one_and_a_projection_with_batch_norm() -> None:
    student = ZeroSegNetwork(replace(SPEC, norm="batch"))
    losses = ZeroSeg(student, teacher_of(), scales=(1, 2), reconstruction="vit16_1").losses(batch_of(count=1))
    assert losses.total.isfinite()


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="embeddings of 5 numbers, expected 8"):
        distiller(teacher_of(dim=5), scales=(1, 2)).losses(batch_of())


def test_weights_of_a_masked_autoencoder_begin_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    released = {f"{name}": value for name, value in ZeroSegNetwork(SPEC).encoder.state_dict().items()}
    torch.save(
        {"model": {**released, "pos_embed": torch.zeros(1, 5, 16), "decoder_embed.weight": torch.zeros(4, 16)}}, tmp_path / "mae.pth"
    )
    network = ZeroSegNetwork(SPEC)
    network.begin_with(str(tmp_path / "mae.pth"), trust_pickle=False)
    assert all(torch.equal(network.encoder.state_dict()[name], value) for name, value in released.items())
    with pytest.raises(InputError, match="without a fitting blocks"):
        ZeroSegNetwork(replace(SPEC, vit="vit16_2_16")).begin_with(str(tmp_path / "mae.pth"), trust_pickle=False)


# Decoding -------------------------------------------------------------------------------------------------------------------------------


def test_texts_of_any_length_and_fewer_classes_than_five() -> None:
    segments, image, text = torch.randn(1, 3, 6), torch.randn(1, 6), torch.randn(2, 6)
    found = class_probabilities(segments, image, text, 20.0)
    torch.testing.assert_close(found, class_probabilities(3 * segments, image, 7 * text, 20.0))
    assert found.shape == (1, 3, 2)
    with pytest.raises(InputError, match="embeddings of 5 numbers, expected 6"):
        class_probabilities(segments, image, torch.randn(2, 5), 20.0)


def test_an_image_shows_five_classes_at_most() -> None:
    text = torch.eye(8)
    image = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.1, 0.1, 0.1]])
    found = class_probabilities(torch.eye(8)[None], image, text, 5.0)
    assert bool((found[..., 5:] == 0).all())
    assert bool((found[..., :5] > 0).all())


def test_the_background_is_where_no_class_reaches_the_threshold_and_never_everywhere_by_it_alone() -> None:
    maps = torch.zeros(1, 2, 1, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = 1
    u = torch.tensor([[[0.8, 0.1], [0.2, 0.1]]])
    scores = pixel_scores(maps, u)
    assert with_background(scores, u, 0.5).argmax(1).tolist() == [[[1, 0]]]
    assert with_background(scores, u, 0.95).argmax(1).tolist() == [[[1, 0]]]  # the largest score takes the threshold's place


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (16, 70)])
def test_any_size_is_answered_on_its_true_grid(size: tuple[int, int]) -> None:
    network = ZeroSegNetwork(SPEC).eval()
    network.vocabulary = vocabulary(("background", "cat", "dog"))
    assert network(torch.randn(2, 3, *size)).shape == (2, 3, *size)
    maps, segments, image = network.parts(torch.randn(2, 3, *size))
    assert maps.shape == (2, 2, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, *maps.shape[2:]))
    assert (segments.shape, image.shape) == ((2, 2, 8), (2, 8))


def test_the_background_as_a_threshold_a_word_or_none() -> None:
    network, images = ZeroSegNetwork(SPEC).eval(), torch.randn(1, 3, 32, 32)
    nn.init.normal_(network.projector.fc2.weight)
    classes = ("cat", "background", "dog")
    by = {kind: network.finding(vocabulary(classes, kind, 1.0))(images) for kind in ("threshold", "word", "none")}
    assert all(scores.shape == (1, 3, 32, 32) for scores in by.values())
    assert bool((by["none"][:, 1] == -1).all())
    torch.testing.assert_close(by["threshold"][:, [0, 2]], by["none"][:, [0, 2]])
    assert set(by["threshold"][:, 1].unique().tolist()) <= {0.0, 1.0}
    word = network.finding(vocabulary(("background", "cat", "dog"), "word"))(images)
    torch.testing.assert_close(by["word"], word[:, [1, 0, 2]])


def test_names_that_a_vocabulary_cannot_have() -> None:
    known = vocabulary(("cat", "dog"))
    assert known.of([" spare ", "background"]).classes == ("spare", "background")
    assert known.of(["cat", "background"]).place == 1
    refused = (([], "nothing"), (["cat", "cat"], "each once"), (["background"], "names of classes"), (["cow"], "the teacher knows"))
    for names, said in refused:
        with pytest.raises(InputError, match=said):
            known.of(names)
    with pytest.raises(InputError, match="threshold"):
        vocabulary(("cat",), threshold=1.5)


def test_segments_are_counted_and_compared_with_regions() -> None:
    data = SegmentationData("objects:train=2,val=3")
    network = ZeroSegNetwork(SPEC)
    found = segment_figures(network, data, torch.device("cpu"))
    assert 1 <= float(found["used"]) <= 2
    assert 0 < float(found["match"]) < 100


def test_a_specification_is_read_as_it_is_written() -> None:
    spec = ZeroSegSpec("vit768_12_16", (32, 8), (2, 2, 1), 768, 4096, "batch")
    assert parse(str(spec), "model") == spec
    with pytest.raises(InputError, match="as a run records it"):
        parse("zeroseg:vit64", "model")


def test_the_stand_ins_pictures_show_each_word() -> None:
    train, val = single_objects(40, 20)
    assert len(train) == 40
    assert len(val) == 20
    assert {0, *train.targets.tolist()} <= set(range(9))
    image, label = train[0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 32, 32))
    assert label == train.targets[0]


# Runs -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms in small, the default's stand-in for a teacher."""
    out = tmp_path_factory.mktemp("zeroseg") / "run"
    assert main(["run", "zeroseg", *SMALL, *SHORT, "--arms", "base+both", "--out", str(out)]) == 0
    return out


def test_the_report_has_floors_arms_segments_and_what_the_background_was(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["background", "cells", "base", "both"]
    assert metrics["baseline"] == "base"
    assert metrics["summary"]["background"]["metrics"]["mIoU without background"]["mean"] == 0
    both = metrics["summary"]["both"]["metrics"]
    assert {"mIoU", "mIoU without background", "segments used", "best-match IoU", "threshold"} <= both.keys()
    report = (run / "report.html").read_text()
    assert "chosen for each arm alike on the masks of 6 training pictures left out" in report
    assert "procedural data: 24 training + 4 validation images of 9 classes" in report
    assert "Teacher: a stand-in trained here on drawn pictures" in report
    stages = {stage["name"]: stage for (stage,) in metrics["stages"].values()}
    assert stages["both"]["history"][0]["train/match"] > 0


def test_the_teacher_s_views_are_kept_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "views/cache.json").read_text())
    assert record["arrays"]["logits"] == [[14, 64], "<f2"]
    assert record["samples"] == record["done"] == 18
    assert main(["run", "zeroseg", *SMALL, "--augment", "mirror", *SHORT, "--out", str(run.parent / "other")]) == 2
    assert "--augment: got mirror, expected none: the teacher's views are computed once" in capsys.readouterr().err


def test_another_list_of_scales_or_another_teacher_is_another_cache(tmp_path: Path) -> None:
    data, lab = SegmentationData("objects:train=6,val=2", batch_size=4), Lab(LabOptions(out=tmp_path, accelerator="cpu"))
    floor = lab.evaluate(Floor(0, 9), data, name="floor", around=SegmentationDistiller).result

    def answers(scales: tuple[int, ...], seed: int = 0) -> CachedTeacher:
        torch.manual_seed(seed)
        clip = ImageText(AnyTower(8), lambda texts: torch.empty(0), 8, HALF, HALF, 1.0, "here")
        return cached_views(lab, Taught(clip, vocabulary(("cat",)), ()), data, scales, floor)

    first = answers((1, 2))
    batch = next(iter(data.replaying(first.views).train_loader(seed=0)))
    assert first(batch).shape == (4, 5, 8)
    assert first(batch).dtype == torch.float32
    assert torch.equal(answers((1, 2))(batch), first(batch))
    for scales, seed in (((1, 3), 0), ((1, 2), 1)):
        with pytest.raises(InputError, match=r"a cache of something else \(teacher was"):
            answers(scales, seed)


def test_predict_finds_what_words_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    picture(numbers(0, (50, 70)), 0).save(photo)
    words = ["predict", str(run), str(photo), "--out", str(tmp_path)]
    assert main([*words, "--classes", "warm disc, cold square", "--threshold", "0.4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["classes"] == ["background", "warm disc", "cold square"]
    assert Image.open(answer["mask"]).size == Image.open(answer["overlay"]).size == (70, 50)
    assert main([*words, "--classes", "cat,grass,sky"]) == 2
    assert "classes: got cat, grass, sky, expected words that the teacher knows" in capsys.readouterr().err
    assert main(words) == 0  # with the run's own classes


def test_the_student_is_exported_without_classes(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--out", str(tmp_path / "s.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["segment_maps", "segment_embeddings", "image_embedding"]
    student: Any = load(run)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = student.network.parts(images)
    for found, wanted in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "base+all"), "--arms: got all"),
        (("--teacher", "models/no-clip"), "--teacher: got models/no-clip, expected a folder of a transformers CLIPModel"),
        (("--student", "resnet18"), "--student: got resnet18, expected vitWIDTH"),
        (("--threshold-pictures", "24"), "--threshold-pictures: got 24"),
        (("--mask-ratio", "0.97"), "--mask-ratio: got 0.97, expected a ratio that leaves one of 16 patches"),
        (("--background-threshold", "2"), "--background-threshold: got 2"),
        (("--assignment-temperature", "0"), "--assignment-temperature: got 0"),
    ],
)
def test_what_is_wrong_is_said_at_once(words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "zeroseg", *SMALL, *SHORT, *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


# A CLIP at hand -------------------------------------------------------------------------------------------------------------------------


def test_a_clip_folder_teaches_and_names_any_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = learnt(["a photo of a cat", "a photo of the grass", "sky and dog"] * 4, 600, 10)
    write_clip(tmp_path / "clip", made(SHAPE, tokenizer), tokenizer, HALF, HALF)
    root = voc(tmp_path / "set", 6, 2)
    words = [
        "run",
        "zeroseg",
        *SMALL,
        "--teacher",
        str(tmp_path / "clip"),
        "--data",
        f"voc:{root}",
        "--image-size",
        "32",
        "--augment",
        "none",
    ]
    assert main([*words, "--batch-size", "4", "--arms", "both", "--background-threshold", "0.3", "--out", str(tmp_path / "run")]) == 0
    assert "Background: below a score of 0.3." in (tmp_path / "run/report.html").read_text()
    photo = tmp_path / "photo.jpg"
    picture(numbers(0), 0).save(photo)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(photo), "--classes", "cat,grass,sky", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["background", "cat", "grass", "sky"]
    assert not (tmp_path / "run/cells/student.safetensors").exists()  # a copy of the teacher
    student: Any = load(tmp_path / "run")
    assert student.network.vocabulary.encoder == str(tmp_path / "clip")


def test_words_that_a_tokenizer_of_words_does_not_know_are_named(tmp_path: Path) -> None:
    tokenizer = of_words(["a", "photo", "of", "cat", "dog"], 12)
    write_clip(tmp_path, made(SHAPE, tokenizer), tokenizer, HALF, HALF)
    empty = Vocabulary((), torch.empty(0, 12), str(tmp_path), 20.0, ())
    assert empty.of(["cat", "dog"]).embeddings.shape == (2, 12)
    with pytest.raises(InputError, match=r"got zebra, expected words that the tokenizer of .* knows"):
        empty.of(["cat", "zebra"])


# The paper's setting --------------------------------------------------------------------------------------------------------------------


def test_the_paper_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "zeroseg", "--preset", "paper", "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {
        "view_scales": [1, 2, 3, 4],
        "mask_ratio": 0.6,
        "group_tokens": [32, 8],
        "epochs": 80,
        "batch_size": 4096,
        "lr": 2.4e-3,
        "weight_decay": 0.05,
    }
    assert {name: values[name] for name in expected} == expected


def test_a_step_of_the_paper_s_networks_on_its_data_in_small(tmp_path: Path) -> None:
    preset: dict[str, Any] = PRESETS["paper"]
    for i in range(2):
        folder = tmp_path / f"imagenet/train/n0{i}"
        folder.mkdir(parents=True)
        picture(numbers(i, (260, 300)), i).save(folder / f"{i}.JPEG")
    root = voc(tmp_path / "VOC2012", 2, 1, (96, 128))
    sizes = {name: preset[name] for name in ("image_size", "augment", "eval_size", "window_size", "stride")}
    data = SegmentationData(f"voc:{root},train_images=imagefolder:{tmp_path / 'imagenet/train'}", batch_size=2, **sizes)
    chosen = {name: preset[name] for name in ("student", "group_tokens", "head_blocks", "projector_hidden", "projector_norm")}
    student = ZeroSegNetwork(ZeroSegNetworks(**chosen).spec(768))
    assert sum(p.numel() for p in student.parameters()) > 130e6
    found = ZeroSeg(student, teacher_of((1, 2, 3, 4), 768), scales=tuple(preset["view_scales"]), reconstruction=preset["reconstruction"])
    found.plan = Training(epochs=1, **{name: preset[name] for name in ("optimizer", "lr", "momentum", "weight_decay", "schedule")})
    optimizer = found.configure_optimizers()
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    losses = found.losses(next(iter(data.train_loader(seed=0))))
    losses.total.backward()
    optimizer.step()
    assert all(term.isfinite() for term in losses.terms.values())
    assert student.segmented(torch.zeros(1, 3, 64, 64)).maps.shape == (1, 16, 8)


# Kills and processes --------------------------------------------------------------------------------------------------------------------


def fit(out: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    made_ = ZeroSeg(ZeroSegNetwork(SPEC), teacher_of(), scales=(1, 2), reconstruction="vit16_1")
    made_.student.vocabulary = vocabulary(SegmentationData("objects:train=1,val=1").classes)
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
    plan = Training(epochs=2, optimizer="adamw", lr=1e-3, schedule="cosine")
    return read_weights(lab.fit(made_, SegmentationData("objects:train=24,val=2", batch_size=8), plan, name="both").folder)


def test_killed_and_continued_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(ZeroSeg, (1, 4), fit, tmp_path, monkeypatch)


def test_logits_that_are_no_numbers_end_the_training(tmp_path: Path) -> None:
    broken = distiller(teacher_of(), scales=(1, 2))
    broken.student.vocabulary = vocabulary(SegmentationData("objects:train=1,val=1").classes)
    broken.student.head.stages[0].downsample.assign.q_proj.bias.data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLoss, match="multi_scale = nan"):
        Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(
            broken, SegmentationData("objects:train=8,val=2"), Training(epochs=1), name="both"
        )


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, processes: Processes) -> None:
    processes.on_two_ranks(train, tmp_path / "two", 2)
    train(tmp_path / "one", 1)
    alone, shared = (read_weights(tmp_path / name / "seed0/both") for name in ("one", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=name)
