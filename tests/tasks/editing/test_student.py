"""A finished run's editor: pictures of any size and mode, masks, the file that it exports to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.engine.card import read_card
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.tasks.editing import EditingData, Editor, LoadedEditor, load
from stillroom.tasks.editing.loaded import NonFiniteEdit, ship
from stillroom.tasks.students import export_student


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an editor that changes something."""
    folder, data = tmp_path_factory.mktemp("run"), EditingData("colours:train=12,val=12")
    torch.manual_seed(0)
    editor = Editor(8)
    nn.init.normal_(editor.last.weight, std=0.3)
    ship(folder, editor, "stillroom/editor8", data)
    save_weights(editor, folder / "student.safetensors")
    return folder


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 255, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode)


@pytest.mark.parametrize("size", [(640, 427), (16, 16), (17, 23), (5, 9), (301, 16)])
def test_the_edited_picture_has_the_picture_s_size(run: Path, size: tuple[int, int]) -> None:
    source = picture(*size)
    edited = load(run).edit(source)
    assert edited.size == size
    assert np.asarray(edited).dtype == np.uint8
    assert not np.array_equal(np.asarray(edited), np.asarray(source))


@pytest.mark.parametrize("size", [(640, 427), (17, 23)])
def test_an_editor_that_changes_nothing_gives_every_pixel_back(run: Path, size: tuple[int, int]) -> None:
    source = picture(*size)
    untaught = LoadedEditor(Editor(8).eval(), 16, read_card(run, trust_pickle=False))
    assert np.array_equal(np.asarray(untaught.edit(source)), np.asarray(source))


def test_pixels_outside_a_mask_stay_bit_for_bit(run: Path, tmp_path: Path) -> None:
    source, mask = picture(61, 43), np.zeros((43, 61), np.uint8)
    mask[10:30, 20:50] = 255
    masks, photos = tmp_path / "masks", tmp_path / "photos"
    for folder in (masks, photos):
        folder.mkdir()
    source.save(photos / "a.png")
    source.save(photos / "b.png")
    Image.fromarray(mask).save(masks / "a_mask.png")
    told: list[Exception] = []
    (answer,) = load(run).predict(sorted(photos.iterdir()), unreadable=told.append, masks=str(masks), out=str(tmp_path / "out"))
    assert ["no mask of its name" in str(error) for error in told] == [True]
    edited, before = np.asarray(Image.open(answer.path)), np.asarray(source)
    assert np.array_equal(edited[mask == 0], before[mask == 0])
    assert not np.array_equal(edited[mask == 255], before[mask == 255])
    picture(10, 10, "L").save(masks / "b.png")
    with pytest.raises(InputError, match="mask: got 10 × 10 pixels, expected 61 × 43"):
        load(run).edit(source, masks / "b.png")


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "CMYK"])
def test_pictures_of_any_mode_have_three_channels(run: Path, mode: str) -> None:
    source = picture(20, 18).convert("P") if mode == "P" else picture(20, 18, mode)
    edited = load(run).edit(source)
    assert (edited.mode, edited.size) == ("RGB", (20, 18))


def test_broken_weights_write_no_picture(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture(20, 18).save(file)
    editor = load(run)
    with torch.no_grad():
        editor.network.last.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteEdit, match="not finite"):
        list(editor.predict([file], unreadable=print, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_files_of_one_name_are_all_written_and_no_source_is_lost(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b/a.png", tmp_path / "b/c.jpg"]
    (tmp_path / "b").mkdir()
    for file in files:
        picture(20, 18).save(file)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    before, told = files[0].read_bytes(), []
    found = list(load(run).predict([*files, tmp_path / "broken.png"], unreadable=told.append, out=str(tmp_path)))
    assert [answer.path.relative_to(tmp_path).as_posix() for answer in found] == ["a.png.png", "b/a.png.png", "b/c.png"]
    assert files[0].read_bytes() == before
    assert len(told) == 1
    assert found[0].to_json()["change"] > 0


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_exported_file_answers_as_the_editor_does(run: Path, tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="the extra stillroom[export] is not installed")
    done = export_student(run, format=format, out=tmp_path)
    assert done.outputs[0].name == "edited"
    assert done.outputs[0].difference < 1e-4


def test_a_denoiser_edits_nothing(run: Path, tmp_path: Path) -> None:
    card = {**json.loads((run / "student.json").read_text()), "kind": "denoiser"}
    (tmp_path / "student.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="a denoiser, expected an editor: one of the run's other arms"):
        load(tmp_path)
