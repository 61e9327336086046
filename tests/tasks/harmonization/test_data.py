"""Composites from every layout, and what is wrong with them said before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.harmonization import HarmonyData, joined
from stillroom.tasks.harmonization.recolouring import blobs, composites, relit
from stillroom.tasks.harmonization.sources import open_source
from tests.tasks.harmonization.scenery import darker, iharmony4, photo, photos_and_masks, shape

SIDE = {"image_size": 32, "batch_size": 4}


def test_iharmony4_as_it_lies_in_a_folder_or_a_zip(tmp_path: Path) -> None:
    iharmony4(tmp_path / "set/HCOCO")
    iharmony4(tmp_path / "set/HFlickr", photos=3)
    data = HarmonyData(f"iharmony4:{tmp_path / 'set'}", **SIDE)
    assert (data.train_size, len(data.val_batch([0]).ids)) == (8 + 4, 1)
    assert data.first_lines()[0] == "12 training + 4 validation composites"
    one = HarmonyData(f"iharmony4:{tmp_path / 'set'},subset=hcoco", **SIDE)
    assert one.train_size == 8
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")
    zipped = HarmonyData(f"iharmony4:{packed},subset=HCOCO", **SIDE)
    for part, other in zip(one.val_batch([0, 1]), zipped.val_batch([0, 1]), strict=True):
        assert torch.equal(part, other)
    with pytest.raises(InputError, match=r"subset=HDay, expected those that .* has: .*hcoco"):
        HarmonyData(f"iharmony4:{tmp_path / 'set'},subset=HDay")


def test_a_composite_has_its_own_mask_and_photo(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO", size=(32, 32))
    data = HarmonyData(f"iharmony4:{root}", image_size=32)
    batch = data.val_batch([0, 1])
    assert torch.equal(data.pixels(batch.reals)[0].round().byte(), torch.tensor(photo(4, (32, 32))).movedim(-1, 0))
    assert torch.equal(batch.masks[0, 0], torch.from_numpy(shape((32, 32)) / 255).float())
    wanted = torch.from_numpy(darker(photo(4, (32, 32)), shape((32, 32)))).movedim(-1, 0)
    assert torch.equal(data.pixels(batch.composites)[0].round().byte(), wanted)
    assert data.val_image(0).size == (32, 32)


def test_without_lists_no_photo_is_in_both_parts_and_with_lists_it_is_said(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "own", photos=6, lists=False)
    data = HarmonyData(f"iharmony4:{root}", **SIDE)
    names = [[data.source.train.reals.name(i) for i in range(data.train_size)], [data.source.val.reals.name(i) for i in range(2)]]
    assert not set(names[0]) & set(names[1])
    (root / "train.txt").write_text("p0_7_1.png\np1_7_1.png")
    (root / "test.txt").write_text("p0_7_2.png\nnowhere_1_1.png")
    lines = HarmonyData(f"iharmony4:{root}", **SIDE).first_lines()
    assert any("1 photo of both training and validation composites: own" in line or "real_images/p0.png" in line for line in lines)
    assert any("that lists of" in line and "nowhere_1_1" in line for line in lines)


def test_a_table_of_triplets(tmp_path: Path) -> None:
    iharmony4(tmp_path / "HCOCO", photos=3)
    rows = [
        f"HCOCO/composite_images/p{i}_7_1.png,HCOCO/masks/p{i}_7.png,HCOCO/real_images/p{i}.png,{s}"
        for i, s in enumerate(("train", "train", "test"))
    ]
    (tmp_path / "list.csv").write_text("composite,mask,real,split\n" + "\n".join(rows))
    assert HarmonyData(f"csv:{tmp_path / 'list.csv'}", **SIDE).train_size == 2
    (tmp_path / "bare.csv").write_text("made,mask,real\n" + "\n".join(row.rpartition(",")[0] for row in rows))
    assert HarmonyData(f"csv:{tmp_path / 'bare.csv'},composite=made,val=0.4", **SIDE).train_size == 2
    with pytest.raises(InputError, match="a column composite"):
        HarmonyData(f"csv:{tmp_path / 'bare.csv'}")


@pytest.mark.parametrize("colours", ["random", "chart"])
def test_composites_of_ones_own_photos_are_new_in_training_and_fixed_in_validation(tmp_path: Path, colours: str) -> None:
    photos_and_masks(tmp_path)
    data = HarmonyData(f"composites:{tmp_path}", colours=colours, augment="none", **SIDE)
    loader = data.train_loader(seed=0)
    first, second = next(iter(loader)), next(iter(loader))
    order, other = first.ids.argsort(), second.ids.argsort()
    assert torch.equal(first.reals[order], second.reals[other])
    assert not torch.equal(first.composites[order], second.composites[other])
    outside = (first.masks == 0).expand_as(first.reals)
    assert torch.equal(first.composites[outside], first.reals[outside])
    inside = (first.masks == 1).expand_as(first.reals)
    assert (first.composites - first.reals)[inside].abs().mean() > 0.05
    evaluations = [next(iter(data.eval_loader())) for _ in range(2)]
    assert torch.equal(evaluations[0].composites, evaluations[1].composites)
    assert torch.equal(data.val_batch([0]).composites, evaluations[0].composites[:1])


def test_photo_mask_and_composite_are_cropped_alike(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO")
    data = HarmonyData(f"iharmony4:{root}", image_size=64, batch_size=8)
    seen = []
    for batch in [batch for _ in range(3) for batch in data.train_loader(seed=1)]:
        composite, real = data.pixels(batch.composites), data.pixels(batch.reals)
        outside, inside = (batch.masks == 0).expand_as(real), (batch.masks == 1).expand_as(real)
        assert (composite - real)[outside].abs().max() <= 2
        assert ((real / 2 - composite)[inside]).abs().max() <= 3
        seen.append(batch.masks.mean((1, 2, 3)))
    assert torch.cat(seen).std() > 0.01


def test_gray_palette_and_opaque_rgba_photos_have_three_channels(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO", photos=4)
    for number, mode in enumerate(("L", "P", "RGBA")):
        for file in [root / f"real_images/p{number}.png", *(root / "composite_images").glob(f"p{number}_*")]:
            Image.open(file).convert(mode).save(file)
    data = HarmonyData(f"iharmony4:{root}", augment="none", **SIDE)
    assert data.train_size == 6
    for batch in data.train_loader(seed=0):
        assert batch.inputs.shape[1:] == (4, 32, 32)
    assert not any("left out" in line for line in data.first_lines())


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO", photos=6)
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "masks/p0_7.png")
    Image.fromarray(np.full((40, 48), 255, np.uint8)).save(root / "masks/p1_7.png")
    (root / "real_images/p2.png").write_bytes(b"not an image")
    transparent = np.dstack([photo(3), shape()])
    Image.fromarray(transparent, "RGBA").save(root / "composite_images/p3_7_1.png")
    data = HarmonyData(f"iharmony4:{root}", **SIDE)
    assert data.train_size == 10 - 2 - 2 - 1
    lines = " | ".join(data.first_lines())
    assert "training: left out 2 samples with an empty mask" in lines
    assert "2 samples whose mask leaves no background" in lines
    assert "left out 3 image files that cannot be decoded" in lines
    with pytest.raises(InputError, match="none such, since strict was asked for"):
        HarmonyData(f"iharmony4:{root}", strict=True, **SIDE)


def test_a_mask_of_another_size_stops_at_once(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO")
    Image.fromarray(shape((24, 20))).save(root / "masks/p1_7.png")
    with pytest.raises(InputError, match=r"p1_7_1.png, whose mask has 24 x 20 pixels, expected those of its photo, 48 x 40"):
        HarmonyData(f"iharmony4:{root}", **SIDE)


@pytest.mark.parametrize(
    ("remove", "said"),
    [("masks/p1_7.png", "composite p1_7_1 has no mask"), ("real_images/p1.png", "composite p1_7_1 has no photo")],
)
def test_a_composite_without_its_mask_or_photo_is_named(tmp_path: Path, remove: str, said: str) -> None:
    root = iharmony4(tmp_path / "HCOCO")
    (root / remove).unlink()
    with pytest.raises(InputError, match=said):
        HarmonyData(f"iharmony4:{root}", **SIDE)


def test_pictures_under_32_pixels(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "HCOCO", size=(12, 9))
    assert HarmonyData(f"iharmony4:{root}", image_size=12).example_inputs().shape == (1, 4, 12, 12)


def test_the_default_says_that_it_is_made_up() -> None:
    data = HarmonyData("patches,train=40,val=8")
    assert any("procedural data" in line for line in data.first_lines())
    assert data.example_inputs().shape == (1, 4, 32, 32)
    assert data.fingerprint == HarmonyData("patches,train=40,val=8").fingerprint
    assert data.fingerprint != HarmonyData("patches,train=40,val=8,seed=1").fingerprint


def test_no_epoch_draws_what_the_patches_were_made_with() -> None:
    data = HarmonyData("patches,train=400,val=8")
    loader, changes = data.train_loader(seed=0), []
    for _ in range(4):
        batches = list(loader)
        changes.append(torch.cat([(batch.composites - batch.reals).square().mean((1, 2, 3)) for batch in batches]).median().item())
    assert max(changes) < 1.35 * min(changes)


def test_a_light_says_nothing_of_where_the_mask_is() -> None:
    seeds = np.arange(4000)
    grey = torch.full((4000, 3, 1, 1), 0.5)
    change = (relit(grey, seeds) - grey).abs().mean((1, 2, 3))
    masks = blobs(seeds, 16)
    down = (masks * torch.arange(16.0).view(1, 1, -1, 1)).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    for other in (down, masks.mean((1, 2, 3))):
        assert abs(np.corrcoef(change, other)[0, 1]) < 0.06


def test_any_classified_images_serve_for_blobs() -> None:
    data = HarmonyData("blobs:shapes,train=2,val=1", subset=20, batch_size=8)
    batch = next(iter(data.train_loader(seed=0)))
    assert batch.masks.unique().tolist() == [0, 1]
    assert data.image_size == 16


def test_blobs_and_lights_are_functions_of_their_seeds() -> None:
    seeds = np.arange(200)
    masks = blobs(seeds, 32)
    assert torch.equal(masks[7:8], blobs(seeds[7:8], 32))
    share = masks.mean((1, 2, 3))
    assert (share > 0).all()
    assert 0.05 < share.mean() < 0.3
    pictures = torch.rand(4, 3, 8, 8)
    assert torch.equal(relit(pictures, seeds[:4])[2:3], relit(pictures[2:3], seeds[2:3]))
    for colours in ("random", "chart"):
        made = composites(pictures, masks[:4, :, 12:20, 12:20], seeds[:4], colours)
        assert made.min() >= 0
        assert made.max() <= 1


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ((1, 3, 8, 8), torch.zeros(1, 3, 8, 8), "a mask of one channel"),
        ((1, 3, 8, 8), torch.zeros(1, 1, 8, 9), r"a picture \[B, 3, H, W\] of the mask's size"),
        ((1, 4, 8, 8), torch.zeros(1, 1, 8, 8), r"a picture \[B, 3, H, W\]"),
        ((1, 3, 8, 8), torch.full((1, 1, 8, 8), 255.0), "values from 0 to 1"),
        ((1, 3, 8, 8), torch.full((1, 1, 8, 8), torch.nan), "values from 0 to 1"),
    ],
)
def test_pictures_and_masks_that_do_not_belong_together(image: tuple[int, ...], mask: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        joined(torch.zeros(image), mask)


def test_names_with_spaces_in_lists_and_two_files_of_one_name(tmp_path: Path) -> None:
    root = iharmony4(tmp_path / "set")
    for file in [file for file in root.rglob("*") if file.is_file()]:
        if file.suffix == ".txt":
            file.write_text("\n".join(f"my {line}" if "/" not in line else line for line in file.read_text().split()), encoding="utf-16")
        else:
            file.rename(file.with_name(f"my {file.name}"))
    before = open_source(f"iharmony4:{root}")
    assert not any("not there" in one or "no list names" in one for one in before.said)
    with pytest.raises(InputError, match=r"val=0\.2, expected none: a list says"):
        open_source(f"iharmony4:{root},val=0.2")
    photo = next((root / "real_images").iterdir())
    Image.open(photo).save(photo.with_suffix(".bmp"))
    with pytest.raises(InputError, match="differ in their ending or folder alone"):
        open_source(f"iharmony4:{root}")
