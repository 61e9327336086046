"""`stillroom students --data ... --budget 5M,2ms`: networks that could be the student, and what each costs on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.commands.parser import Parser, named_as_typed
from stillroom.errors import InputError, StillroomError

if TYPE_CHECKING:
    from stillroom.engine.run.measure import Footprint
    from stillroom.engine.task import Task

PROG = "stillroom students"
_UNITS = {"k": 1e3, "M": 1e6, "ms": 1.0, "kB": 1e3, "MB": 1e6}  # parameters, milliseconds, bytes


@dataclass(frozen=True)
class Budget:
    """The most that a student may cost; None where that does not matter.

    Attributes:
        parameters: how many.
        latency_ms: of one forward pass of one sample.
        bytes: of its weights on disk.
    """

    parameters: float | None = None
    latency_ms: float | None = None
    bytes: float | None = None

    @classmethod
    def of(cls, text: str | None) -> Budget:
        """From ``5M``, ``2ms``, ``20MB`` or several of them with commas between.

        Raises:
            InputError: none of these, or one of them twice.
        """
        found: dict[str, float] = {}
        for part in (text or "").split(",") if text else ():
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(k|M|ms|kB|MB)\s*", part)
            of = "" if match is None else {"k": "parameters", "M": "parameters", "ms": "latency_ms"}.get(match[2], "bytes")
            if match is None or of in found or not float(match[1]):
                raise InputError("--budget", text, "parameters (5M, 300k), milliseconds (2ms), bytes on disk (20MB), or several: 5M,2ms")
            found[of] = float(match[1]) * _UNITS[match[2]]
        return cls(**found)

    def over(self, cost: Footprint) -> bool:
        """Whether a network costs more."""
        return any(most is not None and getattr(cost, name) > most for name, most in vars(self).items())

    def certainly_over(self, parameters: int) -> bool:
        """Whether its number of parameters says so already."""
        return (self.parameters is not None and parameters > self.parameters) or (self.bytes is not None and 2 * parameters > self.bytes)


@dataclass(frozen=True)
class Candidate:
    """A network that was measured.

    Attributes:
        spec: what `--student` takes.
        cost: of one sample.
        working: bytes that its tensors hold at most in a forward pass of one sample, besides the weights.
    """

    spec: str
    cost: Footprint
    working: int


def run(arguments: list[str], command: str) -> None:
    """Prints the networks that keep a budget, from the smallest to the largest.

    Args:
        arguments: what follows `stillroom students`.
        command: the whole line that was typed.
    """
    parser = Parser(PROG, "Networks that could be the student of your data, and what each costs on this machine. Nothing is downloaded.")
    parser.add_argument("--data", help="as for run; its image size, its classes and its task are what the networks are built for")
    parser.add_argument("--task", help="of the networks (default: that of the data, or else classification)")
    parser.add_argument("--image-size", type=int, help="pixels of the images that the networks are given (default: as for run)")
    parser.add_argument("--teacher", help="a network to compare with, whose first layers are candidates too; its weights are not needed")
    parser.add_argument("--budget", help="the most that a student may cost: 5M (parameters), 2ms, 20MB, or several with commas between")
    parser.add_argument("--also", nargs="+", default=[], metavar="SPEC", help="further networks, as --student takes them")
    parser.add_argument("--trust-code", "--trust-pickle", action="store_true", help="as for run")
    given = parser.parse_args(arguments)

    from stillroom.engine.task import SUPERVISED, task_named
    from stillroom.tasks.images.sources import kind_of

    budget = Budget.of(given.budget)
    kind = kind_of(given.data or "")
    name = given.task or next((one for one in SUPERVISED if kind in task_named(one).kinds), "classification")
    task = task_named(name, "--task")
    specs = [*getattr(task, "students", ()), *given.also]
    if not specs:
        raise InputError("--task", name, "a task with a list of students; of any other name networks by --also")
    with named_as_typed("data", "image_size"):
        data = task.data(**({} if given.data is None else {"data": given.data}), **_size(given.image_size))
    if hasattr(task, "students_of"):
        specs += task.students_of(data)
    teacher = None
    if given.teacher is not None:
        with named_as_typed("teacher"):
            teacher = _measured(task, data, given.teacher, "teacher", trusted=given.trust_code)
            specs += _parts(task, data, given.teacher, trusted=given.trust_code)
    found, over, failed = measured(task, data, specs, budget, trusted=given.trust_code)
    if found or teacher is not None:
        show(found, teacher)
    notes = [f"{over} more cost more than the budget" if found else f"all {over} cost more than the budget"] * bool(over)
    if failed:
        notes.append(f"{len(failed)} could not be built for these data, the first of them: {failed[0]}")
    for note in notes:
        print(f"{note}.")


def _parts(task: Task, data: Any, teacher: str, *, trusted: bool) -> list[str]:
    """Students that are parts of the teacher, where the task has such and the teacher is one that can be cut."""
    if not hasattr(task, "parts_of"):
        return []
    try:
        return list(task.parts_of(task.build(teacher, data, task.networks, trust_pickle=trusted, argument="teacher"), data))
    except InputError:
        return []


def _size(image_size: int | None) -> dict[str, int]:
    return {} if image_size is None else {"image_size": image_size}


def measured(
    task: Task, data: Any, specs: Sequence[str], budget: Budget, *, trusted: bool = False
) -> tuple[list[Candidate], int, list[str]]:
    """Builds and measures networks.

    Args:
        task: of the data.
        data: what the networks are built for.
        specs: of the networks.
        budget: those that cost more are left out.
        trusted: read weights that are pickles.

    Returns:
        Those that keep the budget, from the fewest parameters to the most; how many did not; and of those that could not be built why.
    """
    found, over, failed = [], 0, []
    for spec in dict.fromkeys(specs):
        try:
            candidate = _measured(task, data, spec, "student", trusted=trusted, budget=budget)
        except StillroomError as error:
            failed.append(f"{spec} ({error})")
            continue
        if candidate is None or budget.over(candidate.cost):
            over += 1
        else:
            found.append(candidate)
    return sorted(found, key=lambda one: one.cost.parameters), over, failed


def _measured(task: Task, data: Any, spec: str, argument: str, *, trusted: bool, budget: Budget | None = None) -> Candidate | None:
    """A network; None where its parameters alone are beyond the budget."""
    from stillroom.engine.run.measure import measure, working_bytes

    network = task.build(spec, data, task.networks, trust_pickle=trusted, argument=argument).network
    if budget is not None and budget.certainly_over(sum(parameter.numel() for parameter in network.parameters())):
        return None
    example = data.example_inputs()
    return Candidate(spec, measure(network, example), working_bytes(network, example))


def show(found: Sequence[Candidate], teacher: Candidate | None) -> None:
    """A table; beside a teacher's numbers the shares of its multiply-adds."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("student", overflow="fold")  # a long path gives way, numbers do not
    for head in ("parameters", "multiply-adds", "latency", "size", "memory", *(["of the teacher"] if teacher else [])):
        table.add_column(head, justify="right", no_wrap=True)
    for one in found:
        share = []
        if teacher is not None:
            share = [f"{100 * one.cost.macs / teacher.cost.macs:.0f} %" if one.cost.macs and teacher.cost.macs else ""]
        table.add_row(one.spec, *costs(one), *share)
    if teacher is not None:
        table.add_row(f"{teacher.spec} (teacher)", *costs(teacher), "")
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 110)
    console.print(table)
    print(
        "latency: of one sample on this machine; memory: what a forward pass holds at most besides the weights; shares are of multiply-adds"
    )


def costs(one: Candidate) -> tuple[str, str, str, str, str]:
    """Parameters, multiply-adds, latency, size and working memory, in words."""
    from stillroom.engine.report.wording import count

    cost = one.cost
    return count(cost.parameters), count(cost.macs), f"{cost.latency_ms:.3g} ms", f"{count(cost.bytes)}B", f"{count(one.working)}B"
