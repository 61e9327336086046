"""Runs reference vectors against the library: ``python -m tests.golden.check FILE.npz [FILE.npz ...]``.

Beside each npz (keys ``<case>/<tensor>``) lies a json of the same stem that lists its cases. A file ``22-dot.npz``, or any whose name
holds that (``22-dot-more.npz``), is answered by ``tests/golden/test_22_dot.py``: its ``ADAPTERS`` maps each case's ``function`` to a
callable that answers from the case's inputs and parameters.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Adapter = Callable[[dict[str, Tensor], dict[str, Any]], Mapping[str, Tensor]]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One reference computation: its inputs and what must come out."""

    name: str
    function: str
    params: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    rtol: float
    atol: float

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `problem` is empty when it passed."""

    case: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        return f"{self.case}: passed" if self.passed else f"{self.case}: failed ({self.problem})"


def load_cases(npz: Path) -> list[Case]:
    """The cases of an npz file and the json beside it.

    Raises:
        OSError, ValueError, KeyError: a file cannot be read, or lacks what the json names.
    """
    listed = json.loads(npz.with_suffix(".json").read_text(encoding="utf-8"))["cases"]
    if not listed:
        raise ValueError("no cases")
    with np.load(npz) as arrays:

        def tensors(case: dict[str, Any], names: str) -> dict[str, Tensor]:
            return {name: torch.from_numpy(arrays[f"{case['case']}/{name}"]) for name in case[names]}

        return [
            Case(
                name=case["case"],
                function=case["function"],
                params=case["params"],
                inputs=tensors(case, "inputs"),
                expected=tensors(case, "outputs"),
                rtol=case["rtol"],
                atol=case["atol"],
            )
            for case in listed
        ]


def adapters_for(stem: str) -> dict[str, Adapter]:
    """The adapters of the longest known slug in `stem`; none for an unknown one."""
    stem = stem.replace("-", "_")
    known = [path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")]
    matching = [slug for slug in known if slug in stem]
    if not matching:
        return {}
    module = importlib.import_module(f"tests.golden.test_{max(matching, key=len)}")
    adapters: dict[str, Adapter] = module.ADAPTERS
    return adapters


def run_case(case: Case, adapters: Mapping[str, Adapter]) -> Outcome:
    """Answers one case and compares. An adapter that raises has failed."""
    adapter = adapters.get(case.function)
    if adapter is None:
        return Outcome(case.name, f"no adapter for the function {case.function!r}")
    try:
        answer = adapter({name: tensor.clone() for name, tensor in case.inputs.items()}, dict(case.params))
        problems = [difference(name, answer.get(name), reference, case.rtol, case.atol) for name, reference in case.expected.items()]
    except Exception as error:  # whatever an adapter runs into is this case's failure, not the end of the run
        return Outcome(case.name, f"{type(error).__name__}: {error}")
    return Outcome(case.name, "; ".join(filter(None, problems)))


def difference(name: str, answer: Tensor | None, reference: Tensor, rtol: float, atol: float) -> str:
    """Says how `answer` differs from `reference` beyond the tolerance; empty when it does not. Integers and masks are exact."""
    if answer is None:
        return f"no output {name}"
    if answer.numel() == reference.numel() == 1:  # a number, written as [] or as [1]
        answer = answer.reshape(reference.shape)
    if answer.shape != reference.shape:
        return f"{name}: shape {list(answer.shape)} instead of {list(reference.shape)}"
    exact = not reference.dtype.is_floating_point
    out, ref = answer.detach().cpu().double(), reference.double()
    error = (out - ref).abs()
    limit = torch.zeros_like(ref) if exact else atol + rtol * ref.abs()
    within = (error <= limit) & out.isfinite() & ref.isfinite()
    wrong = ~(within | (out == ref) | (out.isnan() & ref.isnan()))
    if not wrong.any():
        return ""
    # NaN and infinity are worse than any number
    worst = int(torch.where(wrong, error.nan_to_num(torch.inf, torch.inf), -1.0).argmax())
    place = ", ".join(str(int(i)) for i in np.unravel_index(worst, ref.shape))
    return f"max error {error.flatten()[worst]:.3g}, {name}[{place}]" if place else f"max error {error.item():.3g}, {name}"


def with_gradients(loss: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """An adapter's answer for a scalar loss: ``loss``, and ``grad_<name>`` for each input (zero where no gradient arrives)."""
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), **{f"grad_{name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}}


def check(npz: Path) -> list[Outcome]:
    """Runs every case of a file; a file that cannot be read is one failure."""
    try:
        cases, adapters = load_cases(npz), adapters_for(npz.stem)
    except Exception as error:  # e.g. a broken archive, or an extra that the method's module needs and that is not installed
        return [Outcome(npz.name, f"cannot be read or answered: {type(error).__name__}: {error}")]
    return [run_case(case, adapters) for case in cases]


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check", description="Run reference vectors against the library.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    passed = failed = 0
    for npz in parser.parse_args(argv).files:
        for outcome in check(npz):
            print(outcome, flush=True)
            passed, failed = passed + outcome.passed, failed + (not outcome.passed)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
