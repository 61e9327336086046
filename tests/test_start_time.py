"""What a person waits for before anything is asked of torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest

# What a run may need, and what many of torchmetrics' and Lightning's parts would bring; each takes a tenth of a second or much more.
NEEDLESS = (
    *("transformers", "scipy", "sklearn", "timm", "pandas", "matplotlib", "tensorboard", "jinja2", "optuna", "onnx", "onnxruntime"),
    *("diffusers", "torch.utils.tensorboard", "torchmetrics.text", "torchmetrics.image", "torchmetrics.functional.text.bert"),
)
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


# What is imported after the help of KD, after a mistyped option of it, and with all methods; and what torchmetrics has at the end.
IN_ONE_PROCESS = """
import contextlib, io, json, sys
from stillroom import catalog
from stillroom.cli import main

modules = []
for options in (["--help"], ["--epoch", "1"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main(["run", "kd", *options])
    modules.append(sorted(sys.modules))
for method in catalog.METHODS:
    if method.room:
        catalog.load(method.name)
modules.append(sorted(sys.modules))

import torchmetrics

base = torchmetrics.Metric
lacking = [name for name in torchmetrics.__all__ if not hasattr(torchmetrics, name)]
lacking += [name for name in torchmetrics.functional.__all__ if not hasattr(torchmetrics.functional, name)]
print(json.dumps({"modules": modules, "lacking": lacking, "one base": issubclass(torchmetrics.BLEUScore, base)}))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_help_of_a_method_imports_that_method_alone(said: dict[str, Any]) -> None:
    assert {name for name in said["modules"][0] if re.fullmatch(r"stillroom\.methods\.\w+", name)} == {"stillroom.methods.kd"}


def test_help_and_a_mistyped_option_import_nothing_that_only_a_run_needs(said: dict[str, Any]) -> None:
    for modules in said["modules"]:
        assert not set(modules) & set(NEEDLESS)


def test_the_rest_of_torchmetrics_is_there_for_those_who_ask(said: dict[str, Any]) -> None:
    assert said["lacking"] == []
    assert said["one base"]
