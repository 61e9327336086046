"""Sets of nuclei in the formats that people have, and what is wrong with some."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.nuclei import NucleiData, Supervised
from stillroom.tasks.nuclei.networks import small_network
from stillroom.tasks.nuclei.sources import open_source
from tests.tasks.nuclei.miniatures import consep, folder, lizard, maps, pannuke, picture, write


def test_consep_in_the_four_types_of_papers_or_all_seven(tmp_path: Path) -> None:
    source = open_source(f"consep:{consep(tmp_path, 4, 2)}")
    assert source.classes == ("miscellaneous", "inflammatory", "epithelial", "spindle-shaped")
    assert (len(source.train), len(source.val)) == (4, 2)
    instances, kinds = maps(0, 7)
    nuclei = source.train.nuclei(0)
    assert ((nuclei.instances > 0) == (instances > 0)).all()
    merged = np.array([0, 1, 2, 3, 3, 4, 4, 4])
    assert (nuclei.type_map == merged[kinds]).all()
    assert len(open_source(f"consep:{tmp_path},merge=none").classes) == 7
    for merge in ("a:1+2;b:3", "a:1+2+3+4+5+6+7+8", "a:1+1+2+3+4+5+6+7"):
        with pytest.raises(InputError, match="each of the types 1 to 7 once"):
            open_source(f"consep:{tmp_path},merge={merge}")


def test_lizard_s_classes_follow_the_ids_beside_them(tmp_path: Path) -> None:
    source = open_source(f"lizard:{lizard(tmp_path, 6)}")
    assert source.classes[3] == "plasma"
    assert [name.rpartition("/")[2] for name in source.val.names] == ["dpath_2.png", "dpath_5.png"]
    assert (source.train.nuclei(0).type_map == maps(0, 6)[1]).all()
    with pytest.raises(InputError, match="Split: 1, 2, 3"):
        open_source(f"lizard:{tmp_path},val=7")


def test_pannuke_s_folds_and_a_nucleus_in_two_channels(tmp_path: Path) -> None:
    pannuke(tmp_path, 3)
    source = open_source(f"pannuke:{tmp_path}")
    assert (len(source.train), len(source.val), len(source.classes)) == (6, 3, 5)
    _, kinds = maps(31, 5)
    assert (source.val.nuclei(1).type_map == kinds).all()
    assert source.val.image(1).shape == (3, 32, 32)
    place = tmp_path / "Fold 3/masks/fold3/masks.npy"
    masks = np.load(place)
    masks[1] = 0
    masks[1, 2:8, 2:8, 0] = 1
    masks[1, 2:8, 8:10, 1] = 1  # a part of it in another channel
    masks[1, 20:26, 20:26, 1] = 1  # another nucleus of that number in that channel
    np.save(place, masks)
    source = open_source(f"pannuke:{tmp_path}")
    nuclei = source.val.nuclei(1)
    assert nuclei.types.tolist() == [0, 1, 2]
    assert (nuclei.instances[2:8, 2:10] == 1).all()
    assert (nuclei.instances[20:26, 20:26] == 2).all()
    assert source.said == ("1 nuclei in two channels of types: they have the type of most pixels",)
    with pytest.raises(InputError, match=r"train=4, expected a fold with images.npy and masks.npy: 1, 2, 3"):
        open_source(f"pannuke:{tmp_path},train=4")


def test_domains_in_a_zip_with_names_in_meta_json_and_pictures_without_labels(tmp_path: Path) -> None:
    for domain, labelled in (("a", None), ("b", 4)):
        folder(tmp_path / domain, 6, 2, labelled=labelled)
    (tmp_path / "meta.json").write_text('{"classes": {"1": "round", "2": "long"}}')
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(tmp_path.rglob("*")):
            if file.is_file() and file.suffix != ".zip":
                archive.write(file, file.relative_to(tmp_path))
    place = f"nuclei:{tmp_path / 'set.zip'}"
    with pytest.raises(InputError, match="domain= one of a, b"):
        open_source(place)
    source = open_source(f"{place},domain=b,val=0.5")
    assert source.classes == ("round", "long")
    assert source.val.labelled.tolist() == [True] * 2
    assert sorted(source.train.labelled.tolist()) == [False, False, True, True]
    data = NucleiData(f"{place},domain=b,val=0.5", batch_size=2, image_size=16)
    assert "2 training pictures without labels" in data.first_lines()
    with pytest.raises(InputError, match="2 training pictures without labels, expected labels of all of them"):
        Supervised(small_network(2, 2, 2)).training_data(data)


def test_half_the_size(tmp_path: Path) -> None:
    source = open_source(f"nuclei:{folder(tmp_path, 3, 2)},classes=a+b,scale=0.5")
    nuclei = source.train.nuclei(0)
    assert nuclei.instances.shape == (16, 16) == (source.train.image(0).height, source.train.image(0).width)
    assert nuclei.instances.max() == 4


def spoilt(root: Path, **arrays: np.ndarray) -> str:
    folder(root, 3, 2)
    instances, kinds = maps(0, 2)
    for number in range(3):  # whichever is held out
        write(root / f"Labels/p{number}.npz", **{"inst_map": instances, "type_map": kinds, **arrays})
    return f"nuclei:{root},classes=a+b"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"type_map": 5 * (maps(0, 2)[1] > 0)}, "with the class 5, expected classes from 1 to 2"),
        ({"type_map": 0 * maps(0, 2)[1]}, "whose nucleus 2 has no class"),
        ({"inst_map": np.zeros((30, 32), int)}, r"maps of \[30, 32\] and \[32, 32\]"),
        ({"inst_map": np.zeros((30, 32), int), "type_map": np.zeros((30, 32), int)}, "of 32 x 32 pixels, whose nuclei have 32 x 30"),
        ({"inst_map": 0.25 * maps(0, 2)[0]}, "whole numbers of at least 0"),
        ({"inst_map": np.zeros((32, 32), int)}, "pictures to measure with that have no nucleus"),
    ],
)
def test_labels_that_cannot_be_used_are_named(arrays: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        open_source(spoilt(tmp_path, **arrays))


def test_one_number_for_several_nuclei_is_told_and_split_when_asked(tmp_path: Path) -> None:
    instances, _ = maps(0, 2)
    spec = spoilt(tmp_path, inst_map=np.where(instances > 0, 7, 0))
    kept, split = open_source(spec), open_source(f"{spec},pieces=split")
    assert len(kept.val.nuclei(0).types) == 2
    assert any("pieces beyond the first of their numbers, which are no (pieces=split) nuclei" in line for line in kept.said)
    assert len(split.val.nuclei(0).types) == 5
    assert any("pixels of several types" in line for line in kept.said)
    assert kept.fingerprint != split.fingerprint


def test_an_empty_map_among_others_trains_and_is_counted(tmp_path: Path) -> None:
    folder(tmp_path / "train", 4, 2)
    folder(tmp_path / "test", 2, 2)
    empty = np.zeros((32, 32), np.int32)
    write(tmp_path / "train/Labels/p1.npz", inst_map=empty, type_map=empty)
    data = NucleiData(f"nuclei:{tmp_path},classes=a+b", batch_size=4, image_size=40, augment="stain")
    assert any(line.endswith("; 1 pictures without a nucleus") for line in data.first_lines())
    batch = next(iter(data.train_loader(seed=0)))
    assert batch.images.shape == (4, 3, 40, 40)  # larger than the pictures
    assert (batch.images.min() >= 0) & (batch.images.max() <= 1)
    assert np.isfinite(float(Supervised(small_network(2, 2, 2)).losses(batch).total.detach()))


def test_a_list_of_types_of_another_length_is_refused(tmp_path: Path) -> None:
    instances, _ = maps(0, 2)
    folder(tmp_path, 2, 2)
    for number in range(2):
        np.savez(tmp_path / f"Labels/p{number}.npz", inst_map=instances, inst_type=[1, 2])
    with pytest.raises(InputError, match="2 types for 4 nuclei"):
        open_source(f"nuclei:{tmp_path},classes=a+b")
    np.savez(tmp_path / "Labels/p0.npz", inst_map=instances, inst_type=[1, 2, 2, 1])
    np.savez(tmp_path / "Labels/p1.npz", inst_map=instances, inst_type=[1, 2, 2, 1])
    assert open_source(f"nuclei:{tmp_path},classes=a+b").train.nuclei(0).types.tolist() == [0, 1, 2, 2, 1]


def test_drawn_nuclei_are_the_same_every_time_and_differ_by_domain() -> None:
    first, again = open_source("drawn:train=3,val=2"), open_source("drawn:train=3,val=2")
    assert (first.train.image(1) == again.train.image(1)).all()
    assert first.fingerprint == again.fingerprint
    assert open_source("drawn:domain=source,train=3,val=2").classes == ("epithelial", "inflammatory", "connective")


def test_a_picture_that_is_turned_by_its_file_still_fits_its_map(tmp_path: Path) -> None:
    folder(tmp_path, 2, 2)
    instances, kinds = maps(0, 2)
    wide = np.pad(np.asarray(picture(instances, kinds, 0)), ((0, 8), (0, 0), (0, 0)))
    for number in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(wide).rotate(90, expand=True).save(tmp_path / f"Images/p{number}.png", exif=exif)
        write(tmp_path / f"Labels/p{number}.npz", inst_map=np.pad(instances, ((0, 8), (0, 0))), type_map=np.pad(kinds, ((0, 8), (0, 0))))
    assert open_source(f"nuclei:{tmp_path},classes=a+b").train.nuclei(0).instances.shape == (40, 32)


def test_pictures_of_one_name_in_several_splits_and_what_is_passed_over(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        folder(tmp_path / split, count, 2)
    write(tmp_path / "train/Labels/orphan.npz", inst_map=np.zeros((4, 4)), type_map=np.zeros((4, 4)))
    Image.new("RGB", (8, 8)).save(tmp_path / "cover.png")
    (tmp_path / "names.txt").write_bytes("lymphocyte\r\nnécrose\r\n".encode("utf-16"))
    found = open_source(f"nuclei:{tmp_path},classes={tmp_path}/names.txt")
    assert found.classes == ("lymphocyte", "nécrose")
    assert (len(found.train), len(found.val)) == (4, 2)
    assert all(name.startswith("val/") for name in found.val.names)
    assert [one.partition(",")[0] for one in found.said] == [
        "passed over 1 file in no Images", "passed over 1 file of labels without a picture",
        "passed over 3 of the folder test: val is what is measured on",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"classes=none\.txt, expected a file that exists"):
        open_source(f"nuclei:{tmp_path},classes=none.txt")
    Image.new("RGB", (32, 32)).save(tmp_path / "train/Images/p0.jpg")
    with pytest.raises(InputError, match=r"p0\.jpg and .*p0\.png|p0\.png and .*p0\.jpg"):
        open_source(f"nuclei:{tmp_path},classes=a+b")


def test_lizards_table_in_the_forms_that_programs_write(tmp_path: Path) -> None:
    for number in range(5):
        instances, kinds = maps(number, 2)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "Labels").mkdir(exist_ok=True)
        picture(instances, kinds, number).save(tmp_path / f"images/{number}.png")
        write(tmp_path / f"Labels/{number}.mat", inst_map=instances, type_map=kinds)
    rows = ["Filename;Source;Split", '"0";"crág, glas";"3"', "1;x;3.0", "2;x;1", "3;x"]
    (tmp_path / "info.csv").write_bytes("\r\n".join(rows).encode("latin-1"))
    found = open_source(f"lizard:{tmp_path}")
    assert [Path(name).stem for name in found.val.names] == ["0", "1"]
    assert [Path(name).stem for name in found.train.names] == ["2"]
    assert any("passed over 2 pictures without labels or a row of info.csv" in one for one in found.said)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda pixels, masks: (pixels / 255, masks), r"images\.npy with values up to 0\.\d+, expected pixels from 0 to 255"),
        (lambda pixels, masks: (pixels, np.where(masks == 1, np.nan, masks)), "with values that are no numbers"),
    ],
)
def test_pannuke_of_other_values(spoil: Callable[..., tuple[np.ndarray, np.ndarray]], said: str, tmp_path: Path) -> None:
    masks = np.zeros((2, 16, 16, 6))
    masks[:, 2:8, 2:8, 0] = 1
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3))
    for fold in (1, 2, 3):
        (tmp_path / f"fold{fold}").mkdir()
        for name, array in zip(("images", "masks"), spoil(pixels, masks), strict=True):
            np.save(tmp_path / f"fold{fold}/{name}.npy", array)
    with pytest.raises(InputError, match=said):
        open_source(f"pannuke:{tmp_path}")
    with pytest.raises(InputError, match="the fold 1 in train and in val"):
        open_source(f"pannuke:{tmp_path},train=1+2,val=1")
    (tmp_path / "fold1/images.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"images\.npy, expected an array of numbers that is whole"):
        open_source(f"pannuke:{tmp_path}")
