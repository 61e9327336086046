"""An editing report's own sections."""

from __future__ import annotations

from stillroom.tasks.editing.pages import curve_section


def test_curves_are_drawn_and_what_is_told_is_escaped() -> None:
    section = curve_section("Steps", [10, 20], {"HQS": [0.0, 0.0]}, [10], ["<told>"])
    assert "&lt;told&gt;" in section.html
    assert section.html.count("<svg") == 1
