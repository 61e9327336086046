"""Banks in the layout in which FKD's were released: read without running anything, written back."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.labels import LabelFormat
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.released import ReleasedImages, export_released, import_released, read_record, record_paths

CLASSES = ("cat", "dog", "fish", "gnu", "hen", "ibis", "jay")
NAMES = ("photos/train/cat/a.v2.jpg", "photos/train/dog/b.JPEG", "photos/train/dog/c.png")
IMAGES = ReleasedImages(NAMES, np.array([0, 1, 1]), CLASSES)
TYPES = ("ori", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5")


def form(label_type: str = "marginal_smoothing_k5") -> LabelFormat:
    return LabelFormat.of(label_type, len(CLASSES), "fp32")


def content(image: int, label_type: str = "marginal_smoothing_k5", crops: int = 4) -> list[Tensor]:
    """As the released generator makes it: coords, flips, labels."""
    numbers = torch.Generator().manual_seed(image)
    probabilities = (2 * torch.randn(crops, len(CLASSES), generator=numbers)).softmax(1)
    kind = form(label_type)
    coords = torch.rand(crops, 4, generator=numbers) / 2.1 + 0.01
    return [coords, torch.rand(crops, generator=numbers) < 0.5, kind.to_released(kind.encode(probabilities))]


def released(root: Path, label_type: str = "marginal_smoothing_k5", **options: Any) -> Path:
    for place in ("cat/a.tar", "dog/b.tar", "dog/c.tar"):
        file = root / "train" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content("abc".index(file.stem), label_type), file, **options)
    return root


def imported(root: Path, folder: Path, label_type: str = "marginal_smoothing_k5", crops: int = 4) -> LabelBank:
    return import_released(root, folder, IMAGES, label_type=label_type, crops=crops, dtype="fp32")


@pytest.mark.parametrize("label_type", TYPES)
@pytest.mark.parametrize("legacy", [False, True])
def test_there_and_back(tmp_path: Path, label_type: str, legacy: bool) -> None:
    bank = imported(released(tmp_path / "in", label_type, _use_new_zipfile_serialization=not legacy), tmp_path / "bank", label_type)
    assert bank.targets.tolist() == [0, 1, 1]
    export_released(bank, tmp_path / "out")
    for image, place in enumerate(("cat/a.tar", "dog/b.tar", "dog/c.tar")):
        read = torch.load(tmp_path / "out/train" / place, weights_only=True)
        for part, expected in zip(read, content(image, label_type), strict=True):
            assert part.dtype == expected.dtype
            assert torch.equal(part, expected)


def test_half_precision_and_fewer_crops(tmp_path: Path) -> None:
    root = released(tmp_path / "in")
    coords, flips, labels = content(7, crops=2)
    torch.save([coords.half(), flips, labels.half()], root / "train/dog/b.tar")
    bank = imported(root, tmp_path / "bank")
    assert bank.kept(np.arange(3)).sum(1).tolist() == [4, 2, 4]
    read = bank.format.dense(bank.soft(np.array([1, 1]), np.array([0, 1])))
    torch.testing.assert_close(read, form().dense(form().from_released(labels)), atol=1e-3, rtol=0)
    export_released(bank, tmp_path / "out")
    assert len(read_record(tmp_path / "out/train/dog/b.tar", form()).coords) == 2


class Run:
    """A pickle that runs a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("how", ["pickle", "torch", "torch legacy"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, how: str) -> None:
    root, witness = released(tmp_path / "in"), tmp_path / "it-ran"
    file = root / "train/dog/b.tar"
    bad = [content(1)[0], content(1)[1], Run(witness)]
    if how == "pickle":
        file.write_bytes(pickle.dumps(bad))
    else:
        torch.save(bad, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"^records: got .*dog/b.tar, which is refused unread") as caught:
        imported(root, tmp_path / "bank")
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    torch.load(file, weights_only=False) if how != "pickle" else pickle.loads(file.read_bytes())
    assert witness.exists()  # it would have run


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda c: c[:2], "records: got .*which holds something else"),
        (lambda c: {"coords": c[0]}, "records: got .*which holds something else"),
        (lambda c: [c[0][:, :3], c[1], c[2]], "records: got .*which holds something else"),
        (lambda c: [c[0], c[1][:2], c[2]], "records: got .*which holds something else"),
        (lambda c: [c[0], c[1], c[2][:, :, :3]], "label_type: got .*dog/b.tar with labels of shape"),
        (
            lambda c: [c[0], c[1], c[2].clone().index_fill_(1, torch.tensor([0]), 7)],
            "records: got .*dog/b.tar with a label or a box that cannot be",
        ),
        (lambda c: [c[0], c[1], c[2] * torch.nan], "records: got .*dog/b.tar with a label or a box that cannot be"),
        (lambda c: [c[0] + 1, c[1], c[2]], "records: got .*dog/b.tar with a label or a box that cannot be"),
        (lambda c: [torch.cat([x] * 2) for x in c], "crops: got 4, fewer than the 8 of"),
    ],
)
def test_records_that_cannot_be_are_named(tmp_path: Path, wrong: Any, named: str) -> None:
    root = released(tmp_path / "in")
    torch.save(wrong(content(1)), root / "train/dog/b.tar")
    with pytest.raises(InputError, match=f"^{named}"):
        imported(root, tmp_path / "bank")


def test_missing_and_damaged_records_are_named(tmp_path: Path) -> None:
    root = released(tmp_path / "in")
    file = root / "train/dog/c.tar"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"records: got .*dog/c.tar, which cannot be read|refused unread"):
        imported(root, tmp_path / "bank")
    file.unlink()
    with pytest.raises(InputError, match=r"records: got no record .*dog/c.tar"):
        imported(root, tmp_path / "other")


def test_an_import_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    root = released(tmp_path / "in")
    whole = imported(root, tmp_path / "whole")
    file = root / "train/dog/c.tar"
    kept = file.read_bytes()
    file.write_bytes(b"not yet copied")
    with pytest.raises(InputError):
        imported(root, tmp_path / "bank")
    file.write_bytes(kept)
    assert imported(root, tmp_path / "bank").fingerprint() == whole.fingerprint()


def test_one_file_for_two_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"export: got train/cat/a.1.png and train/cat/a.2.png"):
        record_paths(Path("x"), ["train/cat/a.1.png", "train/cat/a.2.png"], "export")
    assert record_paths(Path("x"), ["top/train/v1/b.png", "digits/7"], "out") == [Path("x/train/v1/b.tar"), Path("x/train/digits/7.tar")]
