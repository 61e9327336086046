"""Makes the page of all options when the documentation is built: every option once, what it means, and who has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jsonargparse

from stillroom import catalog
from stillroom.commands import cache as cache_command
from stillroom.commands import cache_labels, compare, tune
from stillroom.engine import LabOptions, Training
from stillroom.engine.room import Setting, setting_of
from stillroom.engine.task import SUPERVISED, TAUGHT

PLACE = "<!-- the table of all options -->"
EVERYWHERE = "all"


@dataclass
class Option:
    """One option under its name.

    Attributes:
        kinds: of its values, as Python writes types; which words a choice has, and whether it may be left out, are no part of them.
        meanings: what its help says -> the commands that say so.
    """

    kinds: set[str] = field(default_factory=set)
    meanings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def heads(self) -> set[str]:
        """What its meanings have in common, or should: the words up to the first comma, semicolon, colon or bracket."""
        return {re.split(r"[,;:(]", meaning)[0].strip(" .") for meaning in self.meanings}


@cache
def options() -> dict[str, Option]:
    """Every option of every command, by its name."""
    found: dict[str, Option] = {}
    for who, name, kind, meaning in _all():
        option = found.setdefault(name, Option())
        option.kinds.add(kind)
        option.meanings.setdefault(meaning, []).append(who)
    return dict(sorted(found.items()))


def _all() -> Iterator[tuple[str, str, str, str]]:
    """Who has an option, its name, the kind of its values and its help, for each that anyone has."""
    for part in (Training, LabOptions):
        yield from _parsed(EVERYWHERE, part)
    for method in catalog.METHODS:
        if method.room:
            room = catalog.load(method.name)
            for value in room.tasks if room.choice == "task" else (None,):
                yield from _of_command(method.name, room.recipe, room.chosen(value))
    for task in SUPERVISED:
        yield from _of_command("compare", compare.Compare, setting_of(task, compare.Compare))
    for task in TAUGHT:
        yield from _of_command("cache", cache_command.cache, setting_of(task, cache_command.cache, student=False))
    yield from _parsed("tune", tune.Tune)
    yield from _of_command("cache-labels", cache_labels.cache_labels, cache_labels.SETTING)


def _of_command(who: str, own: Callable[..., Any], setting: Setting) -> Iterator[tuple[str, str, str, str]]:
    yield from _parsed(who, own, {"lab", "data", "plan", "networks"})
    yield from _parsed(who, setting.data, set(setting.unused))
    if setting.networks is not None:
        yield from _parsed(who, type(setting.networks), set(setting.without))


def _parsed(who: str, part: Callable[..., Any], skip: set[str] | None = None) -> Iterator[tuple[str, str, str, str]]:
    parser = jsonargparse.ArgumentParser(default_env=False)
    add = parser.add_class_arguments if isinstance(part, type) else parser.add_function_arguments
    add(part, skip=skip or set())
    for action in parser._actions:
        if action.dest != "help":
            yield who, action.dest.rstrip("_"), _kind(getattr(action, "_typehint", None) or action.type), " ".join(str(action.help).split())


def _kind(annotation: Any) -> str:
    written = re.sub(r"<class '(\w+)'>|typing\.", r"\1", str(annotation))
    return re.sub(r"Optional\[(.*)\]|(.*) \| None", r"\1\2", re.sub(r"Literal\[.*?\]", "Literal", written))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its table."""
    return markdown.replace(PLACE, _table()) if PLACE in markdown else markdown


def _table() -> str:
    rows = ["| option | what it says | who has it |", "|---|---|---|"]
    for name, option in options().items():
        for number, (meaning, who) in enumerate(option.meanings.items()):
            shown = f"`--{name.replace('_', '-')}`" if not number else ""
            told = re.sub(r"``(.*?)``", r"`\1`", meaning).replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| {shown} | {told} | {', '.join(dict.fromkeys(who))} |")
    return "\n".join(rows)
