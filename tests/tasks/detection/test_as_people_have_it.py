"""Annotations as other tools export them: layouts, encodings, names, units. What is put right is said, and the boxes are right."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.detection.sources import Annotated, DetectionSource, open_source
from stillroom.tasks.images.annotations import ELSEWHERE, SWAPPED

WIDTH, HEIGHT, COUNT = 64, 40, 10
Box = tuple[float, float, float, float]
CAT, DOG = (5.0, 6.0, 23.0, 26.0), (30.0, 10.0, 50.0, 30.0)
OBJECTS = {"cat": CAT, "dog": DOG}


def images(folder: Path, numbers: Sequence[int] = range(COUNT), name: str = "{}.jpg") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name.format(i) for i in numbers]
    for i, path in zip(numbers, paths, strict=True):
        pixels = np.random.default_rng(i).integers(0, 90, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(path, format=None if "." in path.name else "png")
    return paths


def boxes(part: Annotated) -> dict[str, dict[int, Box]]:
    """By the file's name, each class's box."""
    return {
        Path(part.name(i)).name: {
            label: (box[0], box[1], box[2], box[3]) for label, box in zip(part.labels[i].tolist(), part.boxes[i].tolist(), strict=True)
        }
        for i in range(len(part))
    }


def check(source: DetectionSource, classes: Sequence[str] = ("cat", "dog"), count: int = COUNT, within: float = 1e-3) -> None:
    """Every image has its cat and its dog where they are."""
    assert source.classes == tuple(classes)
    found = boxes(source.train) | boxes(source.val)
    assert len(found) == count
    for mine in found.values():
        for name, box in OBJECTS.items():
            assert mine[classes.index(name)] == pytest.approx(box, abs=within)


def said(source: DetectionSource) -> dict[str, tuple[int, str]]:
    return {what: (count, source.notes.first[what]) for what, count in source.notes.counts.items()}


def packed(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    return archive


# COCO -----------------------------------------------------------------------------------------------------------------------------------


def coco(change: Callable[[dict[str, Any]], object] | None = None, numbers: Sequence[int] = range(COUNT)) -> dict[str, Any]:
    """Two objects in each image; category ids have gaps."""
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in numbers],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 2 * i + k, "image_id": i, "category_id": (3, 7)[k], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for i in numbers
            for k, (x1, y1, x2, y2) in enumerate((CAT, DOG))
        ],
    }
    if change is not None:
        change(content)
    return content


def marks(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda content: [change(mark) for mark in content["annotations"]]


def files(change: Callable[[str], str]) -> Callable[[dict[str, Any]], object]:
    return lambda content: [image.update(file_name=change(image["file_name"])) for image in content["images"]]


def polygon(mark: dict[str, Any]) -> None:
    x, y, w, h = mark.pop("bbox")
    mark["segmentation"] = [[x, y, x + w, y, x + w, y + h / 2], [x, y + h / 2, x + w / 2, y + h, x, y + h]]


def pairs(mark: dict[str, Any]) -> None:
    x, y, w, h = mark["bbox"]
    mark.update(bbox=[0, 0, 0, 0], segmentation=[[[x, y], [x + w, y], [x + w, y + h]]])


def runs(mark: dict[str, Any]) -> None:
    x, y, w, h = (int(number) for number in mark.pop("bbox"))
    counts = [HEIGHT * x + y]
    for _ in range(w):
        counts += [h, HEIGHT - h]
    counts[-1] += HEIGHT * WIDTH - sum(counts)
    mark["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}


def compressed(mark: dict[str, Any]) -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    runs(mark)
    mark["segmentation"]["counts"] = pycocotools.frPyObjects(mark["segmentation"], HEIGHT, WIDTH)["counts"].decode()


def parts_of_the_image(mark: dict[str, Any]) -> None:
    mark["bbox"] = [number / side for number, side in zip(mark["bbox"], (WIDTH, HEIGHT) * 2, strict=True)]


def from_the_other_corner(mark: dict[str, Any]) -> None:
    x, y, w, h = mark["bbox"]
    mark["bbox"] = [x + w, y, -w, h]


def two_corners(mark: dict[str, Any]) -> None:
    x, y, w, h = mark["bbox"]
    mark["bbox"] = [x, y, x + w, y + h]


def texts(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = str(image["id"])
    for category in content["categories"]:
        category["id"] = f"{category['id']}"
    for mark in content["annotations"]:
        mark.update(category_id=float(mark["category_id"]), bbox=[str(number) for number in mark["bbox"]])


MASKS = "objects without a box, which their masks give"
RELATIVE = "boxes in parts of their image, not in pixels, read so"
COCO: dict[str, tuple[Callable[[dict[str, Any]], object], str | None]] = {
    "as it is": (lambda content: None, None),
    "polygons alone": (marks(polygon), MASKS),
    "polygons of pairs beside boxes of zeros": (marks(pairs), MASKS),
    "run lengths": (marks(runs), MASKS),
    "compressed run lengths": (marks(compressed), MASKS),
    "iscrowd as text": (marks(lambda mark: mark.update(iscrowd="0")), None),
    "iscrowd in words": (marks(lambda mark: mark.update(iscrowd="False")), None),
    "no iscrowd": (marks(lambda mark: mark.pop("iscrowd")), None),
    "ids and numbers as text": (texts, None),
    "boxes in parts of the image": (marks(parts_of_the_image), RELATIVE),
    "two corners": (marks(two_corners), "boxes of two corners, not of a corner and a size, read so"),
    "negative widths": (marks(from_the_other_corner), SWAPPED),
    "absolute paths": (files(lambda name: f"/data/u/{name}"), ELSEWHERE),
    "paths of Windows": (files(lambda name: f"C:\\photos\\{name}"), ELSEWHERE),
    "addresses": (files(lambda name: f"https://store/up%20load/{name}?token=1"), ELSEWHERE),
    "Label Studio's local files": (files(lambda name: f"/data/local-files/?d=a%2F{name}"), ELSEWHERE),
    "other capitals": (files(lambda name: name.upper()), ELSEWHERE),
    "a folder before them": (files(lambda name: f"./images/{name}"), ELSEWHERE),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(case: str, tmp_path: Path) -> None:
    change, note = COCO[case]
    images(tmp_path / "images")
    (tmp_path / "boxes.json").write_text(json.dumps(coco(change)))
    source = open_source(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")
    check(source)
    assert list(source.notes.counts) == ([] if note is None else [note])
    if note is not None:
        assert source.notes.counts[note] == (COUNT if note == ELSEWHERE else 2 * COUNT)
        assert "0.jpg" in source.notes.first[note].lower()


def test_a_box_that_is_too_large_makes_no_corners_of_others(tmp_path: Path) -> None:
    """Half of the boxes reach out of their images; those that do not could not be corners."""
    images(tmp_path / "images")
    wide = coco(marks(lambda mark: mark.update(bbox=[30, 10, 20 if mark["category_id"] == 3 else 60, 20])))
    (tmp_path / "boxes.json").write_text(json.dumps(wide))
    source = open_source(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")
    assert list(source.notes.counts) == ["boxes that reached out of their image, clipped"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_with_a_byte_order_mark_beside_its_images(encoding: str, tmp_path: Path) -> None:
    names = images(tmp_path, name="ein Bild {} ä.jpg")
    content = coco(files(lambda name: names[int(name.removesuffix(".jpg"))].name.replace("ä", "a\u0308").replace(" ", "%20")))
    (tmp_path / "boxes.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    check(open_source(f"coco:{tmp_path},boxes.json"))


@pytest.mark.parametrize("archive", [False, True])
def test_coco_as_roboflow_exports_it(archive: bool, tmp_path: Path) -> None:
    """Its empty parent class stays one, is said, and can be dropped."""
    root = tmp_path / "export"
    for split, numbers in (("train", range(7)), ("valid", range(7, 10)), ("test", range(10, 12))):
        images(root / split, numbers)
        content = coco(lambda content: content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"}), numbers)
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    spec = f"coco:{packed(root) if archive else root}"
    source = open_source(spec)
    check(source, ("pets", "cat", "dog"))
    assert (len(source.train), len(source.val)) == (7, 3)
    assert said(source) == {"classes without a box in either split (,unused=drop leaves them out): pets": (1, "")}
    check(open_source(f"{spec},unused=drop"))
    assert len(open_source(f"{spec},val=0.3").val) == 2


def test_coco_in_its_own_layout(tmp_path: Path) -> None:
    for split, numbers in (("train", range(7)), ("val", range(7, 10))):
        images(tmp_path / f"{split}2017", numbers)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(coco(numbers=numbers)))
        (tmp_path / f"annotations/captions_{split}2017.json").write_text("{}")
    source = open_source(f"coco:{tmp_path}")
    check(source)
    assert (len(source.train), len(source.val)) == (7, 3)


@pytest.mark.parametrize("place", ["images", "images/default", ""])
@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json", "test.json"])
def test_coco_with_one_file_of_annotations(file: str, place: str, tmp_path: Path) -> None:
    """As Label Studio and CVAT export it."""
    images(tmp_path / place)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(coco()))
    check(open_source(f"coco:{tmp_path}"))


def test_images_that_no_annotation_lists_are_counted(tmp_path: Path) -> None:
    images(tmp_path / "images", range(12))
    (tmp_path / "boxes.json").write_text(json.dumps(coco()))
    source = open_source(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")
    assert said(source) == {"images without an annotation, left out": (2, "10.jpg")}


# Pascal VOC -----------------------------------------------------------------------------------------------------------------------------


def xml(objects: Mapping[str, Box] = OBJECTS, *, head: str = "", more: str = "", shift: int = 1) -> str:
    """An annotation; pixels count from 1."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    written = ""
    for name, (x1, y1, x2, y2) in objects.items():
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, (x1 + shift, y1 + shift, x2, y2), strict=True))
        written += f"<object><name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"
    return f"{head}<annotation>{written}</annotation>"


def voc(root: Path, text: str | bytes, name: str = "{}", line: str = "{}", lists: bool = True) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    images(root / "JPEGImages", name=f"{name}.jpg")
    (root / "Annotations").mkdir()
    for i in range(COUNT):
        (root / "Annotations" / f"{name.format(i)}.xml").write_bytes(content)
    if lists:
        (root / "ImageSets/Main").mkdir(parents=True)
        for split, numbers in (("train", range(7)), ("val", range(7, 10))):
            (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(line.format(name.format(i)) for i in numbers) + "\n")
    return f"voc:{root}"


@pytest.mark.parametrize(
    "encoding", ["gb2312", "GBK", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "latin-1", "cp1252", "utf-8", "utf-16"]
)
def test_voc_in_the_encoding_that_it_says(encoding: str, tmp_path: Path) -> None:
    other = {"euc-kr": "고양이", "latin-1": "Kätzchen", "cp1252": "Kätzchen"}.get(encoding, "山")
    text = xml({other: CAT, "dog": DOG}, head=f'<?xml version="1.0" encoding="{encoding}"?>\n')
    source = open_source(voc(tmp_path, text.encode(encoding)))
    assert set(source.classes) == {other, "dog"}
    assert not source.notes.counts
    assert (len(source.train), len(source.val)) == (7, 3)


@pytest.mark.parametrize("head", ["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>'])
def test_voc_in_an_encoding_that_it_does_not_say(head: str, tmp_path: Path) -> None:
    """A path in a user's own encoding is no reason to refuse it; what was done is said."""
    text = xml(head=head).replace("<object>", "<path>C:\\照片\\1.jpg</path><object>", 1)
    source = open_source(voc(tmp_path, text.encode("gbk")))
    check(source)
    assert said(source) == {"XML files in an encoding that they do not say, read as Latin-1": (COUNT, "Annotations/0.xml")}


VOC: dict[str, tuple[dict[str, Any], str | None]] = {
    "no difficult": ({"text": xml()}, None),
    "difficult in words": ({"text": xml(more="<difficult>Unspecified</difficult>")}, None),
    "a byte-order mark": ({"text": xml().encode("utf-8-sig")}, None),
    "a blank line first": ({"text": "\n" + xml(head='<?xml version="1.0"?>')}, None),
    "names with spaces": ({"text": xml(), "name": "my photo {} of 10"}, None),
    "names with dots": ({"text": xml(), "name": "a.b.{}"}, None),
    "lists of paths": ({"text": xml(), "line": "JPEGImages/{}.jpg"}, None),
    "lists with numbers": ({"text": xml(), "line": "{}  1"}, None),
    "no lists": ({"text": xml(), "lists": False}, None),
    "swapped corners": (
        {"text": xml({"cat": (CAT[2] - 1, CAT[3] - 1, CAT[0] + 1, CAT[1] + 1), "dog": (DOG[2] - 1, DOG[1], DOG[0] + 1, DOG[3])})},
        SWAPPED,
    ),
    "parts of the image": (
        {"text": xml({name: (b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT) for name, b in OBJECTS.items()}, shift=0)},
        RELATIVE,
    ),
}


@pytest.mark.parametrize("case", VOC)
def test_voc(case: str, tmp_path: Path) -> None:
    given, note = VOC[case]
    source = open_source(voc(tmp_path, **given))
    check(source)
    assert list(source.notes.counts) == ([] if note is None else [note])


@pytest.mark.parametrize("layout", ["{i}.xml beside {i}.jpg", "images/{i}.jpg and Annotations/{i}.xml", "pics/a/{i}.jpg and xml/{i}.xml"])
@pytest.mark.parametrize("archive", [False, True])
def test_voc_in_other_folders(layout: str, archive: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    places = [word for word in layout.split() if "{" in word]
    picture, annotation = sorted(places, key=lambda place: place.endswith("xml"))
    images((root / picture).parent)
    for i in range(COUNT):
        path = root / annotation.format(i=i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml())
    images((root / picture).parent, [10])
    (root / "notes.xml").write_text("<notes/>")
    source = open_source(f"voc:{packed(root) if archive else root}")
    check(source)
    assert len(source.val) == 2
    assert source.notes.counts["images without an annotation, left out"] == 1


def test_voc_images_are_found_by_the_name_in_the_file(tmp_path: Path) -> None:
    images(tmp_path / "img")
    for i in range(COUNT):
        (tmp_path / f"ann_{i}.xml").write_text(xml().replace("<annotation>", f"<annotation><filename>{i}.jpg</filename>"))
    source = open_source(f"voc:{tmp_path}")
    check(source)
    assert said(source) == {ELSEWHERE: (COUNT, "0.jpg")}


@pytest.mark.parametrize("held_out", ["valid", "val", "test"])
def test_voc_as_roboflow_exports_it(held_out: str, tmp_path: Path) -> None:
    for split, numbers in (("train", range(7)), (held_out, range(7, 10))):
        for path in images(tmp_path / split, numbers):
            path.with_suffix(".xml").write_text(xml())
    source = open_source(f"voc:{tmp_path}")
    check(source)
    assert (len(source.train), len(source.val)) == (7, 3)
    assert not source.notes.counts
    assert len(open_source(f"voc:{tmp_path},train=train+{held_out},val=0.2").val) == 2


# YOLO -----------------------------------------------------------------------------------------------------------------------------------


def centred(box: Box, sides: tuple[float, float] = (WIDTH, HEIGHT)) -> str:
    x1, y1, x2, y2 = (number / side for number, side in zip(box, sides * 2, strict=True))
    return f"{(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"


BOXES = f"0 {centred(CAT)}\n1 {centred(DOG)}\n"
CORNERS = {
    k: [(b[0] / WIDTH, b[1] / HEIGHT), (b[2] / WIDTH, b[1] / HEIGHT), (b[2] / WIDTH, b[3] / HEIGHT)] for k, b in enumerate((CAT, DOG))
}
SPLITS = (("train", range(7)), ("val", range(7, 10)))


def yolo(root: Path, text: str = BOXES, *, labels: str = "labels/{split}", pictures: str = "images/{split}") -> None:
    for split, numbers in SPLITS:
        images(root / pictures.format(split=split), numbers)
        folder = root / labels.format(split=split)
        folder.mkdir(parents=True, exist_ok=True)
        for i in numbers:
            (folder / f"{i}.txt").write_text(text)


def described(root: Path, **more: object) -> str:
    """data.yaml beside the set."""
    given = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **more}
    (root / "data.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in given.items() if value is not None))
    return f"yolo:{root / 'data.yaml'}"


LABELS: dict[str, tuple[str, str | None]] = {
    "boxes": (BOXES, None),
    "a byte-order mark": ("\ufeff" + BOXES, None),
    "tabs, blank lines and numbers with a point": (BOXES.replace(" ", "\t").replace("1\t", "1.0\t", 1) + "\n\n", None),
    "polygons": ("".join(f"{k} {' '.join(f'{x:.6f} {y:.6f}' for x, y in corners)}\n" for k, corners in CORNERS.items()), None),
    "confidences": (BOXES.replace("\n", " 0.87\n"), "confidences behind boxes, not read"),
    "pixels": (f"0 {centred(CAT, (1, 1))}\n1 {centred(DOG, (1, 1))}\n", "files of labels in pixels, not in parts of their image, read so"),
    "names in the place of numbers": (BOXES.replace("0 ", "cat ", 1), None),
}


@pytest.mark.parametrize("case", LABELS)
def test_yolo_labels(case: str, tmp_path: Path) -> None:
    text, note = LABELS[case]
    yolo(tmp_path, text)
    source = open_source(described(tmp_path))
    check(source)
    assert (len(source.train), len(source.val)) == (7, 3)
    assert list(source.notes.counts) == ([] if note is None else [note])


@pytest.mark.parametrize("labels", ["labels/{split}", "images/{split}", "images/labels", "labels"])
@pytest.mark.parametrize("archive", [False, True])
def test_yolo_labels_lie_in_many_places(labels: str, archive: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    yolo(root, labels=labels)
    described(root)
    check(open_source(f"yolo:{packed(root) if archive else root}"))


def lists(root: Path, line: str) -> dict[str, object]:
    for split, numbers in SPLITS:
        (root / f"{split}.txt").write_text("\n".join(line.format(root=root, split=split, i=i) for i in numbers) + "\n")
    return {"train": "train.txt", "val": "val.txt"}


PLACES: dict[str, tuple[Callable[[Path], dict[str, object]], str | None]] = {
    "folders": (lambda root: {}, None),
    "a path": (lambda root: {"path": str(root)}, None),
    "a path of another machine": (
        lambda root: {"path": "/home/somebody/set"},
        "a path of data.yaml that is not here, its own folder taken instead",
    ),
    "absolute folders": (lambda root: {"train": str(root / "images/train"), "val": str(root / "images/val")}, None),
    "folders of another machine": (lambda root: {"train": "/content/set/images/train", "val": "D:\\set\\images\\val"}, ELSEWHERE),
    "Roboflow's": (lambda root: {"train": "../images/train", "val": "../images/val"}, ELSEWHERE),
    "lists of folders": (lambda root: {"train": ["images/train"], "val": ["images/val"]}, None),
    "lists of files": (lambda root: {"train": [f"images/train/{i}.jpg" for i in range(7)], "val": ["images/val/*.jpg"]}, None),
    "lists in files": (lambda root: lists(root, "./images/{split}/{i}.jpg"), None),
    "absolute lists": (lambda root: lists(root, "{root}/images/{split}/{i}.jpg"), None),
    "lists of another machine": (
        lambda root: lists(root, "/gone/set/images/{split}/{i}.jpg"),
        ELSEWHERE,
    ),
    "names by numbers": (lambda root: {"names": {0: "cat", 1: "dog"}}, None),
    "names and their count": (lambda root: {"nc": 2}, None),
    "test alone": (lambda root: {"val": None, "test": "images/val"}, None),
    "valid": (lambda root: {"val": "", "valid": "images/val", "test": "images/test"}, None),
}


@pytest.mark.parametrize("case", PLACES)
def test_yolo_images_are_named_in_many_ways(case: str, tmp_path: Path) -> None:
    change, note = PLACES[case]
    yolo(tmp_path)
    source = open_source(described(tmp_path, **change(tmp_path)))
    check(source)
    assert (len(source.train), len(source.val)) == (7, 3)
    assert list(source.notes.counts) == ([] if note is None else [note])


def test_yolo_classes_are_names_as_they_are_written_or_numbers(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no, 007]\n")
    assert open_source(f"yolo:{tmp_path}").classes == ("no", "007")
    source = open_source(described(tmp_path, names=None, nc=2))
    assert source.classes == ("0", "1")
    assert list(source.notes.counts) == ["classes without a name, called by their numbers"]
    assert open_source(f"{described(tmp_path, names=['cat', 'dog', 'emu'])},unused=drop").classes == ("cat", "dog")


def test_yolo_keypoints_stand_behind_the_box(tmp_path: Path) -> None:
    yolo(tmp_path, BOXES.replace("\n", " 0.1 0.1 2 0.9 0.9 1 0.5 0.5 0\n"))
    check(open_source(described(tmp_path, kpt_shape=[3, 3])))


def test_yolo_images_without_objects(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels/train/1.txt").write_text("")
    (tmp_path / "labels/train/2.txt").unlink()
    source = open_source(described(tmp_path))
    assert len(source.train) == 5
    assert said(source) == {
        "images without a file of labels, taken for images without an object": (1, "images/train/2.jpg"),
        "training images without a box, left out": (2, "train/1.jpg"),
    }
    assert len(open_source(f"{described(tmp_path)},empty=keep").train) == 7


def test_yolo_without_a_data_yaml(tmp_path: Path) -> None:
    """As LabelImg and Label Studio leave it."""
    images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    for i in range(COUNT):
        (tmp_path / f"labels/{i}.txt").write_text(BOXES)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = open_source(f"yolo:{tmp_path},val=0.3")
    check(source)
    assert len(source.val) == 3


def test_an_image_is_told_by_its_content(tmp_path: Path) -> None:
    yolo(tmp_path, pictures="images/{split}")
    for path in sorted((tmp_path / "images/train").iterdir())[:2]:
        path.rename(path.with_suffix(".jfif" if "0" in path.name else ""))
    assert len(open_source(described(tmp_path)).train) == 7


def rewritten(file: Path, text: str, spec: str) -> str:
    file.write_text(text)
    return spec


WRONG: dict[str, tuple[Callable[[Path], str], str]] = {
    "no such file": (lambda root: f"yolo:{root / 'nothing.yaml'}", r"nothing\.yaml, expected a data\.yaml"),
    "no YAML": (lambda root: rewritten(root / "data.yaml", "a: [b", f"yolo:{root}"), r"data\.yaml, expected YAML"),
    "no names": (lambda root: described(root, names=None), "no classes, expected the classes' names"),
    "one name twice": (lambda root: described(root, names=["cat", "cat"]), "two classes of one name"),
    "no split": (lambda root: described(root, train=None, test="images/train"), "got train, expected a split of the set: val, test"),
    "another split": (lambda root: f"{described(root)},val=held", "got held, expected a split of the set: train, val"),
    "a folder that is gone": (lambda root: described(root, train="photos"), "train with what is missing: photos"),
    "one folder twice": (lambda root: described(root, val="images/train"), "share 7 images"),
    "an unknown class": (
        lambda root: rewritten(root / "labels/val/7.txt", f"2 {centred(CAT)}\n", described(root)),
        r"labels/val/7\.txt, line 1: 2 0\..* \(no class 2\), expected class \(0 to 1\)",
    ),
    "three numbers": (lambda root: rewritten(root / "labels/val/7.txt", "0 1 2 3", described(root)), "line 1: 0 1 2 3"),
    "a word": (lambda root: rewritten(root / "labels/val/7.txt", "0 a b c d", described(root)), "line 1: 0 a b c d"),
    "no labels": (lambda root: described(root, val="other") if images(root / "other") else "", "images without a file of labels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_yolo_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    write, message = WRONG[case]
    yolo(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        open_source(write(tmp_path))
    assert "\n" not in str(raised.value)


def test_names_that_several_files_have_are_not_guessed(tmp_path: Path) -> None:
    images(tmp_path / "images/a")
    images(tmp_path / "images/b")
    (tmp_path / "boxes.json").write_text(json.dumps(coco(files(lambda name: f"/data/{name}"))))
    with pytest.raises(InputError, match=r"with /data/0\.jpg, which a/0\.jpg and b/0\.jpg are called"):
        open_source(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}")
    (tmp_path / "boxes.json").write_text(json.dumps(coco(files(lambda name: f"/data/b/{name}"))))
    check(open_source(f"coco:{tmp_path / 'images'},{tmp_path / 'boxes.json'}"))
