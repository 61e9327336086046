"""Lightning without the whole of torchmetrics.

`import torchmetrics` imports every metric that there is: of text with transformers, of sound with SciPy's signals, of pictures. Lightning
imports it for the sake of two base classes, and all of it was a third of what `stillroom run METHOD --help` took. Whoever imports
`stillroom.engine` before torchmetrics gets a torchmetrics whose modules are imported one by one, as they are asked for; the first name
that is asked of the package itself imports the rest, as ever.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any


def _deferred(package: str) -> ModuleType:
    """The package, importable by its modules, whose own `__init__` runs when a name is asked of it that no module of it brought."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def whole(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what the import system and `inspect` ask of every module
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = whole
    sys.modules[package] = module
    return module


def lighten_torchmetrics() -> None:
    """Makes torchmetrics as light as this module says, unless it was imported before."""
    if "torchmetrics" in sys.modules:
        return
    package = _deferred("torchmetrics")
    names = vars(package)
    names["_logger"] = logging.getLogger("torchmetrics")
    names["functional"] = _deferred("torchmetrics.functional")
    names["__version__"] = importlib.import_module("torchmetrics.__about__").__version__
    importlib.import_module("torchmetrics.utilities")  # first: the two below and it import one another
    names["Metric"] = importlib.import_module("torchmetrics.metric").Metric
    names["MetricCollection"] = importlib.import_module("torchmetrics.collections").MetricCollection


lighten_torchmetrics()
