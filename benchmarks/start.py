"""What a person waits for before anything is computed: processor time of whole processes, beside `import torch, torchvision`.

python benchmarks/start.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from measuring import Turns, keep, setting, show, verdict

BASE = "import torch, torchvision"
LIMIT = 1.3
COMMANDS = {
    BASE: ["-c", BASE],
    "import stillroom.engine": ["-c", "import stillroom.engine"],
    "stillroom run kd --help": ["-m", "stillroom.cli", "run", "kd", "--help"],
    "stillroom run kd --epoch 1 (no such option)": ["-m", "stillroom.cli", "run", "kd", "--epoch", "1"],
    "stillroom run bckd --help": ["-m", "stillroom.cli", "run", "bckd", "--help"],
}


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    turns = Turns()
    for number in range(options.rounds + 1):
        for name, arguments in COMMANDS.items():
            seconds = processor_seconds(arguments)
            if number:  # the first round fills the page cache
                turns.note(name, seconds)
    about = setting(options.note)
    lines = [
        {"benchmark": "start", "what": name, "seconds": turns.median(name), "least": min(turns.seconds[name]), "target": LIMIT,
         "ratio": turns.ratio(name, BASE), "spread": turns.spread(name, BASE), "rounds": turns.rounds}
        for name in COMMANDS
    ]  # fmt: skip
    show(
        f"Processor time of whole processes, {turns.rounds} rounds",
        ["process", "median, s", "least, s", "to the imports", "verdict"],
        [
            [line["what"], f"{line['seconds']:.2f}", f"{line['least']:.2f}",
             f"{line['ratio']:.2f} [{line['spread'][0]:.2f}, {line['spread'][1]:.2f}]",
             "" if line["what"] == BASE else verdict(line["ratio"], LIMIT, at_most=True)]
            for line in lines
        ],
        about,
    )  # fmt: skip
    keep("start", lines, about)


if __name__ == "__main__":
    main()
