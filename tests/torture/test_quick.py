"""The quick part of what `python tests/torture/everything.py` tries: bombs, terminals, and a damage of each file that is read."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cli import main
from stillroom.engine.plain import MOST, plain_json, plain_yaml
from stillroom.engine.run.console import console, tell
from stillroom.engine.run.machines import find_way, settle_rank
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError, printable
from stillroom.tasks.images.files import open_store
from tests.torture import inputs, machines

SMALL = ["--epochs", "1", "--batch-size", "4", "--accelerator", "cpu", "--image-size", "8"]
FORGED = "cat\x1b[2J\nstillroom: all is well\u202e"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """One line, and exit code 2."""
    capsys.readouterr()
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


# Bombs ----------------------------------------------------------------------------------------------------------------------------------


def aliases(deep: int) -> str:
    """YAML of 10 to that power values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, deep)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [aliases(9), "a: &a [*a]", "[" * 100_000, "x" * (2**20 + 1)], ids=["many", "itself", "deep", "long"])
def test_yaml_that_stands_for_more_than_a_configuration(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"configuration|deeply"):
        plain_yaml(text)
    (tmp_path / "bomb.yaml").write_text(text)
    assert "YAML" in refused(["run", "kd", "--config", str(tmp_path / "bomb.yaml"), "--out", str(tmp_path / "out")], capsys)


def test_yaml_with_aliases_that_one_would_write() -> None:
    assert plain_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert len(plain_yaml(str(list(range(MOST - 1))))) == MOST - 1


def test_yolo_and_a_space_of_options_are_read_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.yaml").write_text(aliases(9) + "train: images\n")
    words = ["run", "supervised", "--task", "detection", "--data", f"yolo:{tmp_path}/data.yaml", "--out", str(tmp_path / "out")]
    assert "data.yaml" in refused(words, capsys)
    pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text(aliases(9))
    from stillroom.engine.study.space import read_space

    with pytest.raises(InputError, match="no configuration"):
        read_space(tmp_path / "space.yaml")


def test_json_in_brackets_without_end() -> None:
    with pytest.raises(ValueError, match="deeply"):
        plain_json("[" * 1_000_000)


def test_a_zip_that_holds_gigabytes(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("cat/1.png", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(2**20))
    store = open_store(str(tmp_path / "bomb.zip"), "data")
    with pytest.raises(OSError, match=r"0\.3 GB, more than the 256 MB"):
        store.read("cat/1.png")
    assert store.head("cat/1.png", 8) == bytes(8)


# Terminals ------------------------------------------------------------------------------------------------------------------------------


def test_names_are_shown_escaped() -> None:
    assert printable(FORGED) == "cat\\x1b[2J\\nstillroom: all is well\\u202e"
    assert printable("Zürich 猫 \udcff") == "Zürich 猫 \\udcff"


def photos(root: Path, name: str) -> None:
    for kind in (name, "dog"):
        (root / kind).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)).save(root / kind / f"{number}.png")
    (root / name / "\x1b[31mbroken.png").write_text("no picture")


def test_a_name_reaches_no_terminal_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path / "photos", FORGED)
    out = str(tmp_path / "out")
    assert main(["run", "supervised", "--data", f"imagefolder:{tmp_path}/photos", *SMALL, "--out", out]) == 0
    assert main(["predict", out, str(tmp_path / "photos/dog/1.png")]) == 0
    said = "".join(capfd.readouterr()) + "".join(logging.Formatter().format(record) for record in caplog.records)
    assert "\\x1b[2J" in said
    assert not inputs.RAW.search(said)
    assert not re.search("^stillroom: all", said, re.MULTILINE)


def test_an_error_names_what_it_cannot_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["run", "kd", "--data", "imagefolder:nowhere\x1b[2J\udcff", "--out", str(tmp_path / "out")], capsys)
    assert "nowhere\\x1b[2J\\udcff" in line


def test_whoever_reads_nothing_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        monkeypatch.setattr("stillroom.engine.run.console.console.quiet", False)  # as it was, and is again behind this test
        console.print("said to nobody")
        monkeypatch.setattr(console, "quiet", False)
        tell("and this, too")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sys.stdout.close()
    tell("nor this")


@pytest.mark.skipif(os.name != "posix", reason="other permissions")
def test_the_umask_is_kept(tmp_path: Path) -> None:
    for mask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            save_weights({"a": torch.ones(2)}, tmp_path / "w.safetensors")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == mode
        assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_tilde_behind_an_equals_sign_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small = ["--data", "digits", "--subset", "20", "--val-subset", "10", *SMALL[:6]]
    assert main(["run", "supervised", *small, "--out=~/x"]) == 0
    assert (tmp_path / "x/report.html").is_file()
    assert not (tmp_path / "~").exists()


# Every file that is read ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    inputs.sound(root)
    return root


@pytest.mark.parametrize("reader", inputs.READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_one_line_or_handled(reader: inputs.Reader, whole: Path, tmp_path: Path) -> None:
    for number in range(2):
        told = inputs.tried(reader, whole, tmp_path, random.Random(f"quick {reader.name} {number}"))
        assert told in (inputs.ONE_LINE, inputs.HANDLED)


def test_a_checkpoint_runs_nothing(whole: Path, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "it ran",)

    reader = inputs.READERS[0]
    content = torch.load(whole / reader.file, weights_only=True)
    torch.save({**content, "loops": Runs()}, whole / "other.ckpt")

    def damage(content: bytes, file: str, chance: random.Random) -> bytes:
        return (whole / "other.ckpt").read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "damaged", damage)
        assert inputs.tried(reader, whole, tmp_path, random.Random(0)) == inputs.ONE_LINE
    assert not (tmp_path / "it ran").exists()


# Machines -------------------------------------------------------------------------------------------------------------------------------


NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of others."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "devices", "number"),
    [
        ({}, 2, 0),
        ({"NODE_RANK": "1"}, 2, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, 2, 3),
        ({"LOCAL_RANK": "1"}, 2, 1),
        ({"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1"}, 4, 5),
        ({"SLURM_PROCID": "3"}, 2, 3),
    ],
)
def test_the_environment_says_which_process_this_is(
    environment: dict[str, str], devices: int, number: int, bare: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    assert settle_rank(devices) == number


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "num_nodes: got 2, without MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        ({"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}, "without MASTER_PORT"),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "2"}, "NODE_RANK: got 2, expected a whole number from 0 to 1"),
        ({"MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1", "NODE_RANK": "0"}, "MASTER_ADDR: got no.such.host.invalid"),
    ],
)
def test_what_several_machines_need_is_said(environment: dict[str, str], named: str, bare: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(named)):
        find_way(2)
    find_way(1)


@pytest.mark.skipif(bool(machines.reason()), reason=f"no network namespaces can be made here: {machines.reason()}")
def test_two_machines_by_hand_and_one_that_is_lost() -> None:
    said: list[str] = []
    found = machines.torture(said.append, "^(nothing said|a folder of one machine)$")
    assert all(good for _, _, good in found), "\n".join(said)
    assert len(found) == 2
