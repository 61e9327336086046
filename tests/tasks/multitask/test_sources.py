"""Sets of several targets: layouts, units, axes, what is missing, and what is refused before anything is trained."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.images.label_maps import LabelSpace
from stillroom.tasks.multitask import MultiTaskData
from stillroom.tasks.multitask.decoding import Depth, EdgesOf, Labels, Normals
from stillroom.tasks.multitask.solids import PIXEL, draw
from stillroom.tasks.multitask.sources import open_source
from tests.tasks.multitask.miniatures import CLASSES, DECLARED, dense, nyud_papers, nyud_small, pascal, scene


def array(values: np.ndarray, folder: Path) -> bytes:
    np.save(folder / "x.npy", values)
    return (folder / "x.npy").read_bytes()


def png(values: np.ndarray, folder: Path) -> bytes:
    Image.fromarray(values).save(folder / "x.png")
    return (folder / "x.png").read_bytes()


def test_a_set_declared_by_a_file(tmp_path: Path) -> None:
    data = MultiTaskData(f"dense:{dense(tmp_path)}")
    assert [(target.name, target.kind, target.channels) for target in data.targets] == [
        ("semseg", "classes", 3), ("depth", "depth", 1), ("normals", "normals", 3), ("edges", "edges", 1),
    ]  # fmt: skip
    assert (data.train_size, data.size, data.eval_size) == (4, (24, 32), 24)
    pixels, truth = data.val_sample(0)
    known = scene(4)
    np.testing.assert_array_equal(np.moveaxis(pixels.numpy(), 0, -1), known["image"])
    np.testing.assert_array_equal(truth["semseg"], known["labels"])
    np.testing.assert_allclose(truth["depth"][0], known["depth"] / 1000, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(truth["normals"], axis=0), 1, atol=1e-6)
    assert truth["normals"][2, 0, -1] == pytest.approx(-1, abs=0.01)  # the wall faces the camera
    assert 0 < truth["edges"].mean() < 0.3
    lines = "\n".join(data.first_lines())
    assert "semseg, of 6 pictures: 0 wall" in lines
    assert "median 4.00 m" in lines


def test_a_zip_is_read_in_place_and_known_by_its_content(tmp_path: Path) -> None:
    root = dense(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, Path("set") / file.relative_to(root))
    zipped, folder = MultiTaskData(f"dense:{tmp_path / 'set.zip'}"), MultiTaskData(f"dense:{root}")
    assert zipped.first_lines() == folder.first_lines()
    assert MultiTaskData(f"dense:{root}").fingerprint == folder.fingerprint
    assert MultiTaskData(f"dense:{root}", target_weights="depth=2").fingerprint != folder.fingerprint


def test_targets_are_chosen_and_weighed(tmp_path: Path) -> None:
    spec = f"dense:{dense(tmp_path)}"
    data = MultiTaskData(spec, only_targets="depth+semseg", target_weights="depth=2.5")
    assert [(target.name, target.weight) for target in data.targets] == [("depth", 2.5), ("semseg", 1)]
    assert data.of_targets("depth").classes == ("depth",)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"only_targets": "deep"}, "each once"),
        ({"target_weights": "depth"}, "TARGET=NUMBER"),
    )
    for wrong, said in refused:
        with pytest.raises(InputError, match=said):
            MultiTaskData(spec, **wrong)


def test_a_picture_may_be_without_some_targets(tmp_path: Path) -> None:
    root = dense(tmp_path)
    (root / "depth/p0.png").unlink()
    data = MultiTaskData(f"dense:{root}", batch_size=4, augment="none")
    assert "1 of 4 train pictures without depth: it is in no loss and no figure" in data.first_lines()
    batch = next(iter(data.train_loader(seed=0)))
    missing = batch.truths["depth"].isnan().flatten(1).all(1)
    assert missing.tolist() == (batch.ids == 0).tolist()
    (root / "normals/p0.png").unlink()
    assert MultiTaskData(f"dense:{root}").train_size == 4


def test_nyu_depth_as_it_is_handed_on(tmp_path: Path) -> None:
    data = MultiTaskData(f"nyud:{nyud_small(tmp_path)}")
    assert [target.name for target in data.targets] == ["semseg", "depth", "normals", "edges"]
    assert data.targets[0].classes == ("wall", "floor", "cabinet")
    assert data.targets[3].tolerance == 0.011
    _, truth = data.val_sample(0)
    assert float(np.nanmax(truth["depth"])) == 4.0
    assert (truth["semseg"][:, 10] == 255).all()
    assert (truth["edges"] != 255).all()  # what is between two things is one of them, for edges


def test_nyu_depth_as_multi_task_papers_have_it(tmp_path: Path) -> None:
    data = MultiTaskData(f"nyud:{nyud_papers(tmp_path)}")
    assert data.targets[0].channels == 40
    _, truth = data.val_sample(0)
    assert set(np.unique(truth["semseg"])) == {0, 1, 255}  # 0 is unlabelled, 1 the first class
    assert float(np.nanmax(truth["depth"])) == 4.0
    assert set(np.unique(truth["edges"])) == {0, 1}


def test_pascal_context(tmp_path: Path) -> None:
    root = pascal(tmp_path)
    data = MultiTaskData(f"pascal-context:{root}")
    assert [(target.name, target.channels, target.weight) for target in data.targets] == [
        ("semseg", 21, 1), ("human_parts", 7, 2), ("sal", 2, 5), ("normals", 3, 10), ("edges", 1, 50),
    ]  # fmt: skip
    assert "PASCAL-Context with 21 classes" in "\n".join(data.first_lines())
    read = data._listed[0]
    parts = [read.truth(index, "human_parts") for index in (0, 1)]
    assert (parts[0][0, 0], parts[0][5, 0], parts[0][20, 20]) == (1, 3, 0)
    assert (parts[1] == 255).all()  # nobody with parts
    assert (data._listed[1].truth(0, "human_parts")) is None
    Image.fromarray(np.full((24, 32), 33, np.uint8)).save(root / "semseg/VOC12/0.png")  # of the set of 59
    with pytest.raises(InputError, match=r"numbers 33 .*numbers of the 21 classes"):
        MultiTaskData(f"pascal-context:{root}")


def change(target: str, **entries: Any) -> Callable[[Path], dict[str, Any]]:
    def declared(root: Path) -> dict[str, Any]:
        found = copy.deepcopy(DECLARED)
        found[target] = {key: value for key, value in {**found[target], **entries}.items() if value is not None}
        return found

    return declared


def larger(root: Path) -> dict[str, Any]:
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(root / "depth/p0.png")
    return DECLARED


def unknown_class(root: Path) -> dict[str, Any]:
    Image.fromarray(np.full((24, 32), 3, np.uint8)).save(root / "labels/p0.png")
    return DECLARED


def not_unit(root: Path) -> dict[str, Any]:
    for file in (root / "normals").glob("*.png"):
        Image.fromarray(np.full((24, 32, 3), 128, np.uint8)).save(file)
    return DECLARED


def broken(root: Path) -> dict[str, Any]:
    (root / "depth/p0.png").write_bytes(b"no picture")
    return DECLARED


def none_there(root: Path) -> dict[str, Any]:
    for file in (root / "depth").glob("*.png"):
        file.unlink()
    return DECLARED


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (larger, "p0.*of 32 x 24 pixels, whose depth has 64 x 48, expected every target in its picture's size"),
        (unknown_class, r"p0.png with the numbers 3 \(768 pixels\), expected numbers of the 3 classes"),
        (not_unit, "normals: vectors of which nine in ten are not of length 1"),
        (broken, "depth/p0.png: not a readable map of numbers"),
        (none_there, "no file of the target depth"),
        (change("depth", unit="m", max=None), r"depth: depth with a median of 4000 m, expected its unit declared \(mm\?\)"),
        (change("depth", unit=None), "depth: unit: got nothing, expected m, cm, mm"),
        (change("normals", axes=None), "normals: got no axes"),
        (change("normals", axes="right+left+up"), "axes: got right.left.up, expected one word of each axis"),
        (change("depth", kind="depht"), "kind: got depht, expected one of classes"),
        (change("depth", units="mm"), "got units, expected one of .*unit"),
        (change("edges", **{"from": "depth"}), "from: got depth, expected a target of the kind classes"),
        (change("semseg", classes=None), "the classes: classes=FILE"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(changed: Callable[[Path], dict[str, Any]], said: str, tmp_path: Path) -> None:
    root = dense(tmp_path)
    dense(tmp_path, 0, changed(root)) if changed in (larger, unknown_class, not_unit, broken, none_there) else dense(
        tmp_path, 6, changed(root)
    )
    (root / "train.txt").write_text("p0\np1")
    (root / "val.txt").write_text("p2")
    with pytest.raises(InputError, match=said):
        MultiTaskData(f"dense:{root}")


def test_a_set_without_a_declaration(tmp_path: Path) -> None:
    root = dense(tmp_path)
    (root / "targets.yaml").unlink()
    with pytest.raises(InputError, match=r"targets\.yaml in it"):
        MultiTaskData(f"dense:{root}")


def test_depth_that_is_not_there(tmp_path: Path) -> None:
    steps = np.array([[0, 1000, 65535, 12000], [2000, 0, 7, 500]], np.uint16)
    found = Depth(0.001, 10.0, 7)(png(steps, tmp_path), "x.png")
    np.testing.assert_allclose(found[0], [[np.nan, 1, np.nan, np.nan], [2, np.nan, np.nan, 0.5]])
    metres = np.array([[np.nan, 1.5], [np.inf, -1]], np.float32)
    np.testing.assert_allclose(Depth(1.0)(array(metres, tmp_path), "x.npy")[0], [[np.nan, 1.5], [np.nan, np.nan]])
    for unit, said in ((1.0, "metres"), (0.001, "millimetres")):
        with pytest.raises(InputError, match=f"a map of 8 bits in {said}"):
            Depth(unit)(png(np.ones((2, 2), np.uint8), tmp_path), "x.png")


def test_normals_are_unit_and_turned_as_declared(tmp_path: Path) -> None:
    facing = np.full((2, 2, 3), (128, 128, 255), np.uint8)  # length 1.00003, x and y 0.004
    found = Normals("right+up+backward")(png(facing, tmp_path), "x.png")
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 0, 0], (0.004, -0.004, -1), atol=1e-3)  # y up and z backward, turned
    inner = Normals()(png(facing, tmp_path), "x.png")
    np.testing.assert_allclose(inner[2], 1, atol=1e-4)
    nothing = np.full((2, 2, 3), 128, np.uint8)
    assert np.isnan(Normals()(png(nothing, tmp_path), "x.png")).all()
    vectors = np.moveaxis(np.array([[[0, 0.6, -0.8]] * 2] * 2, np.float32), -1, 0)
    np.testing.assert_allclose(Normals()(array(vectors, tmp_path), "x.npy"), vectors, atol=1e-6)


def test_edges_lie_where_labels_change_and_are_unknown_far_from_any(tmp_path: Path) -> None:
    labels = np.zeros((6, 30), np.uint8)
    labels[:, 4:6], labels[:, 6:10], labels[:, 10:30] = 255, 1, 255
    found = EdgesOf(Labels(LabelSpace(CLASSES)))(png(labels, tmp_path), "x.png")
    assert (found[:, :13].sum(1) == 1).all()
    assert found[0].tolist().index(1) == 4  # in the middle of what lies between
    assert (found[:, 13:] == 255).all()


def test_solids_have_exact_targets() -> None:
    data = MultiTaskData("solids:train=4,val=3,teacher=5,size=32")
    assert (data.train_size, data.for_teacher().train_size) == (4, 5)
    assert data.first_lines()[0].startswith("procedural data: 4 training + 3 validation images with 4 targets")
    _, truth = data.val_sample(0)
    np.testing.assert_allclose(np.linalg.norm(truth["normals"], axis=0), 1, atol=1e-5)
    # normals are those of the depth: away from edges and outlines n is along (z_x, z_y, -1)
    plane = truth["semseg"] == 0
    inside = plane[1:-1, 1:-1] & plane[1:-1, 2:] & plane[1:-1, :-2] & plane[2:, 1:-1] & plane[:-2, 1:-1]
    z = truth["depth"][0].astype(np.float64) / PIXEL
    slopes = np.stack(((z[1:-1, 2:] - z[1:-1, :-2]) / 2, (z[2:, 1:-1] - z[:-2, 1:-1]) / 2))
    n = truth["normals"][:, 1:-1, 1:-1]
    np.testing.assert_allclose((-n[:2] / n[2])[:, inside], slopes[:, inside], atol=1e-3)
    assert all(draw(40, side, 1)[1]["depth"].min() > 0.49 for side in (16, 48))
    again = MultiTaskData("solids:train=4,val=3,teacher=5,size=32")
    assert torch.equal(data.val_sample(2)[0], again.val_sample(2)[0])


def test_pictures_of_one_name_in_train_and_val_are_two(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        dense(tmp_path / split, count + 2)
        for left in ("targets.yaml", "train.txt", "val.txt"):
            (tmp_path / split / left).rename(tmp_path / left)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "val.txt").unlink()
    found = open_source(f"dense:{tmp_path}")
    assert [name.split("/")[0] for name in found.train.names] == ["train"] * 5
    assert [name.split("/")[0] for name in found.val.names] == ["val"] * 4
    assert "passed over 4 of the folder test: val is what is measured on" in found.said


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"depth": {"kind": "depth", "unit": "mm", "max": "abc"}}, r"targets\.yaml: depth: max: got abc, expected a number above 0"),
        ({"depth": {"kind": "depth", "unit": "mm", "max": [1]}}, r"depth: max: got \[1\]"),
        ({"depth": {"kind": "depth", "unit": "mm", "max": -3}}, r"depth: max: got -3"),
        ({"depth": {"kind": "depth", "unit": "mm", "weight": "abc"}}, r"depth: weight: got abc, expected a number of at least 0"),
        ({"depth": {"kind": "depth", "unit": "mm", "max": 0.001}}, r"depth of 4 training pictures, nowhere known"),
        ({"depth": {"kind": "depth", "unit": 1e-6}}, r"depth with a median of 4 mm, expected its unit declared \(m\?\)"),
        ({"depth.x": {"kind": "depth", "unit": "mm", "folder": "depth"}}, r"got depth\.x, expected a target's name"),
        ({"keys": {"kind": "depth", "unit": "mm", "folder": "depth"}}, r"got keys, expected a target's name"),
    ],
)
def test_a_declaration_that_means_nothing_is_named(declared: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        open_source(f"dense:{dense(tmp_path, declared=declared)}")


def test_lists_and_pictures_that_leave_open_what_is_meant(tmp_path: Path) -> None:
    root = dense(tmp_path)
    (root / "train.txt").write_bytes("image/p0.png\r\np1.png\r\np2\r\n".encode("utf-16"))
    assert len(open_source(f"dense:{root}").train) == 3
    (root / "val.txt").unlink()
    with pytest.raises(InputError, match=r"train\.txt alone, expected val\.txt or test\.txt beside it"):
        open_source(f"dense:{root}")
    Image.new("RGB", (32, 24)).save(root / "image/p0.jpg")
    with pytest.raises(InputError, match=r"differ in their ending or folder alone"):
        open_source(f"dense:{root},val=0.2")
