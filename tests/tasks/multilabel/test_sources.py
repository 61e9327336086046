"""What each format's specification opens, and what it says of one that it cannot open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillroom.errors import InputError
from stillroom.tasks.multilabel.sources import hold_out, open_source
from tests.tasks.classification.miniatures import zipped
from tests.tasks.multilabel.annotated import NAMES, SHOWN, coco, tags, voc

EXPECTED = np.array([[int(name in shown) for name in NAMES] for shown in SHOWN])


def test_coco_labels_are_the_categories_by_id_and_images_without_any_are_left_out(tmp_path: Path) -> None:
    train, val = coco(tmp_path / "a"), coco(tmp_path / "b", 12)
    images, annotations = val.removeprefix("coco:").split(",")
    source = open_source(f"{train},val_images={images},val_annotations={annotations}")
    assert source.classes == NAMES
    assert source.train.labels.tolist() == EXPECTED[[0, 1, 2, 4, 5]].tolist()
    assert len(source.val) == 10
    assert source.train.image(1).size == (16, 12)
    kept = open_source(f"{train},val_images={images},val_annotations={annotations},empty=keep")
    assert kept.train.labels.tolist() == EXPECTED.tolist()
    assert kept.fingerprint != source.fingerprint


def test_coco_holds_out_a_share_and_reads_a_zip(tmp_path: Path) -> None:
    coco(tmp_path, 12)
    archive = zipped(tmp_path / "images", tmp_path / "images.zip", prefix="train2014/")
    source = open_source(f"coco:{archive},{tmp_path / 'annotations.json'},val=0.3")
    assert len(source.val) == 3
    assert len(source.train) == 7


@pytest.mark.parametrize("packed", [False, True])
def test_voc_trains_on_trainval_and_counts_difficult_objects(tmp_path: Path, packed: bool) -> None:
    root = voc(tmp_path / "voc")
    place = zipped(root, tmp_path / "voc.zip") if packed else root
    source = open_source(f"voc:{place}")
    assert source.classes == NAMES
    assert source.train.labels.tolist() == EXPECTED[:4].tolist()
    assert source.val.labels.tolist() == EXPECTED[4:].tolist()


def test_voc_labels_may_be_counts(tmp_path: Path) -> None:
    source = open_source(f"voc:{voc(tmp_path)},counts=cat:1:3+dog:2")
    assert source.classes == ("cat", "cat >= 3", "dog >= 2")
    assert source.train.labels.tolist() == [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_voc_takes_other_splits_or_a_share(tmp_path: Path) -> None:
    root = voc(tmp_path, count=12)
    assert len(open_source(f"voc:{root},train=trainval+test,val=0.25").val) == 3
    shutil.rmtree(root / "VOCdevkit/VOC2007/ImageSets")
    assert len(open_source(f"voc:{root}").val) == 2


def test_a_table_of_tags(tmp_path: Path) -> None:
    table, test = tags(tmp_path), tags(tmp_path, name="test.csv", start=6)
    source = open_source(f"csv:{table},val={test}")
    assert source.classes == NAMES
    assert source.train.labels.tolist() == EXPECTED.tolist()
    assert source.val.labels.tolist() == EXPECTED.tolist()
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(table, tmp_path / "moved/table.csv")
    assert len(open_source(f"csv:{moved},images={tmp_path},val=0.2").val) == 1


@given(
    labels=hnp.arrays(np.uint8, st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=st.integers(0, 1)), share=st.floats(0.05, 0.9)
)
@settings(max_examples=50, deadline=None)
def test_what_is_held_out_leaves_every_label_to_learn_from(labels: np.ndarray, share: float) -> None:
    held_out = hold_out(labels, share)
    assert (labels[~held_out].any(0) == labels.any(0)).all()
    assert held_out.sum() <= max(1, round(share * len(labels)))
    assert (held_out == hold_out(labels, share)).all()


def test_mosaics_show_what_their_labels_say() -> None:
    source = open_source("mosaics:digits,train=40,val=20,teacher=60,seed=3")
    assert source.image_size == 16
    assert source.teacher is not None
    assert (len(source.train), len(source.val), len(source.teacher)) == (40, 20, 60)
    assert source.train.labels.sum(1).min() >= 1
    assert source.train.labels.sum(1).max() <= 4
    longer = open_source("mosaics:digits,train=50,val=20,seed=3")
    assert (longer.train.labels[:40] == source.train.labels).all()
    assert (open_source("mosaics:digits,train=40,seed=4").train.labels != source.train.labels).any()
    assert (source.teacher.labels[:40] != source.train.labels).any()
    # a cell is a digit or nearly even grey
    empty = [int((np.asarray(source.train.image(i)).reshape(3, 2, 8, 2, 8).std((0, 2, 4)) < 8).sum()) for i in range(40)]
    assert all(labels.sum() <= 4 - cells for labels, cells in zip(source.train.labels, empty, strict=True))
    assert 0 < sum(empty) < 80


def test_mosaics_of_small_photographs(tmp_path: Path) -> None:
    from tests.tasks.classification.miniatures import classes_of_pictures

    source = open_source(f"mosaics:imagefolder:{classes_of_pictures(tmp_path)},tile=4,grid=3,fill=1,train=5,val=5")
    assert source.classes == ("cat", "dog")
    assert source.train.image(0).shape == (3, 12, 12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagefolder:photos", "got imagefolder:photos, expected one of mosaics, coco, voc, csv"),
        ("mosaics,size=3", "got size=3, expected an option of mosaics"),
        ("mosaics,train=0", "got train=0, expected a whole number of at least 1"),
        ("mosaics,fill=2", "got fill=2.0, expected a share"),
        ("voc:{voc},val=nowhere", "got nowhere, expected a split of ImageSets/Main: test, trainval"),
        ("voc:{voc},train=test,val=test", "which share 2 images"),
        ("voc:{voc},counts=cow", "got counts=cow, expected classes of the annotations"),
        ("voc:{voc},counts=cat:0", "expected whole numbers of at least 1 behind a class"),
        ("voc:{voc},counts=cat+dog:9", "labels that no training image has: dog >= 9"),
        ("voc:{voc},counts=cat", "got 1 labels"),
        ("voc:{photos}", "one set in Pascal VOC's layout"),
        ("csv:{broken}", r"row 2: a,b,c"),
        ("csv:{twice}", r"row 2: photos/0.png, expected each file once"),
        ("csv:{missing}", "files that are missing: photos/77.png"),
        ("csv:{tags},val=1.5", "got val=1.5, expected a share"),
        ("coco:{photos},{broken}", "a JSON file that can be read"),
        ("coco:{photos},{unknown}", "whose annotations name image 5 of category 1"),
        ("coco:{photos},{empty}", "is missing"),
    ],
)
def test_one_line_says_what_is_wrong(spec: str, message: str, tmp_path: Path) -> None:
    table = tags(tmp_path)
    places = {"voc": voc(tmp_path / "voc"), "tags": table, "photos": tmp_path / "photos"}
    files = {
        "broken": "photos/0.png,a\na,b,c\n",
        "twice": "photos/0.png,a\nphotos/0.png,b\n",
        "missing": "photos/77.png,a\nphotos/0.png,b\n",
        "unknown": json.dumps({"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": [{"image_id": 5, "category_id": 1}]}),
        "empty": "{}",
    }
    for name, content in files.items():
        places[name] = tmp_path / f"{name}.csv"
        places[name].write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_source(spec.format(**places))
    assert "\n" not in str(caught.value)
