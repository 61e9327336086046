"""Folders as people have them: files told by their content, what systems leave behind, names, links, pipes; and what is said of it all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features
from torch.utils.data import TensorDataset

from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.files import Folder
from stillroom.tasks.images.folders import begins_as_image, find_images, told_apart
from stillroom.tasks.images.stores import UnreadableImage, read_image
from tests.tasks.classification.miniatures import classes_of_pictures, picture

FORMATS = {"gif": "GIF", "jfif": "JPEG", "jpe": "JPEG", "": "PNG", "dat": "BMP", "img": "TIFF", "pnm": "PPM", "jp2": "JPEG2000"}


def total(root: Path, options: str = "") -> int:
    source = open_source(f"imagefolder:{root}{options}")
    return len(source.train) + len(source.val)


@pytest.mark.parametrize("extension", [*FORMATS, "avif"])
def test_an_image_is_told_by_its_content(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    if extension == "jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow reads no JPEG 2000")
    classes_of_pictures(tmp_path, count=5)
    for i in range(3):
        file = io.BytesIO()
        Image.new("RGB", (12, 12), (40, 0, 0)).save(file, FORMATS.get(extension, "AVIF"))
        (tmp_path / "dog" / f"new{i}{'.' if extension else ''}{extension}").write_bytes(file.getvalue())
    assert total(tmp_path) == 13
    data = ImageData(f"imagefolder:{tmp_path}")
    assert data.left_out == []
    assert not any("passed over" in line for line in data.first_lines())
    assert len(find_images([str(tmp_path)]).files) == 13


def test_heic_is_recognised(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (16, 16), (200, 0, 0))).save(tmp_path / "a.heic")
    assert read_image(tmp_path / "a.heic").size == (16, 16)


def test_heic_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    classes_of_pictures(tmp_path, count=5)
    (tmp_path / "dog" / "a.heic").write_bytes(head)
    with pytest.raises(UnreadableImage, match=r"a\.heic: .*pip install pillow-heif"):
        read_image(tmp_path / "dog" / "a.heic")
    data = ImageData(f"imagefolder:{tmp_path}")
    assert any("left out 1 image file that cannot be decoded: dog/a.heic" in line for line in data.first_lines())


def test_what_is_no_image_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes_of_pictures(tmp_path, count=5)
    (tmp_path / "cat" / "notes.txt").write_text("BM is no bitmap, P1 no drawing")
    (tmp_path / "labels.csv").write_text("a,b")
    source = open_source(f"imagefolder:{tmp_path}")
    assert "passed over 2 files other than images, the first cat/notes.txt" in source.said
    found = find_images([str(tmp_path), str(tmp_path / "labels.csv")])
    assert [file.name for file in found.others] == ["notes.txt"]
    assert len(found.files) == 11  # one that is named is taken as it is


def test_images_in_no_class_are_counted(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        classes_of_pictures(tmp_path / split, count=2)
    picture(tmp_path / "train" / "stray.png")
    notes = open_source(f"imagefolder:{tmp_path}").said
    assert "passed over 5 images in no class's folder of train or val, the first test/cat/0.png" in notes


SYSTEM = ("__MACOSX", ".ipynb_checkpoints", "@eaDir", ".git", "lost+found", "$RECYCLE.BIN", "__pycache__")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path, kind: str) -> None:
    root = classes_of_pictures(tmp_path / "set", count=5)
    for name in SYSTEM:
        picture(root / name / "0.png")
        picture(root / "cat" / name / "0.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "thumbs.db"):
        (root / "cat" / name).write_bytes(b"x")
    place = str(root) if kind == "folder" else shutil.make_archive(str(tmp_path / "set"), "zip", root)
    source = open_source(f"imagefolder:{place}")
    assert source.classes == ("cat", "dog")
    assert len(source.train) + len(source.val) == 10
    assert not any("passed over" in note for note in source.said)
    assert find_images([str(root)]).others == []


def test_animations_show_their_first_picture(tmp_path: Path) -> None:
    classes_of_pictures(tmp_path, count=5)
    frames = [Image.new("RGB", (12, 12), (60 * i, 0, 0)) for i in range(4)]
    frames[0].save(tmp_path / "dog" / "walk.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "dog" / "pages.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "dog" / "still.gif")
    assert read_image(tmp_path / "dog" / "walk.gif").getpixel((0, 0)) == (0, 0, 0)
    lines = ImageData(f"imagefolder:{tmp_path}").first_lines()
    assert any(line.startswith("2 files with several pictures, the first dog/") for line in lines)


def test_names_links_pipes_and_depth(tmp_path: Path) -> None:
    root = tmp_path / "my photos"
    classes_of_pictures(root, ("Hündin", "été 2", "猫"), count=2)
    picture(root / "猫" / "a" / "b" / "c" / "DEEP.PNG")
    elsewhere = classes_of_pictures(tmp_path / "elsewhere", ("more",), count=3)
    (root / "猫" / "linked").symlink_to(elsewhere / "more")
    (root / "猫" / "one.png").symlink_to(elsewhere / "more" / "0.png")
    (root / "猫" / "loop").symlink_to(root)
    os.mkfifo(root / "猫" / "pipe.png")
    assert open_source(f"imagefolder:{root}").classes == ("Hündin", "été 2", "猫")
    assert total(root) == 6 + 1 + 3 + 1
    assert len(find_images([str(root)]).files) == 11


def test_a_name_in_an_unknown_encoding(tmp_path: Path) -> None:
    classes_of_pictures(tmp_path, count=5)
    odd = os.fsencode(str(tmp_path / "cat")) + b"/caf\xe9.png"
    shutil.copy(tmp_path / "cat" / "0.png", odd)
    data = ImageData(f"imagefolder:{tmp_path}")
    assert len(data.train_labels) + len(data.val_labels) == 11
    Path(os.fsdecode(odd)).write_bytes(b"broken")
    data = ImageData(f"imagefolder:{tmp_path}")
    "\n".join(data.first_lines()).encode()  # can be written
    os.rename(os.fsencode(str(tmp_path / "dog")), os.fsencode(str(tmp_path)) + b"/d\xf6g")
    with pytest.raises(InputError, match=r"names of folders in UTF-8"):
        open_source(f"imagefolder:{tmp_path}")


def test_classes_that_are_numbers(tmp_path: Path) -> None:
    source = open_source(f"imagefolder:{classes_of_pictures(tmp_path / 'a', ('1', '2', '10'))}")
    assert source.classes == ("1", "10", "2")
    assert any("in the order of text (1, 10, 2): a teacher of bare weights may have them as 1, 2, 10" in note for note in source.said)
    assert not any("order" in note for note in open_source(f"imagefolder:{classes_of_pictures(tmp_path / 'b', ('01', '02', '10'))}").said)


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_class_without_validation_images_is_said(tmp_path: Path, how: str) -> None:
    classes_of_pictures(tmp_path / "train", ("cat", "dog", "emu"))
    classes_of_pictures(tmp_path / "val", ("cat", "emu"))
    if how == "empty":
        (tmp_path / "val" / "dog").mkdir()
    data = ImageData(f"imagefolder:{tmp_path}")
    assert np.bincount(data.val_labels, minlength=3).tolist() == [5, 0, 5]
    assert any(line.startswith("classes without a validation image") and line.endswith(": dog") for line in data.first_lines())


def test_training_and_testing_folders_are_splits(tmp_path: Path) -> None:
    classes_of_pictures(tmp_path / "Training", count=3)
    classes_of_pictures(tmp_path / "Testing", count=2)
    source = open_source(f"imagefolder:{tmp_path}")
    assert (len(source.train), len(source.val), source.classes) == (6, 4, ("cat", "dog"))


def test_the_first_lines_count_classes_and_say_the_size(tmp_path: Path) -> None:
    data = ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'small', count=10)}")
    assert data.first_lines() == [
        "16 training + 4 validation images of 2 classes: cat, dog (8 + 2 of each)",
        "12 × 12 pixels: all images are 12 × 12 pixels, which is small enough to be taken as it is",
        "held out 20% of each class to validate on: 4 images, always the same",
    ]
    mixed = classes_of_pictures(tmp_path / "mixed", count=10)
    picture(mixed / "dog" / "odd.png", size=(20, 30))
    lines = ImageData(f"imagefolder:{mixed}").first_lines()
    assert lines[1].startswith("224 × 224 pixels: the default where images differ in size, as here 12 × 12 and 20 × 30 pixels")
    large = ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'large', size=(90, 70))}")
    assert large.first_lines()[1] == "224 × 224 pixels: the default for photographs, of which one is 90 × 70"
    assert ImageData(f"imagefolder:{mixed}", image_size=32).first_lines()[1] == "32 × 32 pixels: as asked for"
    harder = ImageData(f"imagefolder:{classes_of_pictures(tmp_path / 'small', count=10)},imbalance=exp:4,noise=0.25").first_lines()
    assert "a long tail is trained on, as asked for: 10 of 16 training images" in harder
    assert any("have a wrong label, as asked for" in line for line in harder)


LABELLED_FROM_ONE = """
import torch
from torch.utils.data import TensorDataset
def make(first=1, unknown=False):
    labels = torch.arange(20) % 3 + first
    images = torch.zeros(20, 3, 8, 8)
    return TensorDataset(images, labels), TensorDataset(images, labels + 3 * unknown)
"""


def test_labels_of_a_function_that_start_at_1_or_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text(LABELLED_FROM_ONE)

    def lines(options: str) -> str:
        return "\n".join(ImageData(f"{tmp_path / 'sets.py'}:make{options}").first_lines())

    assert "labels start at 1: class 0 has no image" in lines("")
    assert "start at 1" not in lines(",first=0")
    (tmp_path / "named.py").write_text(
        LABELLED_FROM_ONE.replace("    return TensorDataset", "    TensorDataset.classes = list('abc')\n    return TensorDataset")
    )
    with pytest.raises(InputError, match=r"the largest is 3 \(they start at 1: take 1 off\)"):
        ImageData(f"{tmp_path / 'named.py'}:make")
    del TensorDataset.classes
    assert "validation images that no training image shows, which cannot be learnt: 3, 4, 5" in lines(",first=0,unknown=True")


def test_values_that_are_no_numbers_are_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = LABELLED_FROM_ONE.replace("images = torch.zeros(20, 3, 8, 8)", "images = torch.zeros(20, 3, 8, 8); images[2] = torch.nan")
    (tmp_path / "holes.py").write_text(source)
    data = ImageData(f"{tmp_path / 'holes.py'}:make,first=0")
    assert len(data.train_labels) == 19
    assert "left out 1 image that cannot be used (values that are not numbers (NaN)): train/2" in caplog.messages


def test_marks_of_formats_are_told_from_text() -> None:
    for text in (
        b"",
        b"BMW and others\n",
        b"P1 is a town",
        b"MMXX",
        b"II. volume",
        b"RIFF of waves",
        b"GIF",
        b"<svg>",
        b"%PDF-1.4",
        bytes(32),
    ):
        assert not begins_as_image(text)


def test_a_hundred_thousand_files_are_told_apart_quickly(tmp_path: Path) -> None:
    class Counting(Folder):
        def head(self, name: str, count: int) -> bytes:
            raise AssertionError("opened")

    names = [f"{i % 100}/{i}.jpg" for i in range(100_000)]
    start = time.perf_counter()
    images, others = told_apart(Counting(tmp_path), names)
    assert (len(images), len(others)) == (100_000, 0)
    assert time.perf_counter() - start < 5  # 0.15 s where nothing else runs


NAME = st.sampled_from(["a.png", "b.jpg", "c.gif", "d", "e.txt", "f.PNG", "Thumbs.db", ".hidden.png", "g.tif", "h.webp"])
FOLDER = st.sampled_from(
    ["cat", "dog", "train/cat", "train/dog", "val/cat", "val/dog", "test/emu", "", ".git", "__MACOSX", "cat/deep/er", "1", "10"]
)
IMAGES = [b"", b"no image", b"\xff\xd8\xff cut", b"\x89PNG\r\n\x1a\n" + bytes(30), b"GIF89a", b"P6 1 1 255 abc"]
for made in ("PNG", "GIF", "JPEG", "TIFF"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 0, 0)).save(buffer, made)
    IMAGES += [buffer.getvalue(), buffer.getvalue()[:-9]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.tuples(FOLDER, NAME, st.one_of(st.sampled_from(IMAGES), st.binary(max_size=30))), max_size=14), packed=st.booleans()
)
def test_no_folder_ends_in_a_traceback(tmp_path: Path, files: list[tuple[str, str, bytes]], packed: bool) -> None:
    place = tmp_path / ("set.zip" if packed else "set")
    if packed:
        with zipfile.ZipFile(place, "w") as archive:
            for folder, name, content in {f"{folder}/{name}": (folder, name, content) for folder, name, content in files}.values():
                archive.writestr(f"{folder}/{name}".lstrip("/"), content)
    else:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for folder, name, content in files:
            (place / folder).mkdir(parents=True, exist_ok=True)
            (place / folder / name).write_bytes(content)
    with contextlib.suppress(InputError):
        data = ImageData(f"imagefolder:{place}", image_size=8)
        assert data.first_lines()
        assert len(data.val_labels) + len(data.train_labels) + len(data.left_out) <= len(files)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from(IMAGES), where=st.integers(0, 400), noise=st.binary(max_size=40))
def test_no_damaged_image_ends_in_a_traceback(start: bytes, where: int, noise: bytes) -> None:
    damaged = start[:where] + noise + start[where + len(noise) :]
    with contextlib.suppress(UnreadableImage):
        assert read_image(io.BytesIO(damaged), "damaged").mode == "RGB"
