"""What can go wrong, each with the exit code that the command line answers with."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence


class StillroomError(Exception):
    """Base of everything Stillroom raises on purpose; the command line prints its one line and leaves with `exit_code`."""

    exit_code = 1


class InputError(StillroomError, ValueError):
    """An argument that cannot be used.

    Args:
        argument: its name, as the user typed or passed it.
        got: what came.
        expected: what would have been right, as a phrase ("a number above 0").
    """

    exit_code = 2

    def __init__(self, argument: str, got: object, expected: str) -> None:
        self.argument, self.got, self.expected = argument, got, expected
        super().__init__(f"{argument}: got {got if isinstance(got, str) and got else repr(got)}, expected {expected}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        return type(self), (self.argument, self.got, self.expected)


_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A name as it can be shown: what would steer the terminal, begin a line or turn the writing round, and bytes in no known encoding, are
    escaped."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def near(name: str, known: Iterable[str], most: int = 5) -> str:
    """The known names closest to `name`, as a phrase that ends an error message."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if not close:  # a last path segment often matches where the whole does not
        tail = name.rsplit(".", 1)[-1].rsplit("/", 1)[-1]
        close = [n for n in names if tail and tail in n][:most]
    return ", ".join(close or names[:most])


class NonFiniteLoss(StillroomError):
    """A loss term became infinite or not a number.

    Args:
        step: batches seen before the bad one.
        terms: the bad terms and their values.
        ids: the samples of that batch.
        files: what these are called, where the data tell.
    """

    exit_code = 3

    def __init__(self, step: int, terms: dict[str, float], ids: list[int], files: Sequence[str] = ()) -> None:
        self.step, self.terms, self.ids, self.files = step, terms, ids, files
        values = ", ".join(f"{name} = {value}" for name, value in terms.items())
        told = f"samples are {_first(files)}" if files else f"sample ids are {ids}"
        super().__init__(f"the loss is not finite at step {step}: {values}; the batch's {told}")

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[int, dict[str, float], list[int], Sequence[str]]]:
        return type(self), (self.step, self.terms, self.ids, self.files)


class NonFiniteWeights(StillroomError):
    """Training made weights infinite or not a number, by a gradient that was, though no loss was.

    Args:
        step: batches seen before the last one.
        names: of the weights.
    """

    exit_code = 3

    def __init__(self, step: int, names: list[str]) -> None:
        self.step, self.names = step, names
        super().__init__(f"weights are not finite after step {step}, though its loss is: {_first(names)}")

    def __reduce__(self) -> tuple[type[NonFiniteWeights], tuple[int, list[str]]]:
        return type(self), (self.step, self.names)


def _first(several: Sequence[object], most: int = 5) -> str:
    return ", ".join(map(str, several[:most])) + (f" and {len(several) - most} more" if len(several) > most else "")


class Interrupted(StillroomError):
    """The user (Ctrl-C) or the system (SIGTERM) asked the run to end; it ended with everything saved."""

    exit_code = 130


class Lost(StillroomError):
    """A process that trains together with this one is gone, or was asked to end.

    Args:
        told: which, in one line.
        exit_code: 130 where it was asked to end.
    """

    def __init__(self, told: str, exit_code: int = 1) -> None:
        super().__init__(told)
        self.exit_code = exit_code


class Broken(StillroomError):
    """Something around the run gave way: a disk, or a process that the system ended. Nothing is wrong with the arguments."""


def explained(error: BaseException) -> Broken | InputError | None:
    """What a user is told of an error that no code of ours is to blame for; None of every other one."""
    goes_on = "what was finished or has a checkpoint is safe, the same command goes on from there"
    if match := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error)):
        return Broken(f"a process that reads data (pid {match.group(1)}) was killed, perhaps for want of memory (--workers); {goes_on}")
    cause: BaseException | None = error
    while cause is not None:
        number, place, reason = getattr(cause, "errno", None), getattr(cause, "filename", None), getattr(cause, "strerror", None)
        if match := re.search(r"I/O error: (.*) \(os error (\d+)\)", str(cause)):  # safetensors' own kind of error
            number, reason = int(match.group(2)), match.group(1)
        if isinstance(cause, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(str(cause)):
            asked = re.search(r"allocate ([\d.]+ ?\w+)", str(cause))
            size = f" ({asked.group(1)} were asked for at once)" if asked else ""
            return Broken(f"there is not enough memory{size}: smaller batches (--batch-size), inputs or networks need less")
        if number in _BROKEN:
            return Broken(f"{place or 'a file of the run'}: cannot be written ({reason}); {goes_on}")
        if number in _IN_THE_WAY and place:
            return InputError(printable(str(place))[:_SHOWN], str(reason), "a path that can be written to")
        cause = cause.__cause__ or cause.__context__
    return None


_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)  # PyTorch's words, on a CPU and on a GPU
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_SHOWN = 200  # letters of a path
_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def positive(argument: str, value: float) -> float:
    """`value`, if it is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise InputError(argument, value, "a finite number above 0")
    return value


def at_least(argument: str, value: int, least: int) -> int:
    """The value, if it is `least` or more.

    Raises:
        InputError: it is less.
    """
    if value < least:
        raise InputError(argument, value, f"a whole number of at least {least}")
    return value


def at_least_zero(argument: str, value: float) -> float:
    """`value`, if it is a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise InputError(argument, value, "a finite number of at least 0")
    return value


def share(argument: str, value: float) -> float:
    """`value`, if it is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise InputError(argument, value, "a number from 0 to 1")
    return value


def one_of(argument: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is among those that are known.

    Raises:
        InputError: it is not; the message names them, the nearest first where they are many.
    """
    names = list(known)
    if value not in names:
        raise InputError(argument, value, f"one of {', '.join(names) if len(names) <= _FEW else near(value, names)}")
    return value


def arms_of(text: str, known: Iterable[str]) -> list[str]:
    """The arms of ``one+another``, as the option `arms` names them, in that order.

    Raises:
        InputError: an arm that there is not, or one twice.
    """
    names = [name.strip() for name in text.split("+")]
    for name in names:
        one_of("arms", name, known)
    if len(set(names)) < len(names):
        raise InputError("arms", text, "each arm once")
    return names


_FEW = 16  # names that a message lists: all tasks, say
