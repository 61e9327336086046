"""Sets in every layout, and what is wrong with them said before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.images.label_maps import VOC_CLASSES as VOC
from stillroom.tasks.segmentation import SegmentationData
from stillroom.tasks.segmentation.sources import open_source
from tests.tasks.segmentation.miniatures import folders, numbers, palette, panoptic, picture, voc


def truth(data: SegmentationData) -> list[list[list[int]]]:
    return [data.val_mask(i).tolist() for i in range(len(data.source.val))]


def test_voc_in_a_folder_and_in_a_zip_is_the_same(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    data, zipped = SegmentationData(f"voc:{root}"), SegmentationData(f"voc:{packed}")
    assert data.classes == ("background", "cat", "dog")
    assert (data.train_size, data.background) == (4, 0)
    expected = numbers(4)
    expected[-1] = 255
    assert data.val_mask(0).tolist() == expected.tolist()
    assert truth(zipped) == truth(data)
    assert zipped.fingerprint == data.fingerprint


def test_the_numbers_are_counted_and_told_before_training(tmp_path: Path) -> None:
    lines = SegmentationData(f"voc:{voc(tmp_path)}").first_lines()
    assert lines[0] == "4 training + 2 validation images of 3 classes: background, cat, dog"
    assert lines[1].startswith("pixels of 4 training masks by class: 0 background ")
    assert "2 dog" in lines[1]
    assert lines[1].endswith("; 4.17 % count nowhere")


def test_classes_0_and_1_are_not_shifted(tmp_path: Path) -> None:
    root = voc(tmp_path, classes=("wall", "door"))
    data = SegmentationData(f"voc:{root}")
    assert data.background is None
    assert set(np.unique(data.val_mask(0))) == {0, 1, 255}


def test_vocs_own_classes_are_the_usual_ones_and_numbers_beyond_them_an_error(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "class_names.txt").unlink()
    assert open_source(f"voc:{root}").classes == VOC
    palette(np.full((24, 32), 21, np.uint8)).save(root / "SegmentationClass/p1.png")
    with pytest.raises(InputError, match=r"p1\.png with the numbers 21 \(768 pixels\), expected numbers of the 21 classes \(0 to 20\)"):
        open_source(f"voc:{root}")


def test_rgb_masks_are_read_by_vocs_colours(tmp_path: Path) -> None:
    root = voc(tmp_path)
    before = truth(SegmentationData(f"voc:{root}"))
    for mask in (root / "SegmentationClass").iterdir():
        Image.open(mask).convert("RGB").save(mask)
    assert truth(SegmentationData(f"voc:{root}")) == before


def test_masks_of_0_and_255_are_told_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "set")
    for mask in (root / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(mask)) > 0, 255, 0).astype(np.uint8)).save(mask)
    words = ["run", "supervised", "--task", "segmentation", "--student", "stillroom/unet2_2", "--epochs", "1", "--warmup-epochs", "0"]
    words += ["--image-size", "16", "--batch-size", "4", "--accelerator", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--data", f"masks:{root},classes=no+object"]) == 0
    said = capsys.readouterr().out
    warned = "no pixel of object in the training masks that were looked at: their numbers are 0 and 255, which counts nowhere"
    assert warned in said
    assert said.index(warned) < said.index("epoch 1/1")
    assert warned in (tmp_path / "run/report.html").read_text()
    data = SegmentationData(f"masks:{root},classes=no+object,ids=0+255")
    assert set(np.unique(data.val_mask(0))) == {0, 1}


def test_folders_in_the_layouts_that_people_have(tmp_path: Path) -> None:
    plain = SegmentationData(f"masks:{folders(tmp_path / 'a')},classes=a+b+c,val=0.4")
    assert (plain.train_size, len(plain.source.val)) == (3, 2)
    behind = SegmentationData(f"masks:{folders(tmp_path / 'b', suffix='_mask')},classes=a+b+c,val=0.4")
    assert truth(behind) == truth(plain)
    city = folders(tmp_path / "c", suffix="_gtFine_labelTrainIds", masks="gtFine", picture_end="_leftImg8bit")
    for i in range(5):
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(city / f"gtFine/p{i}_gtFine_instanceIds.png")
    named = SegmentationData(f"masks:{city},classes=a+b+c,suffix=_gtFine_labelTrainIds,val=0.4")
    assert truth(named) == truth(plain)
    for split in ("training", "validation"):
        folders(tmp_path / "d" / split, 2)
        shutil.copytree(tmp_path / "d" / split / "images", tmp_path / "e/images" / split)
        shutil.copytree(tmp_path / "d" / split / "masks", tmp_path / "e/annotations" / split)
    for root in ("d", "e"):
        split_up = SegmentationData(f"masks:{tmp_path / root},classes=a+b+c")
        assert (split_up.train_size, len(split_up.source.val)) == (2, 2)


def test_pictures_and_masks_that_do_not_belong_together(tmp_path: Path) -> None:
    root = folders(tmp_path / "a")
    (root / "masks/p1.png").rename(root / "masks/other.png")
    with pytest.raises(InputError, match=r"2 files without a counterpart, the first masks/other\.png, images/p1\.png"):
        open_source(f"masks:{root},classes=a+b+c")
    (root / "masks/other.png").rename(root / "masks/p1.png")
    Image.fromarray(numbers(1, (12, 16))).save(root / "masks/p1.png")
    with pytest.raises(InputError, match=r"p1\.png of 32 x 24 pixels, whose mask has 16 x 12"):
        open_source(f"masks:{root},classes=a+b+c")


def test_cocos_panoptic_format(tmp_path: Path) -> None:
    pictures, annotations = panoptic(tmp_path)
    data = SegmentationData(f"coco:{pictures},{annotations},val=0.25")
    assert data.classes == ("cat", "dog")
    assert data.background is None
    expected = np.where(numbers(0) > 0, numbers(0).astype(np.int64) - 1, 255)
    expected[0, 0] = 255
    number = next(i for i in range(3) if data.train_name(i) == "0.jpg") if data.val_name(0) != "0.jpg" else None
    found = data.training_images.mask(number) if number is not None else data.val_mask(0)
    assert found.tolist() == expected.tolist()
    both = SegmentationData(f"coco:{pictures},{annotations},val_annotations={annotations}")
    assert (both.train_size, len(both.source.val)) == (4, 4)
    for mask in (tmp_path / "panoptic").iterdir():
        Image.open(mask).convert("L").save(mask)
    with pytest.raises(InputError, match="with one channel, expected COCO's panoptic PNGs"):
        open_source(f"coco:{pictures},{annotations}")


def test_pictures_without_masks_are_trained_on_instead(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    for i in range(3):
        (tmp_path / "photos/kind").mkdir(parents=True, exist_ok=True)
        picture(numbers(i), i).save(tmp_path / f"photos/kind/{i}.png")
    data = SegmentationData(f"voc:{root},train_images=imagefolder:{tmp_path / 'photos'}", image_size=16, batch_size=2)
    assert (data.train_size, data.masked) == (3, False)
    batch = next(iter(data.train_loader(seed=0)))
    assert bool((batch.masks == 255).all())
    assert len(next(iter(data.eval_loader())).masks) == 2
    with pytest.raises(InputError, match="whose training pictures have no masks"):
        data.task.supervised(torch.nn.Identity()).training_data(data)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("voc:{root},train=nowhere", "a list of ImageSets/Segmentation: "),
        ("voc:{root},val=train", "in train and in val"),
        ("voc:{root},masks=Other", "the set's own list names those of SegmentationClass"),
        ("voc:{root},masks=Other,classes=a+b", "Pascal VOC's layout"),
        ("voc:{root},colour=1", "an option of voc"),
        ("masks:{root}/JPEGImages,classes=a", "folders of pictures"),
        ("coco:{root}", "coco:IMAGES,PANOPTIC.json"),
        ("objects:train=0", "a whole number of at least 1"),
    ],
)
def test_what_cannot_be_used_is_named(spec: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        open_source(spec.format(root=voc(tmp_path)))


def test_voc_is_read_by_several_tasks_and_the_message_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "supervised", "--data", f"voc:{voc(tmp_path)}", "--out", str(tmp_path / "run")]) == 2
    assert "or say --task detection or segmentation, which read these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "train", "val", "classes"), [("camvid/camvid_voc.zip", 367, 101, 12), ("coco_mini/coco_mini_voc.zip", 69, 68, 81)]
)
def test_real_sets(shared_data: Path, place: str, train: int, val: int, classes: int) -> None:
    if not (shared_data / place).exists():
        pytest.skip(f"{place} is not here")
    source = open_source(f"voc:{shared_data / place}")
    assert (len(source.train), len(source.val), len(source.classes)) == (train, val, classes)
    assert source.pixels[:, -1].min() > 0  # 255 is in both


def test_nothing_is_paired_by_chance_or_left_out_without_a_word(tmp_path: Path) -> None:
    root = folders(tmp_path / "twice")
    picture(numbers(0), 9).save(root / "images/p0.jpg")
    with pytest.raises(InputError, match=r"images/p0\.(jpg|png) and images/p0\.(png|jpg), which differ in their ending"):
        open_source(f"masks:{root},classes=a+b+c")
    (root / "images/p0.jpg").rename(root / "cover.jpg")
    (root / "images/notes.docx").write_bytes(b"PK")
    said = " ".join(open_source(f"masks:{root},classes=a+b+c").said)
    assert "passed over 1 picture in no folder of pictures or of masks, the first cover.jpg" in said
    assert "images/notes.docx" in said


def test_what_lies_in_test_is_not_measured_on_beside_val(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        folders(tmp_path / split, count)
    found = open_source(f"masks:{tmp_path},classes=a+b+c")
    assert (len(found.train), len(found.val)) == (4, 2)
    assert all(name.startswith("val/") for name in found.val.names)
    assert found.said == ("passed over 3 of the folder test: val is what is measured on",)
    with pytest.raises(InputError, match=r"val=0\.5, expected none: the folder val says"):
        open_source(f"masks:{tmp_path},classes=a+b+c,val=0.5")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_lists_in_any_encoding_of_names_with_endings_and_spaces(encoding: str, tmp_path: Path) -> None:
    root = voc(tmp_path, classes=("background", "café", "chien"))
    (root / "class_names.txt").write_bytes("background\r\ncafé\r\nchien\r\n".encode(encoding))
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"p0.{ending}").rename(root / folder / f"été 0.{ending}")
    lines = ["été 0", "p1.jpg", "/JPEGImages/p2.jpg /SegmentationClass/p2.png"]
    (root / "ImageSets/Segmentation/train.txt").write_bytes("\n".join(lines).encode(encoding))
    found = open_source(f"voc:{root}")
    assert found.classes[1] == "café"
    assert [Path(name).stem for name in found.train.names] == ["été 0", "p1", "p2"]


def test_masks_that_hold_no_class_numbers_or_cannot_be_read(tmp_path: Path) -> None:
    root = folders(tmp_path)
    for i in range(5):
        (root / f"masks/p{i}.png").unlink()
        Image.fromarray(np.full((24, 32), 0.5, np.float32)).save(root / f"masks/p{i}.tif")
    with pytest.raises(InputError, match=r"floating-point values that are no whole numbers"):
        open_source(f"masks:{root},classes=a+b+c")
    folders(root)
    for i in range(5):
        (root / f"masks/p{i}.tif").unlink()
    mask = root / "masks/p3.png"
    mask.write_bytes(mask.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"masks/p3\.png: not a readable label map .*, expected a mask of images/p3\.png"):
        open_source(f"masks:{root},classes=a+b+c")
    for i in range(5):
        Image.fromarray(np.full((24, 32), 255, np.uint8)).save(root / f"masks/p{i}.png")
    with pytest.raises(InputError, match=r"4 masks to train on in which every pixel counts nowhere"):
        open_source(f"masks:{root},classes=a+b+c")


@pytest.mark.parametrize("given", ["classes=names.txt", "classes=a+b+c,ids=5-1", "classes=a+b+c,ids=0-99999999999"])
def test_options_of_classes_are_not_taken_for_something_else(given: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=given.split(",")[-1]):
        open_source(f"masks:{folders(tmp_path)},{given}")


def test_panoptic_names_that_mean_two_files(tmp_path: Path) -> None:
    pictures, file = panoptic(tmp_path)
    said = json.loads(file.read_text())
    for mark in said["annotations"]:
        for segment in mark["segments_info"]:
            segment["iscrowd"] = str(segment.get("iscrowd", 0))
    file.write_text(json.dumps(said), encoding="utf-16")
    assert open_source(f"coco:{pictures},{file},val=0.25").pixels[0, :2].all()
    (pictures / "b").mkdir()
    shutil.copy(pictures / "1.jpg", pictures / "b/0.jpg")
    with pytest.raises(InputError, match=r"0\.jpg, which may be .*b/0\.jpg"):
        open_source(f"coco:{pictures},{file},val=0.25")
