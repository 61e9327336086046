"""What goes wrong around a run, besides the wrong words of `test_cli.BAD`: files, weights, disks, ports, processes.

Each is one clear line. The exit code is 2 where what was given is wrong, and nothing is written then; 1 where it was right and the
machine gave way, and the same command goes on once that is mended.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stillroom.cli import main
from stillroom.engine.run import stage
from stillroom.engine.weights import save_weights
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.classifiers import build_classifier
from tests import test_cli
from tests.processes import Processes
from tests.test_cli import BAD, SMALL, Unpickled, files
from tests.torture.kill import changed, start, unreadable, wait_for

QUICK = ["--epochs", "1", "--batch-size", "4", "--accelerator", "cpu", "--workers", "0", "--student", "stillroom/convnet4"]
PHOTOS = ["--data", "imagefolder:photos", "--teacher", "stillroom/convnet4"]
PIXELS = np.random.default_rng(0)


def photos(size: int = 16, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6) -> None:
    """photos/train/cat/0.jpg and so on, and photos/val/..."""
    for split in ("train", "val"):
        for name in classes:
            folder = Path("photos", split, name)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(PIXELS.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{i}.jpg")


def cut(*names: str, to: float = 0.6) -> None:
    """Breaks files off, at that share of their bytes."""
    for name in names:
        content = Path("photos", name).read_bytes()
        Path("photos", name).write_bytes(content[: int(to * len(content))])


def with_cut_photo() -> None:
    photos()
    cut("train/cat/1.jpg")


def with_cut_large_photo() -> None:
    photos(size=90)
    cut("val/dog/2.jpg")


def with_noise_for_a_photo() -> None:
    photos()
    Path("photos/train/dog/3.jpg").write_bytes(b"<html>not found</html>")


def with_empty_file() -> None:
    photos()
    cut("train/dog/0.jpg", to=0)


def with_empty_files_only() -> None:
    photos()
    cut(*(f"train/dog/{i}.jpg" for i in range(6)), to=0)


def without_readable_cats() -> None:
    photos()
    cut(*(f"val/cat/{i}.jpg" for i in range(6)))


def with_empty_class() -> None:
    photos()
    Path("photos/train/emu").mkdir()


def with_other_validation_classes() -> None:
    photos()
    Path("photos/val/dog").rename("photos/val/emu")


def one_class() -> None:
    photos(classes=("cat",))


def no_images() -> None:
    Path("photos/train/cat").mkdir(parents=True)
    Path("photos/train/cat/notes.txt").write_text("soon")


def broken_zip() -> None:
    Path("photos").write_bytes(b"PK\x03\x04 and no more")


def zipped_photos() -> bytearray:
    photos()
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in sorted(Path("photos").rglob("*.jpg")):
            archive.write(path)
    return bytearray(Path("photos.zip").read_bytes())


def zip_with_password() -> None:
    content = zipped_photos()
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := content.find(mark, place + 1)) >= 0:
            content[place + flags] |= 1
    Path("photos.zip").write_bytes(content)


def zip_with_broken_list() -> None:
    content = zipped_photos()
    place = content.find(b"PK\x01\x02")
    content[place : place + 4] = b"PK??"
    Path("photos.zip").write_bytes(content)


def cifar_without_labels() -> None:
    folder = Path("cifar-10-batches-py")
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "filenames": ["a.png", "b.png"]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def cifar_without_names() -> None:
    cifar_without_labels()
    Path("cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps({}))


def unlabelled_function() -> None:
    data = "TensorDataset(torch.rand(4, 3, 8, 8))"
    Path("bare.py").write_text(f"import torch\nfrom torch.utils.data import TensorDataset\n\ndef make():\n    return {data}, {data}\n")


def poisoned_cifar() -> None:
    folder = Path("cifar-10-batches-py")
    folder.mkdir()
    poisoned = pickle.dumps({"data": Unpickled(str(Path("ran_foreign_code").absolute()))})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(poisoned)


def poisoned_weights() -> None:
    torch.save({"weight": Unpickled(str(Path("ran_foreign_code").absolute()))}, "weights.pt")


def weights_of_another() -> None:
    save_file({"body.weight": torch.zeros(3, 3)}, "weights.safetensors")


def cut_weights() -> None:
    weights_of_another()
    Path("weights.safetensors").write_bytes(Path("weights.safetensors").read_bytes()[:40])


def nothing() -> None:
    """All is given by the arguments."""


@dataclass(frozen=True)
class Knock:
    """What is wrong with what is given.

    Args:
        name: of the case.
        prepare: makes it, in the current folder.
        arguments: after `stillroom`; ``--out out`` is added.
        says: words of the line, in order.
    """

    name: str
    prepare: Callable[[], None]
    arguments: list[str]
    says: list[str] = field(default_factory=list)


def kd(*arguments: str) -> list[str]:
    return ["run", "kd", *QUICK, *arguments]


KNOCKS = [
    Knock("broken-off photo, strict", with_cut_photo, kd(*PHOTOS, "--strict", "true"), ["--data", "1 image file ", "train/cat/1.jpg"]),
    Knock("broken-off large photo, strict", with_cut_large_photo, kd(*PHOTOS, "--strict", "true"), ["--data", "val/dog/2.jpg", "strict"]),
    Knock("no photo, strict", with_noise_for_a_photo, kd(*PHOTOS, "--strict", "true"), ["--data", "train/dog/3.jpg"]),
    Knock("empty file, strict", with_empty_file, kd(*PHOTOS, "--strict", "true"), ["--data", "train/dog/0.jpg"]),
    Knock("a class of empty files", with_empty_files_only, kd(*PHOTOS), ["--data", "training image of dog"]),
    Knock("a class of broken files", without_readable_cats, kd(*PHOTOS), ["--data", "validation image of cat"]),
    Knock("empty class folder", with_empty_class, kd(*PHOTOS), ["--data", "empty: emu"]),
    Knock("other classes to validate", with_other_validation_classes, kd(*PHOTOS), ["--data", "dog", "emu"]),
    Knock("one class", one_class, kd(*PHOTOS), ["--data", "at least two class folders", "only cat"]),
    Knock("no image at all", no_images, kd(*PHOTOS), ["--data", "images in it"]),
    Knock("missing folder", nothing, kd(*PHOTOS), ["--data", "photos", "exists"]),
    Knock("broken zip", broken_zip, kd(*PHOTOS), ["--data", "photos", "zip"]),
    Knock("zip with a password", zip_with_password, kd("--data", "imagefolder:photos.zip"), ["--data", "photos.zip", "password"]),
    Knock("zip with a broken list", zip_with_broken_list, kd("--data", "imagefolder:photos.zip"), ["--data", "photos.zip", "whole"]),
    Knock("CIFAR without labels", cifar_without_labels, kd("--data", "cifar10:."), ["--data", "data_batch_1", "labels (from 0 to 9)"]),
    Knock("CIFAR without names", cifar_without_names, kd("--data", "cifar10:."), ["--data", "batches.meta", "label_names"]),
    Knock(
        "a function's data without labels", unlabelled_function, kd("--data", "bare.py:make"), ["--data", "bare.py:make", "(image, label)"]
    ),
    Knock("data with code in them", poisoned_cifar, kd("--data", "cifar10:."), ["--data", "CIFAR"]),
    Knock("weights with code in them", poisoned_weights, kd("--teacher", "stillroom/convnet4@weights.pt"), ["--teacher", "--trust-code"]),
    Knock("weights of another network", weights_of_another, kd("--teacher", "stillroom/convnet4@weights.safetensors"), ["--teacher"]),
    Knock("broken-off weights", cut_weights, kd("--teacher", "stillroom/convnet4@weights.safetensors"), ["--teacher", "weights"]),
    Knock("no cache", nothing, kd("--teacher", "cache:nowhere"), ["--teacher", "nowhere"]),
    Knock("strict is no number", nothing, kd("--strict", "3"), ["--strict: got 3", "true or false"]),
]


def test_the_list_is_long_enough() -> None:
    assert len(KNOCKS) + len(BAD) >= 40
    assert test_cli.test_wrong_input_is_one_line_and_leaves_nothing  # which runs BAD


@pytest.mark.parametrize("knock", KNOCKS, ids=lambda knock: knock.name)
def test_is_one_line_and_leaves_nothing(
    knock: Knock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    knock.prepare()
    before = files(tmp_path)
    code = main([*knock.arguments, "--out", "out"])
    output = capsys.readouterr()
    assert code == 2, output.err
    assert output.out == ""
    assert output.err.startswith("stillroom: ")
    assert output.err.count("\n") == 1
    position = 0
    for words in knock.says:
        position = output.err.index(words, position)
    assert files(tmp_path) == before
    assert not Path("ran_foreign_code").exists()
    assert not Path("out").exists()
    assert not caplog.records or len(caplog.records) == 1


@pytest.mark.parametrize("size", [16, 90], ids=["in memory", "from files"])
def test_broken_photos_are_left_out_with_one_warning(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(size, count=8)
    broken = [*(f"train/cat/{i}.jpg" for i in (0, 2, 5)), "train/dog/1.jpg", "val/cat/7.jpg", "val/dog/0.jpg"]
    cut(*broken)
    cut("train/cat/2.jpg", to=0)
    assert main(kd(*PHOTOS, "--image-size", "16", "--out", "out")) == 0, capsys.readouterr().err
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"left out 6 image files that cannot be decoded: {', '.join(broken[:5])} and 1 more"
    assert json.loads(Path("out/metrics.json").read_text())["settings"]["strict"] is False


@pytest.mark.parametrize("size", [16, 90], ids=["in memory", "from files"])
def test_photos_that_pillow_warns_of_are_used_without_a_word(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(size)
    picture = Image.open("photos/train/cat/0.jpg")
    picture.convert("P").save("photos/train/cat/palette.png", transparency=bytes(range(200)))
    picture.save("photos/train/dog/exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0broken")
    with pytest.warns(UserWarning, match="Palette images"):
        Image.open("photos/train/cat/palette.png").convert("RGB")
    recwarn.clear()
    assert main(kd(*PHOTOS, "--image-size", "16", "--out", "out")) == 0
    assert not [warning for warning in recwarn if "PIL" in warning.filename]
    assert "left out" not in capsys.readouterr().err


def test_links_that_lead_nowhere_or_in_a_circle_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    photos()
    Path("photos/train/cat/circle").symlink_to("../..")
    Path("photos/train/cat/lost.jpg").symlink_to("nowhere.jpg")
    Path("elsewhere").mkdir()
    Path("photos/train/dog/5.jpg").rename("elsewhere/5.jpg")
    Path("photos/train/dog/linked").symlink_to("../../../elsewhere")
    data = ImageData("imagefolder:photos", workers=0)
    assert sorted(data.train_name(i) for i in range(data.train_size)) == [
        *(f"train/cat/{i}.jpg" for i in range(6)),
        *(f"train/dog/{i}.jpg" for i in range(5)),
        "train/dog/linked/5.jpg",
    ]
    assert [record.getMessage() for record in caplog.records] == ["left out 1 image file that cannot be decoded: train/cat/lost.jpg"]


@pytest.mark.parametrize("size", [16, 90], ids=["in memory", "from files"])
def test_what_is_left_keeps_its_labels_and_numbers(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(size, count=8)
    whole = ImageData("imagefolder:photos", image_size=16, batch_size=4)
    images = torch.cat([batch.images for batch in whole.train_eval_loader()])
    cut("train/cat/2.jpg", "train/dog/7.jpg")
    kept = [i for i in range(16) if i not in (2, 15)]
    streams = []
    for workers in (0, 2):
        data = ImageData("imagefolder:photos", image_size=16, batch_size=4, workers=workers)
        assert data.train_labels.tolist() == whole.train_labels[kept].tolist()
        assert data.fingerprint != whole.fingerprint
        streams.append([batch for _ in range(2) for batch in data.train_loader(seed=0)])
        clean = torch.cat([batch.images for batch in data.train_eval_loader()])
        assert torch.equal(clean, images[kept])
    for one, other in zip(*streams, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


# The machine ----------------------------------------------------------------------------------------------------------------------------


def mounted(target: Path, *options: str) -> Iterator[Path]:
    """A folder with a file system of its own; skips where that is not allowed."""
    target.mkdir()
    if not sys.platform.startswith("linux"):
        pytest.skip("mounting is Linux' own here")
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 KB: room for a network's weights, not for a checkpoint besides."""
    yield from mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=300k", "tmpfs")


def test_disk_without_room_for_weights_is_one_line(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights and TensorBoard's events are written by libraries, which meet a full disk in ways of their own."""
    for size in ("8k", "16k"):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
        assert main(["run", "kd", *SMALL, "--out", str(small_disk / "run")]) == 1
        line = capfd.readouterr().err
        assert line.startswith("stillroom: a file of the run: cannot be written (No space left on device)")
        assert line.count("\n") == 1


def test_full_disk_is_one_line_and_the_run_goes_on_with_more_room(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "kd", *SMALL, "--out", str(small_disk / "run")]
    assert main(command) == 1  # what was asked for was right
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("stillroom: ")
    assert "No space left on device" in line
    assert unreadable(small_disk) == []
    assert not list(small_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert main(command) == 0


def test_full_disk_of_a_cache(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = small_disk.parent / "teacher.safetensors"
    save_weights(build_classifier("stillroom/convnet4", num_classes=10).network, teacher)
    command = ["cache", *SMALL, "--teacher", f"stillroom/convnet4@{teacher}", "--views", "1000", "--accept-teacher", "true"]
    command += ["--out", str(small_disk / "cache")]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "GB free, expected room for" in line
    assert not list(small_disk.rglob("*.part"))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "read_only", "-t", "tmpfs", "-o", "ro", "tmpfs")


@pytest.mark.parametrize("command", [["run", "kd"], ["compare", "kd", "dkd"], ["cache"]], ids=" ".join)
def test_no_permission_to_write_is_one_line(read_only: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, *SMALL, "--out", str(read_only / "run")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("stillroom: --out: got ")
    assert "can be written" in line


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_port_in_use_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as port:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        running = start(["run", "kd", *SMALL, "--devices", "2", "--strategy", "ddp", "--out", "out"], tmp_path)
        try:
            output, _ = running.communicate(timeout=60)  # no child may outlive it: it would hold the pipe open
        finally:
            running.kill()
    assert running.returncode == 2
    assert output.splitlines() == [output.strip()]
    assert output.startswith(f"stillroom: MASTER_PORT: got {port}, expected a free port")
    assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(place.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc to find the worker in")
def test_killed_worker_is_one_line_and_the_run_goes_on(tmp_path: Path, processes: Processes) -> None:
    command = ["run", "kd", "--data", "digits", "--subset", "200", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu"]
    command += ["--workers", "1", "--epochs", "8", "--checkpoint-steps", "10", "--out", str(tmp_path / "run")]
    checkpoint = tmp_path / "run/teacher/last.ckpt"
    running = processes.start("stillroom.cli", *command, merged=True)
    wait_for(running, lambda: changed(checkpoint))
    os.kill(max(children(running.pid)), signal.SIGKILL)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1, output  # the arguments were right
    lines = [line for line in output.splitlines() if not line.startswith(("data: ", "teacher: epoch"))]
    assert len(lines) == 1, output
    assert lines[0].startswith("stillroom: a process that reads data")
    assert "the same command goes on" in lines[0]
    assert unreadable(tmp_path) == []
    again = processes.start("stillroom.cli", *command, merged=True)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    record: dict[str, Any] = json.loads((tmp_path / "run/teacher/stage.json").read_text())
    assert record["result"]["resumed"] == 1


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_two_runs_in_one_folder_do_not_meet(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, command = tmp_path / "run", ["run", "kd", *SMALL, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(stage, "_PATIENCE", 0.1)
    if more:
        assert main(command) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with stage.StageFolder(out / "teacher").taken():  # as the other run does while it trains
        assert main([*command, *more]) == 2
    assert "teacher, on which another run is at work" in capsys.readouterr().err
    assert before.items() <= {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}.items()
    assert main([*command, *more]) == 0
