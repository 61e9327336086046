"""Pairs as people bring them, what retrieval counts, and a student that is asked and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.cli import main
from stillroom.engine.run.measure import measure
from stillroom.errors import InputError
from stillroom.modules.clip import Clip
from stillroom.tasks.images.clips import write_clip
from stillroom.tasks.images.tokens import learnt, of_words
from stillroom.tasks.imagetext import ImageTextData, load
from stillroom.tasks.imagetext.metrics import Classes, PairEvaluator, retrieval_ranks
from stillroom.tasks.imagetext.models import build_clip, name_of, shape_named
from stillroom.tasks.imagetext.sources import open_source
from stillroom.tasks.students import export_files, export_student
from tests.tasks.imagetext.pairs import COLOURS, picture, write_pairs, write_shards, write_table

STUDENT = "stillroom/clip_16x2p8_24x2_d12_h8"


# Data -----------------------------------------------------------------------------------------------------------------------------------


def test_pairs_of_a_table_with_two_captions_each(tmp_path: Path) -> None:
    table, classes = write_pairs(tmp_path / "pairs")
    data = ImageTextData(f"pairs:{table}", image_size=16, vocabulary=530, batch_size=6, zero_shot=str(classes), workers=0)
    assert data.first_lines()[0] == "18 training + 6 validation images with 36 + 12 captions"
    assert "530 byte pairs are learnt from the training captions" in data.first_lines()[2]
    batches = list(data.train_loader(seed=0))
    assert [batch.images.shape for batch in batches] == [(6, 3, 16, 16)] * 3
    assert [batch.tokens.shape for batch in batches] == [(6, 32)] * 3  # one caption of each image
    loader = data.train_loader(seed=0)
    epochs = [{(i, t) for batch in loader for i, t in zip(batch.ids.tolist(), batch.text_ids.tolist(), strict=True)} for _ in range(4)]
    assert len(set.union(*epochs)) > 30  # another one each time
    seen = list(data.eval_loader())
    assert torch.cat([batch.ids for batch in seen]).tolist() == list(range(6 + 24))
    assert len(torch.cat([batch.text_ids for batch in seen]).unique()) == 6 + 3 + 3 * 7  # captions, of which some repeat, and prompts
    assert ImageTextData(f"pairs:{table}", image_size=16, vocabulary=530).fingerprint != data.fingerprint
    assert data.captions_of(0) == ["a red picture no. 3", "something red"]


def test_a_folder_or_zip_holds_its_table(tmp_path: Path) -> None:
    import shutil

    write_pairs(tmp_path / "pairs")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "pairs")
    found = [ImageTextData(f"pairs:{place}", image_size=16, vocabulary=530) for place in (tmp_path / "pairs", archive)]
    assert found[0].fingerprint == found[1].fingerprint


def test_captions_that_are_empty_repeated_overlong_or_of_another_script(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [
        ("images/0.png", "  "),
        ("images/1.png", "日本語の説明"),
        ("images/1.png", " 日本語の説明"),
        ("images/2.png", "many words " * 40),
    ]
    rows += [(f"images/{i}.png", "the same") for i in range(3, 12)]
    for i in range(12):
        picture("red", i).save(tmp_path / f"images/{i}.png")
    data = ImageTextData(f"pairs:{write_table(tmp_path / 'p.csv', rows)},val=0.4", image_size=16, vocabulary=530)
    said = " / ".join(data.first_lines())
    assert "7 training + 4 validation images" in said
    assert "passed over 1 row without a caption, the first images/0.png" in said
    assert "passed over 1 row that were there before" in said
    assert "1 captions have more than the 32 tokens" in said
    assert "share their caption with another one" in said
    batch = next(iter(data.eval_loader()))
    assert (batch.tokens == data.tokenizer.end).any(1).all()


@pytest.mark.parametrize(
    ("rows", "spec", "said"),
    [
        ([("images/9.png", "lost")], "", "files that are missing: images/9.png"),
        ([("images/0.png", "  ")], "", "0 images to train on"),
        ([("images/0.png", "a", "train"), ("images/0.png", "b", "val")], "", "one split of each image"),
        ([("images/0.png", "a", "train"), ("images/1.png", "b", "there")], "", "with the split there"),
        ([("images/0.png", "a"), ("images/1.png", "b")], ",text=label", "text=label, expected a column"),
        ([("images/0.png", "a", "train"), ("images/1.png", "b", "val")], ",val=0.5", "a split val of its own"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, rows: list[tuple[str, ...]], spec: str, said: str) -> None:
    (tmp_path / "images").mkdir()
    for i in range(2):
        picture("red", i).save(tmp_path / f"images/{i}.png")
    with pytest.raises(InputError, match=said):
        ImageTextData(f"pairs:{write_table(tmp_path / 'p.csv', rows)}{spec}", image_size=16, vocabulary=530)


def test_shards_give_every_process_as_many_steps_and_each_sample_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 3, 11)
    data = ImageTextData(f"webdataset:{shards},val=0.2", image_size=16, vocabulary=530, batch_size=4, workers=2)
    assert "26 training + 7 validation images" in data.first_lines()[0]
    loaders = [data.train_loader(seed=0, rank=rank, world=2) for rank in (0, 1)]
    steps = [[batch.ids.tolist() for batch in loader] for loader in loaders]
    assert [len(batches) for batches in steps] == [6, 6]
    assert "6 steps of 4 images are an epoch" in data.first_lines()
    assert len({i for batches in steps for ids in batches for i in ids}) == 24
    held_out = [i for rank in (0, 1) for batch in data.eval_loader(rank=rank, world=2) for i in batch.ids.tolist()]
    assert sorted(held_out) == list(range(7))


def test_coco_captions(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(6):
        picture("blue", i).save(tmp_path / f"images/{i}.jpg")
    content = {"images": [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(6)]}
    content["annotations"] = [{"image_id": 10 + i % 6, "caption": f"no. {i}"} for i in range(12)]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    data = ImageTextData(f"coco:{tmp_path / 'images'},{tmp_path / 'captions.json'}", image_size=16, vocabulary=530)
    assert data.first_lines()[0] == "5 training + 1 validation images with 10 + 2 captions"


def test_classes_that_the_vocabulary_does_not_know(tmp_path: Path) -> None:
    _, classes = write_pairs(tmp_path / "pairs")
    with pytest.raises(InputError, match="names whose words the tokenizer knows"):
        ImageTextData("compositions,train=1,val=1", zero_shot=str(classes.parent))


# Scores ---------------------------------------------------------------------------------------------------------------------------------


def evaluated(images: Tensor, texts: Tensor, own: list[list[int]], classes: Classes | None = None) -> dict[str, float]:
    evaluator = PairEvaluator([np.array(one) for one in own], 1 + max(t for one in own for t in one), classes)
    for first in range(0, len(images), 2):  # in batches, of which the texts come twice and out of order
        batch = SimpleNamespace(ids=torch.arange(first, min(first + 2, len(images))), text_ids=torch.arange(len(texts)).flip(0))
        evaluator.update((images[first : first + 2], texts.flip(0)), batch)
    return evaluator.compute()


def test_any_of_five_captions_and_equal_text_are_hits() -> None:
    eye = torch.eye(4)
    assert evaluated(eye[:2], eye[:1].expand(1, 4), [[0], [0]])["T2I@1"] == 100
    same = evaluated(torch.stack((eye[0], eye[0])), eye[:1], [[0], [0]])
    assert (same["I2T@1"], same["T2I@1"]) == (100, 100)  # two images, one caption text
    five = torch.cat((eye[:1], eye[1:2].expand(4, 4), eye[2:3]))
    assert evaluated(eye[[0, 2]], five, [[0, 1, 2, 3, 4], [5]])["I2T@1"] == 100
    assert evaluated(eye[[0, 2]], five, [[1, 2, 3, 4], [5, 0]])["I2T@1"] == 50


def test_a_model_for_which_all_is_alike_finds_nothing_nor_does_one_without_numbers() -> None:
    alike = torch.ones(12, 3) / 3**0.5
    own = [[i] for i in range(12)]
    assert set(evaluated(alike, alike, own).values()) == {0.0}
    broken = evaluated(torch.full((12, 3), torch.nan), alike, own)
    assert set(broken.values()) == {0.0}


def test_ranks_agree_with_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.tasks.imagetext.metrics._ROWS", 3)
    images, texts = normalize(torch.randn(7, 5), dim=1), normalize(torch.randn(9, 5), dim=1)
    own = [np.array([i, 7]) if i < 2 else np.array([i, 8]) if i == 3 else np.array([i]) for i in range(7)]
    ranks, text_ranks, nearest = retrieval_ranks(images, texts, own)
    near = images @ texts.T
    assert nearest.tolist() == near.argmax(1).tolist()
    for i in range(7):
        assert ranks[i] == sum(near[i, t] >= near[i, own[i]].max() for t in range(9) if t not in own[i])
    for t in range(9):
        mine = [i for i in range(7) if t in own[i]]
        assert text_ranks[t] == sum(near[i, t] >= near[mine, t].max() for i in range(7) if i not in mine)


def test_zero_shot_classes_are_the_mean_of_their_prompts() -> None:
    eye = torch.eye(4)
    images = torch.stack((eye[0], eye[1], eye[2], eye[1]))  # one with a caption, three with classes
    texts = torch.stack((eye[0], eye[1], eye[3], eye[2], eye[2]))
    found = evaluated(images, texts, [[0]], Classes(np.array([0, 1, 0]), np.array([[1, 2], [3, 4]])))
    assert found["zero-shot"] == 100


# Models ---------------------------------------------------------------------------------------------------------------------------------


def test_models_by_name(tmp_path: Path) -> None:
    data = ImageTextData("compositions,train=1,val=1")
    shape = shape_named("stillroom/clip_16x2p8_24x2_d12_h8", data, "student")
    assert (shape.image.heads, shape.text.heads, shape.vocabulary, shape.context) == ((2, 2), (3, 3), 24, 8)
    assert name_of(shape) == "stillroom/clip_16x2p8_24x2_d12_h8"
    for spec, said in (
        ("stillroom/clip_16x2p7_24x2_d12_h8", "patches that fill"),
        ("stillroom/clip_16x2p8_20x2_d12_h8", "multiples of the heads' 8"),
        ("stillroom/clip_rn2x1-1-1-1_16x1_d12_h8", "24 pixels, expected a multiple of 32 pixels for a ResNet"),
        ("stillroom/clip_rn3x1-1-1-1_16x1_d12_h8", "whose width is 3, expected an even number"),
        ("stillroom/clip_rn2x1-1-1_16x1_d12_h8", "a CLIP's folder"),
        ("timm/vit", "a CLIP's folder"),
        ("", "a CLIP's folder"),
    ):
        with pytest.raises(InputError, match=said):
            shape_named(spec, data, "student")
    other = learnt(["a red thing"] * 3, 520, 8)
    write_clip(tmp_path, Clip(replace(shape, vocabulary=other.size, end=other.end)), other, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match="the data's 24 tokens"):
        build_clip(str(tmp_path), data)


def test_data_are_read_as_a_model_reads_them(tmp_path: Path) -> None:
    from stillroom.tasks.images.clips import read_clip

    table, _ = write_pairs(tmp_path / "pairs")
    data = ImageTextData(f"pairs:{table}", vocabulary=530)
    words = of_words(["a", "red", "green", "blue", "picture", "something"], 6)
    shape = replace(shape_named(STUDENT, data, "x"), image_size=16, context=6, vocabulary=words.size, end=words.end)
    write_clip(tmp_path / "clip", Clip(shape), words, (0.1, 0.2, 0.3), (0.5,) * 3)
    opened = read_clip(str(tmp_path / "clip"))
    read = data.as_read_by(opened)
    batch = next(iter(read.eval_loader()))
    assert batch.images.shape[1:] == (3, 16, 16)
    assert batch.tokens.shape[1] == 6
    assert (read.mean, read.fingerprint != data.fingerprint) == ((0.1, 0.2, 0.3), True)
    assert build_clip(str(tmp_path / "clip"), read).network.shape == shape
    with pytest.raises(InputError, match="the 16 pixels"):
        ImageTextData(f"pairs:{table}", vocabulary=530, image_size=32).as_read_by(opened)


# Students -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of plain training on colours, long enough to know them."""
    folder = tmp_path_factory.mktemp("colours")
    table, _ = write_pairs(folder / "pairs")
    words = ["run", "supervised", "--task", "imagetext", "--data", f"pairs:{table}", "--image-size", "16", "--vocabulary", "530"]
    words += ["--student", "stillroom/clip_16x1p8_16x1_d12_h8", "--batch-size", "9", "--epochs", "30", "--lr", "0.01", "--augment", "none"]
    words += ["--templates", '["something {}"]']  # the others have words that no caption has
    assert main([*words, "--context", "10", "--accelerator", "cpu", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_student_answers_with_classes_that_are_named_when_it_is_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in COLOURS:
        picture(name, 999).save(tmp_path / f"{name}.png")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path), "--classes", "green, red,blue", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(answer["file"]).stem: answer["top"][0]["class"] for answer in answers} == {name: name for name in COLOURS}
    assert main(["predict", str(run), str(tmp_path)]) == 2
    assert "--classes: got nothing" in capsys.readouterr().err
    student = load(run)
    near = student.images(tmp_path / "red.png") @ student.texts("something red", "something blue").T
    assert near[0, 0] > near[0, 1]
    page = (run / "report.html").read_text()
    assert "What is found for a picture" in page
    assert "only 6 validation images" in page


@pytest.mark.parametrize("format", ["onnx", "torch", "safetensors"])
def test_both_towers_are_exported_and_checked(run: Path, tmp_path: Path, format: str) -> None:
    image, text = export_files(run, format=format, out=tmp_path)
    assert [image.path.stem.rpartition("_")[2], text.path.stem.rpartition("_")[2]] == ["image", "text"]
    for done in (image, text):
        assert done.outputs[0].name == "embeddings"
        assert done.outputs[0].difference <= 1e-4
    assert export_files(run, format=format, out=tmp_path)[1].path == text.path  # written over
    with pytest.raises(InputError, match="a student of one network"):
        export_student(run, format="safetensors", out=tmp_path)


def test_a_cut_student_is_exported_and_read_again(tmp_path: Path, uneven: Callable[[Path], Clip]) -> None:
    clip = uneven(tmp_path / "run")
    for done in export_files(tmp_path / "run", format="torch"):
        assert done.outputs[0].difference <= 1e-4
    again = load(tmp_path / "run").network
    assert measure(again, ImageTextData("compositions,train=1,val=1").example_inputs()).macs
    assert again.shape == clip.shape
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in clip.state_dict().items())


@pytest.fixture
def uneven() -> Callable[[Path], Clip]:
    from stillroom.engine.weights import save_weights
    from stillroom.modules.clip import TowerShape
    from stillroom.tasks.imagetext.task import TASK

    def write(folder: Path) -> Clip:
        data = ImageTextData("compositions,train=1,val=1")
        shape = shape_named(STUDENT, data, "student")
        clip = Clip(replace(shape, image=TowerShape(11, 8, (2, 0), (5, 9)), text=TowerShape(13, 8, (1, 3), (7, 0)))).eval()
        save_weights(clip, folder / "student.safetensors")
        TASK.ship(folder, clip, name_of(clip.shape), data)
        return clip

    return write


def test_a_caption_that_is_null_is_none(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(4)]
    marks = [{"image_id": number, "caption": f"thing {number}" if number else None} for number in range(4)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": marks}))
    found = open_source(f"coco:{tmp_path},{tmp_path}/captions.json,val=0.3")
    assert "None" not in found.captions.texts
    assert "passed over 1 row without a caption, the first 0.png" in found.said
    (tmp_path / "same.json").write_text((tmp_path / "captions.json").read_text())
    with pytest.raises(InputError, match="in train and in val, expected one split of each image"):
        open_source(f"coco:{tmp_path},{tmp_path}/captions.json,val_annotations={tmp_path}/same.json")
