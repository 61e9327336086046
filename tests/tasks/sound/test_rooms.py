"""Rooms that are made up: what is seen and heard in them is exact."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.sound import SoundData, rooms
from stillroom.tasks.sound.recordings import made_rooms
from stillroom.tasks.sound.sources import open_source
from stillroom.tasks.sound.spectrogram import FrontEnd, Spectrogram
from stillroom.tasks.sound.waves import write_wave

FRONT = FrontEnd(n_fft=64)


def box(low: tuple[float, ...], high: tuple[float, ...]) -> rooms.Rooms:
    """One empty room."""
    pieces, kinds = np.full((1, 4, 2, 3), np.nan), np.full((1, 4), rooms.LOW)
    return rooms.Rooms(np.array([low]), np.array([high]), pieces, kinds, np.ones((1, 3)), np.ones(1), np.array([7]))


AXES = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1], [-1, 0, 0]])


def test_rays_meet_walls_floor_and_furniture_where_they_stand() -> None:
    room = box((-1, -2, -1.5), (4, 3, 1))
    hits = rooms.cast(room, AXES)
    assert np.allclose(hits.distance[0], [4, 3, 1.5, 1])
    assert hits.label[0].tolist() == [rooms.WALL, rooms.WALL, rooms.FLOOR, rooms.WALL]
    assert np.allclose(hits.incidence, 1)
    room.pieces[0, 0] = [[2, -0.5, -1.5], [3, 0.5, 0.5]]
    assert np.allclose(rooms.cast(room, AXES).distance[0], [2, 3, 1.5, 1])
    assert rooms.cast(room, AXES).label[0, 0] == rooms.LOW


def test_left_is_at_the_left_of_a_panorama_and_ahead_in_its_middle() -> None:
    u = rooms.panorama_directions(9, 16).reshape(9, 16, 3)
    assert np.allclose(u[4, :, 2], 0, atol=1e-9)
    assert u[4, 7, 0] > 0.9  # ahead
    assert u[4, 3, 1] > 0.9  # the left
    assert u[0, 8, 2] > 0.9  # above


def test_an_echo_comes_when_sound_has_gone_there_and_back_and_first_to_the_nearer_ear() -> None:
    room, ears = box((-50, -50, -50), (50, 1.715, 50)), rooms.Ears()
    found = rooms.echoes(room, ears, [np.ones(1, np.float32)])[0]
    peak = np.abs(found).argmax(1)
    there_and_back = 2 * 1.715 / rooms.SPEED * ears.rate
    assert peak.mean() == pytest.approx(there_and_back, abs=1.5)
    assert peak[0] < peak[1]  # the wall is at the left
    assert np.abs(found[0]).max() > 1.5 * np.abs(found[1]).max()


def test_ambisonics_of_a_wall_at_the_left_have_y_above_zero_and_no_x() -> None:
    w, y, z, x = rooms.echoes(box((-50, -50, -50), (50, 1.7, 50)), rooms.Ears(ambisonic=True), [np.ones(1, np.float32)])[0]
    place = np.abs(w).argmax()
    assert y[place] / w[place] > 0.9
    assert max(abs(x[place]), abs(z[place])) < 0.1 * abs(w[place])


def test_through_measured_heads_the_nearer_ear_is_louder() -> None:
    hrir = np.zeros((2, 2, 4), np.float32)
    hrir[0, :, 0] = 1, 0.2  # at the left
    hrir[1, :, 0] = 0.2, 1
    ears = rooms.Ears(hrir=hrir, directions=np.array([[0, 1, 0], [0, -1, 0]], np.float32))
    left, right = np.abs(rooms.echoes(box((-50, -50, -50), (50, 1.7, 50)), ears, [np.ones(1, np.float32)])[0]).max(1)
    assert left > 3 * right


def test_a_room_is_the_same_whatever_the_others_are() -> None:
    few, many = made_rooms(0, 1, 2), made_rooms(0, 1, 70)
    for index in range(2):
        assert np.array_equal(few.hear(index, FRONT), many.hear(index, FRONT))
        assert np.array_equal(few.look(index, (16, 32)), many.look(index, (16, 32)))
    taken = many.take(np.array([69, 1]))
    assert np.array_equal(taken.truth(1, "depth", (16, 32)), few.truth(1, "depth", (16, 32)))
    assert not np.array_equal(made_rooms(1, 1, 2).hear(0, FRONT), few.hear(0, FRONT))


def test_rooms_are_as_the_specification_has_them() -> None:
    drawn = rooms.draw_rooms(range(200))
    size = drawn.high - drawn.low
    assert ((size[:, :2] >= 3) & (size[:, :2] <= 8)).all()
    assert ((size[:, 2] >= 2.4) & (size[:, 2] <= 3.5)).all()
    assert np.minimum(-drawn.low, drawn.high)[:, :2].min() >= 0.7
    there = np.isfinite(drawn.pieces[..., 0, 0])
    sides = (drawn.pieces[:, :, 1] - drawn.pieces[:, :, 0])[there]
    assert sides.min() >= 0.5
    assert sides.max() <= 1.5
    nearest = np.maximum(np.maximum(drawn.pieces[:, :, 0, :2], -drawn.pieces[:, :, 1, :2]), 0)[there]
    assert np.hypot(*nearest.T).min() >= 0.5
    assert 1 < there.sum(1).mean() < 3


def test_voxels_are_solid_where_walls_and_furniture_are() -> None:
    room = box((-1, -1, -1.5), (1, 1, 1))
    solid = rooms.occupancy(room, 32)[0]
    assert not solid[16, 16, 16]  # the listener
    assert solid[23, 16, 16]  # 1.17 m ahead: in the wall
    assert not solid[31, 16, 16]  # behind it
    assert not solid[16, 16, 4]
    room.pieces[0, 0] = [[-0.5, -0.5, -1.5], [0.5, 0.5, -1]]
    assert rooms.occupancy(room, 32)[0, 16, 16, 6]


def test_dry_sounds_and_heads_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "dry").mkdir()
    write_wave(tmp_path / "dry/a.wav", np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32), 16_000)
    np.savez(tmp_path / "head.npz", hrir=np.random.default_rng(1).standard_normal((6, 2, 32)), azimuth_elevation_deg=np.zeros((6, 2)))
    plain = open_source("rooms:train=2,val=1").train
    dry = open_source(f"rooms:train=2,val=1,sounds={tmp_path}/dry")
    with zipfile.ZipFile(tmp_path / "heads.zip", "w") as archive:
        archive.write(tmp_path / "head.npz", "kemar/hrir.npz")
    head = open_source(f"rooms:train=2,val=1,hrir={tmp_path}/heads.zip/kemar/hrir.npz")
    assert any("1 dry sounds" in line for line in dry.said)
    for other in (dry, head):
        assert np.array_equal(other.train.look(0, (16, 32)), plain.look(0, (16, 32)))
        assert not np.allclose(other.train.hear(0, FRONT), plain.hear(0, FRONT), atol=1e-3)
        assert other.fingerprint != open_source("rooms:train=2,val=1").fingerprint
    with pytest.raises(InputError, match="ambisonics have no head"):
        open_source(f"rooms:channels=acn-sn3d,hrir={tmp_path}/head.npz")
    np.savez(tmp_path / "bad.npz", hrir=np.zeros(3))
    with pytest.raises(InputError, match=r"hrir \[D, 2, n\]"):
        open_source(f"rooms:hrir={tmp_path}/bad.npz")


def test_statistics_make_training_spectrograms_standard() -> None:
    data = SoundData("rooms:train=24,val=2", image_size=16)
    mean, std = data.spectrogram_statistics()
    assert mean.shape == std.shape == (2, 33)
    sounds = np.stack([data.source.train.hear(index, data.front) for index in range(24)])
    found = Spectrogram(data.front, 2, mean, std)(torch.from_numpy(sounds))
    assert found.mean((0, 3)).abs().max() < 1e-4
    assert (found.std((0, 3)) - 1).abs().max() < 1e-3
