"""What mkdocs does to the pages besides: results as plots and tables, the schema of metrics.json, equations as MathML; without scripts."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import effects
from catalogue import name_of
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
LABELS = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "nll": "NLL (nats)",
    "ece": "calibration error (%)",
    "agreement": "agreement with teacher (%)",
    "best top1": "best top-1 (%)",
    "seconds": "training (s)",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in what is generated."""
    made: dict[str, Callable[[], str]] = {
        "results": results,
        "overview": lambda: effects.overview(files()),
        "defaults": effects.defaults,
        "tried": tried,
        "schema": schema,
    }
    of_job: dict[str, Callable[[str], str]] = {
        "printed": printed,
        "scores": lambda method: effects.scores(default_job(method)),
        "minutes": minutes,
        "job": lambda method: effects.defaults([method]),
    }
    markdown = re.sub(rf"<!-- ({'|'.join(made)}) -->", lambda found: made[found[1]](), markdown)
    return re.sub(rf"<!-- ({'|'.join(of_job)}): (\w+) -->", lambda found: of_job[found[1]](found[2]), markdown)


def default_job(method: str) -> dict[str, Any]:
    """What a method's default job measured."""
    found: dict[str, Any] = json.loads((ROOT / f"results/default/{method}.json").read_text(encoding="utf-8"))
    return found


def printed(method: str) -> str:
    """What a method's default job printed at its end."""
    return f"```text\n{(ROOT / f'results/default/{method}.txt').read_text(encoding='utf-8')}```"


def minutes(method: str) -> str:
    """How long a method's default job takes."""
    (seconds,) = re.findall(r"(\d+) s of processor time", " ".join(default_job(method)["notes"]))
    return f"{seconds} seconds of processor time"


def on_page_content(html: str, **_: Any) -> str:
    """TeX as MathML, which browsers draw by themselves."""
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda found: mathml(found[1]), html, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda found: displayed(found[1]), html, flags=re.DOTALL)


def displayed(tex: str) -> str:
    """An equation of its own; what \\qquad keeps apart comes to stand below one another where the page is narrow."""
    parts = [mathml(part, "block") for part in tex.split(r"\qquad")]
    return f'<div class="equation">{"".join(parts)}</div>'


def mathml(tex: str, display: str = "inline") -> str:
    """One equation; TeX that is not understood stops the build."""
    tex = " ".join(unescape(tex).split())
    made = convert(tex, display=display)
    if left := re.search(r"\\[A-Za-z]+", made):
        raise PluginError(f"an equation with {left[0]}, which cannot be shown: {tex}")
    return made.replace("<math ", f'<math aria-label="{escape(tex)}" ', 1)


def schema() -> str:
    """The schema as the report's module states it."""
    text = ast.get_docstring(ast.parse((ROOT / "src/stillroom/engine/report/results.py").read_text(encoding="utf-8"))) or ""
    start, end = text.index("    schema "), text.index("A spread is")
    return f"```text\n{_dedented(text[start:end])}\n```\n\n{text[end:]}"


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.rstrip().splitlines())


def tried() -> str:
    """What the default job was chosen from, a row each; what is said of the teacher stands before the student's."""
    rows = [["pictures", "networks", "epochs", "rate", "T", "seeds", "teacher", "alone", "distilled", "gain"], ["---"] * 4 + ["---:"] * 6]
    for line in (ROOT / "results/default/tried.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        setting = found["tried"]
        shaken = "\\*" if setting["augment"] != "none" else ""
        of_teacher, own = ((re.findall(r"train=(\d+)", setting[name]) or ["50"])[0] + shaken for name in ("teacher_data", "data"))
        if setting["teacher_data"] != setting["data"]:
            of_teacher = of_teacher.removesuffix(shaken)  # that teacher saw its pictures as they are
        batch = "" if setting["batch"] == 64 else f", batches of {setting['batch']}"
        cells = [f"{of_teacher}, {own}", f"{setting['teacher']}, {setting['student']}", f"{setting['teacher_epochs']}, {setting['epochs']}"]
        cells += [f"{setting['lr']:g} {setting['schedule']}{batch}", f"{setting['temperature']:g}"]
        cells += [f"{setting['teacher_seed']}, {setting['seed']}", *(f"{found[arm]:.1f}" for arm in ("teacher", "alone", "distilled"))]
        rows.append([*cells, effects.number(found["distilled"] - found["alone"], 1)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f'<div class="tried" markdown>\n\n{table}\n\n</div>'


def files() -> list[dict[str, Any]]:
    """The files in `results/`, in the order of the methods' pages."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").glob("*.json")]
    return sorted(found, key=lambda one: effects.ORDER.index(one["method"]))


def results() -> str:
    """A section for each file in `results/`."""
    return "\n\n".join(section(found) for found in files()) or "Nothing was measured yet."


def section(found: dict[str, Any]) -> str:
    """One file: the claims as a plot; folded away what was said of them, tables, and how it was measured."""
    method = found["method"]
    groups: dict[str, dict[str, Any]] = {}
    for arm, metrics in found["arms"].items():
        group, colon, name = arm.partition(": ")
        groups.setdefault(group if colon else "", {})[name if colon else arm] = metrics
    page = f" [The method.](methods/{method}.md)" if (ROOT / f"docs/methods/{method}.md").exists() else ""
    seeds = len(found["seeds"])
    verdict = "\n".join(f"- {part}" for part in found["verdict"].replace("+-", "±").rstrip(".").split("; "))
    folded = [verdict, *found.get("notes", [])]
    for group, rows in groups.items():
        folded += ([f"**{group}**"] if group else []) + [table(rows)]
    folded += [f"Seeds {', '.join(map(str, found['seeds']))}; {found['date']}; {found['hardware']}. Made by:"]
    folded += [f"```\n{lines(found['command'])}\n```"]
    return "\n\n".join(
        [
            f"## {name_of(method)} {{ #{method} }}",
            f"Measured: {seeds} seed{'s' if seeds != 1 else ''}.{page}",
            effects.claims_of(found),
            "<details markdown>\n<summary>In words, every number, and how it was measured</summary>",
            *folded,
            "</details>",
        ]
    )


def lines(command: str, width: int = 90) -> str:
    """A command over several lines, broken before its options."""
    whole = ""
    for piece in re.split(r" (?=--)", command):
        last = whole.rpartition("\n")[2]
        whole += piece if not whole else f" \\\n    {piece}" if len(last) + len(piece) > width else f" {piece}"
    return whole


def table(arms: dict[str, Any]) -> str:
    """An arm a row, a metric a column."""
    found = dict.fromkeys(name for metrics in arms.values() for name in metrics)
    names = sorted(found, key=lambda name: (name == "seconds", name.startswith("best")))
    rows = [["arm", *(LABELS.get(name, name) for name in names)], ["---", *["---:"] * len(names)]]
    rows += [[arm, *(cell(metrics.get(name)) for name in names)] for arm, metrics in arms.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(value: dict[str, Any] | None) -> str:
    """Mean ± standard deviation, with as many digits as two of the latter allow; four digits where there is none."""
    if value is None:
        return "–"
    mean, std = value["mean"], value["std"]
    if mean is None or not math.isfinite(mean):
        return "n/a"
    if not std:
        return f"{mean:.4g}" + ("\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0" if std == 0 else "")
    decimals = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:.{decimals}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{std:.{decimals}f}"
