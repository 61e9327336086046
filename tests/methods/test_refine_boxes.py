"""`stillroom refine-boxes` and `stillroom noise-boxes`: files come back as they were, but for the boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from stillroom.cli import main
from stillroom.methods.ssd_det.files import BoxFile
from stillroom.tasks.detection import DetectionData
from stillroom.tasks.detection.metrics import average_precision
from tests.tasks.detection.boxed import Picture, coco, pictures, voc

TRAINED = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--accelerator", "cpu", "--ratios", "[1, 0.8]"]


def marks(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["annotations"]
    return found


def set_of(root: Path) -> Path:
    """A COCO set with a crowd, an image without an object, a mask's own area and a field that nobody knows; its annotations."""
    made = pictures(8)
    made[1].things = []
    made[3].things = [*made[3].things, ("dog", (2, 2, 22, 18), True)]
    coco(root, made, licenses=[{"id": 1}])
    file = root / "boxes.json"
    content = json.loads(file.read_text())
    for mark in content["annotations"]:
        width, height = mark["bbox"][2:]
        mark |= {"id": mark["id"] + 1, "area": width * height, "by": "me"}
    content["annotations"][0] |= {"segmentation": [[4, 4, 14, 4, 14, 12]], "area": 40}
    file.write_text(json.dumps(content))
    return file


# noise-boxes ----------------------------------------------------------------------------------------------------------------------------


def test_noise_changes_boxes_alone_and_is_the_same_for_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = set_of(tmp_path)
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(["noise-boxes", str(file), str(tmp_path / f"{name}.json"), "--ratio", "0.4", "--seed", seed]) == 0
    a, b, c = ((tmp_path / f"{name}.json").read_text() for name in "abc")
    assert a == b != c
    before, after = json.loads(file.read_text()), json.loads(a)
    assert {**after, "annotations": 0} == {**before, "annotations": 0}
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert {**new, "bbox": 0, "area": 0} == {**old, "bbox": 0, "area": 0}
        assert (old["bbox"] == new["bbox"]) == bool(old["iscrowd"])
        x, y, width, height = new["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) >= 1
        assert x + width <= 23.01
        assert y + height <= 19.01
    assert after["annotations"][0]["area"] == 40  # the mask's
    assert after["annotations"][1]["area"] == pytest.approx(np.prod(after["annotations"][1]["bbox"][2:]), abs=0.1)
    assert "with noise, in" in capsys.readouterr().out


def test_corners_where_a_size_is_expected_are_read_said_and_written_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = set_of(tmp_path)
    content = json.loads(file.read_text())
    for mark in content["annotations"]:
        x, y, width, height = mark["bbox"]
        mark["bbox"] = [x, y, x + width, y + height]
    file.write_text(json.dumps(content))
    assert main(["noise-boxes", str(file), str(tmp_path / "out.json"), "--ratio", "0.1"]) == 0
    assert "two corners, not of a corner and a size" in capsys.readouterr().err
    assert all(mark["bbox"][0] + mark["bbox"][2] <= 24 for mark in marks(tmp_path / "out.json"))
    assert next(mark for mark in marks(tmp_path / "out.json") if mark["iscrowd"])["bbox"] == [2, 2, 20, 16]


def test_pascal_vocs_pixels_count_from_one_there_and_back(tmp_path: Path) -> None:
    voc(tmp_path / "set", pictures(3))
    file = BoxFile.read(str(tmp_path / "set"), "data")
    assert file.boxes[0].tolist() == [4, 4, 14, 12]
    assert file.sides[0].tolist() == [24, 20]
    changed = np.zeros(len(file.boxes), bool)
    changed[0] = True
    file.write(tmp_path / "out", file.boxes, changed, score=np.full(len(changed), 0.5))
    first = ElementTree.parse(tmp_path / "out/Annotations/000000.xml").getroot().find("object")
    assert first is not None
    assert [first.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")] == ["5.0", "5.0", "14.0", "12.0"]
    assert first.findtext("score") == "0.5000"
    assert main(["noise-boxes", str(tmp_path / "set"), str(tmp_path / "noisy"), "--ratio", "0.3"]) == 0
    noisy = BoxFile.read(str(tmp_path / "noisy"), "data")
    assert noisy.ids == file.ids
    assert (np.abs(noisy.boxes - file.boxes) > 0.01).any(1).all()
    assert (noisy.boxes >= 0).all()


@pytest.mark.parametrize(
    ("words", "change", "expected"),
    [
        (["--ratio", "0"], {}, "--ratio: got 0.0"),
        (["--ratio", "1.2"], {}, "--ratio: got 1.2"),
        (["--seed", "-1"], {}, "--seed: got -1"),
        ([], {"images": [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(8)]}, "without the width and height of image 10"),
        ([], {"annotations": [{"id": 1, "image_id": 10, "category_id": 7, "bbox": [0, 0, float("nan"), 4]}]}, "not finite"),
        ([], {"annotations": [{"id": 1, "image_id": 10, "category_id": 7, "bbox": [0.1, 0.1, 0.3, 0.4]}]}, "in parts of their image"),
    ],
)
def test_noise_that_cannot_be(
    words: list[str], change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = set_of(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert main(["noise-boxes", str(file), str(tmp_path / "out.json"), *words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_boxes_that_are_none_stay_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [Picture([("cat", (4, 4, 14, 12), False), ("cat", (30, 4, 40, 12), False), ("cat", (5, 5, 5, 12), False)], file="a.jpg")]
    coco(tmp_path, made)
    assert main(["noise-boxes", str(tmp_path / "boxes.json"), str(tmp_path / "out.json")]) == 0
    told = capsys.readouterr()
    assert "1 with noise" in told.out
    assert "less than a pixel in their image, left as they are: 2" in told.err
    assert "the id 0" in told.err
    assert [mark["bbox"] for mark in marks(tmp_path / "out.json")][1:] == [[30, 4, 10, 8], [5, 5, 0, 7]]
    assert main(["noise-boxes", str(tmp_path / "boxes.json"), str(tmp_path / "out.json")]) == 2
    assert "which exists" in capsys.readouterr().err


# refine-boxes ---------------------------------------------------------------------------------------------------------------------------


def test_refined_boxes_come_back_with_their_ids_and_can_be_trained_on(tmp_path: Path) -> None:
    clean = set_of(tmp_path)
    noisy, out = tmp_path / "noisy.json", tmp_path / "refined.json"
    assert main(["noise-boxes", str(clean), str(noisy), "--ratio", "0.4"]) == 0
    some = json.loads(clean.read_text())
    some["annotations"] = some["annotations"][:3]
    (tmp_path / "some.json").write_text(json.dumps(some))
    words = ["refine-boxes", "--data", f"coco:{tmp_path / 'images'},{noisy}", "--out", str(out), "--clean", str(tmp_path / "some.json")]
    assert main([*words, *TRAINED]) == 0
    before, after = marks(noisy), marks(out)
    for old, new in zip(before, after, strict=True):
        kept = ("id", "image_id", "category_id", "iscrowd", "by")
        assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
        assert ("score" in new) == ("moved" in new) == (not old["iscrowd"])
        if not old["iscrowd"]:
            assert new["bbox"] != old["bbox"]
            assert 0 <= new["score"] <= 1
            assert 0 <= new["moved"] <= 1
    page = (tmp_path / "refined/report.html").read_text()
    assert "The largest changes" in page
    assert "Overlap with the 3 true boxes that are known" in page
    assert main([*words, *TRAINED]) == 0  # done before: the same file again
    assert marks(out) == after
    # E6: what was written is found by itself in full, and read without a complaint.
    data = DetectionData(f"coco:{tmp_path / 'images'},{out}")
    assert not [line for line in data.source.notes.lines() if "left out" in line and "without a box" not in line]
    rows = [
        {
            "boxes": b[c == 0],
            "scores": np.ones(int((c == 0).sum()), np.float32),
            "labels": y[c == 0],
            "true_boxes": b,
            "true_labels": y,
            "crowd": c,
        }
        for part in (data.trained, data.truth)
        for b, y, c in zip(part.boxes, part.labels, part.crowd, strict=True)
    ]
    assert average_precision(rows)["AP"] == 1.0


def test_images_without_a_size_are_refined_and_turned_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = pictures(8)
    for one in made[:4]:
        one.said = None
    made[7].orientation, made[7].said = 6, (24, 20)  # the size of the file on its side
    words = ["refine-boxes", "--data", coco(tmp_path, made), "--out", str(tmp_path / "refined.json")]
    assert main([*words, *TRAINED]) == 0
    refined = {mark["id"]: "score" in mark for mark in marks(tmp_path / "refined.json")}
    assert [number for number, there in refined.items() if not there] == [700]
    assert "1 are left as they were" in capsys.readouterr().out


def test_pascal_vocs_xml_is_refined_as_it_came(tmp_path: Path) -> None:
    spec = voc(tmp_path / "set", pictures(8))
    out = tmp_path / "refined"
    words = ["refine-boxes", "--data", spec, "--out", str(out), "--clean", str(tmp_path / "set")]
    assert main([*words, *TRAINED]) == 0
    given, refined = (BoxFile.read(str(root), "data") for root in (tmp_path / "set", out))
    assert given.ids == refined.ids
    assert (refined.boxes >= 0).all()
    assert (refined.boxes <= refined.sides.repeat(2, 1)[:, [0, 2, 1, 3]]).all()
    assert (given.boxes != refined.boxes).any()
    shutil.copytree(out / "Annotations", tmp_path / "set/Annotations", dirs_exist_ok=True)
    assert len(DetectionData(spec).trained) == len(DetectionData(f"voc:{tmp_path / 'set'},val=0.34").trained)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "scenes", "--out", "x.json"], "--data: got scenes, expected coco:IMAGES,ANNOTATIONS.json or voc:ROOT"),
        (["--data", "coco:{root}", "--out", "x.json"], "--data: got coco:"),
        (["--data", "coco:{root}/images,{root}/boxes.json", "--out", "x"], "--out: got x, expected a .json file"),
        (["--data", "coco:{root}/images,{root}/boxes.json", "--out", "{root}/boxes.json"], "which exists"),
        (["--data", "coco:{root}/images,{root}/boxes.json"], "--out: got nothing"),
        (["--data", "coco:{root}/images,{root}/boxes.json", "--out", "{root}/x.json", "--clean", "{root}/other.json"], "--clean: got"),
        (["--data", "coco:{root}/images,{root}/boxes.json", "--out", "{root}/x.json", "--student", "stillroom/gfl_24"], "Faster R-CNN"),
    ],
)
def test_what_cannot_be_refined(words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = set_of(tmp_path)
    other = json.loads(file.read_text())
    for mark in other["annotations"]:
        mark["id"] += 5000
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert main(["refine-boxes", *(word.format(root=tmp_path) for word in words), *TRAINED]) == 2
    assert expected in capsys.readouterr().err


def test_the_papers_setting_is_one_here_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["refine-boxes", "--preset", "paper", "--print_config"])
    assert not done.value.code
    assert "hidden_std: 0.01" in capsys.readouterr().out
