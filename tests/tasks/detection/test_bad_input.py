"""What real annotations and image files hold: each oddity is handled and counted in the report, or refused in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageOps

from stillroom.cli import main
from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.pages import detection_sections
from stillroom.tasks.detection.sources import Annotated
from tests.tasks.detection.boxed import FORMATS, SIZE, Picture, coco, pictures, voc

Change = Callable[[list[Picture]], None]


def changed(number: int = 1, **changes: object) -> Change:
    """A set whose image of that number is another."""

    def change(made: list[Picture]) -> None:
        for name, value in changes.items():
            setattr(made[number], name, value)

    return change


def named(data: DetectionData, number: int = 1) -> tuple[Annotated, int]:
    """The split that the image of that number is in, and its index there."""
    for part in (data.source.train, data.source.val):
        for index in range(len(part)):
            if Path(part.images.name(index)).stem == f"{number:06d}":
                return part, index
    raise AssertionError(f"image {number} is in no split")


def page(data: DetectionData) -> str:
    """The task's part of a report."""
    result = StageResult("alone", 0, {"AP": 0.0}, {}, [], Footprint(1, 1, 1.0, 1), 1.0, 1, "m")
    nothing = np.zeros(0, np.int64)
    result.details = {"ids": nothing, "labels": nothing, "scores": np.zeros(0, np.float32), "boxes": np.zeros((0, 4), np.float32)}
    report = Report("bckd", "BCKD", {"alone": [result]}, primary="AP", higher_is_better=True, baseline="alone")
    return " ".join(section.html for section in detection_sections(report, data))


CAT = (4.0, 4.0, 14.0, 12.0)
HANDLED: dict[str, tuple[Change, str, int, list[tuple[float, ...]] | None]] = {
    "no box": (changed(things=[]), "images without a box", 1, None),
    "a box that reaches out": (
        changed(things=[("cat", (-3, 4, 30, 12), False)]),
        "reached out of their image, clipped",
        1,
        [(0, 4, 24, 12)],
    ),
    "a box outside": (changed(things=[("cat", CAT, False), ("dog", (30, 4, 40, 12), False)]), "less than a pixel", 1, [CAT]),
    "boxes without width or height": (
        changed(things=[("cat", CAT, False), ("cat", (6, 4, 6, 12), False), ("cat", (6, 12, 9, 12), False)]),
        "less than a pixel",
        2,
        [CAT],
    ),
    "swapped corners": (
        changed(things=[("cat", CAT, False), ("cat", (6, 12, 9, 4), False), ("dog", (20, 15, 2, 3), False)]),
        "corners were swapped, put right",
        2,
        [CAT, (6, 4, 9, 12), (2, 3, 20, 15)],
    ),
    "a crowd": (changed(things=[("cat", CAT, False), ("dog", (2, 2, 9, 9), True)]), "crowd or difficult", 1, [CAT, (2, 2, 9, 9)]),
    "a grey file": (changed(mode="L"), "of the mode L, read as RGB", 1, [CAT]),
    "a file with transparency": (changed(mode="RGBA", file="000001.png"), "of the mode RGBA, read as RGB", 1, [CAT]),
    "a size that is not said": (changed(said=None), "", 0, [CAT]),
    "another size": (changed(size=(40, 30), said=(40, 30)), "", 0, [CAT]),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", HANDLED)
def test_what_is_handled_is_counted_and_the_first_is_named(
    case: str, format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, told, count, boxes = HANDLED[case]
    made = pictures()
    change(made)
    data = DetectionData(f"{FORMATS[format](tmp_path / 'set', made)},empty=keep", batch_size=6)
    met = {name: number for name, number in data.source.notes.counts.items() if told and told in name}
    assert sum(met.values()) == count
    assert sum(data.source.notes.counts.values()) == count, "nothing else was met"
    part, index = named(data)
    lines = [f"{name}: {number} (first {part.images.name(index)})" for name, number in met.items()]
    assert all(f"<li>{line}</li>" in page(data) for line in lines)
    assert [record.message for record in caplog.records] == [f"data: {line}" for line in lines]
    assert part.boxes[index].tolist() == [list(box) for box in boxes or []]
    assert all(batch.images.shape[1] == 3 for batch in (*data.train_loader(seed=0), *data.eval_loader()))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_files_keep_their_boxes(orientation: int, format: str, tmp_path: Path) -> None:
    """By EXIF a file lies on its side or is mirrored; an annotation that gives the file's own size has its boxes there."""
    made = pictures()
    sideways = orientation > 4
    if not sideways:  # its size says nothing about where the boxes are: they are in the upright image, here a centred one
        made[1].things = [("cat", (6, 5, 18, 15), False)]
    made[1].orientation = orientation
    data = DetectionData(FORMATS[format](tmp_path / "set", made))
    part, index = named(data)
    upright = np.asarray(ImageOps.exif_transpose(part.images.image(index)))[..., 0]
    assert upright.shape == part.shapes[index] == (SIZE if sideways else SIZE[::-1])
    x1, y1, x2, y2 = part.boxes[index][0].astype(int)
    inside = np.zeros_like(upright, bool)
    inside[y1:y2, x1:x2] = True
    assert upright[inside].mean() > 190
    assert upright[~inside].mean() < 60
    assert data.source.notes.counts["images turned upright, as their EXIF orientation says"] == 1
    assert data.source.notes.counts.get("images whose boxes were turned with them", 0) == int(sideways)


def test_a_class_without_boxes_and_ids_with_gaps(tmp_path: Path) -> None:
    data = DetectionData(coco(tmp_path, pictures(), ("cat", "unicorn", "dog")))
    assert data.classes == ("cat", "unicorn", "dog")
    assert data.source.train.objects(3)[1] == 0
    said = "classes without a box in either split (,unused=drop leaves them out): unicorn"
    assert dict(data.source.notes.counts) == {said: 1}
    assert DetectionData(f"{coco(tmp_path, pictures(), ('cat', 'unicorn', 'dog'))},unused=drop").classes == ("cat", "dog")
    assert set(np.concatenate(data.source.train.labels).tolist()) == {0, 2}
    assert '<th scope="row">unicorn</th><td>0</td><td>0</td><td>–</td>' in page(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_left_out_or_refused(format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = FORMATS[format](tmp_path / "set", pictures(8))
    (broken,) = (tmp_path / "set").rglob("000003.jpg")
    broken.write_bytes(broken.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        data = DetectionData(spec)
    assert len(data.source.train) + len(data.source.val) == 7
    assert next(record.message for record in caplog.records if "000003.jpg" in record.message).startswith("left out 1 image file")
    assert "<li>image files that cannot be decoded, left out: 1 (first 000003.jpg)</li>" in page(data).replace("JPEGImages/", "")
    with pytest.raises(InputError, match=r"data: got 1 image file that cannot be decoded: .*000003\.jpg, expected none such"):
        DetectionData(spec, strict=True)


def without_file(root: Path) -> str:
    spec = coco(root, pictures())
    (root / "images/000002.jpg").unlink()
    return spec


def without_voc_file(root: Path) -> str:
    spec = voc(root, pictures())
    (root / "JPEGImages/000002.jpg").unlink()
    return spec


def with_mark(**mark: object) -> Callable[[Path], str]:
    whole = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 1, 5, 5], **mark}
    return lambda root: coco(root, pictures(), annotations=[whole])


def odd(change: Change, format: str = "coco") -> Callable[[Path], str]:
    def write(root: Path) -> str:
        made = pictures()
        change(made)
        return FORMATS[format](root, made)

    return write


def no_boxes(made: list[Picture]) -> None:
    for one in made:
        one.things = []


def crowds(made: list[Picture]) -> None:
    for one in made:
        one.things = [(name, box, True) for name, box, _ in one.things]


REFUSED: dict[str, tuple[Callable[[Path], str], str]] = {
    "a missing file": (without_file, r"files that are missing: .*000002\.jpg"),
    "a missing file of VOC": (without_voc_file, "no image or no annotation of 000002"),
    "an unknown image": (with_mark(image_id=99), "annotations name image 99"),
    "an unknown category": (with_mark(category_id=99), "image 10 of category 99"),
    "a box of three numbers": (with_mark(bbox=[1, 2, 3]), "four numbers"),
    "a box that is no number": (with_mark(bbox=[1, 2, float("nan"), 3]), "not finite"),
    "no box": (with_mark(bbox=None), "without a box"),
    "another size": (odd(changed(said=(25, 20))), r"000001\.jpg of 24 x 20 pixels, expected 25 x 20, as its annotation says"),
    "another size of VOC": (odd(changed(said=(25, 20)), "voc"), r"000001\.jpg of 24 x 20 pixels, expected 25 x 20"),
    "no object anywhere": (odd(no_boxes), "no training image with a box, expected"),
    "crowds alone": (odd(crowds), r"no training image with a box \(but \d+ that are marked as crowd or difficult"),
    "one file twice": (odd(changed(file="000002.jpg")), r"000002\.jpg twice"),
    "a height that is no number": (
        lambda root: coco(root, pictures(), images=[{"id": 10, "file_name": "000000.jpg", "height": "x", "width": 2}]),
        "COCO's images",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case: str, tmp_path: Path) -> None:
    write, message = REFUSED[case]
    (tmp_path / "set").mkdir()
    spec = write(tmp_path / "set") if "VOC" not in case else write(tmp_path / "voc")
    with pytest.raises(InputError, match=message) as raised:
        DetectionData(spec)
    assert raised.value.argument == "data"
    assert "\n" not in str(raised.value)


NETS = """
from stillroom.tasks.detection.backbones import SmallBackbone
from stillroom.tasks.detection.gfl import GFL


def coarse(num_classes):
    return GFL(SmallBackbone(8, (8, 8, 8)), num_classes, width=8, extra=0, convs=1, groups=4)


def many(num_classes):
    return GFL(SmallBackbone(8, (8, 8)), num_classes + 1, width=8, extra=0, convs=1, groups=4)
"""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--teacher", "nets.py:coarse"], "--teacher: got strides [4, 8, 16], expected the student's, [4, 8]"),
        (["--teacher", "nets.py:many"], "--teacher: got 7 classes, expected the student's, 6"),
        (["--teacher-scales", "[50, 40]"], "--teacher-scales: got [50, 40], expected two numbers of pixels"),
        (["--data", "coco:nowhere,nothing.json"], "--data: got nothing.json, expected a JSON file that can be read"),
    ],
)
def test_the_command_says_it_in_one_line(
    option: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    data = [] if "--data" in option else ["--data", "scenes:train=8,val=4,teacher=8"]
    assert main(["run", "bckd", *data, *option, "--out", "runs/no"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert next(line for line in lines if line.startswith("stillroom: ")).startswith(f"stillroom: {message}")
    assert not any("Traceback" in line for line in lines)
