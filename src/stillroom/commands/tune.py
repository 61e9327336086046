"""`stillroom tune METHOD`: a search for a method's options; the winner as a configuration, and its score on data that the search never saw.

Trials are scored by a held-out part of the training data. The validation set is asked once, about the winner and about the method as it was
before, both trained on all training data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from stillroom import catalog
from stillroom.commands.options import Options, early, read_options
from stillroom.commands.parser import named_as_typed
from stillroom.commands.rooms import room_of, short_name
from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Report, Training, run_seeds
from stillroom.engine.lab import Trained
from stillroom.engine.plain import read_yaml
from stillroom.engine.report.results import COMMON_METRICS, Metric
from stillroom.engine.room import Room
from stillroom.engine.run.console import console
from stillroom.engine.run.written import write_atomic
from stillroom.engine.study.page import importance_section, search_section, trials_section
from stillroom.engine.study.samplers import PRUNERS, SAMPLERS, make_pruner, make_sampler
from stillroom.engine.study.space import Choice, Float, Range, read_space, write_space
from stillroom.engine.study.storage import check_installed
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Finished, Trial
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, near, one_of

_FACTOR = 10.0  # how far, both ways, rates and weights are searched whose range nobody declared
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Tune:
    """Search a method's options, and score the winner on data that the search never saw.

    Args:
        budget: how long to search: ``50trials``, or a time such as ``30m``, ``2h`` or ``90s``.
        for_: the metric to search for; by default the one that decides in the task's reports.
        space: what is searched, besides or instead of the ranges that the method declares: a YAML file, or a mapping such as
            ``{lr: {low: 0.01, high: 0.5, log: true}, temperature: [1, 2, 4]}``; null takes an option out.
        sampler: what proposes: tpe, gp or random, of Optuna.
        pruner: what gives a trial up early, by its score after each epoch: none, median or hyperband, of Optuna.
        held_out: share of the training set that scores the trials.
        jobs: trainings at a time, each in a process of its own; they share the cores, and take turns on the GPUs.
        storage: where the study is kept: ``sqlite:///FILE``, another database's URL, or ``journal:FILE``; by default in the run's folder.
        study: what the study is called in the storage; by default as the run's folder.
    """

    budget: str = "20trials"
    for_: str | None = None
    space: dict[str, Any] | str | None = None
    sampler: str = "tpe"
    pruner: str = "none"
    held_out: float = 0.2
    jobs: int = 1
    storage: str | None = None
    study: str | None = None


def run(arguments: list[str], command: str) -> None:
    """Runs the command.

    Args:
        arguments: what follows `stillroom tune`.
        command: the whole line that was typed, for the report.

    Raises:
        InputError: wrong input; nothing was run.
    """
    if not arguments or arguments[0].startswith("-"):
        built = ", ".join(method.name for method in catalog.METHODS if method.room)
        if arguments[:1] in (["-h"], ["--help"]):
            print(f"usage: stillroom tune METHOD [options]\n\nMETHOD is one of {built}; or your own, file.py:Mine.")
            print("`stillroom tune METHOD --help` shows the options of the search and of a method.")
            return
        raise InputError("METHOD", arguments[0] if arguments else "nothing", f"one of {built}, before the options")
    check_installed()
    method, options = arguments[0], arguments[1:]
    room = room_of(method, "method")
    if room.build is None and method != "supervised":
        raise InputError("METHOD", method, f"a method that trains any student by any teacher: {method} {room.reason}")
    setting = replace(room.chosen(early(options, room.choice) if room.choice else None), expect="")  # which is said of another job
    given = read_options(
        f"stillroom tune {method}", room.recipe, options, setting=setting, out=f"runs/tune-{short_name(method)}", more=Tune
    )
    with named_as_typed(*given.settings):
        _tune(method, room, given, command)


def _tune(method: str, room: Room, given: Options, command: str) -> None:
    names = {one.name for one in fields(Tune)}
    asked = Tune(**{name: value for name, value in given.own.items() if name in names})
    own = {name: value for name, value in given.own.items() if name not in names}
    lab = given.made_lab()
    if lab.devices * lab.num_nodes > 1:
        raise InputError("devices", lab.devices, "1: a search has --jobs, each of which trains on one device")
    bench = Bench(method, replace(lab, out=Path(given.lab["out"]) / "search"), replace(given, own=own), asked)
    data = bench.data
    room.check_data(data)
    study = bench.study()
    if asked.storage is not None:
        study.begin()
    told: list[Finished] = []

    def recipe(lab: Lab, data: Any) -> Report:
        """For one seed; the search is made before the first."""
        if not told:
            lab.begin()
            write_atomic(lab.folder / "space.yaml", yaml.safe_dump(write_space(study.space), sort_keys=False))
            bench.teach()
            told.extend(study.run(bench, jobs=asked.jobs, metric=bench.metric))
        return _final(lab, bench, study, told)

    notes = _notes(bench, study)
    console.print(f"searches {len(study.space)} options: {_searched(study)}", markup=False)
    run_seeds(recipe, lab, data, {}, command=command, settings=given.settings, notes=notes)
    winner = Path(given.lab["out"]) / "winner" / "config.yaml"
    console.print(f"the winner: stillroom run {method} --config {winner}", markup=False)


@dataclass
class Bench:
    """Where trials are trained: the objective of the study, which can be sent to other processes.

    Args:
        method: as typed.
        lab: where and how to run trials, in a folder of their own.
        options: what was typed, without the search's own.
        asked: these.
    """

    method: str
    lab: LabOptions
    options: Options
    asked: Tune
    _taught: Trained | None = field(default=None, init=False)

    @cached_property
    def room(self) -> Room:
        """The method's."""
        return room_of(self.method, "method")

    @cached_property
    def data(self) -> Any:
        """The data as they were asked for."""
        return self.options.made_data()

    @cached_property
    def held(self) -> Any:
        """The training data in two parts; the validation set is in neither."""
        if not hasattr(self.data, "holding_out"):
            raise InputError("method", self.method, "one whose data can be held out")
        return self.data.holding_out(self.asked.held_out)

    @cached_property
    def metric(self) -> str:
        """What is searched for."""
        return self.asked.for_ or str(self.data.evaluator().primary)

    @property
    def format(self) -> Metric:
        """How that is written."""
        return {**COMMON_METRICS, **self.data.task.metric_formats}.get(self.metric) or Metric(self.metric)

    @property
    def maximise(self) -> bool:
        """Whether more of it is better.

        Raises:
            InputError: neither more nor less is.
        """
        scores = self.data.evaluator()
        if self.metric == scores.primary:
            return bool(scores.higher_is_better)
        known = {**COMMON_METRICS, **self.data.task.metric_formats}
        better = {name: one.higher_is_better for name, one in known.items() if one.higher_is_better is not None}
        if self.metric not in better:
            raise InputError("for_", self.metric, f"a metric of the data, such as {near(self.metric, {scores.primary: 1, **better})}")
        return bool(better[self.metric])

    @property
    def method_options(self) -> dict[str, Any]:
        """Of the method's distiller, as they were typed or are by default."""
        return {name: self.options.own.get(name, default) for name, default in self.room.options.items()}

    def space(self) -> dict[str, Range]:
        """What is searched: what the method declares or, where it does not, a factor of ten around its weights; and the rates.

        Raises:
            InputError: an option that there is not, or nothing at all to search.
        """
        plan = self.options.plan
        found: dict[str, Range] = {name: _around(plan[name]) for name in ("lr", "weight_decay") if plan[name]}
        found |= self.room.space or {
            name: _around(value) for name, value in self.method_options.items() if name.endswith("_weight") and value
        }
        given = self.asked.space or {}
        if isinstance(given, str):
            given = _loaded(given)
        found = {name: one for name, one in {**found, **read_space(given)}.items() if name not in given or given[name] is not None}
        known = {"batch_size", *self.options.plan, *self.method_options}
        for name in found:
            if name not in known:
                raise InputError("space", name, f"options of {self.method} and its training, such as {near(name, known)}")
        if not found:
            raise InputError("space", "nothing to search", "at least one option")
        return found

    def study(self) -> Study:
        """The search.

        Raises:
            InputError: a budget, metric, space, sampler or pruner that cannot be used.
        """
        one_of("sampler", self.asked.sampler, SAMPLERS)
        one_of("pruner", self.asked.pruner, PRUNERS)
        trials, seconds = read_budget(self.asked.budget)
        run = Path(self.lab.out or "").parent
        described = {"method": self.method, "data": self.held.fingerprint, "metric": self.metric, "sampler": self.asked.sampler}
        described |= {"pruner": self.asked.pruner, **self.options.networks, **self.options.plan, **self.method_options}
        return Study(
            run,
            self.asked.study or run.name,
            self.space(),
            partial(make_sampler, self.asked.sampler, parallel=self.asked.jobs > 1),
            trials=trials,
            seconds=seconds,
            storage=self.asked.storage,
            seed=self.lab.seed,
            pruner=partial(make_pruner, self.asked.pruner),
            maximise=self.maximise,
            described={name: value for name, value in described.items() if name not in self.space()},
        )

    def teach(self) -> None:
        """Tries everything once, then trains the teacher of all trials on the data that they learn from, or reads it."""
        experiment = self._experiment(Lab(self.lab, settings=self.lab_settings))
        if self.method == "supervised":
            experiment.rehearse(lambda student, _: experiment.task.supervised(student))
        else:
            experiment.rehearse(partial(self.distiller, {}, self.held))
            self._taught = experiment.teacher()
        self.lab = replace(self.lab, overwrite=False)

    @property
    def lab_settings(self) -> dict[str, Any]:
        """What the trials' folder must have been begun with."""
        return {name: value for name, value in self.options.settings.items() if name not in ("out", "seeds")}

    def plan(self, params: Mapping[str, Any]) -> Training:
        """The training plan with what was proposed."""
        return Training(**{**self.options.plan, **{name: value for name, value in params.items() if name in self.options.plan}})

    def distiller(self, params: Mapping[str, Any], data: Any, student: Any, teacher: Any) -> Distiller:
        """The method's, with what was proposed."""
        if self.room.build is None:
            plain: Distiller = data.task.supervised(student)
            return plain
        chosen = {name: value for name, value in params.items() if name in self.method_options}
        return self.room.build(student, teacher, data, **{**self.method_options, **chosen})

    def trained(self, lab: Lab, data: Any, params: Mapping[str, Any], name: str, taught: Trained | None) -> Trained:
        """The student under what was proposed."""
        data = data.in_batches_of(params.get("batch_size", data.batch_size))
        experiment = self._experiment(lab, data, self.plan(params), taught)
        if self.room.build is None:
            return experiment.trained(name, data.task.supervised)
        return experiment.distilled(name, partial(self.distiller, params, data))

    def __call__(self, trial: Trial) -> float:
        """What the student reaches on held-out images after its last epoch."""
        if self._taught is None and self.room.build is not None:
            self._taught = self._experiment(Lab(self.lab, settings=self.lab_settings, quiet=True)).teacher()

        def after_epoch(line: dict[str, float]) -> None:
            if f"val/{self.metric}" not in line:
                known = [name.removeprefix("val/") for name in line if name.startswith("val/")]
                raise InputError("for_", self.metric, f"a metric of the data: {', '.join(known)}")
            trial.report(line[f"val/{self.metric}"], int(line["epoch"]))

        lab = Lab(self.lab, settings=self.lab_settings, quiet=True, after_epoch=after_epoch)
        stage = f"trials/{trial.number}"
        trained = self.trained(lab, self.held, trial.params, stage, self._taught)
        lab.drop(stage)
        return trained.result.metrics[self.metric]

    def _experiment(self, lab: Lab, data: Any = None, plan: Training | None = None, taught: Trained | None = None) -> Experiment:
        usual = self.options.trained_by()
        data = self.held if data is None else data
        networks = usual.get("networks") or data.task.networks
        return Experiment(lab, data, plan or usual["plan"], networks, taught=taught)

    def __getstate__(self) -> dict[str, Any]:
        """Without data and networks, which the other process reads for itself."""
        return {**{name: value for name, value in vars(self).items() if name not in ("data", "held", "room")}, "_taught": None}


def read_budget(budget: str) -> tuple[int | None, float | None]:
    """So many trials, or so many seconds.

    Raises:
        InputError: neither.
    """
    match = re.fullmatch(r"(\d+)\s*(trials?)?|(\d+(?:\.\d+)?)\s*([smh])", budget.strip())
    if match is None or not float(match[1] or match[3]):
        raise InputError("budget", budget, "50trials, or a time such as 30m, 2h or 90s")
    return (int(match[1]), None) if match[1] else (None, float(match[3]) * _SECONDS[match[4]])


def _final(lab: Lab, bench: Bench, study: Study, trials: list[Finished]) -> Report:
    """The winner, and the method as it was, trained on all training data and judged by the validation set."""
    winner = study.best
    experiment = bench._experiment(lab, bench.data)
    stages: dict[str, Trained] = {}
    taught = None
    if bench.room.build is not None:
        stages["teacher"] = taught = experiment.teacher()
        stages["alone"] = experiment.alone()
    stages["default"] = bench.trained(lab, bench.data, {}, "default", taught)
    stages["tuned"] = bench.trained(lab, bench.data, winner.params, f"tuned-{winner.number}", taught)
    _write_winner(lab.folder, bench, study, taught)
    report = lab.report("tune", bench.data, stages, baseline="default", ship="tuned")
    report.title = f"{short_name(bench.method)}, tuned"
    report.method_sections = [search_section({study.name: trials}, bench.format, higher_is_better=study.maximise)]
    if (importance := importance_section(study)) is not None:
        report.method_sections.append(importance)
    report.method_sections.append(trials_section("Trials", trials, bench.format, higher_is_better=study.maximise))
    proposed = ", ".join(f"{name} {_value(value)}" for name, value in winner.params.items())
    spent = sum(trial.seconds for trial in trials)
    counts = ", ".join(
        f"{count} {word}"
        for state, word in (("pruned", "given up early"), ("failed", "failed"))
        if (count := sum(t.state == state for t in trials))
    )
    report.notes.append(
        f"The winner is trial {winner.number} of {len(trials)}{f' ({counts})' if counts else ''}: {proposed}; {bench.format.label} "
        f"{bench.format.number(winner.score or 0.0)} on held-out images, which flatters it: it is the best of many. The trials took "
        f"{spent:.0f} s in all. winner/config.yaml has it, for `stillroom run --config`."
    )
    return report


def _notes(bench: Bench, study: Study) -> list[str]:
    return [
        f"The search scored trials on {bench.asked.held_out:.0%} of the training images, which they did not learn from; the validation set "
        f"took no part in it. Here default and tuned are trained on all training images. Searched: {_searched(study)}."
    ]


def _searched(study: Study) -> str:
    return ", ".join(f"{name} {_shown(one)}" for name, one in study.space.items())


def _write_winner(folder: Path, bench: Bench, study: Study, taught: Trained | None) -> None:
    """`winner/config.yaml`: every option of `stillroom run METHOD` that says what is trained, with the winner's values.

    A teacher that was trained here is the one that is meant: another would be trained by the winner's rates, which are the student's. One
    that was warned of and searched with all the same is accepted there, too.
    """
    given = bench.options
    values = {**given.data, **given.plan, **given.networks, **given.own, "seed": given.lab["seed"], **study.best.params}
    if taught is not None and taught.result.epochs:
        values["teacher"] = str(taught.folder.resolve())
        values["accept_teacher"] = bool(values.get("accept_teacher")) or any(note.startswith(WARNING) for note in taught.notes)
    text = yaml.safe_dump({name: _plain(value) for name, value in values.items()}, sort_keys=False)
    write_atomic(folder / "winner" / "config.yaml", text)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def _around(value: float) -> Float:
    return Float(value / _FACTOR, value * _FACTOR, log=True)


def _loaded(path: str) -> dict[str, Any]:
    read_space(path)  # says what is wrong with it
    loaded: dict[str, Any] = read_yaml(Path(path))
    return loaded


def _shown(one: Range) -> str:
    if isinstance(one, Choice):
        return f"of {', '.join(map(str, one.values))}"
    return f"{one.low:.3g} to {one.high:.3g}{' (log)' if one.log else ''}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
