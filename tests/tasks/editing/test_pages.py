"""Figures of an editing report."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from stillroom.tasks.editing.pages import curve_section, plot


def test_a_figure_is_well_formed_whatever_is_drawn() -> None:
    points = {"a < b": [(0.0, 1.0), (math.nan, 2.0)], "one": [(50.0, 3.0)]}
    drawn = ElementTree.fromstring(plot("share (%)", "error & more", points, curves={"c": [(0.0, 1.0), (50.0, 2.0)]}, mark=20.0))
    assert len(drawn.findall("circle")) == 2
    assert "a < b" in [text.text for text in drawn.findall("text")]
    assert plot("x", "y", {"none": [(math.nan, 0.0)]}) == ""


def test_one_value_alone_can_be_drawn() -> None:
    assert ElementTree.fromstring(plot("x", "y", {"a": [(1.0, 1.0)]})).findall("circle")
    section = curve_section("Steps", [10, 20], {"HQS": [0.0, 0.0]}, [10], ["<told>"])
    assert "&lt;told&gt;" in section.html
