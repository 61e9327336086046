"""Shared by all tests: one thread per process, and small jobs on real digits.

Nothing heavy is imported before a fixture asks for it: the process that only hands out tests to pytest's workers starts them sooner.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import Processes

if TYPE_CHECKING:
    from stillroom.tasks.classification import ImageData

# A shell that starts the suite in the background has Ctrl-C ignored, in every process below it; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random weights and inputs of a test do not depend on which tests ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def hasty() -> Iterator[None]:
    """A network's latency, half a second for each that is trained, is that of one pass; `test_measure.py` measures as people do."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_WARM_UP_SECONDS", "_TIMED_SECONDS"):
            patch.setattr(f"stillroom.engine.run.measure.{limit}", 0.0)
        yield


@pytest.fixture(scope="module")
def kept_checkpoints() -> Iterator[None]:
    """Stages that are finished keep their last checkpoint, which says what training left in every network and optimiser."""
    from stillroom.engine.run.stage import StageFolder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageFolder, "drop_checkpoint", lambda folder: None)
        yield


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """160 training and 80 validation digits in batches of 32: five steps make an epoch."""
    from stillroom.tasks.classification import ImageData

    return ImageData("digits", batch_size=32, subset=160, val_subset=80)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside a developer's checkout; tests that need one skip where it is absent."""
    return Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Processes that have imported everything, to run on two ranks or to be killed: `tests/processes.py`."""
    if not hasattr(os, "fork"):
        pytest.skip("the system cannot fork")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Processes(shared, tmp_path_factory.mktemp("processes"))
