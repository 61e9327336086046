"""Where studies are kept: an SQLite file, any database that SQLAlchemy knows, or a journal file; and who may change one at a time."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from stillroom.engine.run.console import console
from stillroom.errors import InputError

if TYPE_CHECKING:
    import sqlalchemy
    from optuna.storages import BaseStorage

JOURNAL = "journal:"
_PATIENCE = 120  # seconds that a process waits for another one that writes to the same SQLite file
_TABLES = "stillroom: the tables"  # the lock's name while they are made
_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")


@dataclass(frozen=True)
class Opened:
    """A storage that is ready.

    Attributes:
        storage: Optuna's.
        locked: a context in which no other process of any machine changes this study.
    """

    storage: BaseStorage
    locked: Callable[[], AbstractContextManager[Any]]


def check_installed() -> None:
    """Raises InputError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("search", "no package optuna", "it to be installed: pip install 'stillroom[search]'")


def url_of(storage: str | None, folder: Path) -> str:
    """The storage that is meant: by default a file of the run's own folder."""
    return storage or f"sqlite:///{(folder / 'study.db').absolute()}"


def local_files(url: str) -> list[Path]:
    """The files that a storage on this machine consists of, with those that come and go beside it; none of a server's."""
    if (path := _file_of(url)) is None:
        return []
    return [path.with_name(path.name + ending) for ending in ("", "-wal", "-shm", ".lock")]


def open_storage(url: str, study: str, argument: str = "storage") -> Opened:
    """Opens a storage, and makes its tables where there are none; of many processes that start at once one does that.

    Args:
        url: ``sqlite:///FILE``, another database's URL as SQLAlchemy reads it, or ``journal:FILE``.
        study: name of the study that is about to be changed.
        argument: what the user calls the storage.

    Raises:
        InputError: it cannot be read and written, or its driver is missing.
    """
    check_installed()
    import sqlalchemy
    from optuna import logging
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    logging.set_verbosity(logging.ERROR)
    shown = _without_password(url)
    path = _file_of(url)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_writable(path)
            lock = FileLock(path.with_name(path.name + ".lock"))
            with lock:
                return Opened(_journal(path) if url.startswith(JOURNAL) else _database(url), lambda: lock)
        if "://" not in url:
            raise ValueError("a URL such as sqlite:///FILE, postgresql://HOST/NAME, or journal:FILE")
        engine = sqlalchemy.create_engine(url)
        with _server_lock(engine, _TABLES):  # of several processes that find an empty database one makes the tables
            opened = _database(url)
        return Opened(opened, lambda: _server_lock(engine, study))
    except ImportError as error:
        driver = str(getattr(error.__cause__ or error, "name", None) or "of this database")
        raise InputError(argument, shown, f"the driver {driver} to be installed: pip install {_package_of(driver)}") from None
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
        raise InputError(argument, shown, f"a database or journal that can be read and written ({reason})") from None


def _database(url: str) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import get_storage

    from stillroom.engine.study.database import Database  # which imports Optuna

    if not url.startswith(_SQLITE):
        return get_storage(Database(url))
    # Every new connection of this engine has these settings, the first one too, which makes the tables.
    engine: dict[str, Any] = {"connect_args": {"timeout": _PATIENCE}, "poolclass": _pool_with_settings()}
    with sqlalchemy.create_engine(url).connect() as tried:  # a file that is no database is said to be so
        tried.execute(sqlalchemy.text("PRAGMA schema_version"))
    return get_storage(Database(url, engine_kwargs=engine))


def _pool_with_settings() -> type[Any]:
    """A pool whose connections write ahead: readers and a writer do not wait for each other, and a commit need not reach the platter.

    What a kill of processes leaves is whole; of a power failure the last trials may be lost, never the file.
    """
    from sqlalchemy import event
    from sqlalchemy.pool import QueuePool

    class Pool(QueuePool):
        """A kind of its own, since events are set by the kind."""

    def settings(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout={_PATIENCE * 1000}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(Pool, "connect", settings)
    return Pool


@contextmanager
def _server_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """One process at a time, by the server's own named locks; a connection that breaks gives its lock back."""
    import sqlalchemy

    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    take, give = {
        "postgresql": ("SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"),
        "mysql": ("SELECT GET_LOCK(CONCAT('stillroom-', :key), -1)", "SELECT RELEASE_LOCK(CONCAT('stillroom-', :key))"),
        "mariadb": ("SELECT GET_LOCK(CONCAT('stillroom-', :key), 1000000)", "SELECT RELEASE_LOCK(CONCAT('stillroom-', :key))"),
    }.get(engine.dialect.name, ("", ""))
    if not take:
        raise InputError("storage", engine.dialect.name, "sqlite, postgresql, mysql, mariadb or a journal")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(take), {"key": key})
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text(give), {"key": key})


# Journals ---------------------------------------------------------------------------------------------------------------------------------


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Flock:
        """A lock that a killed process does not keep."""

        def __init__(self) -> None:
            self._lock = FileLock(path.with_name(path.name + ".append.lock"))

        def acquire(self) -> bool:
            self._lock.acquire()
            return True

        def release(self) -> None:
            self._lock.release()

    class Journal(JournalFileBackend):
        """Whole records only: what a killed writer left of one is put aside before the next is written."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            if _ends_in_half_a_record(path):
                with FileLock(path.with_name(path.name + ".append.lock")):
                    put_aside(path)
            super().append_logs(logs)

    with FileLock(path.with_name(path.name + ".append.lock")):  # a worker of this study may be writing a sign of life
        put_aside(path)
    return JournalStorage(Journal(str(path), lock_obj=Flock()))  # type: ignore[arg-type]  # what it asks of a lock


def _ends_in_half_a_record(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def put_aside(path: Path) -> Path | None:
    """Keeps a journal's whole records before the first that is none, and moves the rest to a file beside it, with a warning that names the
    line; nothing where all is well.

    Returns:
        The file with the rest, if there is one.
    """
    if not path.exists():
        return None
    good = records = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or not _is_record(line):
                break
            good, records = good + len(line), records + 1
        else:
            return None
        file.seek(good)
        rest = file.read()
    aside = next(other for i in range(1, 10**6) if not (other := path.with_name(f"{path.name}.damaged-{i}")).exists())
    aside.write_bytes(rest)
    os.truncate(path, good)
    console.print(
        f"WARNING: {path}, line {records + 1}: no whole record, as after a kill; it and what follows are in {aside}", markup=False
    )
    return aside


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# Words ------------------------------------------------------------------------------------------------------------------------------------


def _file_of(url: str) -> Path | None:
    """The file of a storage on this machine."""
    for start in (JOURNAL, *_SQLITE):
        if url.startswith(start):
            return Path(url.removeprefix(start).partition("?")[0])
    return None


def _check_writable(path: Path) -> None:
    """SQLite and journals say so late, or not at all."""
    place = path if path.exists() else path.parent
    if path.is_dir():
        raise OSError(f"{path} is a folder")
    if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise OSError(f"{place} is read-only")


def _without_password(url: str) -> str:
    password = urlsplit(url).password if "://" in url else None
    return url.replace(f":{password}@", ":***@") if password else url


def _package_of(module: str) -> str:
    return {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}.get(module, module)
