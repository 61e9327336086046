"""Options of the commands that run experiments: those of the data, the training plan and the lab, and the command's own, all flat."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.commands.parser import UsageError
from stillroom.errors import InputError, StillroomError, near, one_of

if TYPE_CHECKING:
    import jsonargparse

    from stillroom.engine import LabOptions
    from stillroom.engine.room import Setting


@dataclass(frozen=True)
class Options:
    """What was typed, with defaults, preset and configuration file: option by option, under the names of Python's parameters.

    Args:
        data, plan, lab, networks: arguments of the data's class, of `Training`, of `LabOptions` and of the setting's networks.
        own: the command's other arguments.
        preset: the one that was chosen.
        setting: what the command starts from.
        is_default_job: whether neither data nor a preset were named.
    """

    data: dict[str, Any]
    plan: dict[str, Any]
    lab: dict[str, Any]
    networks: dict[str, Any]
    own: dict[str, Any]
    preset: str
    setting: Setting
    is_default_job: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, flat."""
        return {**self.data, **self.plan, **self.lab, **self.networks, **self.own}

    def made_data(self) -> Any:
        """The data."""
        return self.setting.data(**self.data)

    def made_lab(self, alone: str = "") -> LabOptions:
        """Where and how to run.

        Args:
            alone: how the command is meant, where a single process runs it once.

        Raises:
            InputError: an option that cannot be used, or several of what there can be one of.
        """
        from stillroom.engine import LabOptions

        made = LabOptions(**{**self.lab, "out": Path(self.lab["out"])})
        for option in ("devices", "num_nodes", "seeds") if alone else ():
            if getattr(made, option) != 1:
                raise InputError(option, getattr(made, option), f"1: {alone}")
        return made

    def trained_by(self) -> dict[str, Any]:
        """The arguments `plan` and, where there are such, `networks` of a recipe."""
        from stillroom.engine import Training

        found: dict[str, Any] = {"plan": Training(**self.plan)}
        if self.setting.networks is not None:
            found["networks"] = replace(self.setting.networks, **self.networks)
        return found


def read_options(
    prog: str,
    own: Callable[..., Any],
    arguments: list[str],
    *,
    setting: Setting,
    out: str,
    more: type[Any] | None = None,
) -> Options:
    """Parses a command line; prints and leaves for `--help` and `--print_config`.

    Args:
        prog: what was typed before the options, e.g. ``stillroom run kd``.
        own: a function or a dataclass whose parameters, besides `lab`, `data`, `plan` and `networks`, are the command's own options.
        arguments: the options, with dashes or underscores.
        setting: the data's class, the defaults and the presets; its small job is what is run where neither data nor a preset are named.
        out: the run's folder by default; with a number behind it where that holds a run with other arguments.
        more: a dataclass whose parameters are options besides those of `own`: of a command that runs a method's recipe in its own way.

    Raises:
        InputError, UsageError: an option that there is not, or a value that it cannot have.
    """
    from stillroom.engine.run.options import started_by_torchrun
    from stillroom.engine.training import with_fitting_warmup

    arguments = [_OLD_NAME.sub("--trust_code", _underscored(argument)) for argument in arguments]
    folder = early(arguments, "out")
    extended = early(arguments, "extend")
    if (before := early(arguments, "continue_from")) is not None and not (Path(before) / "config.yaml").is_file():
        raise InputError("--continue-from", before, "the folder of a finished run, which holds config.yaml")
    if before is None and extended is not None and _of_command(Path(extended), prog):
        before = extended
    if before is not None:
        arguments = [f"--config={_settings_of(Path(before), arguments, setting)}", f"--out={folder or out}", *arguments]
    preset = early(arguments, "preset") or "default"
    small = preset == "default" and all(early(arguments, option) is None for option in ("data", "images", "target", "source"))
    parser, kinds = _parser(prog, own, setting, Path(out), preset, setting.default if small else {}, more)
    values = _parse(prog, parser, arguments)
    values["out"] = str(Path(folder or out).expanduser())
    if early(arguments, "devices") is None and early(arguments, "num_nodes") is None:
        values |= started_by_torchrun()
    parts = {name: {field: values.pop(field) for field in fields} for name, fields in kinds.items()}
    if early(arguments, "warmup_epochs") is None:
        parts["plan"] = with_fitting_warmup(parts["plan"], parser.get_defaults()["epochs"])
    for name in ("config", "preset"):
        del values[name]
    made = Options(**parts, own=values, preset=preset, setting=setting, is_default_job=small)
    if folder is None and not made.lab["overwrite"]:
        made.lab["out"] = _default_folder(out, made.settings)
    return made


_OLD_NAME = re.compile(r"^--trust_pickle(?=$|=)")


def _settings_of(run: Path, arguments: list[str], setting: Setting) -> str:
    """The options that a run was started with, as YAML; whoever reads them says for himself whether he trusts them.

    Raises:
        InputError: they cannot be read, or name code and are not trusted.
    """
    import yaml  # type: ignore[import-untyped]

    from stillroom.engine.run.folder import read_settings
    from stillroom.engine.specification import refuse_code
    from stillroom.tasks.images.classified import KINDS

    file = run / "config.yaml"
    if (found := read_settings(file)) is None:
        raise InputError("--continue-from", str(file), "the options of a finished run, in YAML")
    kept = {name: value for name, value in found.items() if name not in ("trust_code", "trust_pickle")}
    trust = "--trust_code" in arguments or early(arguments, "trust_code") is not None
    if not trust or str(early(arguments, "trust_code")).lower() == "false":
        typed = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
        untyped = {name: value for name, value in kept.items() if name not in typed}
        kinds = {*setting.data.task.kinds, *(kind.name for kind in KINDS)}
        refuse_code(untyped, file, kinds, argument="--continue-from")
    return str(yaml.safe_dump(kept, sort_keys=False))


def _renamed(config: str) -> str:
    """A configuration file; where an option has its old name in it, what it says under the new one.

    Raises:
        UsageError: what it says is no configuration.
    """
    if not _is_file(config):
        return config
    try:
        _read(config)
    except ValueError as error:
        raise UsageError(f"--config: expected a YAML file of options ({config}: {error})") from None
    except OSError:  # the parser says it
        return config
    text, old = re.subn(r"(?m)^trust_pickle(?= *:)", "trust_code", Path(config).read_text(encoding="utf-8"))
    return text if old else config


def _read(config: str) -> Any:
    """What a configuration says, which is a file's name or the text itself."""
    from stillroom.engine.plain import plain_yaml, read_yaml

    return read_yaml(Path(config)) if _is_file(config) else plain_yaml(config)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no name of a file
        return False


def _of_command(run: Path, prog: str) -> bool:
    """Whether a folder is that of a finished run of this very command, whose settings are its options."""
    try:
        method = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(prog.split()[-1] == method) and (run / "config.yaml").is_file()


def _default_folder(out: str, settings: Mapping[str, Any]) -> str:
    """Where a run goes that was given no folder; says so where the usual one holds another run."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from stillroom.engine.run.console import console
    from stillroom.engine.run.folder import numbered

    found = str(numbered(Path(out), settings))
    if found != out and not getattr(rank_zero_only, "rank", 0):
        console.print(f"{out} holds something else, so this run is in {found}", markup=False)
    return found


def check_object(prog: str, function: Callable[..., Any], skip: set[str], values: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Arguments of a function that are typed as one mapping: checked and converted by the function's annotations, defaults left out.

    Args:
        prog: what was typed, e.g. ``stillroom compare``.
        function: whose arguments they are.
        skip: its parameters that cannot be typed.
        values: the mapping.
        option: whose value the mapping is, for the messages.

    Raises:
        InputError, UsageError: an argument that there is not, or a value that it cannot have.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_function_arguments(function, skip=set(skip))
    with _explaining(prog, parser, f"{option}."):
        checked = parser.parse_object(dict(values)).as_dict()
    return {name: value for name, value in checked.items() if name in values}


def _parser(
    prog: str,
    own: Callable[..., Any],
    setting: Setting,
    out: Path,
    preset: str,
    default: Mapping[str, Any],
    more: type[Any] | None = None,
) -> tuple[jsonargparse.ArgumentParser, dict[str, list[str]]]:
    """The parser, and which option belongs to the networks, the data, the training plan and the lab; the rest are the command's own."""
    import inspect

    import jsonargparse

    from stillroom.engine import LabOptions, Training

    class Help(jsonargparse.DefaultHelpFormatter):
        """Shows options with dashes, as people type them, and no marks of the docstrings that the help is taken from."""

        def _expand_help(self, action: argparse.Action) -> str:
            return str(super()._expand_help(action)).replace("``", "")

        def _format_action_invocation(self, action: argparse.Action) -> str:
            return _dashed(super()._format_action_invocation(action))

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description="\n\n".join(filter(None, [(inspect.getdoc(more or own) or "").splitlines()[0], setting.expect])),
        formatter_class=Help,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options; --print_config writes one")
    names = ["default", *setting.presets]
    parser.add_argument("--preset", default="default", help=f"one of {', '.join(names)}; options beside it override it")
    if more is not None:
        parser.add_class_arguments(more, None, as_group=True)
    if inspect.isclass(own):
        parser.add_class_arguments(own, None, as_group=True)
    else:
        parser.add_function_arguments(own, skip={"lab", "data", "plan", "networks"}, as_group=True)
    kinds: dict[str, list[str]] = {"networks": []}
    defaults = {**asdict(setting.plan), "out": out}
    if setting.networks is not None:
        kinds["networks"] = list(parser.add_class_arguments(type(setting.networks), None, as_group=True, skip=set(setting.without)))
        defaults |= {name: getattr(setting.networks, name) for name in kinds["networks"]}
    for name, kind, skip in (("data", setting.data, setting.unused), ("plan", Training, ()), ("lab", LabOptions, ())):
        kinds[name] = list(parser.add_class_arguments(kind, None, as_group=True, skip=set(skip)))
    parser.set_defaults({**defaults, **default})
    if preset != "default":
        parser.set_defaults(dict(setting.presets[one_of("--preset", preset, names)]))
    return parser, kinds


def _parse(prog: str, parser: jsonargparse.ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    flags = {f"--{name}" for name, default in parser.get_defaults().as_dict().items() if isinstance(default, bool)}
    bare = [option in flags and after.startswith("--") for option, after in pairwise([*arguments, "--"])]
    arguments = [f"{option}=true" if flag else option for option, flag in zip(arguments, bare, strict=True)]
    named = [option == "--config" for option in ("", *arguments)]
    arguments = [
        f"--config={_renamed(option[9:])}" if option.startswith("--config=") else _renamed(option) if after else option
        for option, after in zip(arguments, named, strict=False)
    ]
    with _explaining(prog, parser):
        return dict(parser.parse_args(arguments).as_dict())


@contextlib.contextmanager
def _explaining(prog: str, parser: jsonargparse.ArgumentParser, prefix: str = "") -> Iterator[None]:
    """Says what the parser complains of in our words; `prefix` stands before the options' names where they are keys of a mapping."""
    import jsonargparse

    try:
        yield
    except StillroomError:
        raise
    except (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError, ValueError) as error:
        complaint = " ".join(str(getattr(error, "message", None) or error).split())
        raise _explained(prog, parser, complaint, prefix) from None


_WORDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "tuple": "a list of numbers such as [0.5, 0.75]",
    "NoneType": "null",
}


def _explained(prog: str, parser: jsonargparse.ArgumentParser, complaint: str, prefix: str) -> StillroomError:
    """The parser's complaint in our words: the option as people type it, what came, what was expected."""
    unknown = re.match(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", complaint)
    if unknown:
        known = parser.get_defaults().as_dict()
        name = unknown.group(1) or unknown.group(2)
        close = near(name.partition("=")[0].removeprefix("--"), known)
        if prefix:
            return InputError(prefix.rstrip("."), name, f"a mapping of options that it has, such as {close}")
        suggestions = ", ".join(f"--{option}" for option in close.split(", "))
        name = name if unknown.group(1) else f"--{name}"
        return InputError("options", _dashed(name), f"one that `{prog} --help` shows, such as {_dashed(suggestions)}")
    if unread := re.match(r"(?:Unexpected|Problems parsing) config: ?(.*)", complaint):
        return UsageError(f"--config: expected a YAML file of options ({unread.group(1) or 'there is nothing in it'})")
    value = re.match(r'Parser key "([\w.]+)": *(.*)', complaint)
    if value is None:
        return UsageError(_dashed(complaint))
    option, reason = prefix + value.group(1) if prefix else f"--{value.group(1).replace('_', '-')}", value.group(2)
    nested = re.search(r"NestedArg\(key='(.*?)', val='(.*)'\)", reason)
    if nested:
        return InputError(f"{option}.{nested.group(1)}", nested.group(2), "a mapping such as {name: value}")
    got = re.search(r".*(?:Got|Given) value: (.*)$", reason)  # the last: those before are of parts of the value
    choices = re.search(r"Literal\[(.*?)\]", reason)
    kinds = re.findall(r"<class '(\w+)'>", reason.partition("Given value type")[0])
    words = [_WORDS[kind] for kind in dict.fromkeys(kinds) if kind in _WORDS]
    if several := re.search(r"tuple\[(float(?:, float)+)\]", reason):
        words = [f"a list of {several.group(1).count('float')} numbers", *(["null"] if "NoneType" in kinds else [])]
    if got is None or not (choices or words):
        return UsageError(f"{option}: {reason}")
    return InputError(option, got.group(1), "one of " + choices.group(1).replace("'", "") if choices else " or ".join(words))


def _underscored(argument: str) -> str:
    """`--num-nodes=2` as `--num_nodes=2`: jsonargparse knows the names of Python's parameters. A key behind a dot stays as it is. What is a
    keyword of Python has an underscore behind it there: `--from` is `--from_`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    option, dot, key = name[2:].partition(".")
    option = f"{option}_" if iskeyword(option) else option.replace("-", "_")
    return "--" + option + dot + key + equals + value


def _dashed(text: str) -> str:
    return re.sub(r"--[a-z_]+", lambda match: f"--{match.group()[2:].rstrip('_').replace('_', '-')}", text)


def early(arguments: list[str], option: str) -> str | None:
    """What the command line gives an option, or else the configuration file, before a parser is made; None where neither does."""
    chosen, config = _last(arguments, f"--{option}"), _last(arguments, "--config")
    if chosen is None and config is not None:
        with contextlib.suppress(OSError, ValueError):  # the parser says what is wrong with it
            loaded = _read(config)
            chosen = loaded.get(option) if isinstance(loaded, dict) else None
    return None if chosen is None else str(chosen)


def _last(arguments: list[str], name: str) -> str | None:
    found = None
    for option, after in pairwise([*arguments, None]):
        if option == name:
            found = after
        elif option is not None and option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found
