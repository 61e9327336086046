"""Images inside Parquet files and Hugging Face's folders on disk."""

from __future__ import annotations

import io
import json
import pickle
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.images.classified import open_source


def test_what_reads_them_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'stillroom\[tables\]'"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}")
    for spec, words in (("parquet:absent", "exists"), (f"hf:{tmp_path / 'a.parquet'}", "a folder"), (f"parquet:{tmp_path}x", "exists")):
        with pytest.raises(InputError, match=words):
            open_source(spec)


def encoded(number: int, size: int = 12) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (0, 10 * number, 0)).save(file, "PNG")
    return file.getvalue()


def table(first: int, count: int, *, names: list[str] | None = None, plain: bool = False, size: int = 12) -> Any:
    """Rows whose green says their number; the label is the number modulo 2."""
    pa = pytest.importorskip("pyarrow")
    numbers = range(first, first + count)
    images = [encoded(n, size) if plain else {"bytes": encoded(n, size), "path": f"{n}.png"} for n in numbers]
    made = pa.table({"image": images, "label": [n % 2 for n in numbers], "width": [12] * count})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def labels_of(source: Any) -> dict[int, str]:
    parts = (source.train, source.val)
    return {
        images.image(i).getpixel((0, 0))[1] // 10: source.classes[label]
        for images in parts
        for i, label in enumerate(images.labels.tolist())
    }


def parquet(made: Any, path: Path, rows: int = 3) -> Path:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=rows)
    return path


def arrow(made: Any, path: Path) -> None:
    """A file of `save_to_disk`."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=4)
    (path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))


@pytest.mark.parametrize("plain", [False, True])
def test_a_parquet_file(tmp_path: Path, plain: bool) -> None:
    path = parquet(table(0, 10, plain=plain), tmp_path / "all.parquet")
    source = open_source(f"parquet:{path}")
    assert labels_of(source) == {n: str(n % 2) for n in range(10)}
    assert (len(source.train), len(source.val), source.image_size) == (8, 2, 12)
    assert source.said[0] == "images are in column image; labels are in column label"
    by_width = open_source(f"parquet:{parquet(table(0, 4), tmp_path / 'x' / 'train.parquet')},label=label,val=0.5")
    assert len(by_width.val) == 2
    for options, words in ((",label=breed", "a column of .*: image, label, width"), (",label=width", "1 class")):
        with pytest.raises(InputError, match=words):
            open_source(f"parquet:{path}{options}")


def test_a_repository_of_parquet_files(tmp_path: Path) -> None:
    for name, first, count in (("train-00000-of-00002", 0, 5), ("train-00001-of-00002", 5, 4), ("test-00000-of-00001", 9, 3)):
        parquet(table(first, count, names=["cat", "dog"]), tmp_path / "data" / f"{name}.parquet")
    for spec in (f"hf:{tmp_path}", f"parquet:{tmp_path}"):
        source = open_source(spec)
        assert (len(source.train), len(source.val), source.classes) == (9, 3, ("cat", "dog"))
        assert labels_of(source) == {n: ("cat", "dog")[n % 2] for n in range(12)}


@pytest.mark.parametrize("splits", [("",), ("train", "validation")])
def test_what_save_to_disk_writes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for number, split in enumerate(splits):
        arrow(table(6 * number, 6, names=["cat", "dog"]), tmp_path / split / "data-00000-of-00001.arrow")
    source = open_source(f"hf:{tmp_path}")
    assert len(source.val) == (6 if len(splits) > 1 else 2)
    assert labels_of(source) == {n: ("cat", "dog")[n % 2] for n in range(6 * len(splits))}


def test_names_without_images_stay_classes(tmp_path: Path) -> None:
    path = parquet(table(0, 10, names=["cat", "dog", "emu"]), tmp_path / "all.parquet")
    data = ImageData(f"parquet:{path}")
    assert data.classes == ("cat", "dog", "emu")
    assert "classes without any image: emu" in data.first_lines()


def test_the_cache_of_datasets(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 6)):
        arrow(table(first, 6, names=["cat", "dog"]), tmp_path / "default" / "0.0.0" / f"pets-{split}.arrow")
    (tmp_path / "default" / "0.0.0" / "state.json").unlink()
    (tmp_path / "default" / "0.0.0" / "cache-1.arrow").write_bytes(b"of somebody's map")
    source = open_source(f"hf:{tmp_path}")
    assert (len(source.train), len(source.val)) == (6, 6)
    assert labels_of(source) == {n: ("cat", "dog")[n % 2] for n in range(12)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"state\.json"):
        open_source(f"hf:{tmp_path / 'empty'}")


def test_files_that_cells_name(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    images = pa.array([{"bytes": None, "path": f"{n}.png"} for n in range(6)], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    parquet(pa.table({"image": images, "label": ["a", "b"] * 3}), tmp_path / "named.parquet")
    assert labels_of(open_source(f"parquet:{tmp_path / 'named.parquet'}")) == {n: "ab"[n % 2] for n in range(6)}


def test_workers_and_processes_read_rows(tmp_path: Path) -> None:
    path = parquet(table(0, 12, size=70), tmp_path / "all.parquet")

    def stream(workers: int) -> torch.Tensor:
        data = ImageData(f"parquet:{path}", batch_size=4, workers=workers, image_size=16)
        return torch.cat([batch.images for batch in data.train_loader(seed=3)])

    assert torch.equal(stream(2), stream(0))
    store = open_source(f"parquet:{path}").train.store
    names = sorted(store.listing()[0])
    expected = [store.read(name) for name in names]
    with get_context("fork").Pool(2) as pool:
        assert pool.map(store.read, names) == expected
    assert pickle.loads(pickle.dumps(store)).read(names[3]) == expected[3]


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    parquet(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "text.parquet")
    parquet(table(0, 4).drop_columns(["label"]), tmp_path / "bare.parquet")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "state.json").write_text("{}")
    for spec, words in (
        ("parquet:broken.parquet", "a table that is whole"),
        ("parquet:text.parquet", "text, label, expected image=COLUMN"),
        ("parquet:bare.parquet", "image, width, expected label=COLUMN"),
        ("hf:hf", "what save_to_disk writes"),
    ):
        kind, _, name = spec.partition(":")
        with pytest.raises(InputError, match=words):
            open_source(f"{kind}:{tmp_path / name}")
