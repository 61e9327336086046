"""An editing report's own part: before and after, the trade-off between edit and background, and what an edit costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stillroom.engine.report.plots import plot
from stillroom.engine.report.results import Report, Section
from stillroom.tasks.images.page_parts import data_section, data_uri, heads, note, row, table

if TYPE_CHECKING:
    from stillroom.tasks.editing.data import EditingData

_PICTURES = 8


def editing_sections(report: Report, data: EditingData) -> list[Section]:
    """All sections, as far as the stages kept their pictures."""
    return [*_before_and_after(report), *_trade_off(report), _costs(report), data_section(data)]


def editing_remarks(report: Report) -> list[str]:
    """How far each arm edits, and at what price: neither says anything without the other."""
    error = _error_name(report)
    if report.primary != "edited":
        return ["Nothing here tells whether an edit was made as asked: look at the pictures. The figures say only how much was changed."]
    share, other = report.metric("edited"), report.metric(error)
    said = [f"{arm} {share.number(_mean(report, arm, 'edited'))} % at {other.number(_mean(report, arm, error))}" for arm in report.arms]
    return [f"Share edited as asked, and {other.label}: {'; '.join(said)}. One is worth nothing without the other."]


def _error_name(report: Report) -> str:
    """The figure of what should have stayed."""
    return "background" if all("background" in result.metrics for results in report.arms.values() for result in results) else "change"


def _mean(report: Report, arm: str, name: str) -> float:
    return fmean(result.metrics[name] for result in report.arms[arm])


def _before_and_after(report: Report) -> list[Section]:
    """The first pictures of each arm's validation set, not picked by eye."""
    parts = []
    for arm, results in report.arms.items():
        details = results[0].details
        if "picture" not in details or "source" not in details:
            continue
        cards = []
        for number in range(min(_PICTURES, len(details["ids"]))):
            pair = np.concatenate([details["source"][number], details["picture"][number]], 2).transpose(1, 2, 0)
            told = "edited as asked" if details.get("edited", np.zeros(number + 1))[number] else ""
            tiny = ' class="tiny"' if pair.shape[0] <= 64 else ""
            said = f"{escape(arm)}: validation picture {int(details['ids'][number])}, before and after"
            cards.append(
                f'<figure><img{tiny} src="{data_uri(Image.fromarray(pair))}" alt="{said}" loading="lazy" style="aspect-ratio: 2">'
                f"<figcaption>{told}</figcaption></figure>"
            )
        parts.append(f'<h3>{escape(arm)}</h3><div class="gallery">{"".join(cards)}</div>')
    if not parts:
        return []
    return [Section("Before and after", note(["The first pictures of the validation set, of the first seed."]) + "".join(parts))]


def _trade_off(report: Report) -> list[Section]:
    """Each arm and seed as a point: right is a higher share edited, low is less change elsewhere."""
    if report.primary != "edited":
        return []
    error = report.metric(_error_name(report))
    points = {
        arm: [(result.metrics["edited"], result.metrics[_error_name(report)]) for result in results] for arm, results in report.arms.items()
    }
    joined = {arm: found for arm, found in points.items() if arm.startswith("SDEdit")}
    curve = [(fmean(x for x, _ in found), fmean(y for _, y in found)) for found in joined.values()]
    drawn = plot("edited as asked (%)", error.label, {**points}, curves={"SDEdit": curve} if len(curve) > 1 else {})
    told = note(["Right is better, and so is low. SDEdit's points are its strengths, joined in their order."])
    return [Section("Trade-off", f'<div class="figures"><figure>{drawn}</figure></div>{told}')]


def _costs(report: Report) -> Section:
    """Seconds per picture: one pass of the student, many of the diffusion model."""
    first = report.arms[report.leading or next(iter(report.arms))][0].footprint.latency_ms
    rows = [
        row(
            arm,
            f"<td>{results[0].footprint.latency_ms / 1e3:.4f}</td><td>{results[0].footprint.latency_ms / first:.1f}</td>"
            f"<td>{results[0].footprint.parameters:,}</td>",
        )
        for arm, results in report.arms.items()
    ]
    return Section(
        "What an edit costs", table("Cost of an edit", heads(["", "seconds per picture", "times the student's", "parameters"]), rows)
    )


def curve_section(title: str, timesteps: Any, values: Mapping[str, Any], chosen: Sequence[int], told: Sequence[str]) -> Section:
    """Curves over time steps, a figure each, with what was chosen marked in it.

    Args:
        title: of the section.
        timesteps: [T].
        values: [T] by what they are.
        chosen: time steps; the first is marked.
        told: sentences below.
    """
    curves = {name: list(zip(map(float, timesteps), map(float, found), strict=True)) for name, found in values.items()}
    figures = [f"<figure>{plot('t', name, {}, curves={name: curve}, mark=float(chosen[0]))}</figure>" for name, curve in curves.items()]
    return Section(title, f'<div class="figures">{"".join(figures)}</div>{note([escape(sentence) for sentence in told])}')
