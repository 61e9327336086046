"""Kills one of two workers of a study at random moments, and counts what the study ends with.

    python -m tests.torture.study [--kills 10] [--trials 40] [--storage postgresql://USER:PASSWORD@HOST/NAME]

Without --storage once with SQLite and once with a journal. Prints a line for each; leaves with 1 when a study has not exactly the planned
number of finished trials, or leaves one running or waiting.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from tests.engine.test_study import random_kills, states, study


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--storage")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        study(Path(folder) / "first", 1).begin()  # workers are forks: they would be killed while they import Optuna and SQLAlchemy
        for storage in [arguments.storage] if arguments.storage else [None, f"journal:{folder}/journal.log"]:
            name = f"torture-{uuid.uuid4().hex[:8]}"
            one = random_kills(Path(folder), arguments.kills, arguments.trials, storage, name)
            ended, finished = states(replace(one)), one.finished()
            good = len(finished) == arguments.trials and not {"RUNNING", "WAITING"} & set(ended)
            wrong += not good
            lost = len(ended) - len(finished)
            print(f"{storage or 'sqlite'}: {len(finished)} of {arguments.trials} finished, {lost} run again: {'good' if good else 'WRONG'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
