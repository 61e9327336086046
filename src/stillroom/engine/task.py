"""What a task is: the contracts between a kind of data and everything that serves all kinds.

A task room holds one object, its `Task`, in a module `task`; the class of its data names it (`data.task`). Commands, methods that serve
several tasks, the Lab and the report know tasks by these contracts alone. What a task has not (a supervised arm, an export, a cache) is
absent from its `Task`, and the commands that need it say so in one line. `docs/add-a-task.md` tells a whole task on one page.

Two things that a task may have besides: its data `first_lines()`, sentences that a run begins with; itself ``remarks(report, data)``,
sentences on results that a reader must not miss, which the terminal and the report say. Metrics that hang on what the data hold are
described by the evaluator (see `run.recorder.Evaluator`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from stillroom.engine.card import write_card
from stillroom.engine.distiller import Distiller
from stillroom.engine.loading import Cycled, Loader
from stillroom.engine.report.results import Metric, Report, Section
from stillroom.engine.run.recorder import Evaluator
from stillroom.engine.teacher import Renormalise
from stillroom.engine.training import Training
from stillroom.errors import InputError, one_of

if TYPE_CHECKING:
    from stillroom.engine.cache.teacher import CachedTeacher
    from stillroom.engine.cache.views import Views
    from stillroom.engine.experiment import Networks
    from stillroom.engine.export import ExportSpec

FindLayer = Callable[[nn.Module, Any, str], str]  # (network, a few inputs, what the user calls it) -> module path

WARNING = "WARNING: "  # before notes that a user must not overlook
# Tasks whose networks can be trained on labels, without a teacher.
SUPERVISED = (
    "classification",
    "multilabel",
    "detection",
    "segmentation",
    "harmonization",
    "imagetext",
    "detection3d",
    "sound",
    "nuclei",
    "video",
    "multitask",
)
TAUGHT = (*SUPERVISED, "representation")  # whose teachers' answers can be kept in a cache
TASKS = (*SUPERVISED, "editing", "anomaly", "representation", "segmentation3d")  # each with a room whose module `task` holds its TASK


class TaskData(Protocol):
    """A training and a validation set, as the Lab and an experiment use them."""

    @property
    def task(self) -> Task:
        """What they are data of."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data do."""

    @property
    def indices(self) -> Mapping[str, np.ndarray]:
        """Which samples of the whole set these are, by what they are called; empty where all are there."""

    @property
    def batch_size(self) -> int:
        """Samples in a batch, of all processes together."""

    @property
    def train_size(self) -> int:
        """N, samples to train on."""

    @property
    def renormalise(self) -> Renormalise | None:
        """For a teacher that reads other statistics than the student."""

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader | Cycled:
        """Shuffled, augmented batches for one process of `world`."""

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation set, each sample once over all processes."""

    def evaluator(self) -> Evaluator:
        """What scores a student's answers."""

    def example_inputs(self) -> Any:
        """Inputs of one sample, for measuring a network: a tensor, or any structure of tensors."""

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on these data; plain values."""

    def for_teacher(self) -> TaskData:
        """The data that a teacher is trained on; mostly the same."""


class CacheableData(TaskData, Protocol):
    """Data to which a teacher's answers can be kept on disk."""

    @property
    def cache_key(self) -> dict[str, Any]:
        """What an answer to a training sample depends on, besides the teacher: plain values by names that a user knows."""

    def every_view(self, views: Views, *, batch_size: int, start: int = 0) -> Loader:
        """Batches of all views of all training samples in the order of `EveryView`, each with what was drawn for it, by name."""

    def replaying(self, views: Views) -> CacheableData:
        """The same data, but that training shows these views of its samples and no others; its batches say which."""


@dataclass(frozen=True)
class Built:
    """A network and where it came from.

    Args:
        network: what reads a batch's inputs.
        spec: what builds the same architecture again, without its weights.
        weights: the file or folder that was loaded, or "pretrained"; None when the network starts from random numbers.
        classes: their names in the order of its answers, when a run's folder recorded them.
        start: why the weights are a start and no trained network: what their head answers for. Empty where they are taken as they are.
        new: names of the parameters that start from random numbers then.
        notes: what a user should know of how it was brought here, a clause each; those that begin with `WARNING` stand alone.
        renormalise: what makes its inputs of the data's, where it reads others.
    """

    network: Any
    spec: str
    weights: str | None
    classes: tuple[str, ...] | None = None
    start: str = ""
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    renormalise: Renormalise | None = None

    def of_classes(self, classes: Sequence[str], spec: str, argument: str) -> Built:
        """Itself, if the classes that a run's folder recorded, where one did, are these.

        Args:
            classes: of the data, in the order of the network's answers.
            spec: what the user typed.
            argument: what the user calls it.

        Raises:
            InputError: they are others, or in another order.
        """
        if self.classes is None or self.classes == tuple(classes):
            return self
        only_network = [name for name in self.classes if name not in classes]
        only_data = [name for name in classes if name not in self.classes]
        differ = "their order differs"
        if only_network or only_data:
            differ = f"only the model has {only_network[:5]}, only the data have {only_data[:5]}"
        got = f"{spec}, whose classes are not those of the data: {differ}"
        raise InputError(argument, got, "a model of the same classes in the same order")


class Answer(Protocol):
    """What a student says about one file."""

    @property
    def file(self) -> Path:
        """The file."""

    def to_json(self) -> dict[str, Any]:
        """A line of `stillroom predict --json`, without the file."""

    def rows(self) -> list[list[str]]:
        """Its rows of the table, without the file; see `Student.columns`."""


class Student(Protocol):
    """A trained network, ready to use, as `stillroom.load` gives it.

    One that answers to something else than images has ``find(places)`` besides, in the place of `tasks.images.folders.find_images`: the
    files, the places that hold none, and, where it tells, files that were passed over.
    """

    @property
    def kind(self) -> str:
        """What it is to a user: "a classifier"."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What `columns` and `predict` can be told, with the defaults: {"top": 2}."""

    @property
    def network(self) -> Any:
        """In eval mode."""

    @property
    def columns(self) -> Callable[..., list[str]]:
        """``columns(**options)``: heads of the table's columns, without the file's."""

    @property
    def predict(self) -> Callable[..., Iterator[Answer]]:
        """``predict(files, *, unreadable, **options)``: what it says about each file, in their order.

        One that cannot be read is left out; ``unreadable`` is called with the error.
        """

    def export_spec(self) -> ExportSpec | Mapping[str, ExportSpec]:
        """What an export writes and checks; of a student of several networks one for each, by the words for their files.

        Raises:
            InputError: a student of a kind that cannot be exported.
        """


class Task(Protocol):
    """One kind of data: what its experiments, its networks and its reports are made of.

    These members are optional: `students`, specifications of networks that `stillroom students` measures, ``students_of(data)``, others
    that suit these data alone, and ``parts_of(teacher, data)``, parts of a teacher that has been built; `by_engine`, how an inference
    engine asks a teacher and how near to the network's its answers have to be (a `ByEngine`); ``doubts(result, data)``, what a
    teacher's answers to the validation set say against it, a clause each; and, where teachers answer otherwise than students do,
    ``teachers(data, networks, trust_pickle=...)``: an object with the `network` that is asked, and ``scored(lab, data)``, a stage
    (`Trained`) with what teaches.
    """

    @property
    def name(self) -> str:
        """As in `TASKS`, and in a run's `student.json`."""

    @property
    def data(self) -> type[Any]:
        """The class of its data; the parameters of its constructor are the options of a command."""

    @property
    def plan(self) -> Training:
        """How the networks of the default job are trained."""

    @property
    def sgd(self) -> Training:
        """The same under plain SGD with momentum, for methods that are defined for it alone."""

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any]]:
        """The task's papers' settings, by name."""

    @property
    def default(self) -> Mapping[str, Any]:
        """Of the small job that is run where no data are named: its data and whatever is to be otherwise for them."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of data that only this task reads, as they are typed before the colon."""

    @property
    def layers(self) -> Mapping[str, FindLayer]:
        """Module paths by a word, for a cache's taps: ``(network, example, argument)``, see `FindLayer`."""

    @property
    def exact(self) -> tuple[str, ...]:
        """Parts of a teacher's answer that a cache stores in fp32 whatever it is asked for."""

    @property
    def metric_formats(self) -> Mapping[str, Metric]:
        """How its metrics are written, where the report does not know them."""

    @property
    def networks(self) -> Networks:
        """Of the default job; its type says which options networks have."""

    def build(self, spec: str, data: Any, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for these data, with its weights.

        Args:
            spec: what the user typed.
            data: whose inputs it reads and whose classes it knows.
            networks: sizes of what is built around it, where the task has such.
            trust_pickle: read weights that can run code as they are read.
            argument: what the user calls it, for messages.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """

    def supervised(self, network: nn.Module) -> Distiller:
        """Plain training of a network on labels; also how one that is only scored answers."""

    def views(self, data: Any, asked: int | None) -> int:
        """How many views of a sample a cache of a teacher's answers holds; InputError where there cannot be so many."""

    def check_cache(self, teacher: CachedTeacher, data: Any) -> None:
        """Looks whether the views are still what the cache has answers to; InputError where they are not."""

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics between two models' per-sample results, e.g. agreement with the teacher."""

    def sections(self, report: Report, data: Any) -> list[Section]:
        """The task's own part of a report, e.g. per-class changes."""

    def ship(self, folder: Path, network: nn.Module, model: str, data: Any) -> None:
        """Writes what is needed to load a network again, besides its weights: `student.json`, into a stage's folder or a run's.

        A task may have a `deliver` with the same arguments besides, for what a run's folder is to hold for other libraries.
        """

    def load(self, run: Path, *, trust_pickle: bool) -> Student:
        """The student in the folder of a run or of a stage; see `engine.card` for how it is named.

        Args:
            run: the folder that `stillroom run` wrote.
            trust_pickle: also run the code that its `student.json` names, and read weights that are pickles.

        Raises:
            InputError: the folder holds no finished run of this task, a damaged one, or one that wants to be trusted.
        """


class Usual:
    """What most tasks say alike: a room's task begins with it, and says what is otherwise."""

    name: str
    presets: Mapping[str, Mapping[str, Any]] = {}
    default: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ()
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = {}

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: what two models answer is compared with the truth, not with each other."""
        return {}

    def ship(self, folder: Path, network: nn.Module, model: str, data: Any) -> None:
        """`student.json`, of what the data describe."""
        write_card(folder, self.name, model, data)


def first_lines(data: Any) -> list[str]:
    """What data say of themselves before anything is trained on them; nothing, where they say nothing."""
    return list(data.first_lines()) if hasattr(data, "first_lines") else []


def task_named(name: str, argument: str = "task") -> Task:
    """The task of that name; its room is imported when it is asked for.

    Raises:
        InputError: no such task.
    """
    one_of(argument, name, TASKS)
    found: Task = importlib.import_module(f"stillroom.tasks.{name}.task").TASK
    return found
