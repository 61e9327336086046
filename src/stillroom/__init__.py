"""Stillroom: knowledge distillation on PyTorch, paper by paper.

Importing this package imports neither torch nor Lightning; `stillroom.load` does when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom._version import __version__ as __version__

if TYPE_CHECKING:
    from stillroom.tasks.students import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from stillroom.tasks.students import load

        return load
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")
