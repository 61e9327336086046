"""Files by names as tables write them: from other machines, in URLs, without their extension, with folders too many or too few."""

from __future__ import annotations

import contextlib
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from stillroom.errors import InputError
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.folders import printable


def locate(names: Sequence[str], store: Store, source: str, argument: str) -> tuple[list[str], dict[str, int]]:
    """The names of files in their store, and their bytes.

    A name may be absolute, or begin with folders above the store or lack those in it; have "\\" for "/" or be encoded as in a URL; and
    leave out its extension.

    Raises:
        InputError: files that are missing, or two names of one file.
    """
    finder = Finder(store)
    found = {name: finder.find(name) for name in dict.fromkeys(names)}
    if missing := [name for name, file in found.items() if file is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        got = f"{source} with files that are missing: {', '.join(printable(name) or 'an empty name' for name in missing[:5])}{more}"
        raise InputError(argument, got, "files that are there (root=FOLDER says where)")
    files = {name: file for name, file in found.items() if file is not None}
    if len(set(files.values())) < len(files):
        twice = Counter(files.values()).most_common(1)[0][0]
        named = [name for name, file in files.items() if file == twice]
        raise InputError(argument, f"{source} with {named[0]} and {named[1]}, which are one file ({twice})", "a file for each name")
    return [files[name] for name in names], {file: finder.sizes[file] for file in files.values()}


class Finder:
    """Finds files by names as tables write them; the store is listed when a name is not there as it stands."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sizes: dict[str, int] = {}
        self._whole: dict[str, str | None] = {}
        self._tails: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The name in the store."""
        plain = name.strip().replace("\\", "/").removeprefix("./")
        if not plain or plain.endswith("/"):
            return None
        if plain.startswith("/") and isinstance(self.store, Folder) and Path(plain).is_file():
            root = self.store.root.resolve()
            plain = Path(plain).relative_to(root).as_posix() if Path(plain).is_relative_to(root) else plain
            self.sizes[plain] = self.store.size(plain) or 0
        elif not plain.startswith("/") and plain not in self.sizes and (size := self.store.size(plain)) is not None:
            self.sizes[plain] = size
        return plain if plain in self.sizes else self._searched(plain) or self._searched(unquote(plain))

    def _searched(self, name: str) -> str | None:
        """A file that is the only one to end as the name, or as a part of it that has a folder; whatever the capitals."""
        if not self._whole:
            with contextlib.suppress(OSError, zipfile.BadZipFile):
                self.sizes |= self.store.listing()[0]
            self._list()
        parts = _normal(name).split("/")
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            if tail in self._whole:
                return self._whole[tail]
            loose = "/" not in tail and first and not name.startswith("/")  # another folder's file may have that name
            if tail in self._tails and not loose:
                return self._tails[tail]
        return None

    def _list(self) -> None:
        """Every file by its path and all ends of it, with and without its extension; None where several end so."""
        for file in self.sizes:
            plain = _normal(file)
            for path in {plain, plain.rpartition(".")[0] if "." in plain.rpartition("/")[2] else plain}:
                self._whole[path] = None if self._whole.get(path, file) != file else file
                parts = path.split("/")
                for first in range(1, len(parts)):
                    tail = "/".join(parts[first:])
                    self._tails[tail] = None if self._tails.get(tail, file) != file else file


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
