"""What several processes look at once they have met: that they watch one another, and see one folder."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from stillroom.engine.distributed import gathered, rank, world_size
from stillroom.engine.run.watch import look_after, watch
from stillroom.errors import InputError

_PATIENCE = 10.0  # seconds until a file that one machine wrote is seen by another, on disks that take their time

subprocess_script._launch_process_observer = look_after  # type: ignore[assignment]


class Together(Callback):
    """The first callback of a training that processes share.

    Args:
        folder: of the run.
        lost_seconds: see `LabOptions`.
    """

    def __init__(self, folder: Path, lost_seconds: float) -> None:
        self.folder, self.lost_seconds = folder, lost_seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The processes have met."""
        if world_size() > 1 and not watch.active:
            watch.begin(self.lost_seconds)
            _check_shared(self.folder)


def _check_shared(folder: Path) -> None:
    """Whether all processes see what the first one writes.

    Raises:
        InputError: in every process, naming the machines that do not.
    """
    sign = folder / f".{uuid.uuid4().hex}.shared"
    if rank() == 0:
        sign.touch()
    sign = Path(gathered(str(sign.absolute()))[0])
    deadline = time.monotonic() + _PATIENCE
    while not (seen := sign.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = sorted({host for host, there in gathered((socket.gethostname(), seen)) if not there})
    torch.distributed.barrier()
    if rank() == 0:
        sign.unlink()
    if blind:
        got = f"{folder}, which {', '.join(blind)} {'do' if len(blind) > 1 else 'does'} not see as the first machine does"
        raise InputError("out", got, "a folder on a disk that all machines have, under the same path")
