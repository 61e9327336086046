"""Who works on a study: processes by their machine, number and start, so that others can look whether they are alive."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """This process, so that others of its machine can look whether it is alive."""
    return {"host": host(), "pid": os.getpid(), "started": started(os.getpid())}


def host() -> str:
    """This machine since it was started, and this container of it: processes are looked for in no other."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if "ns" in path.split("/") else Path(path).read_text())
    return f"{parts[0]}-{hashlib.blake2b(' '.join(parts).encode(), digest_size=4).hexdigest()}"


def started(pid: int) -> str | None:
    """When a process of this machine was started, in the system's own units; None where there is none. Numbers are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
