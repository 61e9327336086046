"""What several layouts have in common: lists of names, files that belong together by their names, folders of splits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from stillroom.errors import InputError, printable
from stillroom.tasks.images.annotations import decoded
from stillroom.tasks.images.labelled import SPLITS

Key = TypeVar("Key", bound=Hashable)
Member = TypeVar("Member")
_TABLES = (".txt", ".csv", ".json", ".names", ".tsv", ".yaml", ".yml")


def lines_of(content: bytes) -> list[str]:
    """The lines of a list that are not empty, without spaces around them: of UTF-8, UTF-16 or Latin-1, see `annotations.decoded`."""
    return [line.strip() for line in decoded(content)[0].splitlines() if line.strip()]


def key_listed(line: str, known: Mapping[str, object] | set[str]) -> str:
    """Which of the known names a line of a list means: all of it, or its first word, with an ending and folders before it or without;
    the line itself where none is known."""
    for text in (line, line.split()[0]):
        for name in (text, str(PurePosixPath(text).with_suffix("")).lstrip("/"), PurePosixPath(text).stem):
            if name in known:
                return name
    return line


def by_key(files: Iterable[tuple[Key, str]], argument: str) -> dict[Key, str]:
    """Files by what others are found with that belong to them, a stem say.

    Raises:
        InputError: two files of one key: which of them is meant nobody can tell.
    """
    found: dict[Key, str] = {}
    for key, name in files:
        if (other := found.setdefault(key, name)) != name:
            got = f"{printable(other)} and {printable(name)}, which differ in their ending or folder alone"
            raise InputError(argument, got, "one file of a name, since files that belong together are found by their names")
    return found


def split_of_folders(parts: Iterable[str]) -> str:
    """Of folders on the way to a file, the split that the first such one is called after: train, val or test; "" for none."""
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "")


def measured_on(
    parts: Mapping[str, Sequence[Member]], options: Mapping[str, str], argument: str, said: list[str]
) -> dict[str, list[Member]]:
    """What is trained on and what is measured on, of what lies in folders called train, val and test, and in none.

    Where there is val, test is passed over, which `said` is told; what is in no such folder is trained on.

    Raises:
        InputError: a share is to be held out by the option ``val`` where a folder says what is measured on.
    """
    train = [*parts.get("train", ()), *parts.get("", ())]
    held = next((split for split in ("val", "test") if parts.get(split)), None)
    if held is None:
        return {"train": train, "val": []}
    if "val" in options:
        raise InputError(argument, f"val={options['val']}", f"none: the folder {held} says which pictures are measured on")
    if held == "val" and parts.get("test"):
        said.append(f"passed over {len(parts['test'])} of the folder test: val is what is measured on")
    return {"train": train, "val": list(parts[held])}


def class_names(given: str, argument: str, option: str = "classes") -> tuple[str, ...]:
    """Names of classes as an option gives them: ``a+b+c``, or a file with one in each line.

    Raises:
        InputError: a name that is empty or there twice, or a file that does not exist or cannot be read.
    """
    file = Path(given).expanduser()
    try:
        listed = lines_of(file.read_bytes()) if file.is_file() else None
    except OSError as error:
        raise InputError(argument, f"{option}={given}", f"a file that can be read ({error.strerror})") from None
    if listed is None:
        no_list(given, argument, option)
    names = tuple(name.strip() for name in given.split("+")) if listed is None else tuple(listed)
    if not all(names) or len(set(names)) < len(names):
        raise InputError(argument, f"{option}={given}", "names of classes, each once, as in a+b+c or a line each of a file")
    return names


def no_list(given: str, argument: str, option: str) -> None:
    """Raises InputError where a text that is no file is called as files are: a path with a slip, rather than the name of a class."""
    if Path(given).suffix.lower() in _TABLES:
        raise InputError(argument, f"{option}={given}", "a file that exists, or names, as in a+b+c")
