"""Classifiers that are only a file, `onnx:model.onnx` and `openvino:model.xml`, and what such a file says of itself."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.engine.inference.network import FileNetwork, Layout
from stillroom.engine.specification import FILES
from stillroom.tasks.images.configurations import Configuration, listed, pair, three

_ENGINE_OF = {"onnx": "onnxruntime", "openvino": "openvino"}


def file_of(spec: str) -> Path | None:
    """The file of a specification that names one; None for others."""
    return Path(spec.partition(":")[2]).expanduser() if spec.startswith(FILES) else None


def open_file(spec: str, argument: str, layout: Layout = "auto") -> FileNetwork:
    """The network of a specification that names a file.

    Raises:
        InputError: as `FileNetwork`.
    """
    file, kind = file_of(spec), spec.partition(":")[0]
    assert file is not None
    return FileNetwork(file, _ENGINE_OF[kind], layout=layout, argument=argument)


def of_file(network: FileNetwork) -> Configuration:
    """What a file's metadata say of the images that it reads and of its classes.

    Read are those of Stillroom's exports (``classes``, ``transform``), of Ultralytics (``names``) and of OpenVINO's Model API (``labels``,
    ``mean_values`` and ``scale_values`` of pixels up to 255). A file that reads bytes reads pixels from 0 to 255.
    """
    told = network.session.metadata
    transform = _value(told.get("transform", ""))
    transform = transform if isinstance(transform, Mapping) else {}
    mean, std = three(transform.get("mean")), three(transform.get("std"))
    if "mean_values" in told or "scale_values" in told:
        mean, std = three(_numbers(told.get("mean_values", "0")), 255.0), three(_numbers(told.get("scale_values", "1")), 255.0)
    if network.dtype.itemsize == 1:
        mean, std = (0.0,) * 3, (1 / 255,) * 3
    names: list[str] = []
    for key in ("classes", "names", "id2label"):
        value = _value(told.get(key, ""))
        if isinstance(value, Mapping | list) and not names:
            names = listed({str(row): name for row, name in value.items()} if isinstance(value, Mapping) else value)
    names = names or told.get("labels", "").split()
    return Configuration(
        str(network.session.file), mean, std, network.size or pair(transform.get("image_size")), classes=tuple(names) or None
    )


def _value(text: str) -> Any:
    """Plain data from JSON, or from what Python prints; None for other text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _numbers(text: str) -> Any:
    found = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
    return found[0] if len(found) == 1 else found
