"""Images inside tables: Parquet files, and folders of Hugging Face's `datasets` (``save_to_disk``, or a repository of Parquet files).

pyarrow reads them; it comes with ``pip install 'stillroom[tables]'``.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from stillroom.errors import InputError
from stillroom.tasks.images.folders import begins_as_image
from stillroom.tasks.images.labelled import Item, items_source, plain_label, split_of_path
from stillroom.tasks.images.sources import LabelledSource

_KEPT = 512 * 2**20  # bytes of encoded images that a process keeps of Parquet files, which are read a group of rows at a time
_LABELS = ("label", "labels", "class", "fine_label", "category", "target", "cls", "class_name", "y")


def open_parquet(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    """``parquet:FILE_OR_FOLDER``: images as bytes in a column, labels in another.

    A column of images holds bytes, or ``{bytes, path}`` as `datasets` writes them; ``,image=COLUMN`` and ``,label=COLUMN`` name the columns
    where they cannot be told. Of a folder every ``*.parquet`` below it is read; a file whose path has the word train, val or test in it is
    of that split. Names of the classes are those that `datasets` wrote into the files.

    Args:
        path: of a file or a folder.
        options: ``image``, ``label``, ``val``.
        argument: what errors call the data.

    Raises:
        InputError: pyarrow is missing, the files cannot be read or have no such column; see also `labelled.items_source`.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = [(file, file.relative_to(place).as_posix()) for file in sorted(place.rglob("*.parquet")) if not _hidden(file, place)]
    else:
        files = [(place, place.name)] if place.is_file() else []
    if not files:
        raise InputError(argument, path, "Parquet files" if place.exists() else "a Parquet file, or a folder of them, that exists")
    return _source("parquet", path, [_Part(file, name, split_of_path(name)) for file, name in files], options, argument)


def open_hf(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    """``hf:FOLDER``: what `datasets` keeps on disk: ``save_to_disk``'s folder, a repository of Parquet files, its cache's Arrow files.

    Raises:
        InputError: no such folder; see also `open_parquet`.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise InputError(argument, path, "a folder that datasets wrote (save_to_disk), or of a data set's repository")
    folders = [place, *sorted(folder for folder in place.iterdir() if folder.is_dir())]
    states = [folder for folder in folders if (folder / "state.json").is_file()]
    if not states:
        if any(place.rglob("*.parquet")):
            return open_parquet(path, options, argument)
        cached = [file for file in sorted(place.rglob("*.arrow")) if not file.name.startswith(("cache-", "."))]
        if not cached:
            raise InputError(argument, path, "state.json of save_to_disk, Arrow or Parquet files in it")
        names = [file.relative_to(place).as_posix() for file in cached]
        return _source(
            "hf", path, [_Part(file, name, split_of_path(name)) for file, name in zip(cached, names, strict=True)], options, argument
        )
    parts = []
    for folder in states:
        try:
            listed = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
            names = [str(file["filename"]) for file in listed]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(argument, str(folder / "state.json"), f"what save_to_disk writes ({error!r})") from None
        said = "" if folder == place else folder.name
        split = split_of_path(f"{said}/x") if said else ""
        parts += [_Part(folder / name, f"{said}/{name}".lstrip("/"), split) for name in names]
    return _source("hf", path, parts, options, argument)


@dataclass(frozen=True)
class _Part:
    """A file of a table: where it is, what it is called, and the split that it is of."""

    path: Path
    name: str
    split: str


class Rows:
    """The images in a column of several files, as a store of files named FILE/ROW. Every process opens them for itself.

    Args:
        paths: of the files, by their names: Parquet, or Arrow streams as `datasets` writes them.
        column: of the images.
        root: of the files that a cell may name in the place of its bytes.
        counts: rows of each file.
    """

    def __init__(self, paths: Mapping[str, Path], column: str, root: Path, counts: Mapping[str, int]) -> None:
        self.paths, self.column, self.root, self.counts = dict(paths), column, root, dict(counts)
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = Lock()  # pyarrow's readers are not for several threads at once
        self._process = 0
        self._opened: dict[str, Any] = {}
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """As `Store.listing`, but that the bytes are those of the file that a row lies in: its own would want all to be read."""
        sizes = {file: path.stat().st_size for file, path in self.paths.items()}
        return {f"{file}/{row}": sizes[file] for file, count in self.counts.items() for row in range(count)}, set(self.paths)

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        file, _, row = name.rpartition("/")
        return len(self.read(name)) if row.isdecimal() and int(row) < self.counts.get(file, 0) else None

    def read(self, name: str) -> bytes:
        """The encoded image of one row."""
        file, _, row = name.rpartition("/")
        return _content(self._cell(file, int(row)), self.root)

    def head(self, name: str, count: int) -> bytes:
        """As `Store.head`."""
        return self.read(name)[:count]

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """As `Store.ends`."""
        content = self.read(name)
        return content[:count], content[-count:]

    def _cell(self, file: str, row: int) -> Any:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._opened, self._kept = os.getpid(), {}, OrderedDict()
            if file not in self._opened:
                self._opened[file] = _open(self.paths[file])
            opened = self._opened[file]
            if not hasattr(opened, "read_row_group"):  # an Arrow stream, mapped into memory
                return opened.column(self.column)[row].as_py()
            group = 0
            while row >= (count := opened.metadata.row_group(group).num_rows):
                row, group = row - count, group + 1
            if (file, group) not in self._kept:
                self._kept[file, group] = opened.read_row_group(group, columns=[self.column]).column(0)
                while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((file, group))
            return self._kept[file, group][row].as_py()


def _source(kind: str, path: str, parts: Sequence[_Part], options: dict[str, str], argument: str) -> LabelledSource:
    try:
        import pyarrow
    except ImportError:
        raise InputError(argument, f"{kind}:{path}", "pyarrow, which reads it: pip install 'stillroom[tables]'") from None
    place = Path(path).expanduser()
    try:
        image, label, names = _chosen(parts[0].path, options, path, argument)
        items: list[Item] = []
        counts = {}
        for part in parts:
            labels = [label for column in _columns(part.path, label) for label in column]
            counts[part.name] = len(labels)
            items += [Item(f"{part.name}/{row}", _text(value, names), part.split) for row, value in enumerate(labels)]
        store = Rows({part.name: part.path for part in parts}, image, place if place.is_dir() else place.parent, counts)
        sizes = store.listing()[0]
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise InputError(argument, f"{kind}:{path}", f"a table that is whole ({' '.join(str(error).split())[:200]})") from None
    if len({part.split for part in parts}) == 1:
        items = [Item(item.name, item.label) for item in items]
    said = [f"images are in column {image}; labels are in column {label}"]
    return items_source(kind, store, items, options, argument, where=path, classes=names, sizes=sizes, notes=said)


def _hidden(file: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(place).parts)


def _open(path: Path) -> Any:
    """A Parquet file, or the table of an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        mark = file.read(6)
    if mark.startswith(b"PAR1"):
        return pq.ParquetFile(path)
    mapped = pa.memory_map(str(path))
    return (pa.ipc.open_file(mapped) if mark == b"ARROW1" else pa.ipc.open_stream(mapped)).read_all()


def _columns(path: Path, column: str) -> Iterator[list[Any]]:
    """The values of a column, a part of the rows at a time."""
    opened = _open(path)
    if hasattr(opened, "iter_batches"):
        for batch in opened.iter_batches(batch_size=1024, columns=[column]):
            yield batch.column(0).to_pylist()
    else:
        for chunk in opened.column(column).chunks:
            yield chunk.to_pylist()


def _schema(path: Path) -> Any:
    opened = _open(path)
    return opened.schema_arrow if hasattr(opened, "schema_arrow") else opened.schema


def _chosen(path: Path, options: Mapping[str, str], where: str, argument: str) -> tuple[str, str, list[str] | None]:
    """The columns of the images and of the labels, and the names of the classes where the file says them."""
    schema = _schema(path)
    columns = list(schema.names)
    for what in ("image", "label"):
        if what in options and options[what] not in columns:
            raise InputError(argument, f"{what}={options[what]}", f"a column of {where}: {', '.join(columns)}")
    first = {name: next(iter(next(_columns(path, name), [])), None) for name in columns if _may_be_image(schema.field(name).type)}
    image = options.get("image") or next((name for name, cell in first.items() if _is_image(cell)), None)
    told = _features(schema)
    label = options.get("label") or next((name for name in columns if told.get(name, {}).get("_type") == "ClassLabel"), None)
    label = label or next((name for name in _LABELS if name in columns and name != image), None)
    if image is None or label is None:
        raise InputError(
            argument, f"{where} with the columns {', '.join(columns)}", f"{'image' if image is None else 'label'}=COLUMN, one of them"
        )
    names = told.get(label, {}).get("names")
    return image, label, [str(name) for name in names] if isinstance(names, list) and len(names) > 1 else None


def _may_be_image(kind: Any) -> bool:
    return any(word in str(kind) for word in ("binary", "struct"))


def _is_image(cell: Any) -> bool:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    named = isinstance(cell, dict) and isinstance(cell.get("path"), str)
    return begins_as_image(content) if isinstance(content, bytes) else named and content is None


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote about the columns."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in told.items() if isinstance(feature, dict)} if isinstance(told, dict) else {}


def _content(cell: Any, root: Path) -> bytes:
    """The encoded image of a cell; nothing where there is none."""
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            return (root / cell["path"]).read_bytes()
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) else b""


def _text(label: Any, names: Sequence[str] | None) -> str:
    """A label as text: a class's name where the file has names; "" for none (-1 in `datasets`)."""
    if label is None or (names is not None and label == -1):
        return ""
    if names is not None and isinstance(label, int):
        return names[label] if label < len(names) else str(label)
    return plain_label(label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label))
