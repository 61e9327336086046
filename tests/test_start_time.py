"""What a person waits for before anything is asked of torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "torchvision", "lightning", "timm", "numpy", "sklearn", "jsonargparse")


def modules_after(*arguments: str) -> set[str]:
    """The modules that are imported once the command has answered."""
    code = (
        "import sys\nfrom stillroom.cli import main\n"
        f"try:\n    code = main({list(arguments)!r})\nexcept SystemExit as end:\n    code = end.code\n"
        "print(' '.join(sorted(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"]], ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & set(HEAVY)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, stillroom, stillroom.catalog, stillroom.errors; sys.exit(len(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"]], ids=" ".join)
def test_light_commands_answer_at_once(arguments: list[str]) -> None:
    seconds = []
    for _ in range(5):  # the best of a few: the machine may be busy
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "stillroom.cli", *arguments], capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
        if min(seconds) < 0.7:
            break
    assert min(seconds) < 0.7


def test_help_of_a_method_imports_that_method_alone() -> None:
    rooms = {name for name in modules_after("run", "kd", "--help") if name.startswith("stillroom.methods.")}
    assert rooms == {"stillroom.methods.kd"}
