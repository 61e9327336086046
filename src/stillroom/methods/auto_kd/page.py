"""The report's part on the tree: how often each option was tried, and what came of it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from stillroom.engine.report.results import Section
from stillroom.engine.study.study import Study

if TYPE_CHECKING:
    from stillroom.engine.study.tree_sampler import TreeSampler


def tree_section(title: str, study: Study) -> Section:
    """The tree down the path that was visited most: at every level the options, with their visits and mean rewards."""
    opened = study.of_optuna()
    sampler: TreeSampler = opened.sampler  # type: ignore[assignment]
    node = sampler.tree(opened).root
    rows = []
    for level, options in sampler.levels.items():
        if not node.children:
            break
        most = max(node.children.items(), key=lambda found: found[1].visits)[0]
        for place, child in sorted(node.children.items()):
            name = escape(str(options[place]))
            first, bold = (escape(level) if place == min(node.children) else ""), (f"<b>{name}</b>" if place == most else name)
            mean = child.value / child.visits
            rows.append(f'<tr><th>{first}</th><td class="text">{bold}</td><td>{child.visits}</td><td>{mean:.2f}</td></tr>')
        node = node.children[most]
    head = "<tr><th>level</th><th>option</th><th>visits</th><th>mean reward</th></tr>"
    note = "Each level below the option that was visited most at the one above, in bold. A reward of 0.5 is no better than no distiller."
    table = f'<div class="wide"><table class="numbers"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return Section(title, f'{table}<p class="note">{note}</p>')
