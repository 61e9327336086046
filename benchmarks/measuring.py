"""What the benchmarks share: turns taken within one process, medians and paired ratios, a table, and JSON lines."""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from stillroom.engine.run.measure import Allocated as Allocated  # the benchmarks' too

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("stillroom", "torch", "torchvision", "lightning", "timm", "torchdistill", "anomalib", "numpy", "onnxruntime", "openvino")


class Turns:
    """Seconds of several contenders that take turns, one step each per round, so that a drift of the machine meets all alike.

    Args:
        clock: seconds; by default the wall's. On a machine that is shared `time.process_time`, of all threads, is the steadier one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.clock = clock

    def note(self, name: str, seconds: float) -> None:
        """One more measurement of a contender; the n-th of each belongs to round n."""
        self.seconds.setdefault(name, []).append(seconds)

    def round(self, contenders: Mapping[str, Callable[[], Any]], seed: int) -> None:
        """One step of each, in an order of this round's own."""
        names = list(contenders)
        random.Random(seed).shuffle(names)
        for name in names:
            started = self.clock()
            contenders[name]()
            self.note(name, self.clock() - started)

    def median(self, name: str) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """The median over rounds of this contender's time over the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def spread(self, name: str, to: str) -> tuple[float, float]:
        """The quartiles of that ratio."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratios[0],) * 3
        return low, high

    @property
    def rounds(self) -> int:
        """How many rounds every contender has been through."""
        return min(map(len, self.seconds.values()), default=0)


def setting(note: str = "") -> dict[str, Any]:
    """Date, machine, versions and threads; kept with every line of results."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "note": note,
    }


def keep(benchmark: str, lines: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """Appends JSON lines to `results/<benchmark>.jsonl`."""
    path = RESULTS / f"{benchmark}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps({**line, **about}) + "\n")
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], about: Mapping[str, Any]) -> None:
    """Prints a table, and what it was measured with."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    console.print(
        f"{about['machine']}, {about['threads']} thread(s); {versions}; {about['date']}\n{about['note']}".rstrip(), highlight=False
    )


def verdict(value: float, target: float, *, at_most: bool) -> str:
    """`<= 1.05: met`, say."""
    met = value <= target if at_most else value >= target
    return f"{'<=' if at_most else '>='} {target:g}: {'met' if met else 'MISSED'}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in found.get("flags", "").split()]
    return " ".join([found.get("model name", model), *flags])
