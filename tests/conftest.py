"""Shared by all tests: one thread per process, and small jobs on real digits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stillroom.tasks.classification import ImageData
from tests.processes import Processes

torch.set_num_threads(1)
# A shell that starts the suite in the background has Ctrl-C ignored, in every process below it; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random weights and inputs of a test do not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def hasty() -> Iterator[None]:
    """A network's latency, half a second for each that is trained, is that of one pass; `test_measure.py` measures as people do."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_WARM_UP_SECONDS", "_TIMED_SECONDS"):
            patch.setattr(f"stillroom.engine.run.measure.{limit}", 0.0)
        yield


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """160 training and 80 validation digits in batches of 32: five steps make an epoch."""
    return ImageData("digits", batch_size=32, subset=160, val_subset=80)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside a developer's checkout; tests that need one skip where it is absent."""
    return Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Processes that have imported everything, to run on two ranks or to be killed: `tests/processes.py`."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Processes(shared, tmp_path_factory.mktemp("processes"))
