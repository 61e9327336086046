"""`stillroom make-composites`: files that training reads, the same whenever they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.cli import main
from stillroom.tasks.harmonization import HarmonyData
from tests.tasks.harmonization.scenery import photo, photos_and_masks, shape


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("colours", ["random", "chart"])
def test_made_composites_differ_inside_the_mask_alone_and_are_read_again(tmp_path: Path, colours: str) -> None:
    photos, masks = photos_and_masks(tmp_path / "mine", photos=5)
    out = tmp_path / "made"
    assert main(["make-composites", str(photos), str(masks), str(out), "--variants", "2", "--colours", colours]) == 0
    data = HarmonyData(f"iharmony4:{out}", image_size=32)
    assert (data.train_size, len(data.source.val)) == (8, 2)
    made = sorted((out / "composite_images").glob("*.png"))
    assert len(made) == 10
    for file in made:
        real = np.asarray(Image.open(next((out / "real_images").glob(f"{file.name.split('_')[0]}.png")))).astype(int)
        composite = np.asarray(Image.open(file)).astype(int)
        assert np.array_equal(composite[shape() == 0], real[shape() == 0])
        assert np.abs(composite - real)[shape() > 0].mean() > 1
    assert len({file.read_bytes() for file in made}) == 10


def test_made_again_they_are_the_same_and_another_seed_gives_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks = photos_and_masks(tmp_path / "mine")
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        assert main(["make-composites", str(photos), str(masks), str(tmp_path / name), "--seed", seed]) == 0
    one, two, three = (pictures(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert all(one[name] != three[name] for name in one if name.startswith("composite"))
    for file in list((tmp_path / "two/composite_images").iterdir())[:3]:  # as if it had been stopped
        file.unlink()
    capsys.readouterr()
    assert main(["make-composites", str(photos), str(masks), str(tmp_path / "two")]) == 0
    assert "were there" in capsys.readouterr().out
    assert pictures(tmp_path / "two") == one
    assert main(["make-composites", str(photos), str(masks), str(tmp_path / "two"), "--variants", "7"]) == 2
    assert "variants was 4, now 7" in capsys.readouterr().err


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks = photos_and_masks(tmp_path / "mine")
    words = ["make-composites", str(photos), str(masks)]
    assert main([*words, str(tmp_path / "mine")]) == 2
    assert "which holds something else" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out"), "--variants", "0"]) == 2
    assert "--variants: got 0" in capsys.readouterr().err
    (tmp_path / "others").mkdir()
    Image.fromarray(shape()).save(tmp_path / "others/cat.png")
    assert main(["make-composites", str(photos), str(tmp_path / "others"), str(tmp_path / "out")]) == 2
    assert "no two belong together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks = photos_and_masks(tmp_path / "mine")
    Image.fromarray(photo(9)).save(photos / "bare.jpg")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(masks / "p_1_mask.png")
    Image.fromarray(np.dstack([photo(0), shape()]), "RGBA").save(photos / "cut.png")
    Image.fromarray(shape()).save(masks / "cut.png")
    assert main(["make-composites", str(photos), str(masks), str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "1 photo without a mask" in told
    assert "1 sample with an empty mask" in told
    assert "cut.png" in told
    assert not list((tmp_path / "out/composite_images").glob("cut*"))
