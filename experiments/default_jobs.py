"""The default job of every method that has one on drawn pictures, as a newcomer runs it:  python experiments/default_jobs.py [METHOD ...]

Each is `stillroom run METHOD --seeds 3` and nothing else: one teacher for all seeds. Writes `results/default/METHOD.json` from the
run's own `metrics.json`, with the processor time that it took (for its sake a run's folder must not be there yet), and the table that the
command printed, as `METHOD.txt`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import from_run

RESULTS = Path("results/default")
METHODS = ("kd", "dkd", "fitnets", "crd", "dot", "orc", "mdcs", "kd3", "ferkd", "l2d")


def processor_seconds() -> float:
    """What the commands that have ended took, in s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table_in(printed: str) -> str:
    """What the command prints at its end, but for the report's place: title, table and the sentences below, as 80 columns have them."""
    lines = printed.rstrip().splitlines()
    started = max(number for number, line in enumerate(lines) if ": epoch " in line or "done before" in line) + 1
    kept = [line.rstrip() for line in lines[started:] if not line.startswith("report: ")]
    return "".join(f"{piece}\n" for line in kept for piece in textwrap.wrap(line, 80) or [""]).strip("\n") + "\n"


def main(methods: list[str]) -> None:
    for method in methods or METHODS:
        run, before = Path("runs/default") / method, processor_seconds()
        if run.exists():
            raise SystemExit(f"{run} is there already")
        command = ["stillroom", "run", method, "--seeds", "3", "--out", str(run)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        took = f"The command took {processor_seconds() - before:.0f} s of processor time, its start and the report included."
        from_run.main(run, RESULTS / f"{method}.json", [took])
        (RESULTS / f"{method}.txt").write_text(table_in(printed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
