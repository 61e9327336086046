"""`stillroom shrink-clip MODEL`: a smaller CLIP from yours, by your pairs, and what it costs and finds before and after."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stillroom.commands.parser import Parser, named_as_typed
from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine import Report

PROG = "stillroom shrink-clip"
_WAYS = ("auto", "manual")
_RATE = "1e-4"  # of weights, as the paper trains


def run(arguments: list[str], command: str) -> None:
    """Runs TinyCLIP's experiment on a CLIP at hand with one way of inheriting, and prints a table of before and after.

    Args:
        arguments: what follows `stillroom shrink-clip`.
        command: the whole line that was typed.
    """
    parser = Parser(
        PROG,
        "A smaller CLIP from yours: it inherits weights and learns from the large one on your pairs. Any other option is one of "
        "`stillroom run tinyclip`, as --data, --epochs, --batch-size, --lr, --zero-shot or --student; see its --help.",
    )
    parser.add_argument("model", metavar="MODEL", help="a CLIPModel folder of transformers, a file of open_clip's, or a run's folder")
    parser.add_argument("--target", type=float, default=0.5, metavar="SHARE", help="of the towers' blocks that goes (default: 0.5)")
    parser.add_argument(
        "--inherit", default="auto", help="auto: learned masks say what goes; manual: a narrower tower, by a fixed rule (default: auto)"
    )
    given, rest = parser.parse_known_args(arguments)
    if not 0 < given.target < 1:
        raise InputError("--target", given.target, "a share above 0 and below 1")
    if given.inherit not in _WAYS:
        raise InputError("--inherit", given.inherit, f"one of {', '.join(_WAYS)}")

    from stillroom import catalog
    from stillroom.commands.options import early, read_options
    from stillroom.engine import run_seeds
    from stillroom.tasks.images.clips import names_clip

    if early(rest, "data") is None and early(rest, "preset") is None and early(rest, "config") is None:
        raise InputError("--data", "nothing", "your pairs of images and texts, such as pairs:FILE.csv")
    if not names_clip(given.model):
        raise InputError("MODEL", given.model, "a folder of transformers' CLIPModel, a file of open_clip's weights, or a run's folder")
    room = catalog.load("tinyclip")
    ours = ["--teacher", given.model, "--arms", given.inherit, "--targets", json.dumps([given.target])]
    ours += [] if early(rest, "lr") else ["--lr", _RATE]
    options = read_options(PROG, room.recipe, [*ours, *rest], setting=room.chosen(None), out="runs/shrunk-clip")
    with named_as_typed(*options.settings):
        lab = options.made_lab()
        recipe = {**options.trained_by(), **options.own}
        report = run_seeds(room.recipe, lab, options.made_data(), recipe, command=command, settings=options.settings)
        show(report, given.inherit)
    print(f'the small model: {lab.out}/clip; use it: stillroom predict {lab.out} photos/ --classes "cat,dog"')


def show(report: Report, arm: str) -> None:
    """The large model beside the small one, first seed: what they cost, and what they find."""
    from rich.console import Console
    from rich.table import Table

    before, after = report.arms["teacher"][0], report.arms[arm][0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("", "before", "after"):
        table.add_column(head, justify="left" if not head else "right")
    costs = [(one.footprint.parameters / 1e6, (one.footprint.macs or 0) / 1e9, one.footprint.latency_ms) for one in (before, after)]
    for name, old, new in zip(("parameters (M)", "multiply-adds (G)", "latency (ms)"), *costs, strict=True):
        table.add_row(name, f"{old:.3g}", f"{new:.3g}")
    for name, value in before.metrics.items():
        metric = report.metric_formats.get(name)
        if metric is not None:
            table.add_row(f"{metric.label} ({metric.unit})", metric.number(value), metric.number(after.metrics[name]))
    Console(width=100).print(table)
