"""What Stillroom wrote: a record of it in the folder, and the one way in which anything is ever removed or replaced.

`files.jsonl` lies in the folder of a run, of a cache or of a comparison. Behind its first line, the schema, each line is a file below the
folder that was written, and its mark: a hash of its size, its beginning and its end. A line is appended before the file gets its name, so
that a kill between the two leaves the older content, which an older line knows. Files that are filled or grow have the mark of how they
begin.

`--overwrite` removes exactly the files that this record lists and whose content it knows. A file that somebody changed, replaced, or put
in the place of one, a link, and whatever the new run would have to replace besides, is refused by name before anything is touched.
Everything else that lies in the folder stays: notes, other runs with a record of their own, a folder that is called as one of ours is.

Runs of version 0.2 and before have no record. `of_before` recognises what they wrote by its content, at the exact places where such a
run puts it; what it does not recognise it does not remove.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from stillroom.engine.plain import plain_json, read_yaml
from stillroom.errors import InputError

RECORD = "files.jsonl"
SCHEMA = "stillroom.files/1"
EVENTS = "events"  # a folder whose files TensorBoard names; in the record it stands for all that TensorBoard wrote there
_EDGE = 2**16  # bytes of a file's beginning and end that its mark looks at: a network's weights are not read whole
_CARD = {"model", "num_classes", "classes"}  # keys of a `student.json`
_OF_TIMM = ("student/config.json", "student/model.safetensors")
_OF_A_RUN = ("config.yaml", "metrics.json", "report.html", "student.json", "student.safetensors", *_OF_TIMM, RECORD)
_MADE = (RECORD, "stage.json", "student.json", "cache.json", "bank.json")  # what a folder of Stillroom's holds one of
_DEEPEST = 5  # folders that a file of one lies below it, at most
# What a run puts into its folder, above, and a stage into its own.
OF_A_STAGE = ("stage.json", "student.safetensors", "best.safetensors", "details.npz", "last.ckpt", "indices.json", "student.json")


def refuse_links(path: Path) -> None:
    """Refuses to write to a place in a folder of Stillroom's that is reached by a link: it would lie elsewhere.

    What a user names himself (`--out`) may be a link, and so may whatever lies above.

    Raises:
        InputError: naming the link.
    """
    above = list(path.parents)[:_DEEPEST]
    inside = max((depth for depth, folder in enumerate(above) if any(os.path.lexists(folder / name) for name in _MADE)), default=0)
    for part in above[:inside]:
        if part.is_symlink():
            raise _foreign(part, "a link, which Stillroom did not make")


def put(temporary: Path, path: Path) -> None:
    """Gives a file that is complete its name; entered in the record of the folder that it lies in or below, where there is one."""
    if (record := Record.around(path)) is not None:
        record.enter({path: mark(temporary)})
    os.replace(temporary, path)


def growing(files: Iterable[Path]) -> None:
    """Enters files that are about to be appended to, until they are `complete`; where there is a record.

    Raises:
        InputError: one that is there, and that Stillroom did not write.
    """
    for path in files:
        if (around := Record.around(path)) is not None:
            refuse_links(path)
            refuse_foreign([path])
            around.enter({path: beginning(b"")})


def complete(path: Path) -> None:
    """Enters a file that nothing more is appended to, if it came to be."""
    if path.is_file() and (around := Record.around(path)) is not None:
        around.enter({path: mark(path)})


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written under a temporary name, which takes the place of `path` when all is written: no reader ever sees half of it."""
    refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one name: what a kill leaves behind is overwritten by the next attempt
    if temporary.is_dir() and not temporary.is_symlink():
        raise _foreign(temporary, "a folder, which Stillroom did not make")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # never through a link that somebody put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def usual_mode(folder: Path) -> int:
    """The permissions that a new file gets in a folder: what the user's umask leaves of reading and writing for all."""
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o666
    finally:
        os.close(descriptor)
        probe.unlink()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a compressed .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes any name for allow_pickle
    write_atomic(path, buffer.getvalue())


def read_arrays(path: Path, argument: str) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; nothing in it is unpickled.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # depending on where a file is damaged, reading it raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(argument, f"{path}, which cannot be read ({reason[:100]})", "arrays as Stillroom wrote them") from error


def altered_below(folder: Path) -> Path | None:
    """A file that the folder's record lists, and that is not as it was written; None where all are, or there is no record."""
    if not _is_record(folder / RECORD):
        return None
    record = Record.of(folder)
    assert record is not None
    files = (folder / name for name in record.marks if name != RECORD)
    return next((file for file in files if file.is_file() and not record.ours(file)), None)


def beginning(content: bytes) -> str:
    """The mark of a file that begins so, and may have more: the number of these bytes and a hash of them."""
    return f"{len(content)}+{hashlib.blake2b(content, digest_size=12).hexdigest()}"


def mark(path: Path) -> str:
    """A hash of a file's size, beginning and end."""
    hasher = hashlib.blake2b(digest_size=12)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        hasher.update(str(size).encode())
        for place in {0, max(0, size - _EDGE)}:
            file.seek(place)
            hasher.update(file.read(_EDGE))
    return hasher.hexdigest()


@dataclass
class Record:
    """What was written into a folder and below it, by name: the marks that a file's content may have.

    Attributes:
        folder: the record's.
        marks: by the file's name, relative to the folder; None where none is asked for (see `EVENTS`).
    """

    folder: Path
    marks: dict[str, set[str] | None] = field(default_factory=dict)

    @staticmethod
    def around(path: Path) -> Record | None:
        """The record that a file belongs to: of the nearest folder above it that has one. Its lines are not read."""
        return next((Record(folder) for folder in path.parents if _is_record(folder / RECORD)), None)

    @staticmethod
    def of(folder: Path) -> Record | None:
        """What the record of this folder lists, or what a version without one wrote there; None in a folder of anything else."""
        if not _is_record(folder / RECORD):
            found = of_before(folder)
            return Record(folder, found) if found else None
        record = Record(folder, {RECORD: None})
        for line in (folder / RECORD).read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
            with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
                entry = json.loads(line)
                name, one = PurePosixPath(entry["name"]), entry["mark"]
                if not name.is_absolute() and ".." not in name.parts:
                    record._learn(str(name), one)
        return record

    def _learn(self, name: str, one: str | None) -> None:
        """A line. A file that is complete is no longer known by its beginning."""
        known = self.marks.get(name) or set()
        if one is not None and "+" not in one:
            known = {other for other in known if "+" not in other}
        self.marks[name] = None if one is None else known | {one}

    def begin(self) -> None:
        """Makes the file, with what is known so far; does nothing where it is."""
        path = self.folder / RECORD
        if not _is_record(path):
            with suppress(FileExistsError), path.open("xb", buffering=0) as file:  # another process of the run was faster
                file.write(json.dumps({"schema": SCHEMA}).encode() + b"\n")
            self.enter({self.folder / name: one for name, known in self.marks.items() for one in known or (None,)})

    def enter(self, marks: Mapping[Path, str | None]) -> None:
        """Appends files and their marks."""
        lines = [json.dumps({"name": path.relative_to(self.folder).as_posix(), "mark": one}) + "\n" for path, one in marks.items()]
        with (self.folder / RECORD).open("ab") as file:  # one write: processes that write side by side do not mix their lines
            file.write("".join(lines).encode())

    def present(self, below: Path | None = None) -> list[Path]:
        """The listed files that are there, or only those below a folder, with the temporary files and locks that a kill left beside them.

        Raises:
            InputError: one that is not as it was written.
        """
        found = []
        names: dict[Path, set[str]] = {}
        for name, known in self.marks.items():
            path = self.folder / name
            if name == RECORD or (below is not None and below not in path.parents):
                continue
            names.setdefault(path.parent, set()).add(path.name)
            for file in _files_of(path):
                if os.path.lexists(file):
                    self._refuse_foreign(file, known)
                    found.append(file)
        for parent, written in names.items():
            if parent.is_dir() and not parent.is_symlink():
                found += [file for file in parent.iterdir() if _left_by_a_kill(file, written, parent == self.folder)]
        return found

    def lists(self, path: Path) -> bool:
        """Whether a file was ever written."""
        return path.relative_to(self.folder).as_posix() in self.marks

    def ours(self, path: Path) -> bool:
        """Whether a file is listed and has content that was written under its name."""
        if not self.lists(path):
            return False
        try:
            self._refuse_foreign(path, self.marks[path.relative_to(self.folder).as_posix()])
        except InputError:
            return False
        return True

    def refuse_in_the_way(self) -> None:
        """Refuses what lies, unlisted, where a run writes.

        Raises:
            InputError: naming the first.
        """
        stages = {path.parent for path in map(PurePosixPath, self.marks) if path.name == "stage.json"}
        places = [*_OF_A_RUN, *(str(stage / name) for stage in stages for name in OF_A_STAGE)]
        refuse_foreign(self.folder / name for name in places if name not in self.marks)

    def _refuse_foreign(self, path: Path, known: set[str] | None) -> None:
        for part in (path, *path.parents):
            if part == self.folder:
                break
            if part.is_symlink():
                raise _foreign(part, "a link, which Stillroom did not make")
        if not path.is_file():
            raise _foreign(path, "which is no file that Stillroom wrote")
        if known is None:
            if path.name != RECORD and (path.parent.name != EVENTS or not _of_tensorboard(path)):
                raise _foreign(path, "which TensorBoard did not write for Stillroom")
        elif not any(one == (_beginning_of(path, one) if "+" in one else mark(path)) for one in known if _tells(path, one)):
            raise _foreign(path, "which is not as Stillroom wrote it")


def refuse_foreign(places: Iterable[Path]) -> None:
    """Refuses what lies where Stillroom would write, and is not as the record around it says.

    Raises:
        InputError: naming the first.
    """
    for path in (path for path in places if os.path.lexists(path)):
        around = Record.around(path)
        written = None if around is None else Record.of(around.folder)
        if written is None or not written.ours(path):
            raise _foreign(path, "which Stillroom did not write")


def remove(files: Iterable[Path], folder: Path) -> None:
    """Removes files below a folder, then the folders below it that this leaves empty."""
    emptied: set[Path] = set()
    for path in files:
        path.unlink(missing_ok=True)
        emptied |= {parent for parent in path.parents if folder in parent.parents}
    for parent in sorted(emptied, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            parent.rmdir()


def _foreign(path: Path, what: str) -> InputError:
    return InputError("--out", f"{path}, {what}", "another folder, or that one moved away: only what Stillroom wrote is ever replaced")


def _is_record(path: Path) -> bool:
    try:
        if path.is_symlink():
            return False
        with path.open(encoding="utf-8") as file:
            return bool(json.loads(file.readline(200))["schema"] == SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _files_of(path: Path) -> Iterator[Path]:
    """The file itself; of TensorBoard's folder what has TensorBoard's names."""
    if path.name == EVENTS and path.is_dir() and not path.is_symlink():
        yield from (file for file in sorted(path.iterdir()) if file.name.startswith("events.out.tfevents.") or file.name == "hparams.yaml")
    else:
        yield path


def _left_by_a_kill(file: Path, written: set[str], top: bool) -> bool:
    """Whether it is a temporary file of one that is written whole, or an empty lock; the top folder's lock is in the hands of a command."""
    if file.is_symlink() or not file.is_file():
        return False
    if file.suffix == ".lock" or file.name == ".lock":
        return not file.stat().st_size and (f"{file.stem}.json" in written or (file.name == ".lock" and not top))
    part = re.fullmatch(r"\.(.+)\.(part|[0-9a-f]{32}\.tmp)", file.name)
    return part is not None and part[1] in written


def _tells(path: Path, one: str) -> bool:
    """Whether a mark tells anything: every file begins with nothing, as a log does before its first line, and nothing else of ours."""
    return not one.startswith("0+") or (path.parent.name == "logs" and path.suffix == ".txt")


def _beginning_of(path: Path, one: str) -> str:
    with path.open("rb") as file:
        return beginning(file.read(int(one.partition("+")[0])))


def _of_tensorboard(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return head.strip() == b"{}" if path.name == "hparams.yaml" else not head or b"brain.Event:" in head


# What versions without a record wrote -----------------------------------------------------------------------------------------------------


def of_before(folder: Path) -> dict[str, set[str] | None]:
    """Names and marks of what a run without a record left in its folder: each recognised by its content, at the place where it belongs."""
    found: dict[str, set[str] | None] = {}

    def take(*names: str) -> None:
        for name in names:
            path = folder / name
            if path.is_file() and not any((folder / part).is_symlink() for part in (name, *map(str, PurePosixPath(name).parents))):
                found[name] = {mark(path)}

    for stage in _stages_of_before(folder):
        take(*(f"{stage}/{name}" for name in (*OF_A_STAGE[:-1], "selection.json") if is_what_it_is_called(folder / stage / name)))
        if _mapping(folder / stage / "student.json").keys() >= _CARD:
            take(f"{stage}/student.json")
        if (folder / stage / EVENTS).is_dir():
            found[f"{stage}/{EVENTS}"] = None
    settings, metrics, card = (_mapping(folder / name) for name in ("config.yaml", "metrics.json", "student.json"))
    if {"out", "seed", "seeds", "devices", "accelerator", "checkpoint_seconds"} <= settings.keys():
        take("config.yaml")
        if isinstance(words := settings.get("methods"), list):  # a comparison
            arms = ["alone", *(str(word).partition("=")[0].replace(":", "+") for word in words)]
            seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
            take(*(f"logs/{arm}-seed{seed}.txt" for arm in arms for seed in seeds if "/" not in arm))
    if not found:
        return {}
    if metrics.get("schema") == "stillroom.report/1":
        take("metrics.json")
    if b'name="generator" content="stillroom' in _head(folder / "report.html"):
        take("report.html")
    if card.keys() >= _CARD:
        take("student.json")
        if is_what_it_is_called(folder / "student.safetensors"):
            take("student.safetensors")
        if str(card["model"]).startswith("timm/") and {"architecture", "pretrained_cfg"} <= _mapping(folder / "student/config.json").keys():
            take(*_OF_TIMM)
    return found


def _stages_of_before(folder: Path) -> Iterator[str]:
    """The stages that lie where a run's stages lie, below no other run."""
    for record in sorted([*folder.glob("*/stage.json"), *folder.glob("seed*/*/stage.json")]):
        between = record.parent.parent
        other_run = between != folder and any(os.path.lexists(between / name) for name in ("config.yaml", "metrics.json", RECORD))
        depends = _mapping(record).get("fingerprint")
        kinds = {"architecture", "data", "initial weights", "code", "seed"}, {"architecture", "data", "weights", "renormalise"}
        if not other_run and isinstance(depends, dict) and any(kind <= depends.keys() for kind in kinds):
            yield record.parent.relative_to(folder).as_posix()


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file's mapping; empty where there is none."""
    with suppress(OSError, ValueError):
        if path.stat().st_size < 2**26:
            found = read_yaml(path) if path.suffix == ".yaml" else plain_json(path.read_bytes())
            return found if isinstance(found, dict) else {}
    return {}


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(2000)
    return b""


def is_what_it_is_called(path: Path) -> bool:
    """Whether a file of weights, arrays, a checkpoint or JSON is one."""
    if path.suffix == ".safetensors":
        return _head(path)[8:9] == b"{"
    if path.suffix in (".npz", ".ckpt"):
        return zipfile.is_zipfile(path)
    return bool(_mapping(path))
