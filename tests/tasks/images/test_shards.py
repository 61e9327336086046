"""Tars: as folders of images, and as WebDataset's shards; read in place, by any process, in any order."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.files import Tar
from stillroom.tasks.images.shards import open_shards
from tests.tasks.classification.miniatures import classes_of_pictures


def png(colour: tuple[int, int, int], size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def packed(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def shard(path: Path, first: int, count: int, classes: int = 2, label: str = "cls", size: tuple[int, int] = (12, 12)) -> Path:
    """Samples of which green says the number, ten each."""

    def files() -> Iterable[tuple[str, bytes]]:
        for number in range(first, first + count):
            key = f"{number:04}"
            yield f"{key}.png", png((0, 10 * number, 0), size)
            text = {"json": json.dumps({"label": number % classes, "width": 12})}.get(label, str(number % classes))
            yield f"{key}.{label}", text.encode()

    return packed(path, files())


def labels_of(source: object) -> dict[int, str]:
    """The label of each sample by its number, which its colour says."""
    found = {}
    for images in (source.train, source.val):  # type: ignore[attr-defined]
        for i, label in enumerate(images.labels.tolist()):
            found[images.image(i).getpixel((0, 0))[1] // 10] = source.classes[label]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("spec", ["{root}", "{root}/s-{000..002}.tar", "{root}/s-*.tar", "{root}/{s-000,s-001,s-002}.tar"])
@pytest.mark.parametrize("label", ["cls", "json", "cls.txt", "txt"])
def test_shards(tmp_path: Path, spec: str, label: str) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:03}.tar", 4 * number, 4, label=label)
    source = open_source(f"webdataset:{spec.replace('{root}', str(tmp_path))},val=0.25")
    assert labels_of(source) == {number: str(number % 2) for number in range(12)}
    assert (len(source.train), len(source.val), source.image_size) == (8, 4, 12) or len(source.val) == 2
    assert source.train.name(0).startswith("s-000.tar/0000")


def test_splits_by_names_of_shards_or_further_shards(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / "set" / f"train-{number}.tar", 4 * number, 4)
    shard(tmp_path / "set" / "val-0.tar", 8, 3)
    by_name = open_source(f"webdataset:{tmp_path / 'set'}")
    assert (len(by_name.train), len(by_name.val)) == (8, 3)
    given_both = open_source(f"webdataset:{tmp_path}/set/train-{{0..1}}.tar,val={tmp_path}/set/val-0.tar")
    assert (len(given_both.train), len(given_both.val)) == (8, 3)
    one = open_source(f"webdataset:{tmp_path}/set/train-{{0..1}}.tar")
    assert len(one.train) + len(one.val) == 8


def test_shards_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / "some" / f"{number}.tar", 4 * number, 4)
    shard(tmp_path / "more" / "0.tar", 0, 3)
    source = open_source(f"webdataset:{tmp_path}/some/{{0..1}}.tar,val={tmp_path}/more")
    assert (len(source.train), len(source.val)) == (8, 3)


def test_samples_are_those_of_the_library(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    keys = ["0001", "a/0001", "a/b.v2/0001", "a.v3/x-1", "dots.left", "dots.right", "é 6", "UPPER", "a/_7", "photo_(1)"]
    fields = {"PNG": png((1, 2, 3)), "cls": b"3", "seg.png": png((0, 0, 0)), "Info.JSON": b"{}", "txt": b"a dog"}
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"s-{number:03}.tar")) as writer:
            for i, key in enumerate(keys):
                own = {name: content for j, (name, content) in enumerate(fields.items()) if (i + j + number) % 4}
                writer.write({"__key__": key, **own})
    pattern = f"{tmp_path}/s-{{000..001}}.tar"
    theirs: dict[tuple[str, str], dict[str, bytes]] = {}
    for sample in webdataset.WebDataset(pattern, shardshuffle=False):
        plain = {name: content for name, content in sample.items() if not name.startswith("__")}
        theirs[Path(sample["__url__"]).name, sample["__key__"]] = plain
    shards, _ = open_shards(pattern, {}, "data")
    ours = {key: {name: shards.store.read(file) for name, file in own.items()} for key, own in shards.samples().items()}
    assert ours == {f"{place}/{key}": own for (place, key), own in theirs.items()}
    assert len(ours) == 2 * (len(keys) - 1)  # what differs behind the first dot is one sample


def test_fields_that_are_named(tmp_path: Path) -> None:
    def files() -> Iterable[tuple[str, bytes]]:
        for number in range(8):
            yield f"a/{number}.seg.png", png((9, 9, 9))
            yield f"a/{number}.left.png", png((0, 10 * number, 0))
            yield f"a/{number}.json", json.dumps({"about": {"breed": f"breed {number % 2}"}}).encode()

    path = packed(tmp_path / "set.tar", files())
    source = open_source(f"webdataset:{path},image=left.png,label=json.about.breed")
    assert labels_of(source) == {number: f"breed {number % 2}" for number in range(8)}
    with pytest.raises(InputError, match="label=EXTENSION"):
        open_source(f"webdataset:{path},image=left.png")
    with pytest.raises(InputError, match="image=EXTENSION"):
        open_source(f"webdataset:{path},image=right.png,label=json.about.breed")


def test_samples_that_are_not_used_are_counted(tmp_path: Path) -> None:
    files = [(f"{n}.png", png((0, 10 * n, 0))) for n in range(6)] + [(f"{n}.cls", str(n % 2).encode()) for n in range(5)]
    source = open_source(f"webdataset:{packed(tmp_path / 's.tar', [*files, ('lone.cls', b'1')])}")
    assert "passed over 1 image without a label, the first s.tar/5.png" in source.said
    assert "passed over 1 sample without an image, the first s.tar/lone" in source.said


def test_workers_read_shards_in_any_order(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number}.tar", 8 * number, 8, size=(70, 70))

    def stream(workers: int) -> torch.Tensor:
        data = ImageData(f"webdataset:{tmp_path}", batch_size=4, workers=workers, image_size=16)
        assert not data.in_memory
        return torch.cat([batch.images for batch in data.train_loader(seed=3)])

    assert torch.equal(stream(2), stream(0))


def test_a_tar_is_read_by_several_processes(tmp_path: Path) -> None:
    archive = Tar([shard(tmp_path / "s.tar", 0, 20)], "data")
    names = sorted(archive.listing()[0])
    expected = [archive.read(name) for name in names]
    with get_context("fork").Pool(2) as pool:
        assert pool.map(archive.read, names, chunksize=1) == expected
    assert pickle.loads(pickle.dumps(archive)).read(names[0]) == expected[0]
    assert archive.ends(names[1], 8) == (expected[1][:8], expected[1][-8:])


def test_a_tar_of_class_folders(tmp_path: Path) -> None:
    folder = classes_of_pictures(tmp_path / "photos", ("café", "wild cat"), count=5)
    (folder / "café" / "again.png").symlink_to("0.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    source = open_source(f"imagefolder:{tmp_path / 'photos.tar'}")
    assert source.classes == ("café", "wild cat")
    assert len(source.train) + len(source.val) == 11
    images = source.train
    assert all(images.image(i).getpixel((0, 0))[0] // 40 == images.labels[i] for i in range(len(images)))
    with tarfile.open(tmp_path / "photos.tgz", "w:gz") as archive:
        archive.add(folder, "photos")
    with pytest.raises(InputError, match="not packed by gzip: unpack it"):
        open_source(f"imagefolder:{tmp_path / 'photos.tgz'}")


def test_shards_that_cannot_be_used(tmp_path: Path) -> None:
    whole = shard(tmp_path / "whole.tar", 0, 8)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "text.tar").write_text("no tar" * 200)
    (tmp_path / "empty").mkdir()
    packed(tmp_path / "packed.tar", [("0.png", png((0, 0, 0)))], "w:gz")
    for name, words in (
        ("absent.tar", "shards that exist"),
        ("cut.tar", "label|whole|image"),
        ("text.tar", "a tar that is whole"),
        ("empty", "tar files in it"),
        ("packed.tar", "packed by gzip"),
        ("whole.tar,val=absent.tar", "shards that exist"),
        ("whole.tar,val=2", "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            open_source(f"webdataset:{tmp_path / name}")


FIELD = st.sampled_from(["png", "jpg", "cls", "txt", "json", "", "PNG", "cls.txt", "npy"])
CONTENT = st.one_of(
    st.sampled_from([png((0, 0, 0)), b"0", b"1", b"cat", b'{"label": 1}', b'{"label": {}}', b"[]", b""]), st.binary(max_size=20)
)
MEMBER = st.tuples(st.sampled_from(["0", "1", "a/2", "../3", "", ".4", "a/b/5", "é 6"]), FIELD, CONTENT)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(MEMBER, max_size=10), cut=st.integers(0, 2000))
def test_no_shard_ends_in_a_traceback(tmp_path: Path, members: list[tuple[str, str, bytes]], cut: int) -> None:
    path = packed(tmp_path / "any.tar", [(f"{key}.{field}", content) for key, field, content in members if key or field])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    for kind in ("webdataset", "imagefolder"):
        with contextlib.suppress(InputError):
            source = open_source(f"{kind}:{path}")
            assert len(np.unique(source.train.labels)) <= len(source.classes)
