"""Vertices of PLY files, ascii and binary of either byte order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2", "int": "i4",
    "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


def read_ply(content: bytes, fail: Callable[[str], Exception]) -> dict[str, np.ndarray]:
    """The columns of a file's vertices by name, [N] each in its own type.

    Args:
        content: of the file.
        fail: makes the error of what is wrong with it.
    """
    end = content.find(b"end_header")
    if not content.startswith(b"ply") or end < 0:
        raise fail("which does not begin as a PLY file")
    start = content.find(b"\n", end) + 1
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []  # names, numbers of rows, properties with their types
    form = ""
    for line in content[:end].decode("ascii", "replace").splitlines():
        match line.split():
            case ["format", name, *_]:
                form = name
            case ["element", name, rows]:
                elements.append((name, int(rows), []))
            case ["property", "list", *_] if elements:
                elements[-1][2].append(("", ""))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1][2].append((name, _TYPES[kind]))
    if form not in ("ascii", *_ORDERS) or not any(name == "vertex" for name, _, _ in elements):
        raise fail(f"of format {form or 'none'}, with elements {[name for name, _, _ in elements]}")
    before = elements[: [name for name, _, _ in elements].index("vertex")]
    _, count, properties = next(element for element in elements if element[0] == "vertex")
    if any(not name for _, _, listed in (*before, ("", 0, properties)) for name, _ in listed):
        raise fail("with lists in or before its vertices")
    if form == "ascii":
        lines = content[start:].decode("ascii", "replace").split("\n")[sum(number for _, number, _ in before) :][:count]
        try:
            words = [[float(word) for word in line.split()[: len(properties)]] for line in lines]
            table = np.array(words, np.float64).reshape((count, len(properties)))
        except ValueError:
            raise fail(f"with fewer than its {count} vertices of {len(properties)} numbers") from None
        return {name: table[:, at].astype(kind) for at, (name, kind) in enumerate(properties)}
    order = _ORDERS[form]
    skipped = sum(number * sum(np.dtype(kind).itemsize for _, kind in listed) for _, number, listed in before)
    row: np.dtype[Any] = np.dtype([(name, order + kind) for name, kind in properties])
    if len(content) < start + skipped + count * row.itemsize:
        raise fail(f"with fewer than its {count} vertices of {row.itemsize} bytes")
    found = np.frombuffer(content, row, count, start + skipped)
    return {name: found[name].astype(kind) for name, kind in properties}


def columns_of(vertices: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """x, y, z and, where there are, red, green, blue in [0, 1], float32 [N, 3 or 6], with their names."""
    names = ["x", "y", "z"]
    columns: list[np.ndarray] = [vertices[name].astype(np.float32) for name in names]
    colours = ("red", "green", "blue")
    if all(name in vertices for name in colours):
        scale = 255 if vertices["red"].dtype.kind == "u" else 1
        columns += [(vertices[name] / scale).astype(np.float32) for name in colours]
        names += colours
    return np.stack(columns, 1), tuple(names)
