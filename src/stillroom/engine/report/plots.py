"""Figures of points and curves, for a report's sections by tasks and methods; names are escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from stillroom.engine.report.figures import tick_texts, ticks

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 240, 54, 12, 24, 34

Point = tuple[float, float]


def plot(
    across: str,
    up: str,
    points: Mapping[str, Sequence[Point]],
    *,
    curves: Mapping[str, Sequence[Point]] | None = None,
    mark: float | None = None,
) -> str:
    """A figure of points and curves by name, as SVG; names stand beside the last point of each, a single curve needs none.

    Args:
        across, up: what the axes are.
        points: (across, up) by name; those that are not finite are left out.
        curves: joined in their order, likewise.
        mark: a place across that gets an upright line.
    """
    sound = {name: [point for point in several if all(map(math.isfinite, point))] for name, several in points.items()}
    lines = {name: [point for point in several if all(map(math.isfinite, point))] for name, several in (curves or {}).items()}
    every = [point for several in (*sound.values(), *lines.values()) for point in several]
    if not every:
        return ""
    (left, right), (low, high) = (_range([point[axis] for point in every]) for axis in (0, 1))

    def place(point: Point) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (point[0] - left) / (right - left)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - point[1]) / (high - low)

    parts: list[str] = []
    upright, level = ticks(low, high), ticks(left, right)
    for value, text in zip(upright, tick_texts(upright), strict=True):
        y = place((left, value))[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y:.1f}" dy=".35em" text-anchor="end">{text}</text>')
    for value, text in zip(level, tick_texts(level), strict=True):
        parts.append(f'<text x="{place((value, low))[0]:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(across)}</text>')
    if mark is not None:
        parts.append(f'<path class="grid" stroke-dasharray="4 3" d="M{place((mark, low))[0]:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    for number, (name, several) in enumerate(lines.items()):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, several))
        parts.append(f'<path class="line arm d{number % 6}" d="M{path}"/>' if path else "")
        if len(lines) > 1 and several:
            parts.append(_name(name, *place(several[-1])))
    for number, (name, several) in enumerate(sound.items()):
        placed = [place(point) for point in several]
        parts += [f'<circle class="arm d{number % 6}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for x, y in placed]
        if placed:
            parts.append(_name(name, *placed[-1]))
    told = "; ".join(
        f"{name}: {', '.join(f'({x:.3g}, {y:.3g})' for x, y in several)}" for name, several in {**lines, **sound}.items() if several
    )
    said = escape(f"{up} against {across}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}"><title>{said}</title><desc>{escape(told)}</desc>'
        f'<text x="2" y="11">{escape(up)}</text>{"".join(parts)}</svg>'
    )


def _name(name: str, x: float, y: float) -> str:
    end = x > _WIDTH * 0.6
    return f'<text x="{x + (-8 if end else 8):.1f}" y="{y - 7:.1f}" text-anchor="{"end" if end else "start"}">{escape(name)}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values span."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin
