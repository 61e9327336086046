"""Sets as they lie on disk: the layouts that people have, and the mistakes that they hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.inspected import GOOD
from stillroom.tasks.anomaly.sources import open_source
from stillroom.tasks.anomaly.textures import DEFECTS
from tests.tasks.anomaly.miniatures import mvtec, picture, visa


def test_mvtec_s_layout(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "set", ("bolt", "nut"))
    source = open_source(f"mvtec:{root}")
    assert source.classes == ("bolt", "nut")
    assert len(source.train) == 12
    assert sorted(set(source.val.kinds.tolist())) == ["dent", GOOD, "scratch"]
    for index, kind in enumerate(source.val.kinds.tolist()):
        mask = source.val.mask(index)
        assert (mask is None) == (kind == GOOD)
        if mask is not None:
            assert mask.shape == (24, 30)
            assert mask.sum() == 16
    assert open_source(f"mvtec:{root},category=nut").classes == ("nut",)
    assert open_source(f"mvtec:{root / 'nut'}").classes == ("nut",)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(root.parent))
    assert open_source(f"mvtec:{tmp_path / 'set.zip'}").classes == ("bolt", "nut")
    assert open_source(f"mvtec:{root}").fingerprint == source.fingerprint


def test_btad_s_words(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "btad", ("01",), good="ok", kinds=("ko",), suffix="", form="bmp")
    source = open_source(f"mvtec:{root}")
    assert source.classes == ("01",)
    assert sorted(set(source.val.kinds.tolist())) == [GOOD, "ko"]


@pytest.mark.parametrize("table", [True, False])
def test_visa_s_layout_and_masks_of_ids(tmp_path: Path, table: bool) -> None:
    root = visa(tmp_path / "visa", table=table)
    source = open_source(f"mvtec:{root}")
    assert source.classes == ("candle",)
    assert len(source.train) == 4
    assert sorted(source.val.kinds.tolist()) == ["anomaly"] * 3 + [GOOD] * 3
    masks = [source.val.mask(i) for i in range(len(source.val))]
    assert [int(mask.sum()) for mask in masks if mask is not None] == [16, 16, 16]  # ids 1, 2, 3 look black, and count
    assert bool(source.said) != table


def test_good_pictures_alone(tmp_path: Path) -> None:
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.jpg")
    data = AnomalyData(f"good:{tmp_path}", image_size=16)
    assert (data.tested, data.of_category(0).train_size, len(data.held_out_N)) == (False, 4, 5)
    assert "nothing to test on" in " ".join(data.first_lines())


def test_jpeg_masks_are_cut_in_the_middle(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "set", ("bolt",))
    for file in (root / "bolt" / "ground_truth").rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"), quality=50)
        file.unlink()
    source = open_source(f"mvtec:{root}")
    sizes = [int(mask.sum()) for i in range(len(source.val)) if (mask := source.val.mask(i)) is not None]
    assert all(12 <= size <= 20 for size in sizes)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_any_mode(tmp_path: Path, mode: str) -> None:
    root = mvtec(tmp_path / "set", ("bolt",))
    for file in (root / "bolt" / "ground_truth").rglob("*.png"):
        marked = np.asarray(Image.open(file)) > 0
        if mode == "P":
            image = Image.fromarray(marked.astype(np.uint8), "P")
            image.putpalette([0, 0, 0, 5, 5, 5])
        elif mode == "I;16":
            image = Image.fromarray(marked.astype(np.uint16))
        else:
            image = Image.fromarray(marked.astype(np.uint8) * 255).convert(mode)
        image.save(file)
    source = open_source(f"mvtec:{root}")
    assert [int(mask.sum()) for i in range(len(source.val)) if (mask := source.val.mask(i)) is not None] == [16] * 4


def spoil_missing(bolt: Path) -> None:
    next((bolt / "ground_truth" / "dent").glob("*")).unlink()


def spoil_named(bolt: Path) -> None:
    mask = next((bolt / "ground_truth" / "dent").glob("*"))
    mask.rename(mask.with_name("other_mask.png"))


def spoil_size(bolt: Path) -> None:
    mask = next((bolt / "ground_truth" / "dent").glob("*"))
    Image.open(mask).rotate(90, expand=True).save(mask)


def spoil_empty(bolt: Path) -> None:
    mask = next((bolt / "ground_truth" / "dent").glob("*"))
    Image.new("L", Image.open(mask).size).save(mask)


def spoil_good(bolt: Path) -> None:
    (bolt / "ground_truth" / GOOD).mkdir()
    Image.new("L", (30, 24), 9).save(bolt / "ground_truth" / GOOD / "g0_mask.png")


def spoil_copy(bolt: Path) -> None:
    (bolt / "test" / "dent" / "d0.png").write_bytes((bolt / "train" / GOOD / "t0.png").read_bytes())


def spoil_lonely(bolt: Path) -> None:
    for file in sorted((bolt / "train" / GOOD).glob("*"))[1:]:
        file.unlink()


def spoil_train(bolt: Path) -> None:
    (bolt / "train" / "dent").mkdir()
    picture(99).save(bolt / "train" / "dent" / "x.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_missing, "without a mask, the first bolt/test/dent"),
        (spoil_named, "masks without a picture: bolt/ground_truth/dent/other_mask.png"),
        (spoil_size, "24 x 30 pixels for a picture of 30 x 24"),
        (spoil_empty, "an empty mask of the defect dent"),
        (spoil_good, "in which something is marked"),
        (spoil_copy, "the same picture as good and as dent"),
        (spoil_lonely, "1 good picture to train on"),
        (spoil_train, "bolt/train/dent"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_contradicts_itself_is_named_before_training(tmp_path: Path, spoil: Any, said: str) -> None:
    root = mvtec(tmp_path / "set", ("bolt", "nut"))
    spoil(root / "bolt")
    with pytest.raises(InputError) as caught:
        open_source(f"mvtec:{root}")
    assert said in str(caught.value).replace(f"{root}/", "")


def test_without_masks_pixels_are_not_measured(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "set", ("bolt",), masked=False)
    data = AnomalyData(f"mvtec:{root}", image_size=16)
    assert "nothing is measured by pixel" in " ".join(data.first_lines())
    masks = np.concatenate([batch.masks.numpy() for batch in data.eval_loader()])
    anomalous = np.concatenate([batch.anomalous.numpy() for batch in data.eval_loader()])
    assert set(masks[anomalous == 1].ravel().tolist()) == {2}


def test_a_set_in_no_layout_is_told_of_the_others(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"good:{tmp_path}"):
        open_source(f"mvtec:{tmp_path}")
    with pytest.raises(InputError, match="wood"):
        open_source("textures:category=woad")


def test_pictures_of_any_size_and_mode(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "set", ("bolt",))
    good = sorted((root / "bolt" / "train" / GOOD).glob("*"))
    Image.open(good[0]).convert("L").resize((50, 70)).save(good[0])
    Image.open(good[1]).convert("RGBA").save(good[1])
    data = AnomalyData(f"mvtec:{root}", image_size=16)
    assert {tuple(batch.images.shape[1:]) for batch in data.of_category(0).train_loader(seed=0)} == {(3, 16, 16)}


def test_textures_are_always_the_same_and_hold_every_defect() -> None:
    one, again = (AnomalyData("textures:category=wood+tiles,train=6,test=5") for _ in range(2))
    assert one.fingerprint == again.fingerprint
    assert (one._shown[1].pixels == again._shown[1].pixels).all()
    assert set(one.kinds.tolist()) == {GOOD, *DEFECTS}
    assert AnomalyData("textures:category=wood+tiles,train=6,test=5,seed=1").fingerprint != one.fingerprint


def test_held_out_pictures_are_good_and_trained_on_by_nobody() -> None:
    data = AnomalyData("textures:category=wood+tiles,train=10,test=3")
    for category in (0, 1):
        normal = data.of_category(category)
        assert (normal.train_size, len(normal._val)) == (8, 2)
        assert not set(normal.indices["train"]) & set(normal.indices["val"])
        assert {data._listed[0].labels[i] for kept in normal.indices.values() for i in kept} == {category}
        assert normal.evaluator().primary == "discrepancy"


def test_a_palette_of_greys_is_read_by_its_greys(tmp_path: Path) -> None:
    root = mvtec(tmp_path, ("bolt",))
    expected = [None if mask is None else mask.tolist() for mask in map(open_source(f"mvtec:{root}").val.mask, range(4))]
    for file in (root / "bolt/ground_truth").rglob("*.png"):
        marked = np.asarray(Image.open(file)) > 0
        swapped = Image.fromarray(np.where(marked, 0, 1).astype(np.uint8), mode="P")
        swapped.putpalette([255, 255, 255, 0, 0, 0])  # number 0 is white: what programs write that sort colours by how often they are
        swapped.save(file)
    found = [None if mask is None else mask.tolist() for mask in map(open_source(f"mvtec:{root}").val.mask, range(4))]
    assert found == expected


def test_visas_table_of_other_programs_and_pictures_that_are_nowhere(tmp_path: Path) -> None:
    root = visa(tmp_path, table=True)
    file = root / "split_csv/1cls.csv"
    lines = [line.split(",") for line in file.read_text().splitlines()]
    rows = [";".join([line[0], line[1], line[3], "défaut"]) for line in lines]
    file.write_bytes("\r\n".join([rows[0].replace("défaut", "note"), *rows[1:]]).encode("latin-1"))
    Image.new("RGB", (8, 8)).save(root / "cover.png")
    found = open_source(f"mvtec:{root}")
    assert len(found.train) == 4
    assert found.said == ("passed over 1 picture in no folder train, test or ground_truth, the first cover.png",)
