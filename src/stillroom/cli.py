"""The command line: list, run. Thin: parses, calls, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from stillroom import catalog
from stillroom._version import __version__
from stillroom.errors import InputError, StillroomError, near

if TYPE_CHECKING:
    import jsonargparse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for wrong input, 3 for a loss that is not finite, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, rest = _command(arguments)
        if command == "list":
            _list()
        else:
            _run(rest, "stillroom " + shlex.join(arguments))
    except StillroomError as error:
        print(f"stillroom: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stillroom: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


class UsageError(StillroomError):
    """What the argument parser says about the command line, in one line."""

    exit_code = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    parser = _Parser(prog="stillroom", description="Knowledge distillation on PyTorch, paper by paper.")
    parser.add_argument("--version", action="version", version=f"stillroom {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the methods: paper, task, what was verified")
    run = commands.add_parser("run", help="a method's whole experiment: teacher, student alone, student distilled, report", add_help=False)
    run.add_argument("rest", nargs=argparse.REMAINDER)
    if arguments[:1] == ["run"]:
        return "run", arguments[1:]
    return parser.parse_args(arguments).command, []


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "paper", "task", "verified against"):
        table.add_column(column, overflow="fold")
    for method in catalog.METHODS:
        table.add_row(method.name, method.paper, method.task, method.verified or "[dim]planned[/dim]", style=None if method.room else "dim")
    Console().print(table)


def _run(arguments: list[str], command: str) -> None:
    built = ", ".join(method.name for method in catalog.METHODS if method.room)
    if not arguments:
        raise InputError("METHOD", "nothing", f"one of {built}")
    if arguments[0] in ("-h", "--help"):
        print(f"usage: stillroom run METHOD [options]\n\nMETHOD is one of {built}.")
        print("`stillroom run METHOD --help` shows the options of a method.")
        return
    method, options = arguments[0], [_underscored(argument) for argument in arguments[1:]]
    catalog.find(method)
    room = catalog.load(method)
    parser, kinds = _parser(method, room, options)
    values = _parse(method, parser, options)
    names = set(values)
    out = Path(values["out"] or f"runs/{method}")
    values["out"] = str(out)
    parts = {name: {field: values.pop(field) for field in fields} for name, fields in kinds.items()}
    values.pop("config", None)
    values.pop("preset", None)
    parts["lab"]["out"] = out
    try:
        _go(room, parts, values, command)
    except InputError as error:
        if error.argument not in names:
            raise
        raise InputError(f"--{error.argument.replace('_', '-')}", error.got, error.expected) from error


def _go(room: ModuleType, parts: dict[str, dict[str, Any]], values: dict[str, Any], command: str) -> None:
    from stillroom.engine import LabOptions, Training, run_seeds

    hints = get_type_hints(room.recipe)
    options = LabOptions(**parts["lab"])
    plan = Training(**parts["plan"])
    settings = {name: value for part in (*parts.values(), values) for name, value in part.items()}
    data = hints["data"](**parts["data"])
    run_seeds(room.recipe, options, data, {"plan": plan, **values}, command=command, settings=settings)


def _parser(method: str, room: ModuleType, options: list[str]) -> tuple[jsonargparse.ArgumentParser, dict[str, list[str]]]:
    """The method's parser, and which option belongs to the lab, the data and the training plan; the rest are the recipe's own."""
    import inspect
    from dataclasses import asdict

    import jsonargparse

    from stillroom.engine import LabOptions, Training

    class Help(jsonargparse.DefaultHelpFormatter):
        """Shows options with dashes, as people type them."""

        def _format_action_invocation(self, action: argparse.Action) -> str:
            return _dashed(super()._format_action_invocation(action))

    hints, defaults = get_type_hints(room.recipe), inspect.signature(room.recipe).parameters
    summary = (inspect.getdoc(room.recipe) or "").splitlines()[0]
    parser = jsonargparse.ArgumentParser(
        prog=f"stillroom run {method}",
        usage=f"stillroom run {method} [options]",
        description=summary,
        formatter_class=Help,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options; --print_config writes one")
    presets = ["default", *room.PRESETS]
    parser.add_argument("--preset", default="default", help=f"one of {', '.join(presets)}; options beside it override it")
    parser.add_function_arguments(room.recipe, skip={"lab", "data", "plan"}, as_group=True)
    kinds: dict[str, list[str]] = {}
    for name, kind in (("data", hints["data"]), ("plan", Training), ("lab", LabOptions)):
        kinds[name] = list(parser.add_class_arguments(kind, None, as_group=True))
    parser.set_defaults(asdict(defaults["plan"].default))
    chosen = _preset(options)
    if chosen != "default":
        if chosen not in room.PRESETS:
            raise InputError("--preset", chosen, f"one of {', '.join(presets)}")
        parser.set_defaults(dict(room.PRESETS[chosen]))
    return parser, kinds


def _parse(method: str, parser: jsonargparse.ArgumentParser, options: list[str]) -> dict[str, Any]:
    import jsonargparse

    flags = {f"--{name}" for name, default in parser.get_defaults().as_dict().items() if isinstance(default, bool)}
    bare = [option in flags and after.startswith("--") for option, after in zip(options, [*options[1:], "--"], strict=True)]
    options = [f"{option}=true" if flag else option for option, flag in zip(options, bare, strict=True)]
    try:
        values: dict[str, Any] = parser.parse_args(options).as_dict()
    except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, StillroomError):
            raise
        message = " ".join(str(getattr(error, "message", None) or error).split())
        raise _explained(method, parser, message) from None
    return values


_WORDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "tuple": "a list of numbers such as [0.5, 0.75]",
    "NoneType": "null",
}


def _explained(method: str, parser: jsonargparse.ArgumentParser, complaint: str) -> StillroomError:
    """The parser's complaint in our words: the option as people type it, what came, what was expected."""
    unknown = re.match(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", complaint)
    if unknown:
        known = parser.get_defaults().as_dict()
        name = unknown.group(1) or f"--{unknown.group(2)}"
        close = near(name.partition("=")[0].removeprefix("--"), known).split(", ")
        suggestions = _dashed(", ".join(f"--{option}" for option in close))
        return InputError("options", _dashed(name), f"one that `stillroom run {method} --help` shows, such as {suggestions}")
    value = re.match(r'Parser key "([\w.]+)": *(.*)', complaint)
    if value is None:
        return UsageError(_dashed(complaint))
    option, reason = f"--{value.group(1).replace('_', '-')}", value.group(2)
    got = re.search(r"(?:Got|Given) value: (.*)$", reason)
    choices = re.search(r"Literal\[(.*?)\]", reason)
    kinds = re.findall(r"<class '(\w+)'>", reason.partition("Given value type")[0])
    words = [_WORDS[kind] for kind in dict.fromkeys(kinds) if kind in _WORDS]
    if got is None or not (choices or words):
        return UsageError(f"{option}: {reason}")
    return InputError(option, got.group(1), "one of " + choices.group(1).replace("'", "") if choices else " or ".join(words))


def _underscored(argument: str) -> str:
    """`--num-nodes=2` as `--num_nodes=2`: jsonargparse knows the names of Python's parameters."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _dashed(text: str) -> str:
    return re.sub(r"--[a-z_]+", lambda match: match.group().replace("_", "-"), text)


def _preset(options: list[str]) -> str:
    """The preset that the command line names, or else the configuration file."""
    chosen, config = _last(options, "--preset"), _last(options, "--config")
    if chosen is None and config is not None and Path(config).is_file():
        import yaml  # type: ignore[import-untyped]

        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # the parser says what is wrong with the file
            loaded = yaml.safe_load(Path(config).read_text())
            chosen = loaded.get("preset") if isinstance(loaded, dict) else None
    return "default" if chosen is None else str(chosen)


def _last(options: list[str], name: str) -> str | None:
    found = None
    for option, after in zip(options, [*options[1:], None], strict=True):
        if option == name:
            found = after
        elif option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found


if __name__ == "__main__":
    sys.exit(main())
