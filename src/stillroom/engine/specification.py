"""What a network is called: the words that all tasks share, and which of them run code.

A specification is `SOURCE[@WEIGHTS]`. SOURCE names a network of a library (`LIBRARIES`), or a function of somebody's own,
`package.module:function` or `file.py:function`; or it is composed of other sources by a builder (`catalog.BUILDERS`): a method's students,
as runs record them, and the first layers of a network.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from stillroom import catalog
from stillroom.errors import InputError, near

# of which Stillroom builds the networks itself
LIBRARIES = ("timm/", "torchvision/", "transformers/", "gfl/", "atss/", "retinanet/", "fcos/", "stillroom/")
FILES = ("onnx:", "openvino:")  # before a file that is a whole network
TEACHER = "teacher"  # among the parts of a student: the network that teaches

Made = TypeVar("Made")


class Composed(Protocol):
    """A network that is built around others; as text it is its specification. A module of `catalog.BUILDERS` reads it by `parse`."""

    def parts(self) -> tuple[str, ...]:
        """The specifications of the networks that it is built from."""

    def of(self, *parts: str) -> Composed:
        """The same around other networks."""

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> nn.Module:
        """The network, from random numbers.

        Args:
            make: builds the classifier of a specification with so many classes.
            num_classes: of the whole.
            example: an input [1, ...] that the parts read.
            argument: what the user calls the specification.

        Raises:
            InputError: the parts are not what it can be built from.
        """


def composed(source: str, argument: str) -> Composed | None:
    """What a source is composed of; None where it names one network.

    Raises:
        InputError: it begins with a builder's word but does not go on as that builder reads it.
    """
    word, colon, _ = source.partition(":")
    if not colon or word not in catalog.BUILDERS:
        return None
    made: Composed = importlib.import_module(catalog.BUILDERS[word]).parse(source, argument)
    return made


def runs_code(source: str, argument: str) -> bool:
    """Whether building the network of a source runs code that is neither Stillroom's nor a library's."""
    whole = composed(source, argument)
    if whole is None:
        return not source.startswith((*LIBRARIES, *FILES))
    return any(runs_code(part, argument) for part in whole.parts() if part != TEACHER)


def trusted(source: str, where: object, *, trust_code: bool, argument: str) -> str:
    """A network's specification that was read from disk: of a card, a cache or a comparison that may come from anybody.

    Every task asks here, and nowhere else, before it builds what a folder names.

    Args:
        source: the specification, or the builder of a method's student (`catalog.STUDENTS`).
        where: the file that it was read from, for the message.
        trust_code: whoever wrote the file may have any code of theirs run.
        argument: what the user calls the folder.

    Raises:
        InputError: it names code that is neither Stillroom's nor a library's, and is not trusted.
    """
    if not trust_code and source not in catalog.STUDENTS and runs_code(source, argument):
        networks = f"a network that comes with a library ({', '.join(f'{library}NAME' for library in LIBRARIES)})"
        raise InputError(argument, f"{where}, which names {source}", f"{networks}; {_TRUST}")
    return source


def refuse_code(settings: Mapping[str, Any], where: object, known: Iterable[str], *, argument: str) -> None:
    """Refuses options that were read from a run's folder and would run code that its reader did not name.

    Args:
        settings: by name, of any depth.
        where: the file that they were read from, for the message.
        known: words before a colon that name no module: kinds of data.
        argument: what the user calls the folder.

    Raises:
        InputError: naming the first.
    """
    harmless = {*known, *catalog.BUILDERS}
    for name, value in settings.items():
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
        refuse_code({f"{name}.{key}": one for key, one in inner}, where, known, argument=argument)
        if isinstance(value, str) and _names_code(value, harmless, argument):
            raise InputError(argument, f"{where}, in which {name} is {value}", f"options that name no code, or typed ones; {_TRUST}")


def _names_code(text: str, harmless: Iterable[str], argument: str) -> bool:
    """Whether a text is `file.py:NAME` or `module:NAME` of a module that there is, with whatever else behind it."""
    if text.partition(":")[0] in catalog.BUILDERS:
        return runs_code(text, argument)
    place, _, name = re.split(r"[,@#]", text, maxsplit=1)[0].rpartition(":")
    if not place or not name.isidentifier() or text.startswith((*LIBRARIES, *FILES)) or place in harmless:
        return False
    words = place.split(".")
    if place.endswith(".py") or not all(map(str.isidentifier, words)):
        return place.endswith(".py")
    return words[0] in sys.modules or importlib.util.find_spec(words[0]) is not None


_TRUST = "or say --trust-code (in Python trust_code=True) if you trust whoever wrote it: it runs that code"


def with_files(source: str, change: Callable[[Path], object]) -> str:
    """The same source, but that each Python file in it is called what `change` makes of its path."""
    whole = composed(source, "model")
    if whole is not None:
        return str(whole.of(*(with_files(part, change) for part in whole.parts())))
    file, colon, name = source.rpartition(":")
    return f"{change(Path(file))}{colon}{name}" if file.endswith(".py") else source


def function_of(source: str, argument: str, expected: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `file.py:function` names; see `named_object`.

    Raises:
        InputError: no such module or function.
    """
    function = named_object(source, argument, expected)
    if not callable(function):
        raise InputError(argument, source, f"a function, not a {type(function).__name__}")
    return cast("Callable[..., Any]", function)


def made_by(source: str, argument: str, expected: str, *given: Any, kind: type[Made], called: str) -> Made:
    """What the function that `package.module:function` or `file.py:function` names makes.

    Args:
        source, argument, expected: see `named_object`.
        given: what the function is called with.
        kind: what it must make.
        called: that, in words.

    Raises:
        InputError: no such function, or it makes something else.
    """
    made = function_of(source, argument, expected)(*given)
    if not isinstance(made, kind):
        raise InputError(argument, f"{source}, which makes a {type(made).__name__}", called)
    return made


def named_object(source: str, argument: str, expected: str) -> Any:
    """What `package.module:NAME` or `file.py:NAME` names.

    Its module is run by this and only this: what a folder on disk names has been before `trusted`.

    Args:
        source: what names it.
        argument: what the user calls it.
        expected: what could have been named, where this names nothing.

    Raises:
        InputError: no such module, or nothing of that name in it.
    """
    place, _, name = source.rpartition(":")
    if not place or not name.isidentifier() or source.startswith(LIBRARIES):
        raise InputError(argument, source or "nothing", expected)
    module = _module_of_file(Path(place), argument) if place.endswith(".py") else _module(place, argument, expected)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(argument, source, f"a function of {place}, such as {near(name, public)}")
    return getattr(module, name)


def _module(name: str, argument: str, expected: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(argument, name, expected)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; what is missing is something that it imports
        wanted = f"an installed module ({error.name} is not found); a file works as well: path/to/file.py:function"
        raise InputError(argument, name, wanted) from error


def _module_of_file(path: Path, argument: str) -> ModuleType:
    if not path.is_file():
        raise InputError(argument, str(path), "an existing Python file")
    name = f"stillroom_file_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None, "a .py file always has a loader"
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look the module up by its name
    found.loader.exec_module(module)
    return module
