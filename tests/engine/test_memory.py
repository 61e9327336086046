"""A long run in small: thousands of steps with checkpoints, evaluations and logs leave memory, open files and threads as they were.

2 000 steps; ``STILLROOM_MEMORY_STEPS=10000`` makes them more. A process of its own is measured: what other tests freed would hide a leak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

STEPS_PER_EPOCH = 100
WARM_UP = 5  # epochs
STEPS = int(os.environ.get("STILLROOM_MEMORY_STEPS", "2000"))
BOUND = 0.5  # KB a step; what is there at all comes from pages, which the allocator takes some at a time


def measure(steps: int, leak: int) -> list[dict[str, int]]:
    """After each epoch: bytes in memory, open files and threads of this process.

    Args:
        steps: after the warm-up.
        leak: bytes that the distiller forgets to free in each step.
    """
    import torch
    from torch import nn

    from stillroom.engine import Lab, LabOptions, Teacher, Training
    from stillroom.engine.distiller import Losses
    from stillroom.methods.kd import KD
    from stillroom.tasks.classification import Batch, ImageData

    torch.set_num_threads(1)
    samples: list[dict[str, int]] = []

    class Leaking(KD):
        """Measures; and leaks, where that is asked for."""

        def losses(self, batch: Batch) -> Losses:
            if self.progress.step % STEPS_PER_EPOCH == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files = len(os.listdir("/proc/self/fd"))
                samples.append({"resident": resident, "files": files, "threads": threading.active_count()})
            if leak:
                forgotten.append(os.urandom(leak))
            return super().losses(batch)

    forgotten: list[bytes] = []

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))

    data = ImageData("digits", batch_size=8, subset=8 * STEPS_PER_EPOCH, val_subset=20)
    with tempfile.TemporaryDirectory() as out:
        lab = Lab(LabOptions(out=Path(out), accelerator="cpu", checkpoint_steps=25))
        plan = Training(epochs=WARM_UP + steps // STEPS_PER_EPOCH + 1, lr=0.001)
        lab.fit(Leaking(network(), Teacher(network())), data, plan, name="long")
    return samples[WARM_UP:]


def measured(steps: int, leak: int) -> list[dict[str, int]]:
    """As `measure`, in another process."""
    command = [sys.executable, __file__, str(steps), str(leak)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    samples: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    assert len(samples) == steps // STEPS_PER_EPOCH + 1
    return samples


def growth(samples: list[dict[str, int]]) -> float:
    """KB a step: of the smallest of the last three samples over the smallest of the first three."""
    first, last = (min(sample["resident"] for sample in part) for part in (samples[:3], samples[-3:]))
    return (last - first) / 1024 / ((len(samples) - 3) * STEPS_PER_EPOCH)


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc to read memory from")


@needs_proc
def test_many_steps_take_no_more_memory_files_or_threads() -> None:
    samples = measured(STEPS, leak=0)
    assert growth(samples) < BOUND, samples
    for what in ("files", "threads"):
        assert max(sample[what] for sample in samples) <= max(sample[what] for sample in samples[:3]), samples


@needs_proc
def test_a_leak_of_a_kilobyte_a_step_would_be_seen() -> None:
    assert growth(measured(2000, leak=1024)) > BOUND


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
