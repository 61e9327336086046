"""Points of PCD files: ascii, binary and binary_compressed, fields by their names, padding left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_COLOURS = ("red", "green", "blue")
_KINDS = {("F", 4): "f4", ("F", 8): "f8", ("I", 1): "i1", ("I", 2): "i2", ("I", 4): "i4", ("I", 8): "i8", ("U", 1): "u1", ("U", 2): "u2",
          ("U", 4): "u4", ("U", 8): "u8"}  # fmt: skip


def read_pcd(content: bytes, fail: Callable[[str], Exception]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Points and the names of their columns: float32 [N, D], x, y, z first.

    A packed `rgb` or `rgba` becomes red, green, blue in [0, 1]. Rows without a place (NaN, as organised clouds have them) are left out.

    Args:
        content: of the file; numbers are little-endian, as the format has them.
        fail: makes the error of what is wrong with it.
    """
    head: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in head:
        end = content.find(b"\n", at)
        if end < 0:
            raise fail("without a line DATA")
        words = content[at:end].decode("ascii", "replace").split()
        if words and not words[0].startswith("#"):
            head[words[0].upper()] = words[1:]
        at = end + 1
    try:
        names, sizes, kinds = head["FIELDS"], [int(size) for size in head["SIZE"]], head["TYPE"]
        counts = [int(count) for count in head.get("COUNT", ["1"] * len(names))]
        points = int(head["POINTS"][0]) if "POINTS" in head else int(head["WIDTH"][0]) * int(head["HEIGHT"][0])
        types = [_KINDS[kind.upper(), size] for kind, size in zip(kinds, sizes, strict=True)]
        form = head["DATA"][0].lower()
        # padding fields may share the name "_"
        fields = [(f"{number}", f"<{kind}", (count,)) for number, (kind, count) in enumerate(zip(types, counts, strict=True))]
        names_by_field = dict(zip([name for name, _, _ in fields], names, strict=True))
    except (KeyError, ValueError, IndexError):
        raise fail("with a header that lacks or mixes up FIELDS, SIZE, TYPE, POINTS or DATA") from None
    row = np.dtype(fields)
    body = content[at:]
    if form == "binary":
        if len(body) < points * row.itemsize:
            raise fail(f"with fewer than its {points} points of {row.itemsize} bytes")
        found = np.frombuffer(body, row, points)
        columns = {names_by_field[name]: found[name][:, 0] for name, _, _ in fields}
    elif form == "binary_compressed":
        columns = _columns_by_columns(body, points, fields, names_by_field, fail)
    elif form == "ascii":
        columns = _columns_of_text(body, points, counts, names, types, fail)
    else:
        raise fail(f"of DATA {form}")
    if missing := [name for name in "xyz" if name not in columns]:
        raise fail(f"without the field {missing[0]}; it has {names}")
    return _table(columns)


def _columns_of_text(body: bytes, points: int, counts: list[int], names: list[str], types: list[str],
                     fail: Callable[[str], Exception]) -> dict[str, np.ndarray]:  # fmt: skip
    lines = [line for line in body.decode("ascii", "replace").splitlines() if line.strip()][:points]
    starts = np.cumsum([0, *counts])
    try:
        table = np.array([line.split() for line in lines]).reshape(points, starts[-1])
        return {name: table[:, start].astype(float).astype(kind) for name, start, kind in zip(names, starts, types, strict=False)}
    except ValueError:
        raise fail(f"with fewer than its {points} points of {starts[-1]} numbers") from None


def _columns_by_columns(body: bytes, points: int, fields: list[tuple[str, str, tuple[int]]], names: Mapping[str, str],
                        fail: Callable[[str], Exception]) -> dict[str, np.ndarray]:  # fmt: skip
    """Of binary_compressed: sizes before and after, then whole columns behind each other, compressed by LZF."""
    packed, size = np.frombuffer(body, "<u4", 2).tolist() if len(body) >= 8 else (0, 0)
    if len(body) < 8 + packed or size != points * np.dtype(fields).itemsize:
        raise fail("whose compressed part is cut off or of another size")
    raw = unpack_lzf(body[8 : 8 + packed], size)
    if len(raw) != size:
        raise fail("whose compressed part is damaged")
    columns, at = {}, 0
    for name, kind, (count,) in fields:
        length = points * count
        columns[names[name]] = np.frombuffer(raw, kind, length, at).reshape(points, count)[:, 0]
        at += length * np.dtype(kind).itemsize
    return columns


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """What LZF compressed, at most `size` bytes."""
    out = bytearray()
    at = 0
    while at < len(packed) and len(out) < size:
        control = packed[at]
        at += 1
        if control < 32:  # so many bytes as they are
            out += packed[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[at]
            at += 1
        start = len(out) - ((control & 31) << 8) - packed[at] - 1
        at += 1
        if start < 0:
            return bytes(out)
        for offset in range(length + 2):  # it may overlap what it writes
            out.append(out[start + offset])
    return bytes(out)


def _table(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """x, y, z, then every other field that is no padding."""
    packed = next((name for name in ("rgb", "rgba") if name in columns), None)
    names = ["x", "y", "z", *(name for name in columns if name not in ("x", "y", "z", "_", packed))]
    parts: list[np.ndarray] = [columns[name].astype(np.float32) for name in names]
    if packed is not None:
        bits = np.ascontiguousarray(columns[packed]).view("<u4" if columns[packed].dtype.itemsize == 4 else columns[packed].dtype)
        parts += [((bits.astype(np.uint32) >> shift) & 255).astype(np.float32) / 255 for shift in (16, 8, 0)]
        names += _COLOURS
    table = np.stack(parts, 1)
    return table[np.isfinite(table[:, :3]).all(1)], tuple(names)
