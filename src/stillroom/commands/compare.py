"""`stillroom compare`: several methods on equal terms - one teacher, the same students, data and budget - and one report of them all.

A word names an arm: a method (`kd`), a method with the method whose losses it trains (`dot:dkd`), or either under a name of its own
(`soft=kd`), so that one method can be compared with itself under other options; a method of one's own is `file.py:Mine`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import nn

from stillroom import catalog
from stillroom.commands.options import Options, check_object, early, read_options
from stillroom.commands.parser import named_as_typed
from stillroom.commands.rooms import is_own, room_of, short_name
from stillroom.engine import Distiller, Experiment, Lab, LabOptions, TaskData, Teacher
from stillroom.engine.distributed import go_alone
from stillroom.engine.lab import Trained
from stillroom.engine.report.files import publish
from stillroom.engine.report.results import StageResult
from stillroom.engine.room import BUILT_FROM, Room, setting_of
from stillroom.engine.run.comparison import Outcomes, Piece, merge, run_at_once, run_here
from stillroom.engine.run.console import console
from stillroom.engine.run.feed import selects
from stillroom.engine.run.measure import now
from stillroom.engine.run.pool import Outcome, reason_of
from stillroom.engine.task import SUPERVISED, first_lines
from stillroom.errors import InputError, StillroomError, at_least, near

PROG = "stillroom compare"
_ALONE, _TEACHER = "alone", "teacher"


@dataclass(frozen=True)
class Compare:
    """Compare methods on equal terms: same teacher, initial students, data and budget.

    Args:
        methods: what to compare, also typed before all options: ``kd``, ``dot:dkd`` (DOT with DKD's losses), ``soft=kd`` (KD under another
            name), ``file.py:Mine`` (a Room or a Distiller of your own). The first is the one that the others are compared with, besides the
            student alone.
        options: of single methods, where they differ from their defaults: ``--options.kd '{temperature: 2}'``, or of several at once:
            ``--options '{kd: {temperature: 2}}'``.
        jobs: trainings at a time, each in a process of its own; they share the cores, and take turns on the GPUs.
    """

    methods: list[str] | None = None
    options: dict[str, dict[str, Any]] | None = None
    jobs: int = 1


@dataclass(frozen=True)
class Arm:
    """A method as it is compared.

    Args:
        name: in the report.
        method: as typed: in the catalog, or one's own.
        options: arguments of its room's `build`.
        stage: name of its stage; another one for other options, so that what was trained with the old ones stays.
        typed: what differs from the defaults, for the report.
    """

    name: str
    method: str
    options: dict[str, Any]
    stage: str
    typed: dict[str, Any]

    @property
    def task(self) -> str:
        """What it works on; a method that trains another's losses: what that one works on."""
        return room_of(self.options.get("host", self.method), "METHODS").tasks[0]

    def distiller(self, student: nn.Module, teacher: Teacher, data: TaskData) -> Distiller:
        """The method's distiller around a fresh student.

        Raises:
            InputError: an option that does not suit the networks or the data, or a method that is compared with none.
        """
        room = room_of(self.method, "METHODS")
        if room.build is None:
            raise InputError("METHODS", self.method, f"a method that trains any student by any teacher: {self.method} {room.reason}")
        room.check_data(data)
        return room.build(student, teacher, data, **self.options)


def run(arguments: list[str], command: str) -> None:
    """Runs the command.

    Args:
        arguments: what was typed after `stillroom compare`.
        command: all that was typed, for the report.

    Raises:
        InputError: wrong input; nothing was run.
        StillroomError: no method succeeded.
        Interrupted: asked to end; everything that was trained is saved.
    """
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    given = [f"--methods={json.dumps(words)}"] if words else []
    setting = setting_of(_task(words, arguments), Compare)
    if setting.default:
        setting = replace(setting, default={**setting.default, "seeds": 3})
    options = read_options(PROG, Compare, [*given, *arguments[len(words) :]], setting=setting, out="runs/compare")
    with named_as_typed(*options.settings):
        _compare(options, command)


def _compare(options: Options, command: str) -> None:
    started = now()
    asked = Compare(**options.own)
    arms = arms_of(asked.methods or [], asked.options or {}, None if options.is_default_job else options.preset)
    for arm in arms:
        if arm.task != arms[0].task:
            raise InputError("METHODS", f"{arms[0].name} ({arms[0].task}) and {arm.name} ({arm.task})", "methods of one task")
    lab = options.made_lab()
    out = Path(options.lab["out"])
    _check_jobs(asked.jobs, lab)
    bench = Bench(lab, options, {arm.name: arm for arm in arms})
    refused = bench.rehearse()
    if len(refused) == len(arms):
        raise StillroomError("nothing to compare, no method can be run: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
    for name, reason in refused.items():
        console.print(f"{name}: failed: {reason}", markup=False)

    for line in first_lines(bench.data):
        console.print(f"data: {line}", markup=False)
    teacher = bench.teach()
    seeds = range(lab.seed, lab.seed + lab.seeds)
    pieces = [Piece(name, seed) for seed in seeds for name in (_ALONE, *bench.arms) if name not in refused]
    outcomes: Outcomes = {Piece(name, seed): Outcome(reason=reason) for name, reason in refused.items() for seed in seeds}
    here = [piece for piece in pieces if asked.jobs == 1 or bench.finished(piece)]  # what is only read is not worth a process
    outcomes |= run_here(bench, here)
    if left := [piece for piece in pieces if piece not in here]:
        outcomes |= run_at_once(bench, left, asked.jobs, out / "logs", bench.data.evaluator().primary)
    go_alone()
    if not bench.is_main:
        return
    report = merge(outcomes, teacher.result, bench.data, [arm.name for arm in arms], started=started, notes=_notes(bench, asked, teacher))
    report.command, report.settings = command, options.settings
    publish(report, out)
    if not any(outcome.result for piece, outcome in outcomes.items() if piece.arm != _ALONE):
        raise StillroomError("no method succeeded: " + "; ".join(f"{name}: {why}" for name, why in report.failed.items()))


def _task(words: Sequence[str], arguments: Sequence[str]) -> str:
    """The task of the first method, which says what data and networks there are; whether it is that of all is seen later."""
    typed = words or re.findall(r"[^\s\[\],'\"]+", early(list(arguments), "methods") or "")
    first = typed[0] if typed else "kd"
    method, _, host = _method_and_host(first.rpartition("=")[2])
    host = host or str(room_of(method, "METHODS").options.get("host", ""))
    room = room_of(host or method, "METHODS")
    if room.tasks[0] not in SUPERVISED:  # there is no student alone to compare with
        raise InputError("METHODS", method, f"a method that trains any student by any teacher: {method} {room.reason}")
    return room.tasks[0]


def _method_and_host(word: str) -> tuple[str, str, str]:
    """``dot:dkd`` in its parts; in ``file.py:Mine`` the colon is the method's."""
    return (word, "", "") if is_own(word) else word.partition(":")


def arms_of(words: Sequence[str], options: Mapping[str, Mapping[str, Any]], preset: str | None = "default") -> list[Arm]:
    """What is to be compared.

    Args:
        words: as typed: ``kd``, ``dot:dkd``, ``soft=kd``.
        options: by arm, where they differ from the method's defaults.
        preset: whose values the methods' options have where none are given; None for the default jobs'.

    Raises:
        InputError: an unknown method or option, a value of the wrong kind, a name twice, or one method twice with the same options.
    """
    if not words:
        built = ", ".join(method.name for method in catalog.METHODS if method.room and method.name != "supervised")
        raise InputError("METHODS", "nothing", f"some of {built}, before all options")
    arms = [_arm(word, options, preset) for word in words]
    names = [arm.name for arm in arms]
    for i, arm in enumerate(arms):
        if arm.name in names[:i]:
            raise InputError("METHODS", f"{arm.name} twice", f"each once; {arm.name}2={words[i]} is a second one, under a name of its own")
        for other in arms[:i]:
            if other.stage == arm.stage:
                expected = f"other options for one of them, as in --options.{arm.name} '{{name: value}}'"
                raise InputError("METHODS", f"{other.name} and {arm.name}, which are the same", expected)
    for name in options:
        if name not in names:
            raise InputError("--options", name, f"one of the methods that are compared: {near(name, names)}")
    return arms


def _arm(word: str, options: Mapping[str, Mapping[str, Any]], preset: str | None) -> Arm:
    name, equals, what = word.rpartition("=")
    name = name if equals else short_name(what)
    if not re.fullmatch(r"\w[\w+-]*" if equals else r"[^.]*", name) or name in (_ALONE, _TEACHER):
        raise InputError("METHODS", word, f"a name of letters, digits, _, + and -, and neither {_ALONE} nor {_TEACHER}")
    method, colon, host = _method_and_host(what)
    typed = dict(options.get(name, {}))
    room = room_of(method, "METHODS")
    if room.build is None:
        if typed:
            raise InputError(f"--options.{name}", typed, f"none: {method} has no options here")
        return Arm(name, method, {}, short_name(method), {})
    typed = check_object(PROG, room.build, BUILT_FROM, typed, f"--options.{name}")
    known = room.options
    if colon:
        if "host" not in known:
            raise InputError("METHODS", word, f"{method} alone: it trains no other method's losses")
        catalog.find(host, "METHODS")
        typed = {**typed, "host": host}
    made = {**_preset_of(room, preset, known), **typed}
    if "host" in known:
        made = _hosted(made, typed, preset, str(made.get("host", known["host"])))
    differing = {option: value for option, value in made.items() if value != known[option]}
    return Arm(name, method, {**known, **made}, _stage_name(short_name(method), differing), differing)


def _preset_of(room: Room, preset: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    values = room.default if preset is None else room.presets.get(preset, {})
    return {name: value for name, value in values.items() if name in known}


def _hosted(made: dict[str, Any], typed: Mapping[str, Any], preset: str | None, host: str) -> dict[str, Any]:
    """The options of a method that trains another's losses: the preset's are those of the method that it hosts."""
    room = catalog.load(host, "METHODS")
    inner = _preset_of(room, preset, room.options)
    inner |= typed.get("host_options") or {}
    return {**made, "host_options": inner or None}


def _stage_name(method: str, differing: Mapping[str, Any]) -> str:
    """The method and what it differs in from its defaults: kd, dot+dkd, kd,temperature=2; a hash where that would be long or odd."""
    rest = {name: value for name, value in sorted(differing.items()) if name != "host"}
    name = f"{method}+{differing['host']}" if "host" in differing else method
    if not rest:
        return name
    told = ",".join(f"{option}={value:g}" if isinstance(value, float) else f"{option}={value}" for option, value in rest.items())
    exact = all(float(f"{value:g}") == value for value in rest.values() if isinstance(value, float))
    if exact and len(told) <= 60 and re.fullmatch(r"[\w.,=+-]+", told):
        return f"{name},{told}"
    return f"{name},{hashlib.blake2b(json.dumps(rest, sort_keys=True, default=str).encode(), digest_size=5).hexdigest()}"


def _check_jobs(jobs: int, lab: LabOptions) -> None:
    if at_least("jobs", jobs, 1) > 1 and (lab.devices * lab.num_nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise InputError("jobs", jobs, "1 where a training is itself shared by several processes")


@dataclass
class Bench:
    """Where the arms are trained: all that one of them needs, and that can be sent to another process.

    Args:
        lab: where and how to run.
        options: what was typed: data, training, networks.
        arms: by name.
        other_images: arms that show their students something else than the data's images in their order; known after `rehearse`.
    """

    lab: LabOptions
    options: Options
    arms: dict[str, Arm]
    other_images: list[str] = field(default_factory=list, init=False)
    _taught: Trained | None = field(default=None, init=False)
    _students: dict[str, nn.Module] = field(default_factory=dict, init=False)

    @cached_property
    def data(self) -> Any:
        """The task's data."""
        return self.options.made_data()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self._lab(self.lab.seed).is_main

    def rehearse(self) -> dict[str, str]:
        """Builds every arm once and throws it away; answers which cannot be built, and why. Writes nothing.

        Raises:
            InputError: the data, the teacher or the student are wrong, which is no method's fault.
        """
        experiment, refused = self._experiment(self.lab.seed), {}
        experiment.rehearse()
        for name, arm in self.arms.items():
            try:
                made = experiment.rehearse(partial(arm.distiller, data=self.data))[0]
                self._students[name] = made.student
                if selects(made) or made.training_data(self.data) is not self.data:
                    self.other_images.append(name)
            except Exception as error:
                refused[name] = reason_of(error)
        return refused

    def teach(self) -> Trained:
        """The teacher, trained or read; the first stage, after which nothing that is there is overwritten."""
        experiment = self._experiment(self.lab.seed)
        self._taught = experiment.teacher()
        experiment.lab.begin()  # as a teacher's stage does where there is one, not a cache: what is written from here on is entered
        plain = experiment.network(experiment.networks.student, "student").network
        for student in (plain, *self._students.values()):  # now, while nothing else is at work
            experiment.lab.footprint(student, self.data.example_inputs())
        self._students.clear()
        self.lab = replace(self.lab, overwrite=False)
        return self._taught

    def finished(self, piece: Piece) -> bool:
        """Whether the piece only needs to be read."""
        return self._lab(piece.seed).finished(self._stage(piece))

    def __call__(self, piece: Piece) -> StageResult:
        """Trains an arm with a seed, or reads what was trained."""
        taught = self._taught or self.teach()
        # A Lab seeds everything: each student of a seed starts from the same weights, whatever ran before.
        experiment = self._experiment(piece.seed, taught)
        if piece.arm == _ALONE:
            return experiment.alone().result
        arm = self.arms[piece.arm]
        return experiment.distilled(arm.stage, partial(arm.distiller, data=self.data)).result

    def _experiment(self, seed: int, taught: Trained | None = None) -> Experiment:
        return Experiment(self._lab(seed), self.data, taught=taught, **self.options.trained_by())

    def _lab(self, seed: int) -> Lab:
        return Lab(self.lab, seed, self.options.settings)

    def _stage(self, piece: Piece) -> str:
        return _ALONE if piece.arm == _ALONE else self.arms[piece.arm].stage

    def __getstate__(self) -> dict[str, Any]:
        """Without data and networks, which the other process reads for itself."""
        return {**{name: value for name, value in vars(self).items() if name != "data"}, "_taught": None, "_students": {}}


def _notes(bench: Bench, asked: Compare, teacher: Trained) -> list[str]:
    """What makes the terms equal, and what does not."""
    plan = bench.options.trained_by()["plan"]
    notes = [
        f"Equal terms: one teacher for all; within a seed, students of one architecture with the same initial weights, which see the same "
        f"{bench.data.train_size} images in the same order; {plan.epochs} epoch{'s' if plan.epochs > 1 else ''} for each, with the "
        f"same {plan.optimizer} and learning rates as far as the method leaves them alone. Training time is not made equal: see below.",
        "Nothing was tuned for this comparison: each method has the defaults of its own experiment, except where this says otherwise"
        + "".join(f"; {name}: {_told(arm)}" for name, arm in bench.arms.items() if arm.typed or name != short_name(arm.method))
        + ".",
    ]
    if bench.other_images:
        notes.append(f"Not the same images: {', '.join(bench.other_images)} shows its students views, a selection or images of its own.")
    if teacher.network is None:
        notes.append(
            "The teacher is a cache: distilled students see the views of the images that it holds, the student alone sees fresh ones."
        )
    notes += teacher.notes
    if asked.jobs > 1:
        notes.append(f"Up to {asked.jobs} trainings ran at a time, which makes each of them take longer.")
    return notes


def _told(arm: Arm) -> str:
    """The method and the options that differ from its defaults."""
    differing = ", ".join(f"{option}={value}" for option, value in arm.typed.items() if option != "host" and value is not None)
    host = f" with {arm.options['host']}" if "host" in arm.options else ""
    return f"{short_name(arm.method)}{host}{', ' if differing else ''}{differing}"
