"""Labels by a table: every form that people's tables have, what is said of them, and what is refused."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.sources import LabelledSource
from tests.tasks.classification.miniatures import classes_of_pictures, picture, zipped

NAMES = [f"photos/{i}.png" for i in range(10)]
LABELS = ["cat", "dog"] * 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures, green says the number."""
    for i, name in enumerate(NAMES):
        picture(tmp_path / name, (0, 10 * i, 0))
    return tmp_path


def written(root: Path, text: str | bytes, name: str = "labels.csv") -> str:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{root / name}"


def pairs(source: LabelledSource) -> dict[str, str]:
    """The label of each file, of both splits."""
    return {
        images.name(i): source.classes[label] for images in (source.train, source.val) for i, label in enumerate(images.labels.tolist())
    }


EXPECTED = dict(zip(NAMES, LABELS, strict=True))
ROWS = list(zip(NAMES, LABELS, strict=True))


def lines(separator: str, *head: str) -> str:
    return "\n".join([*([separator.join(head)] if head else []), *(separator.join(row) for row in ROWS)])


@pytest.mark.parametrize(
    "text",
    [
        lines(",", "image", "label"),
        lines(";", "filename", "class"),
        lines("\t", "path", "species"),
        lines("|", "Image Path", "Category"),
        lines(",", "what", "which"),  # unusual names: the column of files, and the other one
        lines(","),  # no head
        lines(" "),  # lists of Caffe
        "\ufeff" + lines(",", "image", "label"),
        lines(",", "image", "label").replace("\n", "\r\n\r\n"),
        "image,label\n" + "\n".join(f'"{name}" , "{label}"' for name, label in ROWS),
        "label,image\n" + "\n".join(f"{label},{name}" for name, label in ROWS),
        "\n".join(json.dumps({"image": name, "label": label}) for name, label in ROWS),
        "\n".join(json.dumps({"file_name": name, "meta": {"label": label}}) for name, label in ROWS).replace('"label"', '"class"'),
        json.dumps([{"path": name, "label": [label]} for name, label in ROWS], indent=1),
        json.dumps(EXPECTED),
        "id,cat,dog\n"
        + "\n".join(f"{name},{int(label == 'cat')},{int(label == 'dog')}" for name, label in ROWS),  # a column for each class
    ],
)
def test_every_form_of_a_table_is_read_alike(root: Path, text: str) -> None:
    options = ",label=meta.class" if '"meta"' in text else ""
    source = open_source(written(root, text) + options)
    assert pairs(source) == EXPECTED
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.val), source.image_size) == (8, 2, 12)
    assert any(note.startswith("images are in column") for note in source.said)
    assert source.fingerprint == open_source(written(root, text) + options).fingerprint


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(root: Path, encoding: str) -> None:
    text = lines(",", "image", "label").replace("dog", "Käfer")
    assert open_source(written(root, text.encode(encoding))).classes == ("Käfer", "cat")


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("photos/"),  # folders that the table leaves out
        lambda name: name.removesuffix(".png"),  # as Kaggle's tables do
        lambda name: name.replace("/", "\\"),
        lambda name: f"./{name}",
        lambda name: f"/data/of/somebody/{name}",
        lambda name: f"images/{name}",
        lambda name: name.replace("/", "%2F"),
        lambda name: name.removesuffix(".png") + ".PNG",
    ],
)
def test_files_are_found_by_names_as_tables_write_them(root: Path, change: object) -> None:
    text = "image,label\n" + "\n".join(f"{change(name)},{label}" for name, label in ROWS)  # type: ignore[operator]
    assert pairs(open_source(written(root, text))) == EXPECTED
    archive = zipped(root / "photos", root / "photos.zip", "wrapped/photos/")
    (root / "elsewhere").mkdir()
    assert len(pairs(open_source(written(root / "elsewhere", text) + f",root={archive}"))) == 10


def test_absolute_names_and_names_above_the_table(root: Path) -> None:
    (root / "tables").mkdir()
    for before in ("../", f"{root}/"):
        text = "image,label\n" + "\n".join(f"{before}{name},{label}" for name, label in ROWS)
        assert sorted(pairs(open_source(written(root / "tables", text))).values()) == sorted(LABELS)


def test_splits_by_a_column_a_flag_the_folders_or_a_second_table(root: Path) -> None:
    def split(text: str, options: str = "", name: str = "labels.csv") -> tuple[int, int]:
        source = open_source(written(root, text, name) + options)
        return len(source.train), len(source.val)

    parts = ["train"] * 6 + ["valid"] * 3 + ["test"]
    rows = [f"{name},{label},{part}" for (name, label), part in zip(ROWS, parts, strict=True)]
    assert split("\n".join(["image,label,split", *rows])) == (6, 3)
    source = open_source(written(root, "\n".join(["image,label,split", *rows])))
    assert "passed over 1 image in neither train nor val, the first photos/9.png" in source.said
    assert split("\n".join(["image,label,set", *rows]).replace("valid", "test")) == (6, 4)
    flags = "\n".join(["name,label,is_valid", *rows]).replace(",train", ",False").replace(",valid", ",True").replace(",test", ",True")
    assert split(flags) == (6, 4)
    assert split("\n".join(["image,label,mine", *rows]), ",label=label,split=mine") == (6, 3)
    first, second = ("\n".join(["image,label", *(",".join(row) for row in part)]) for part in (ROWS[:6], ROWS[6:]))
    written(root, second, "val.csv")
    assert split(first, f",val={root / 'val.csv'}") == (6, 4)
    for i, part in enumerate(parts):
        picture(root / "sorted" / part / f"{i}.png")
    by_folder = "image,label\n" + "\n".join(f"sorted/{part}/{i}.png,{LABELS[i]}" for i, part in enumerate(parts))
    assert split(by_folder) == (6, 3)


def test_numbers_are_classes_in_the_order_of_numbers(root: Path) -> None:
    def notes(labels: list[str]) -> LabelledSource:
        return open_source(written(root, "image,label\n" + "\n".join(f"{n},{k}" for n, k in zip(NAMES, labels, strict=True))))

    source = notes(["1", "10", "2", "1", "10", "2", "1", "10", "2", "2"])
    assert source.classes == ("1", "2", "10")
    assert any("labels start at 1" in note for note in source.said)
    assert any("no training image has 3, 4, 5, 6, 7" in note for note in source.said)
    assert notes(["0.0", "1.0"] * 5).classes == ("0", "1")  # a column of pandas that had holes
    assert notes(["010", "002"] * 5).classes == ("002", "010")
    assert not any("start" in note for note in notes(["0", "1"] * 5).said)


def test_rows_that_are_not_used_are_counted(root: Path) -> None:
    picture(root / "photos" / "extra.png")
    text = lines(",", "image", "label") + "\nphotos/0.png,cat\nphotos/extra.png,\n"
    notes = open_source(written(root, text)).said
    assert "passed over 1 row named before with the same label, the first photos/0.png" in notes
    assert "passed over 1 image without a label, the first photos/extra.png" in notes
    source = open_source(written(root, lines(",", "image", "label")) + f",root={root}")
    assert "passed over 1 image that the table does not name, the first photos/extra.png" in source.said


def test_a_table_that_is_not_there() -> None:
    for path in ("absent.csv", "nowhere/absent.csv"):
        with pytest.raises(InputError, match=f"csv:{path}, expected a table that exists"):
            open_source(f"csv:{path}")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", "", "a row for each image"),
        ("image,label\n", "", "none"),
        ("image,label\nphotos/0.png,cat\nphotos/77.png,dog", "", "missing: photos/77.png"),
        ("image,label\nphotos/0.png,cat\nphotos/0.png,dog", "", "photos/0.png as cat and as dog"),
        ("image,label\nphotos/0.png,cat,dog,emu\nphotos/1.png,cat", "", "line 2: 4 cells"),
        ("image,a,b\nphotos/0.png,x,y\nphotos/1.png,x,y", "", "label=COLUMN"),
        ("a,b\np,x\nq,y", "", "image=COLUMN"),
        (lines(",", "image", "label"), ",label=breed", "label=breed, expected a column of .*: image, label"),
        (lines(",", "image", "label"), ",split=label", "split cat"),
        (lines(",", "image", "label").replace("dog", "cat"), "", "1 class"),
        (lines(",", "image", "label"), ",val=1.5", "between 0 and 1"),
        (lines(",", "image", "label"), ",val=absent.csv", "absent.csv"),
        ("image,label,split\nphotos/0.png,cat,train\nphotos/1.png,dog,train\nphotos/2.png,cow,val", "", r"cow \(1 image\)"),
        ("image,label,split\nphotos/0.png,cat,val\nphotos/1.png,dog,val", "", "no training image"),
        ("image,image\nphotos/0.png,cat", "", "image twice"),
        ('{"image": "photos/0.png", "label": "cat"}\n{"image": "photos/1.png"', "", "line 2"),
        ("[1, 2]", "", "JSON objects"),
        ("a\0b", "", "a table"),
        (lines(",", "image", "label"), ",root=absent", "exists"),
        ("image,label\nphotos/0.png,cat\n/photos/0.png,cat\nphotos/1.png,dog", "", "which are one file"),
    ],
)
def test_tables_that_cannot_be_used(root: Path, text: str, options: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_source(written(root, text) + options)


def test_a_table_gives_an_image_folder_other_labels(tmp_path: Path) -> None:
    """A set with noisy labels: training images have the table's, validation images their folder's."""
    for split in ("train", "test"):
        classes_of_pictures(tmp_path / "set" / split, count=5)
    text = "image,index,clean,worse\n"
    text += "".join(f"train/{name}/{i}.png,{i},{name},{'dog' if i == 0 else name}\n" for name in ("cat", "dog") for i in range(4))
    (tmp_path / "noisy.csv").write_text(text)
    spec = f"imagefolder:{tmp_path / 'set'},labels={tmp_path / 'noisy.csv'},label=worse"
    source = open_source(spec)
    assert np.bincount(source.train.labels).tolist() == [3, 5]
    assert np.bincount(source.val.labels).tolist() == [5, 5]
    assert any("gives 1 training images another label" in note for note in source.said)
    assert any("passed over 2 training images that" in note for note in source.said)
    assert ImageData(spec).fingerprint != ImageData(spec.replace("worse", "clean")).fingerprint
    numbered = text.replace(",dog\n", ",1\n").replace(",cat\n", ",0\n")
    (tmp_path / "noisy.csv").write_text(numbered)
    assert open_source(spec).train.labels.tolist() == source.train.labels.tolist()
    for split in ("train", "test"):  # folders that are numbers are meant by their names
        for number, name in enumerate(("cat", "dog"), 1):
            (tmp_path / "set" / split / name).rename(tmp_path / "set" / split / f"{number:02}")
    (tmp_path / "noisy.csv").write_text(text.replace("dog", "02").replace("cat", "01"))
    assert open_source(spec).train.labels.tolist() == source.train.labels.tolist()
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog"), 1):
            (tmp_path / "set" / split / f"{number:02}").rename(tmp_path / "set" / split / name)
    (tmp_path / "noisy.csv").write_text(text.replace(",dog\n", ",emu\n"))
    with pytest.raises(InputError, match="the label emu, expected names of the folders: cat, dog"):
        open_source(spec)


def test_a_table_labels_a_folder_without_classes(root: Path) -> None:
    written(root, lines(",", "image", "label"))
    source = open_source(f"imagefolder:{root},labels={root / 'labels.csv'},val=0.4")
    assert pairs(source) == EXPECTED
    assert len(source.val) == 4
    with pytest.raises(InputError, match="beside labels=FILE"):
        open_source(f"imagefolder:{root},label=worse")


def test_human_labels_of_cifar10(shared_data: Path, tmp_path: Path) -> None:
    images, labels = shared_data / "cifar10" / "cifar10.zip", shared_data / "cifar10_human" / "cifar10_human_labels.zip"
    if not (images.exists() and labels.exists()):
        pytest.skip(f"needs {images} and {labels}")
    zipfile.ZipFile(labels).extract("cifar10n_train.csv", tmp_path)
    table = tmp_path / "cifar10n_train.csv"
    noisy = open_source(f"imagefolder:{images},labels={table},label=worse")
    behind = open_source(f"imagefolder:{images},labels={table}:worse")
    assert behind.train.labels.tolist() == noisy.train.labels.tolist()
    assert behind.fingerprint == noisy.fingerprint
    with pytest.raises(InputError, match="the column named once"):
        open_source(f"imagefolder:{images},labels={table}:worse,label=clean")
    with pytest.raises(InputError, match="label=nosuch"):
        open_source(f"imagefolder:{images},labels={table}:nosuch")
    assert (len(noisy.train), len(noisy.val), len(noisy.classes)) == (45_000, 10_000, 10)
    clean = open_source(f"imagefolder:{images},labels={table},label=clean")
    assert 0.39 < (clean.train.labels != noisy.train.labels).mean() < 0.42
    alone = open_source(f"csv:{table},image=image,label=worse,root={images}")
    assert len(alone.train) + len(alone.val) == 45_000


CELL = st.one_of(
    st.sampled_from(
        [*NAMES, "cat", "dog", "image", "label", "split", "train", "val", "", "1", "2.0", "0", "photos", "/", "..", '"', "photos\\1.png"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELL, max_size=4), max_size=8), separator=st.sampled_from([",", ";", "\t", " ", "|"]), head=st.booleans())
def test_no_table_ends_in_a_traceback(root: Path, rows: list[list[str]], separator: str, head: bool) -> None:
    text = "\n".join(separator.join(row) for row in ([["image", "label"]] if head else []) + rows)
    (root / "any.csv").write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(InputError):
        assert set(pairs(open_source(f"csv:{root / 'any.csv'}"))) <= set(NAMES)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 12), st.floats(), CELL),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["image", "label", "split", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, max_size=5), array=st.booleans(), cut=st.integers(0, 3))
def test_no_json_ends_in_a_traceback(root: Path, rows: list[object], array: bool, cut: int) -> None:
    text = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    (root / "any.jsonl").write_text(text[: len(text) - cut])
    with contextlib.suppress(InputError):
        open_source(f"csv:{root / 'any.jsonl'}")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(root: Path, content: bytes) -> None:
    (root / "any").write_bytes(content)
    for start in (b"", b"{", b"\x1f\x8b", b"\xff\xfe"):
        (root / "any").write_bytes(start + content)
        with pytest.raises(InputError):
            open_source(f"csv:{root / 'any'}")
