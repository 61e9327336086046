"""Who answers Ctrl-C and SIGTERM, for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Inside, these signals go to the handler; outside the main thread, where they are somebody else's, nothing changes."""
    mine = numbers if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in mine}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
