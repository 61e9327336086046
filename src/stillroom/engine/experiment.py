"""Experiment: teacher, student alone, and the same student distilled in one way or several, on any task's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.engine.cache import CACHE, CachedTeacher
from stillroom.engine.card import read_specification
from stillroom.engine.distiller import OLD_RATE, Distiller, rehearse
from stillroom.engine.export import ExportFailed
from stillroom.engine.inference.fidelity import ByEngine
from stillroom.engine.inference.network import FileNetwork
from stillroom.engine.inference.teacher import EngineTeacher
from stillroom.engine.lab import Lab, Trained
from stillroom.engine.quantize import QuantizationFailed
from stillroom.engine.report.gains import far_worse, image_error
from stillroom.engine.report.results import COMMON_METRICS, Metric, Report, StageResult
from stillroom.engine.specification import TEACHER, composed
from stillroom.engine.task import WARNING, Built, CacheableData, Task, TaskData
from stillroom.engine.teacher import Resized, Teacher
from stillroom.engine.training import Training, with_fitting_warmup
from stillroom.errors import InputError, positive

Make = Callable[[Any, Any], Distiller]  # (fresh student, frozen Teacher) -> the method's distiller; no teacher where none is named

_FINE_TUNING = 10  # epochs at most, by default
_TEMPERATURE = 4.0  # at which an engine's answers are compared with the network's, where the method has none


@dataclass(frozen=True)
class Networks:
    """Which networks teach and learn.

    Args:
        teacher: network, optionally with weights after ``@``; without weights it is trained first, and with weights whose head answers
            for other classes than the data's it is fine-tuned first. Or the folder of an earlier run, or ``cache:FOLDER``.
        student: network, as above; of images also the first layers of one, ``first:NETWORK`` or ``first:teacher``.
        teacher_epochs: epochs of the teacher, where it has to be trained; by default as many as the student's, and to fine-tune 10 at
            most.
        teacher_lr: learning rate of the teacher; by default the student's. Where it is fine-tuned that of its new head; all else learns at
            a tenth of it, and the rate falls to zero in a cosine.
        accept_teacher: go on with a teacher that is no better than chance, or far worse than the student alone.
    """

    teacher: str = ""
    student: str = ""
    teacher_epochs: int | None = None
    teacher_lr: float | None = None
    accept_teacher: bool = False

    def teacher_plan(self, plan: Training, *, start: bool = False) -> Training:
        """How a teacher is trained, where the students are trained by `plan`; with `start` one that brings weights and has a new head.

        Raises:
            InputError: a number that cannot be used.
        """
        if self.teacher_epochs is not None and self.teacher_epochs < 1:
            raise InputError("teacher_epochs", self.teacher_epochs, "a number of at least 1")
        lr = plan.lr if self.teacher_lr is None else positive("teacher_lr", self.teacher_lr)
        epochs = self.teacher_epochs or (min(plan.epochs, _FINE_TUNING) if start else plan.epochs)
        settings = {**asdict(plan), "epochs": epochs, "lr": lr, **({"schedule": "cosine"} if start else {})}
        return replace(plan, **with_fitting_warmup(settings, plan.epochs))

    def begin(self, made: Distiller, new: tuple[str, ...]) -> None:
        """Says to a teacher's training which parameters are new, where it brings weights for all others."""
        made.new_head = new


class Experiment:
    """The stages of the experiment that most distillation papers run; a recipe puts them together, mostly by `run`.

    Args:
        lab, data, plan: where, on what and how to train.
        networks: which networks.
        taught: the teacher, where another experiment of the run has it already.
        role: the name of the teacher's stage, where a run has several teachers.
    """

    def __init__(
        self, lab: Lab, data: TaskData, plan: Training, networks: Networks, *, taught: Trained | None = None, role: str = "teacher"
    ) -> None:
        self.role = role
        if (before := lab.earlier(role)) is not None and not networks.teacher.startswith(CACHE):
            networks = replace(networks, teacher=before)  # it was trained there
        self.lab, self.data, self.plan, self.networks = lab, data, plan, networks
        self._taught = taught
        self._tried: Teacher | None = None  # a rehearsal's teacher, for the rehearsals after it
        self._said: set[str] = set()  # warnings
        self._temperature = _TEMPERATURE
        self._asked: ByEngine | None = getattr(self.task, "by_engine", None)
        if (engine := lab.options.engine) is not None and self._asked is None:
            raise InputError("teacher_engine", f"{engine} for the task {self.task.name}", "torch: no engine is asked in this task")

    @property
    def task(self) -> Task:
        """The data's."""
        return self.data.task

    def network(self, spec: str, argument: str) -> Built:
        """The network of a specification, for the data; `argument` is what errors call it.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        spec = self._of_teacher(spec, argument)
        return self.task.build(spec, self.data, self.networks, trust_pickle=self.lab.options.trust_pickle, argument=argument)

    def _of_teacher(self, spec: str, argument: str) -> str:
        """A specification in which `teacher` is the teacher, with the weights that it has by now; in a rehearsal without weights.

        Raises:
            InputError: there is no teacher.
        """
        source, at, _ = spec.partition("@")
        whole = composed(source, argument)
        if whole is None or TEACHER not in whole.parts():
            return spec
        if at:
            raise InputError(argument, spec, f"{source} alone: its weights are the teacher's")
        if not self.networks.teacher:
            raise InputError(argument, spec, "a network by its name, since there is no teacher")
        folder: Path | None = None
        if self._taught is not None:
            source, folder = self._taught.result.model, self._taught.folder
        elif isinstance(self._tried, CachedTeacher):
            source, folder = self._tried.result.model, self._tried.folder
        else:
            source = read_specification(self.networks.teacher, trust_pickle=self.lab.options.trust_pickle, argument="teacher").source
        if folder is not None and self.networks.teacher.startswith(CACHE):
            folder = folder / self.role  # the stage in which it was trained or scored
        spec = str(whole.of(*(source if part == TEACHER else part for part in whole.parts())))
        return spec if folder is None else f"{spec}@{folder}"

    def rehearse(self, *make: Make) -> list[Distiller]:
        """Builds everything once, for the distillers that each `make` gives, and asks each for the losses of a few samples.

        What is wrong with an argument, a network, a cache, an optimiser or the data is said now, not after hours of training a teacher.
        Nothing is written and nothing is kept; the answer is what was made.

        Raises:
            InputError: what is wrong.
        """
        with self.lab.shared():
            self.networks.teacher_plan(self.plan)
            if self._tried is None and self.networks.teacher:
                self._tried = self._cached() or self._untaught()
            student = self.network(self.networks.student, "student")
            self._warn("student", _loud(student.notes))
            rehearsed = []
            for number, one in enumerate(make):
                fresh = student if not number else self.network(self.networks.student, "student")
                rehearsed.append(one(fresh.network, self._tried))
                rehearse(rehearsed[-1], self.as_trained(rehearsed[-1]), self.plan, seed=self.lab.seed)
                self._temperature = float(getattr(rehearsed[-1], "temperature", self._temperature))
        return rehearsed

    def _untaught(self) -> Teacher:
        """The teacher's network as it is before anything is trained."""
        built = self.network(self.networks.teacher, "teacher")
        return Teacher(built.network, renormalise=built.renormalise or self.data.renormalise)

    def teacher(self) -> Trained:
        """The teacher, one for all seeds: read from a cache; scored when its specification brings weights; else trained on labels first."""
        if self._taught is None:
            self._tried = None
            with self.lab.shared():
                self._taught = self._by_engine(self._teacher())
        return self._taught

    def _by_engine(self, taught: Trained) -> Trained:
        """The teacher, asked through the engine that was asked for; by PyTorch where it cannot be exported.

        Raises:
            InputError: it answers otherwise than the network, by more than the task's bounds.
        """
        options, say = self.lab.options, lambda line: self.lab.say(self.role, line)
        if options.engine is None or self._asked is None:
            return taught
        if taught.network is None or any(isinstance(module, FileNetwork) for module in taught.network.modules()):
            what = "in a cache: no engine is asked" if taught.network is None else "those of a file, which has its own engine and precision"
            say(f"its answers are {what}")
            plain = None if taught.network is None else Teacher(taught.network, precision="fp32", renormalise=taught.renormalise)
            return replace(taught, teacher=taught.teacher or plain)
        try:
            teacher = EngineTeacher(
                taught.network,
                engine=options.engine,
                precision=options.teacher_precision,
                data=with_unlabelled(self.data),
                by=self._asked,
                temperature=self._temperature,
                accept=self.networks.accept_teacher,
                say=say,
                renormalise=taught.renormalise,
            )
            notes = teacher.ready()
        except (ExportFailed, QuantizationFailed) as error:
            notes = [f"The teacher is asked by PyTorch, not by {options.engine}: {error}."]
            say(notes[0])
            return replace(taught, teacher=Teacher(taught.network, renormalise=taught.renormalise), notes=(*taught.notes, *notes))
        return replace(taught, teacher=teacher, notes=(*taught.notes, *notes))

    def _teacher(self) -> Trained:
        if cached := self._cached():
            result = replace(cached.result, seed=self.lab.seed)
            doubts = self._warn("teacher", [f"the teacher {doubt}" for doubt in self._doubts(result)[:1]])  # accepted when it was asked
            return Trained("teacher", None, result, cached.folder, teacher=cached, notes=tuple(doubts))
        built = self.network(self.networks.teacher, "teacher")
        if built.weights is not None and not built.start:
            return self.lab.evaluate(
                built.network,
                self.data,
                name=self.role,
                model=built.spec,
                renormalise=built.renormalise or self.data.renormalise,
                around=self.task.supervised,
                weights=built.weights,
                origin="; ".join([f"the weights of {built.weights}, scored and used as they are", *_quiet(built.notes)]),
                accept=lambda result: self._accepted(built, result),
            )
        renormalise = built.renormalise or self.data.renormalise
        if renormalise is not None and (built.weights is None or self._read_whole()):
            size = isinstance(renormalise, Resized)
            got = f"{list(renormalise.size if isinstance(renormalise, Resized) else renormalise.to_mean)} for {self.networks.teacher}"
            got += ", a teacher without weights" if built.weights is None else ", a teacher that is fine-tuned"
            expected = f"none: a teacher that is trained here has the student's {'images' if size else 'statistics'}"
            raise InputError("teacher_image_size" if size else "teacher_mean", got, expected)
        loud = self._warn("teacher", _loud(built.notes))
        plan = self.networks.teacher_plan(self.plan, start=bool(built.start))
        made = self.task.supervised(built.network)
        self.networks.begin(made, built.new)
        origin = _origin(built, plan, head_only=made.head_only)
        data = self.data.for_teacher()
        taught = self.lab.fit(made, data, plan, name=self.role, model=built.spec, origin=origin, renormalise=renormalise)
        doubts = [f"the teacher, trained here, {doubt}" for doubt in self._doubts(taught.result)[:1]]
        return replace(taught, notes=(*loud, *self._warn("teacher", doubts)))

    def _read_whole(self) -> bool:
        """Whether a batch, padded say, must be renormalised by itself: it is no matter of a network's inputs alone."""
        return hasattr(self.data.train_loader(seed=self.lab.seed).first(1), "renormalised")

    def _warn(self, name: str, warnings: Sequence[str]) -> list[str]:
        """Says what is the matter with a network, once, in the first seed; answers with the sentences for the report."""
        for warning in warnings:
            if self.lab.seed == self.lab.options.seed and warning not in self._said:
                self.lab.say(name, f"{WARNING}{warning}")
                self._said.add(warning)
        return [f"{WARNING}{'' if warning.startswith('the ') else f'the {name}: '}{warning}." for warning in warnings]

    def _doubts(self, result: StageResult) -> list[str]:
        """What is to be said against a teacher, where the task knows how to tell."""
        found: list[str] = self.task.doubts(result, self.data) if hasattr(self.task, "doubts") else []
        return found

    def _accepted(self, built: Built, result: StageResult) -> tuple[str, ...]:
        """The notes on a teacher that brought its weights, if it is to teach.

        Raises:
            InputError: it cannot be right, and was not accepted all the same.
        """
        loud = self._warn("teacher", _loud(built.notes))
        doubts = self._doubts(result)
        if not doubts:
            return tuple(loud)
        if not self.networks.accept_teacher:
            got = f"{self.networks.teacher}, which {'; '.join(doubts)}"
            raise InputError("teacher", got, "one that knows the data's classes, or --accept-teacher to go on with it")
        return *loud, *self._warn("teacher", [f"the teacher {'; '.join(doubts)}. It was accepted all the same"])

    def beaten(self, teacher: Trained, alone: Trained) -> Trained:
        """The teacher, with a note if it is far worse than the student alone.

        Raises:
            InputError: it is, it brought its weights, and was not accepted all the same.
        """
        evaluator = self.data.evaluator()
        score, other = teacher.result.metrics[evaluator.primary], alone.result.metrics[evaluator.primary]
        metric = {**COMMON_METRICS, **self.task.metric_formats}.get(evaluator.primary, Metric(""))
        one_image = 100.0 if metric.unit == "%" else 0.0
        _, error = image_error([(alone.result.details, teacher.result.details)], [(other, score)], one_image)
        if not far_worse(score, other, higher_is_better=evaluator.higher_is_better) or abs(other - score) <= 3 * error:
            return teacher
        said = f"is far worse than the student alone ({evaluator.primary} {score:.2f} and {other:.2f})"
        if teacher.result.epochs == 0 and teacher.network is not None and not self.networks.accept_teacher:
            raise InputError("teacher", f"{self.networks.teacher}, which {said}", "a better one, or --accept-teacher to go on with it")
        return replace(teacher, notes=(*teacher.notes, *self._warn("teacher", [f"the teacher {said}"])))

    def _cached(self) -> CachedTeacher | None:
        spec = self.networks.teacher
        if not spec.startswith(CACHE):
            return None
        cached = CachedTeacher(Path(spec.removeprefix(CACHE)), cacheable(with_unlabelled(self.data), "teacher", spec).cache_key)
        self.task.check_cache(cached, self.data)
        return cached

    def alone(self) -> Trained:
        """The student trained without a teacher."""
        return self.trained("alone", self.task.supervised)

    def distilled(self, name: str, make: Make) -> Trained:
        """The student, from the same initial weights as alone, under the distiller that is made around it and the teacher."""
        taught = self.teacher()
        return self.trained(name, lambda fresh: make(fresh, self.lab.teach(taught)))

    def trained(self, name: str, make: Callable[[Any], Distiller]) -> Trained:
        """A stage of that name: a fresh student under the distiller that is made around it."""
        if self.networks.teacher and self._of_teacher(self.networks.student, "student") != self.networks.student:
            self.teacher()  # whose weights it begins with
        built = self.network(self.networks.student, "student")
        made = make(built.network)
        made.plan = self.plan  # what it shows may depend on how long it does
        made.new_head = built.new
        origin = _origin(built, self.plan)
        trained = self.lab.fit(made, self.as_trained(made), self.plan, name=name, model=made.specification(built.spec), origin=origin)
        return replace(trained, notes=tuple(f"{WARNING}the student: {warning}." for warning in _loud(built.notes)))

    def as_trained(self, distiller: Distiller) -> Any:
        """The data as the distiller trains on them: the views that its teacher's cache has answers to, or what the method shows."""
        data: Any = self.data
        if getattr(data, "unlabelled", 0):
            data = data.as_long() if distiller.teacher is None else with_unlabelled(data)
        if isinstance(distiller.teacher, CachedTeacher):
            return cacheable(data, "teacher", str(distiller.teacher.folder)).replaying(distiller.teacher.views)
        return distiller.training_data(data)

    def run(self, method: str, arms: Mapping[str, Make], *, baseline: str = "alone", ship: str | None = None) -> Report:
        """Rehearses, then trains the teacher, the student alone, and the same student by each of `arms`; reports them.

        Args:
            method: its name in the catalog.
            arms: by the arm's name: makes a distiller from a fresh student and the frozen teacher.
            baseline: the arm that the others are compared with.
            ship: the arm whose student is delivered; by default the last.
        """
        self.rehearse(*arms.values())
        stages = {"teacher": self.teacher(), "alone": self.alone()}
        stages["teacher"] = self.beaten(stages["teacher"], stages["alone"])
        stages |= {name: self.distilled(name, make) for name, make in arms.items()}
        return self.lab.report(method, self.data, stages, baseline=baseline, ship=ship or list(arms)[-1])


def _quiet(notes: Sequence[str]) -> list[str]:
    """Notes on a network but for warnings."""
    return [note for note in notes if not note.startswith(WARNING)]


def _loud(notes: Sequence[str]) -> list[str]:
    """Warnings among the notes on a network."""
    return [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)]


def _origin(built: Built, plan: Training, *, head_only: bool = False) -> str:
    """What a network that is trained starts from, for the terminal and the report; of random numbers nothing but the notes on it."""
    others = "all else as it is" if head_only else f"all else at {plan.lr * OLD_RATE:g}"
    rates = f"the new head at a learning rate of {plan.lr:g}, {others}"
    origin, length = "", f"{plan.epochs} epoch{'' if plan.epochs == 1 else 's'}"
    if built.start:
        origin = f"starts from the weights of {built.weights} without their head, since {built.start}; {length}, {rates}"
    elif built.weights is not None:
        origin = f"starts from the weights of {built.weights}"
    return "; ".join(filter(None, [origin, *_quiet(built.notes)]))


def with_unlabelled(data: Any) -> Any:
    """The data with the samples that nobody labelled behind their training samples, where they have such."""
    return data.with_unlabelled() if getattr(data, "unlabelled", 0) else data


def cacheable(data: Any, argument: str, spec: str) -> CacheableData:
    """The data, if a teacher's answers to them can be kept.

    Raises:
        InputError: they cannot.
    """
    if not hasattr(data, "cache_key"):
        raise InputError(argument, spec, f"a network: answers of the task {data.task.name} cannot be kept in a cache")
    return data
