"""Parts that the tasks' report sections are put together from: cells and tables of figures, pictures, galleries."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Section

_ROWS = 40  # classes that are counted one by one
_TINY = 64  # pixels; images up to this size are enlarged without smoothing
_LARGE = 320  # pixels; larger ones are embedded at this size


# Figures --------------------------------------------------------------------------------------------------------------------------------


def mean_over_seeds(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean of each column [C] of the seeds' figures, without the seeds that have none (NaN); NaN where no seed has one."""
    values_SC = np.array(values)
    known_C = np.isfinite(values_SC).sum(0)
    return np.divide(np.nansum(values_SC, 0), known_C, out=np.full(values_SC.shape[1], np.nan), where=known_C > 0)


def changes(before: Mapping[int, np.ndarray], after: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """Differences of the figures [C] of the seeds that both have, [S, C]; None where there is no such seed."""
    seeds = sorted(set(before) & set(after))
    return np.array([after[seed] - before[seed] for seed in seeds]) if seeds else None


def figure(value: float) -> str:
    """A number of a table's cell; a dash for none."""
    return f"{value:.1f}" if np.isfinite(value) else "–"


def change_cell(mean: float, by_seed: np.ndarray, *, higher_is_better: bool = True, decimals: int = 1) -> str:
    """A cell with the change in points and its standard deviation over seeds; its colour says whether that is better."""
    if not np.isfinite(mean):
        return '<td class="first">–</td>'
    nothing = f"{0:.{decimals}f}"
    text = f"{mean:+.{decimals}f}".replace("-", "−")
    text = nothing if text[1:] == nothing else text
    known = by_seed[np.isfinite(by_seed)]
    spread = f" ± {known.std(ddof=1):.{decimals}f}" if len(known) > 1 else ""
    direction = "" if text == nothing else " up" if (mean > 0) == higher_is_better else " down"
    return f'<td class="first{direction}">{text}{spread}</td>'


# Tables ---------------------------------------------------------------------------------------------------------------------------------


def heads(names: Sequence[str], *, change: bool = False) -> str:
    """Heads of columns; a last one for a change, if there is one."""
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names) + (
        '<th scope="col" class="first">change</th>' if change else ""
    )


def row(name: str, cells: str) -> str:
    """A row with its head."""
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def table(said: str, heads: str, rows: Sequence[str]) -> str:
    """A table of figures, which scrolls where it is too wide; `said` is what it is called."""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{said}"><table class="numbers" aria-label="{said}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def note(sentences: Sequence[str]) -> str:
    """What is to be known of a table or a gallery."""
    return f'<p class="note">{" ".join(sentences)}</p>'


def data_section(data: Any, each: str = "class") -> Section:
    """*The data*: what a run's first lines say, and the images of each class in each split.

    Args:
        data: with `first_lines`, of which the first counts; `listed_counts` [C] of both splits; `classes`.
        each: what a class is called.
    """
    train_C, val_C = data.listed_counts()
    several = f"{each}es" if each == "class" else f"{each}s"
    first, *met = data.first_lines()
    first = first.partition(":")[0]
    rows = [row(name, f"<td>{train}</td><td>{val}</td>") for name, train, val in zip(data.classes, train_C, val_C, strict=True)]
    notes = [f"The first {_ROWS} of {len(rows)} {several}, in the order of a network's answers."] if len(rows) > _ROWS else []
    if len(rows) > _ROWS:
        least, most = int(train_C.min()), int(train_C.max())
        notes.append(f"Over all of them there are {least} to {most} training images, and {val_C.min()} to {val_C.max()} to measure with.")
    counts = table(f"Images by {each}", heads([each, "to train on", "to measure with"]), rows[:_ROWS])
    lines = "".join(f"<li>{escape(line)}</li>" for line in met)
    return Section("The data", f"<p>{escape(first)}.</p><ul>{lines}</ul>{counts}{note(notes) if notes else ''}")


# Pictures -------------------------------------------------------------------------------------------------------------------------------


def data_uri(image: Image.Image, format: str = "PNG") -> str:
    """The image inside the page: as a PNG, or in another format, e.g. JPEG; a large one is made smaller as a PNG."""
    file = BytesIO()
    if format == "PNG":
        shown = image if image.mode in ("L", "RGB") else image.convert("RGB")
        if max(shown.size) > _LARGE:
            shown = shown.copy()
            shown.thumbnail((_LARGE, _LARGE))
        shown.save(file, format="PNG", optimize=True)
    else:
        image.save(file, format=format, quality=80)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def card(image: Image.Image, number: int, named: str, answers: Mapping[str, str]) -> str:
    """A validation image with what it is, its number, and what each model says of it.

    Args:
        image: the picture.
        number: its id.
        named: what it is, as HTML.
        answers: by the models' names: as HTML.
    """
    tiny = ' class="tiny"' if max(image.size) <= _TINY else ""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{said}</dd>" for name, said in answers.items())
    return (
        f'<figure><img{tiny} src="{data_uri(image)}" alt="validation image {number}, {named}" loading="lazy">'
        f"<figcaption><b>{named}</b> · no. {number}<dl>{lines}</dl></figcaption></figure>"
    )


def captioned(image: Image.Image, said: str, side: int = 240) -> str:
    """A picture of a gallery with what is to be said of it.

    Args:
        image: shown with its longer side in so many pixels.
        said: as HTML without tags.
        side: pixels.
    """
    shown = image.convert("RGB")
    factor = side / max(shown.size)
    size = max(1, round(shown.width * factor)), max(1, round(shown.height * factor))
    shown = shown.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)
    picture = f'<img src="{data_uri(shown, "JPEG")}" alt="{said}" loading="lazy" style="aspect-ratio:auto">'
    return f"<figure>{picture}<figcaption>{said}</figcaption></figure>"


def gallery(title: str, count: int, cards: Sequence[str]) -> str:
    """The first of `count` images of a kind, under a heading."""
    shown = f'<div class="gallery">{"".join(cards)}</div>' if cards else ""
    return f"<h3>{title}: {count} image{'' if count == 1 else 's'}</h3>{shown}"
