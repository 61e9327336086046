"""`student.json`: what a run says of the student that it left, and a stage of its own, so that it can be built again.

A run's or stage's folder is named as it is; with ``@best`` behind it the weights are those of the best epoch instead of the last one's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stillroom.engine.plain import plain_json
from stillroom.engine.run.written import write_atomic
from stillroom.engine.specification import LIBRARIES, trusted, with_files
from stillroom.engine.weights import without_set
from stillroom.errors import InputError

NAME = "student.json"
_BEST = "@best"
_FIRST = "classification"  # the task of cards from before there were others

_SHOWN = 8  # stages that a message lists

Read = TypeVar("Read")


@dataclass(frozen=True)
class Card:
    """What a `student.json` says.

    Attributes:
        folder: where it lies, beside the weights.
        task: which reads the whole of it.
        model: the network's specification, without weights.
        num_classes: of the network.
        classes: their names, in the order of its answers; None where they were not recorded.
        content: everything.
        argument: what the user calls the folder.
        best: the weights are the best epoch's.
    """

    folder: Path
    task: str
    model: str
    num_classes: int
    classes: tuple[str, ...] | None
    content: Mapping[str, Any]
    argument: str
    best: bool = False

    @property
    def weights(self) -> Path:
        """The student's, of the last epoch or the best. Others are named by the card: a part of what was trained, or a file that a teacher
        was read from, which was scored only."""
        return self.folder / ("best.safetensors" if self.best else str(self.content.get("weights", "student.safetensors")))

    @property
    def spec(self) -> str:
        """What names this very student from everywhere."""
        return f"{self.folder.resolve()}{_BEST if self.best else ''}"

    def parsed(self, read: Callable[[Mapping[str, Any]], Read], what: str) -> Read:
        """What `read` makes of the content.

        Args:
            read: may raise what Python raises of missing and of strange entries.
            what: it reads, for the message.

        Raises:
            InputError: it cannot.
        """
        try:
            return read(self.content)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(self.argument, str(self.folder / NAME), f"JSON with the student's {what}") from error


class Described(Protocol):
    """Data, as far as a card is concerned with them."""

    @property
    def fingerprint(self) -> str:
        """Changes when they do."""

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on them: `classes` among it."""


def read_card(folder: str | Path, *, trust_pickle: bool, argument: str = "run") -> Card:
    """The card in a run's folder. What it names may be built: that runs nobody's code, or the user trusts it.

    Args:
        folder: of the run, or of one of its stages.
        trust_pickle: it may name any function, whose module is then run.
        argument: what the user calls the folder.

    Raises:
        InputError: there is no card, it is damaged, or it names code and is not trusted; or the best epoch's weights are not there.
    """
    place, best = _without_best(str(folder))
    path = Path(place) / NAME
    if not path.is_file():
        stages = [str(card.parent) for pattern in ("*", "seed*/*") for card in sorted(Path(place).glob(f"{pattern}/{NAME}"))]
        many = f", or one of its stages: {', '.join(stages[:_SHOWN])}{', ...' if len(stages) > _SHOWN else ''}" if stages else ""
        raise InputError(argument, place, f"the folder of a finished run, which holds {NAME} and student.safetensors{many}")
    try:
        content = plain_json(path.read_bytes())
        task, model = str(content.get("task", _FIRST)), str(content["model"]).partition("@")[0]
        classes = tuple(map(str, content["classes"])) if "classes" in content else None
        num_classes = len(classes) if classes is not None and "num_classes" not in content else int(content["num_classes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(argument, str(path), "JSON with the student's model and num_classes") from error
    for named in (model, content.get("builder")):
        if named is not None:
            trusted(str(named), path, trust_code=trust_pickle, argument=argument)
    card = Card(path.parent, task, model, num_classes, classes, content, argument, best)
    if best and ("weights" in content or not card.weights.is_file()):
        raise InputError(argument, str(folder), f"a stage that was trained, whose folder holds {card.weights.name}")
    return card


def _without_best(folder: str) -> tuple[str, bool]:
    """A folder without the word for its best epoch, and whether it had one."""
    return (folder.removesuffix(_BEST), True) if folder.endswith(_BEST) and not Path(folder).exists() else (folder, False)


def write_card(folder: Path, task: str, model: str, data: Described, **more: Any) -> None:
    """Writes the card of a student.

    Args:
        folder: of the run.
        task: the task's name.
        model: the network's specification.
        data: what it was trained on.
        more: what the task must know besides to build it again, or to use it; plain values.
    """
    described = data.describe()
    named = {"task": task, "model": model.partition("@")[0], "num_classes": len(described["classes"])}
    write_atomic(folder / NAME, json.dumps({**named, **more, **described, "fingerprint": data.fingerprint}, indent=1))


def amend_card(folder: Path, **more: Any) -> None:
    """Writes a card anew with other entries besides those that it has, or in their place."""
    content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    write_atomic(folder / NAME, json.dumps({**content, **more}, indent=1))


def task_of(folder: str | Path) -> str:
    """The task that a run's card names; where there is none to read, whoever reads the card will say so."""
    try:
        content = json.loads((Path(_without_best(str(folder))[0]) / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _FIRST
    return str(content.get("task", _FIRST)) if isinstance(content, dict) else _FIRST


@dataclass(frozen=True)
class Named:
    """What a specification names.

    Attributes:
        source: what builds the network, without its weights.
        weights: a file or folder, or a word of the task's; empty for none.
        classes: that the weights were trained for, where a run's folder tells.
        card: the run's, where the specification is a run's folder.
    """

    source: str
    weights: str
    classes: tuple[str, ...] | None
    card: Card | None

    @property
    def spec(self) -> str:
        """The source as it means the same in another working directory."""
        return self.source if self.card is not None else with_files(self.source, Path.resolve)


def read_specification(spec: str, *, trust_pickle: bool, argument: str, task: str = "") -> Named:
    """Looks what a user's `SOURCE[@WEIGHTS]`, or the folder of a run, names.

    Args:
        spec: what was typed. A folder that is called as a library is (`LIBRARIES`) is reached as ``./timm/...``.
        trust_pickle: see `read_card`.
        argument: what the user calls it.
        task: of which a run must be; by default of any.

    Raises:
        InputError: nothing after an @, a folder that `read_card` refuses, or a run of another task.
    """
    if spec and not spec.startswith(LIBRARIES) and Path(_without_best(spec)[0]).is_dir():
        card = read_card(spec, trust_pickle=trust_pickle, argument=argument)
        if task not in ("", card.task):
            raise InputError(argument, f"{card.folder}, a student of {card.task}", f"a student of {task}")
        return Named(card.model, str(card.weights), card.classes, card)
    source, at, weights = spec.partition("@")
    if at and not weights:
        raise InputError(argument, spec, "after @ a file or folder of weights")
    try:  # a card beside weights says what they were trained for, and where a stage has them that only scored them
        beside = json.loads((without_set(weights) / NAME).read_text(encoding="utf-8")) if weights else {}
        return Named(source, str(beside.get("weights", weights)), tuple(map(str, beside["classes"])), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Named(source, weights, None, None)
