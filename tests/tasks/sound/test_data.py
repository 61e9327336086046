"""Recordings in files: the layouts of public sets, units, classes, and what is wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.sound import Batch, SoundData, binaural_spectrogram
from stillroom.tasks.sound.losses import class_distance, inverse_huber
from stillroom.tasks.sound.metrics import SoundEvaluator, voxel_surface
from stillroom.tasks.sound.scores import occupancy_iou, surface_metrics
from stillroom.tasks.sound.sources import open_source
from stillroom.tasks.sound.spectrogram import front_end
from stillroom.tasks.sound.waves import write_wave
from tests.tasks.sound.recorded import batvision, echoes, replica, sound


@pytest.fixture(scope="module")
def daps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echoes(tmp_path_factory.mktemp("daps") / "set")


@pytest.mark.parametrize(
    ("n_fft", "window", "hop", "samples"), [(512, 32, 8, 960), (512, 64, 16, 2646), (64, 32, 8, 200), (32, 32, 16, 64)]
)
def test_the_front_end_is_the_centred_transform(n_fft: int, window: int, hop: int, samples: int) -> None:
    waves = torch.randn(3, 2, max(samples, n_fft))
    hann = torch.hann_window(window, periodic=True)
    wanted = torch.stft(waves.flatten(0, 1), n_fft, hop, window, hann, center=True, pad_mode="reflect", return_complex=True).abs()
    found = binaural_spectrogram(waves, n_fft=n_fft, win_length=window, hop_length=hop)
    torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=1e-3, atol=1e-4)


def test_published_front_ends() -> None:
    assert [(f.samples, f.bins, f.frames) for f in map(front_end, (16_000, 44_100))] == [(960, 257, 121), (2646, 257, 166)]


def test_a_folder_of_recordings(daps: Path) -> None:
    data = SoundData(f"echoes:{daps},unit=daps", image_size=8, n_fft=64, batch_size=2)
    assert data.size == (8, 16)
    assert (data.train_size, len(data._listed[1])) == (4, 2)
    batch = data.val_batch([0])
    assert batch.inputs["sound"].shape == (1, 2, 960)
    assert 1 <= batch.truth[batch.truth > 0].min() <= batch.truth.max() <= 5.001
    whole = SoundData(f"echoes:{daps},unit=daps", image_size=16, n_fft=64).val_batch([0]).truth
    stored = np.asarray(Image.open(daps / "depth/scene/4.png")).astype(np.float32) * 10 / 65536
    assert np.allclose(whole[0], stored, atol=1e-4)
    assert whole[0, 0, 0] == 0  # not known
    assert data.fingerprint != SoundData(f"echoes:{daps},unit=daps", image_size=8, n_fft=64, compression=0).fingerprint


def test_matterports_categories_are_nine_classes(daps: Path) -> None:
    data = SoundData(f"echoes:{daps},unit=daps,categories=matterport", answer="segmentation", image_size=8, n_fft=64)
    assert data.classes[:3] == ("wall", "floor", "ceiling")
    assert set(data.val_batch([0, 1]).truth.unique().tolist()) == {1, 2, 3}
    with pytest.raises(InputError, match="names of its classes"):
        SoundData(f"echoes:{daps},unit=daps", answer="segmentation")
    with pytest.raises(InputError, match="answer: got occupancy, expected what echoes has a truth of: depth, segmentation"):
        SoundData(f"echoes:{daps},unit=daps", answer="occupancy")


def test_a_unit_that_cannot_be_is_asked_for(tmp_path: Path) -> None:
    root = echoes(tmp_path / "mm", scale=1000)
    with pytest.raises(InputError, match=r"median of \d+ m if its unit is m, expected another unit: ,unit=mm or ,unit=daps"):
        open_source(f"echoes:{root}")
    depth = SoundData(f"echoes:{root},unit=mm", n_fft=64).val_batch([0]).truth
    assert depth[depth > 0].min() >= 1
    assert depth.max() <= 5


def test_replica(tmp_path: Path) -> None:
    data = SoundData(f"replica:{replica(tmp_path / 'r')},val=room_2", image_size=32)
    assert data.front.frames == 166
    assert (data.train_size, len(data._listed[1])) == (8, 4)
    assert all("room_2" in data.val_name(index) for index in range(4))
    assert data.val_batch([1]).truth.min() >= 0.5
    with pytest.raises(InputError, match="one of office_0, room_1, room_2"):
        open_source(f"replica:{tmp_path}/r,val=attic")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_a_pickle_runs_nobodys_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = replica(tmp_path / "r")
    (root / "scene_observations_128/room_1.pkl").write_bytes(pickle.dumps({(3, 0): Evil()}))
    with pytest.raises(InputError, match=r"room_1\.pkl.*builtins\.print"):
        open_source(f"replica:{root}")
    assert "it ran" not in capsys.readouterr().out


def test_batvision(tmp_path: Path) -> None:
    data = SoundData(f"batvision:{batvision(tmp_path / 'b')}", image_size=16)
    assert (data.train_size, len(data._listed[1])) == (4, 2)
    assert data.val_batch([0]).truth.mean() == pytest.approx(2.25, abs=0.3)
    table = tmp_path / "b/Salle/train.csv"
    table.write_text(table.read_text().replace("audio path", "sound path"))
    with pytest.raises(InputError, match="a column audio path"):
        open_source(f"batvision:{tmp_path}/b")


def test_what_cannot_be_heard_is_left_out_and_named(tmp_path: Path) -> None:
    root = echoes(tmp_path / "set")
    random = np.random.default_rng(0)
    write_wave(root / "sound/scene/0.wav", np.zeros((2, 960), np.float32), 16_000)
    write_wave(root / "sound/scene/1.wav", sound(random, ears=1), 16_000)
    (root / "sound/scene/2.wav").write_bytes(b"RIFF")
    write_wave(root / "sound/scene/4.wav", sound(random, samples=44_100), 44_100)
    spec = f"echoes:{root},unit=daps"
    data = SoundData(spec, n_fft=64)
    assert data.train_size == 1
    said = "\n".join(data.left_out)
    assert all(word in said for word in ("0.wav: is silent", "1.wav: has one channel, where 2 are needed", "2.wav"))
    assert data.val_batch([0]).inputs["sound"].shape == (1, 2, 960)  # of another rate: resampled
    with pytest.raises(InputError, match=r"0\.wav: is silent"):
        SoundData(spec, strict=True)
    with pytest.raises(InputError, match="4 are needed"):
        SoundData(f"{spec},channels=fuma")


def test_a_batch_without_a_known_pixel_has_no_loss_but_a_graph() -> None:
    predicted = torch.rand(2, 4, 4, requires_grad=True)
    loss = inverse_huber(predicted, torch.full((2, 4, 4), torch.nan), torch.zeros(2, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert not predicted.grad.any()  # type: ignore[union-attr]
    same = torch.rand(2, 4, 4, requires_grad=True)
    inverse_huber(same, same.detach().clone(), torch.ones(2, 4, 4)).backward()
    assert same.grad.isfinite().all()  # type: ignore[union-attr]
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert class_distance(scores, torch.zeros(1, 4, 4, dtype=torch.long)).item() == 0


def batch_of(truth: torch.Tensor) -> Batch:
    return Batch({}, truth, torch.arange(len(truth)))


def test_errors_are_of_each_image_and_an_unknown_one_is_in_no_mean() -> None:
    truth = torch.full((3, 4, 4), 2.0)
    truth[2] = 0
    answer = truth.clone()[:, None]
    answer[0] += 1
    answer[1] += 3
    answer[2] += 7
    evaluator = SoundEvaluator("depth", 0)
    evaluator.update(answer, batch_of(truth))
    found = evaluator.compute()
    assert found["MAE"] == pytest.approx(2.0)
    assert found["RMSE"] == pytest.approx(2.0)  # the mean of images, not pooled
    assert evaluator.details()["ids"].tolist() == [0, 1]


def test_classes_that_the_truth_lacks_are_in_no_mean() -> None:
    truth = torch.tensor([[[1, 1], [2, 0]]])
    scores = torch.nn.functional.one_hot(torch.tensor([[[0, 0], [1, 2]]]), 4).permute(0, 3, 1, 2).float()
    evaluator = SoundEvaluator("segmentation", 4)
    evaluator.update(scores, batch_of(truth))
    assert evaluator.compute()["mIoU"] == pytest.approx(100)
    assert evaluator.details()["outcome"].mean() == pytest.approx(100)


def test_surfaces_of_voxels() -> None:
    solid = np.zeros((32, 32, 32), bool)
    solid[8:16, 8:16, 8:16] = True
    surface = voxel_surface(solid)
    assert len(surface.points) == 6 * 64 * 4
    centre = np.array([12, 12, 12]) / 32
    assert ((surface.points - centre) * surface.normals).sum(1).min() > 0  # outwards
    moved = voxel_surface(np.roll(solid, 1, 0))
    assert surface_metrics(surface, surface) == (0.0, 1.0, 1.0)
    assert 0 < surface_metrics(moved, surface).chamfer_l1 < 1 / 32
    assert surface_metrics(voxel_surface(0 * solid), surface).f_score == 0
    assert occupancy_iou(torch.zeros(8), torch.zeros(8)) == 1


def test_lists_that_cannot_be_meant_and_files_that_are_not_there(tmp_path: Path) -> None:
    root = echoes(tmp_path)
    spec = f"echoes:{root},unit=daps"
    with pytest.raises(InputError, match=r"val=0\.5, expected none"):
        open_source(f"{spec},val=0.5")
    (root / "test.txt").write_bytes("scene/4\r\nscene/é\r\n".encode("latin-1"))
    found = open_source(spec)
    assert (len(found.train), len(found.val)) == (4, 1)
    assert found.said == ("test.txt names 1 recording that are not there: scene/é",)
    (root / "test.txt").write_text("scene/0\n")
    with pytest.raises(InputError, match="scene/0 in both lists"):
        open_source(spec)
    (root / "test.txt").unlink()
    with pytest.raises(InputError, match=r"a list train\.txt alone"):
        open_source(spec)
    (root / "train.txt").unlink()
    with pytest.raises(InputError, match=r"classes=none\.txt, expected a file in"):
        open_source(f"{spec},classes=none.txt")


def test_a_truth_that_cannot_be_read_or_has_a_number_without_a_name(tmp_path: Path) -> None:
    root = echoes(tmp_path)
    (root / "depth/scene/0.png").write_bytes(b"no picture")
    data = SoundData(f"echoes:{root},unit=daps", batch_size=2)
    assert data.train_size == 3
    assert "depth/scene/0.png: cannot be decoded" in data.first_lines()[-1]
    (root / "names.txt").write_text("wall\nfloor\n")
    with pytest.raises(InputError, match=r"whose labels go up to 17, expected 0 \(unknown\) or numbers of the 2 classes"):
        SoundData(f"echoes:{root},unit=daps,classes=names.txt", answer="segmentation")


def test_batvisions_rows_without_files_are_counted(tmp_path: Path) -> None:
    root = batvision(tmp_path)
    before = open_source(f"batvision:{root}")
    wave = next(root.rglob("*.wav"))
    wave.unlink()
    found = open_source(f"batvision:{root}")
    assert len(found.train) + len(found.val) == len(before.train) + len(before.val) - 1
    assert found.said[-1].startswith("passed over 1 row whose files are not there: ")
