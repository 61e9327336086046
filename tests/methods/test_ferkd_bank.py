"""The label bank's promises: whole after a kill, each image once by any number of processes, nothing in it that cannot be."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.folder import BankFolder, Rows
from stillroom.methods.ferkd.bank.labels import LabelFormat
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.writer import BankPlan, write_bank
from tests.processes import Processes
from tests.torture.kill import wait_for

IMAGES, CROPS, CLASSES = 40, 6, 12
FORM = LabelFormat.of("marginal_smoothing_k3", CLASSES, "fp32")


class Killed(Exception):
    """Stands for a kill."""


def plan(**key: Any) -> BankPlan:
    classes = [f"class {number}" for number in range(CLASSES)]
    return BankPlan({"teacher": "t", **key}, FORM, CROPS, classes, [f"train/{number}.png" for number in range(IMAGES)], {"input_size": 8})


def row(image: int) -> dict[str, np.ndarray]:
    """A pure function of the image."""
    numbers = torch.Generator().manual_seed(image)
    labels = FORM.encode((2 * torch.randn(CROPS, CLASSES, generator=numbers)).softmax(1))
    assert labels.classes is not None
    assert labels.values is not None
    box = torch.rand(CROPS, 4, generator=numbers) / 2.1 + 0.01
    return {
        "coords": box[None].numpy(),
        "flips": torch.rand(1, CROPS, generator=numbers).numpy() < 0.5,
        "classes": labels.classes[None].numpy(),
        "values": labels.values[None].numpy(),
        "targets": np.array([image % CLASSES], np.int32),
        "sizes": np.array([[8, 9]], np.int32),
        "checksums": np.array([image + 1], np.uint32),
    }


def rows(first: int, last: int) -> Iterator[Rows]:
    for image in range(first, last):
        yield row(image)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "rows").iterdir())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    write_bank(folder, plan(), rows)
    return folder


def copied(finished: Path, to: Path) -> Path:
    for file in finished.rglob("*"):
        if file.is_file():
            (to / file.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (to / file.relative_to(finished)).write_bytes(file.read_bytes())
    return to


def test_it_gives_back_what_was_written(finished: Path) -> None:
    bank = LabelBank(finished)
    assert (len(bank), bank.crops, bank.format, bank.about) == (IMAGES, CROPS, FORM, {"input_size": 8})
    images, crops = np.array([3, 39, 3]), np.array([5, 0, 1])
    labels, (boxes, flips) = bank.soft(images, crops), bank.boxes(images, crops)
    assert labels.classes is not None
    assert labels.values is not None
    for place, (image, crop) in enumerate(zip(images, crops, strict=True)):
        expected = row(int(image))
        assert (labels.classes[place].numpy() == expected["classes"][0, crop]).all()
        assert (labels.values[place].numpy() == expected["values"][0, crop]).all()
        assert (boxes[place] == expected["coords"][0, crop]).all()
        assert flips[place] == expected["flips"][0, crop]
    assert bank.kept(images).all()
    assert bank.targets[39] == 39 % CLASSES
    assert bank.rows_of(["train/5.png", "train/99.png"]).tolist() == [5, -1]
    again = pickle.loads(pickle.dumps(bank))  # what a loader's worker is sent: not the arrays
    assert len(pickle.dumps(bank)) < 10_000
    assert torch.equal(again.soft(images, crops).values, labels.values)
    assert again.fingerprint() == bank.fingerprint()


@pytest.mark.parametrize("at", [0, 1, 7, 20, 39])
def test_killed_and_continued_it_is_the_same_bank(finished: Path, tmp_path: Path, at: int) -> None:
    asked: list[int] = []

    def falling(first: int, last: int) -> Iterator[Rows]:
        for image in range(first, last):
            if image == at:
                raise Killed
            yield row(image)

    def counted(first: int, last: int) -> Iterator[Rows]:
        for image in range(first, last):
            asked.append(image)
            yield row(image)

    with pytest.raises(Killed):
        write_bank(tmp_path, plan(), falling, mark_seconds=0)
    if at > 20:  # the second of two lanes
        with pytest.raises(InputError, match=f"labels: got .* of which {at} of 40 images are labelled, expected a finished bank"):
            LabelBank(tmp_path)
    bank = write_bank(tmp_path, plan(), counted)
    assert asked == list(range(at, IMAGES))  # nothing is labelled twice
    assert files(tmp_path) == files(finished)
    assert bank.fingerprint() == LabelBank(finished).fingerprint()


def test_several_processes_write_one_bank_and_each_image_is_labelled_once(finished: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def slowly(first: int, last: int) -> Iterator[Rows]:
        for image in range(first, last):
            asked.append(image)
            time.sleep(0.002)
            yield row(image)

    workers = [threading.Thread(target=write_bank, args=(tmp_path, plan(), slowly), kwargs={"poll_seconds": 0.01}) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(asked) == list(range(IMAGES))
    assert files(tmp_path) == files(finished)


def write_and_sleep(out: Path, reached: Path) -> None:
    """Labels three images and falls asleep in its share."""

    def sleepy(first: int, last: int) -> Iterator[Rows]:
        for image in range(first, last):
            if image == 3:
                reached.touch()
                time.sleep(60)
            yield row(image)

    write_bank(out, plan(), sleepy, mark_seconds=0)


def test_the_share_of_a_process_that_was_killed_is_taken_over(finished: Path, tmp_path: Path, processes: Processes) -> None:
    tmp_path, reached = tmp_path / "bank", tmp_path / "reached"
    running = processes.start(write_and_sleep, tmp_path, reached)
    wait_for(running, reached.exists)
    folder = BankFolder(tmp_path)
    record = folder.read()
    assert record is not None
    with folder.lanes(record)[0].taken() as mine:
        assert not mine
    helper = threading.Thread(target=write_bank, args=(tmp_path, plan(), rows), kwargs={"poll_seconds": 0.01})
    helper.start()  # does the other lane, and waits for this one
    time.sleep(0.2)
    assert helper.is_alive()
    running.kill()
    running.communicate()
    helper.join(30)
    assert files(tmp_path) == files(finished)


def test_a_bank_of_something_else_is_not_gone_on_with(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path)
    with pytest.raises(InputError, match=r"out: got .* a bank of labels of something else \(teacher was 't', now 'u'\)"):
        write_bank(tmp_path, plan(teacher="u"), rows)


@pytest.mark.parametrize(
    ("array", "place", "value"),
    [
        ("classes", (17, 2, 1), CLASSES),
        ("classes", (17, 2, 1), -1),
        ("values", (17, 2, 0), float("nan")),
        ("values", (17, 2, 0), -0.1),
        ("values", (17, 2, 0), 1.5),
        ("coords", (17, 2, 2), 0.0),
        ("coords", (17, 2, 0), float("nan")),
        ("coords", (17, 2, 3), 1.2),
    ],
)
def test_what_cannot_be_is_found_when_the_bank_is_opened(finished: Path, tmp_path: Path, array: str, place: Any, value: float) -> None:
    file = copied(finished, tmp_path) / "rows" / f"{array}.npy"
    values = np.load(file)
    values[place] = value
    np.save(file, values)
    with pytest.raises(ValueError, match=r"labels: got .* a label or a box of train/17.png \(crop 2\) that cannot be"):
        LabelBank(tmp_path)


def without_sums(folder: Path) -> None:
    record = json.loads((folder / "bank.json").read_text())
    record["arrays"] = {name: array for name, array in record["arrays"].items() if not name.startswith("sum.")}
    (folder / "bank.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["flips", "coords", "values", "classes", "targets", "checksums"])
def test_altered_labels_teach_nobody(finished: Path, tmp_path: Path, name: str) -> None:
    """Other labels that can be, in a file with the time that it had."""
    file = copied(finished, tmp_path) / f"rows/{name}.npy"
    LabelBank(tmp_path)  # found to be sound
    time = file.stat()
    values = np.load(file)
    values[[0, 1]] = ~values[[0, 1]] if name == "flips" else values[[1, 0]] + (name == "targets")
    np.save(file, values)
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))
    with pytest.raises(InputError, match=rf"labels: got .*rows/{name}\.npy, altered since it was written"):
        read_all(LabelBank(tmp_path))
    os.utime(file)
    with pytest.raises(InputError, match=rf"rows/{name}\.npy, altered since it was written|that cannot be"):
        LabelBank(tmp_path)


def read_all(bank: LabelBank) -> None:
    images = np.arange(len(bank))
    bank.soft(images, images % bank.crops)
    bank.boxes(images, images % bank.crops)


def test_another_content_is_another_fingerprint(finished: Path, tmp_path: Path) -> None:
    file = copied(finished, tmp_path) / "rows/flips.npy"
    values = np.load(file)
    values[0, 0] = not values[0, 0]
    np.save(file, values)
    without_sums(tmp_path)  # as a version before wrote it; else it is refused
    assert LabelBank(tmp_path).fingerprint() != LabelBank(finished).fingerprint()


@pytest.mark.parametrize("name", ["bank.json", "images.json", "rows/values.npy", "lanes/000.json"])
def test_damage_is_one_line(finished: Path, tmp_path: Path, name: str) -> None:
    file = copied(finished, tmp_path) / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"^labels: got .*cannot be read.*expected a bank( of labels)? that is not damaged"):
        LabelBank(tmp_path)


def test_rows_that_cannot_be_are_not_written(tmp_path: Path) -> None:
    def wrong(first: int, last: int) -> Iterator[Rows]:
        for image in range(first, last):
            made = row(image)
            if image == 5:
                made["values"] = np.full_like(made["values"], np.nan)
            yield made

    with pytest.raises(InputError, match="labels: got a label or a box of image number 5"):
        write_bank(tmp_path, plan(), wrong)


def test_no_bank_and_a_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"labels: got .*, which is no bank of labels, expected a folder that `stillroom cache-labels` wrote"
    ):
        LabelBank(tmp_path)
    (tmp_path / "bank.json").write_text(json.dumps({"schema": "stillroom.labels/0"}))
    with pytest.raises(InputError, match=r"a bank of labels of the form stillroom\.labels/0"):
        LabelBank(tmp_path)
