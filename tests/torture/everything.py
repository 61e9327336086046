"""Tries everything that is safe to try, and prints how often: docs/reliability.md has the table.

    python tests/torture/everything.py [--minutes 40] [--part NAME]

Kills at random moments, machines that are lost, links that are cut, signals, folders that want code run, files in the way of --overwrite,
caches that were altered, bombs, terminals, and damages of every file that is read. Every part has its share of the time, and one that does
not end in it is stopped and counted as wrong. Leaves with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE_LINE, HANDLED, WRONG = "one line", "handled", "wrong"


@dataclass(frozen=True)
class Part:
    """Something that is run by itself.

    Args:
        name: in the table.
        command: behind `python -m`.
        share: of the whole time.
        reads: a regular expression of its output whose match is a trial; what it names `verdict` says how it went.
        verdicts: what `verdict` may be, and the column that this is counted in; all else is wrong.
    """

    name: str
    command: str
    share: float
    reads: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)


_TEST = r"^\S+::\S.* (?P<verdict>PASSED|FAILED|ERROR)"
_REFUSED, _DONE = {"PASSED": ONE_LINE}, {"PASSED": HANDLED}
_KILLS = r"^\S.*?  (?P<verdict>fine|equal)$"
_CACHES = "pytest -vv tests/engine/test_cache.py tests/methods/test_ferkd_bank.py -k altered_or_sums_or_damage"
PARTS = (
    Part("kills", "tests.torture.kill --kills 12", 0.25, _KILLS, {"fine": HANDLED, "equal": HANDLED}),
    Part("machines", "tests.torture.machines", 0.7),
    Part("hostile cards and options", "pytest -vv tests/test_trust.py", 0.08, _TEST, _REFUSED),
    Part("overwrites and links", "pytest -vv tests/engine/test_written.py", 0.05, _TEST, _REFUSED),
    Part("altered caches", _CACHES, 0.1, _TEST, _REFUSED),
    Part("bombs and terminals", "pytest -vv tests/torture/test_quick.py -k not_damaged", 0.1, _TEST, _DONE),
    Part("damaged files, by reader", "tests.torture.inputs --each 8", 0.1),
)


def counts_of_machines(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Rows of the table from what `machines` says."""
    names = {"started": "started on two machines", "lost": "lost ranks", "cut": "cut links", "signals": "signals to several processes"}
    for group, name in names.items():
        mine = [line for line in text.splitlines() if re.match(rf"{group} ", line)]
        wrong = sum("WRONG" in line for line in mine)
        said = sum("one line" in line for line in mine)
        if mine:
            yield name, {ONE_LINE: said, HANDLED: len(mine) - wrong - said, WRONG: wrong}


def counts_of_inputs(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Rows of the table from what `inputs` says."""
    for line in text.splitlines():
        if found := re.match(r"(.{24}) +\d+ tried, +(\d+) one line, +(\d+) handled, +(\d+) wrong", line):
            one, handled, wrong = map(int, found.groups()[1:])
            yield f"  {found[1].strip()}", {ONE_LINE: one, HANDLED: handled, WRONG: wrong}


def counts(part: Part, text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Rows of the table from what a part says."""
    if part.command.startswith("tests.torture.machines"):
        yield from counts_of_machines(text)
    elif part.command.startswith("tests.torture.inputs"):
        yield from counts_of_inputs(text)
    else:
        found = {ONE_LINE: 0, HANDLED: 0, WRONG: 0}
        for one in re.finditer(part.reads, text, re.MULTILINE):
            found[part.verdicts.get(str(one["verdict"]), WRONG)] += 1
        yield part.name, found


def run(part: Part, seconds: float) -> tuple[str, bool]:
    """What it says; and whether it came to its end in that time, and well."""
    words = part.command.split()
    if words[0] == "pytest":
        words = [word.replace("_or_", " or ").replace("not_", "not ") for word in words]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        return said.read(), code == 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="that all of it may take (default: 40)")
    parser.add_argument("--part", default="", help="only parts whose name has this in it")
    asked = parser.parse_args()
    parts = [part for part in PARTS if asked.part in part.name]
    whole, begun, wrong = sum(part.share for part in PARTS), time.monotonic(), False
    line = "{:<34} {:>6} {:>9} {:>8} {:>6}"
    print(line.format("", "tried", ONE_LINE, HANDLED, WRONG), flush=True)
    for part in parts:
        text, good = run(part, 60 * asked.minutes * part.share / whole)
        rows = list(counts(part, text))
        for name, found in rows:
            print(line.format(name, sum(found.values()), found[ONE_LINE], found[HANDLED], found[WRONG]), flush=True)
            wrong |= bool(found[WRONG])
        if skipped := re.search(r"^skipped: (.*)", text, re.MULTILINE):
            print(f"{part.name}: {skipped[0]}", flush=True)
        elif not good or not any(sum(found.values()) for _, found in rows):
            wrong = True
            print(f"{part.name}: wrong, or not ended in its time:\n{text[-3000:]}", flush=True)
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
