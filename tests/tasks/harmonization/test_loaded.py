"""A finished student: photos and masks in, photos of the same size out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.cli import main
from stillroom.engine.card import Card
from stillroom.errors import InputError
from stillroom.tasks.harmonization import HarmonizationUNet, LoadedHarmonizer, build_harmonizer
from stillroom.tasks.students import export_student
from tests.tasks.harmonization.scenery import darker, iharmony4, photo, shape

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Brighter(nn.Module):
    """Adds so many grey levels to the foreground, in normalised values."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels / 255))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, :3] + inputs[:, 3:] * self.levels / torch.tensor(STD).view(3, 1, 1)


def student(network: nn.Module, side: int = 32) -> LoadedHarmonizer:
    card = Card(Path("run"), "harmonization", "stillroom/harmony8_3", 0, (), {}, "run")
    return LoadedHarmonizer(network.eval(), side, MEAN, STD, card)


@pytest.mark.parametrize("size", [(640, 427), (20, 24), (5, 3)])
def test_any_size_comes_back_in_its_own_and_nothing_changes_outside_the_mask(size: tuple[int, int]) -> None:
    picture, mask = photo(0, size), shape(size)
    done = np.asarray(student(HarmonizationUNet(4, 3)).harmonise(Image.fromarray(picture), torch.from_numpy(mask)[None]))
    assert done.shape == picture.shape
    assert np.array_equal(done[mask == 0], picture[mask == 0])
    assert not np.array_equal(done[mask > 0], picture[mask > 0]) or not mask.any()


def test_a_change_that_is_seen_in_small_is_applied_in_full_without_a_halo() -> None:
    picture, mask = np.asarray(Image.fromarray(photo(1, (300, 200)))).copy(), shape((300, 200))
    picture = (picture // 2).astype(np.uint8)
    done = np.asarray(student(Brighter(20)).harmonise(Image.fromarray(picture), torch.from_numpy(mask)[None])).astype(int)
    assert np.abs(done - picture - 20)[mask > 0].max() <= 2  # up to the edge
    soft = (mask // 2).astype(np.uint8)
    half = np.asarray(student(Brighter(20)).harmonise(Image.fromarray(picture), torch.from_numpy(soft)[None])).astype(int)
    assert np.abs(half - picture - 10)[mask > 0].max() <= 2


def test_an_empty_mask_changes_nothing_and_a_wrong_size_is_refused() -> None:
    picture = Image.fromarray(photo(0))
    assert student(Brighter(20)).harmonise(picture, torch.zeros(1, 40, 48, dtype=torch.uint8)) is picture
    with pytest.raises(InputError, match="mask: got 40 x 48 pixels"):
        student(Brighter(20)).harmonise(picture, torch.zeros(1, 48, 40, dtype=torch.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harmony") / "run"
    job = ["--data", "patches,train=32,val=8", "--batch-size", "16", "--epochs", "1", "--accelerator", "cpu"]
    assert main(["run", "supervised", "--task", "harmonization", *job, "--out", str(out)]) == 0
    return out


def test_predict_writes_photos_beside_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = iharmony4(tmp_path / "HCOCO", photos=2, variants=1)
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "masks/p1_7.png")
    Image.fromarray(photo(3)).save(root / "composite_images/lonely.png")
    Image.fromarray(np.dstack([photo(0), shape()]), "RGBA").save(root / "composite_images/p0_7_9.png")
    capsys.readouterr()
    words = ["predict", str(run), str(root / "composite_images"), "--masks", str(root / "masks"), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 1
    told = capsys.readouterr()
    answers = {Path(line["file"]).name: line for line in map(json.loads, told.out.splitlines())}
    assert set(answers) == {"p0_7_1.png", "p1_7_1.png"}
    assert answers["p1_7_1.png"]["note"] == "the mask is empty: nothing was changed"
    assert "lonely.png: no mask of its name" in told.err
    assert "p0_7_9.png: it is transparent in parts" in told.err
    done, given = (np.asarray(Image.open(file)) for file in (tmp_path / "out/p0_7_1.png", root / "composite_images/p0_7_1.png"))
    assert np.array_equal(done[shape() == 0], given[shape() == 0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/p1_7_1.png")), darker(photo(1), shape()))


def test_predict_wants_masks_and_overwrites_no_photo(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = iharmony4(tmp_path / "HCOCO", photos=2, variants=1)
    photos = str(root / "composite_images")
    assert main(["predict", str(run), photos]) == 2
    assert "--masks: got nothing, expected the folder of the foregrounds' masks" in capsys.readouterr().err
    assert main(["predict", str(run), photos, "--masks", str(root / "masks"), "--out", photos]) == 2
    assert "expected another folder than that of the photos" in capsys.readouterr().err
    assert main(["predict", str(run), photos, "--top", "3"]) == 2
    assert "this run's student is a network that harmonises pictures" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["onnx", "torch", "safetensors"])
def test_export_is_checked_in_several_sizes(run: Path, tmp_path: Path, format: str) -> None:
    done = export_student(run, format=format, out=tmp_path / f"student.{format}")
    assert done.outputs[0].name == "picture"
    assert done.outputs[0].difference <= 1e-4
    assert len({shape[2:] for shape in done.batches}) == 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("stillroom/resnet18", "stillroom/harmonyWIDTH_LEVELS"),
        ("stillroom/harmony8_1", "depth"),
        ("torch.nn:Identity", r"answers with \[1, 4, 32, 32\]"),
        ("gift:stillroom/harmony8_3,levels=0,source=moon,blend=residual", "gift:BASE"),
    ],
)
def test_specifications_that_name_no_such_network(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_harmonizer(spec)


def test_a_run_of_another_task_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text(json.dumps({"model": "stillroom/convnet4", "num_classes": 10, "task": "classification"}))
    with pytest.raises(InputError, match="a student of classification"):
        build_harmonizer(str(tmp_path))
