"""What is said of processes that do not meet; tests/torture/machines.py has those that did."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch

from stillroom.engine.run.watch import Watch


def test_processes_that_do_not_meet_are_said_in_a_line() -> None:
    with pytest.raises((RuntimeError, OSError)) as raised:  # nobody listens there: as where the other one of a new start is about to end
        torch.distributed.init_process_group("gloo", "tcp://127.0.0.1:9", timedelta(seconds=0.3), world_size=2, rank=1)
    found = Watch().who_is_gone(raised.value)
    assert found is not None
    assert found.exit_code == 1
    assert str(found).startswith("the processes did not meet (")
    assert str(found).endswith("): one is gone, or does not reach the others; the same command goes on")
    assert "\n" not in str(found)


def test_another_error_is_no_lost_process() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) @ torch.zeros(3)
    assert Watch().who_is_gone(raised.value) is None
