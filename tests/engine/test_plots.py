"""Figures of points and curves."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from stillroom.engine.report.plots import plot


def test_a_figure_is_well_formed_whatever_is_drawn() -> None:
    points = {"a < b": [(0.0, 1.0), (math.nan, 2.0)], "one": [(50.0, 3.0)]}
    drawn = ElementTree.fromstring(plot("share (%)", "error & more", points, curves={"c": [(0.0, 1.0), (50.0, 2.0)]}, mark=20.0))
    assert len(drawn.findall("circle")) == 2
    assert "a < b" in [text.text for text in drawn.findall("text")]
    assert plot("x", "y", {"none": [(math.nan, 0.0)]}) == ""


def test_one_value_alone_can_be_drawn() -> None:
    assert ElementTree.fromstring(plot("x", "y", {"a": [(1.0, 1.0)]})).findall("circle")


def test_ticks_are_round_numbers() -> None:
    drawn = ElementTree.fromstring(plot("t", "nats", {}, curves={"c": [(10.0, 5.531), (190.0, 5.548)]}))
    texts = [text.text for text in drawn.findall("text")]
    assert texts == ["nats", "5.530", "5.535", "5.540", "5.545", "0", "100", "200", "t"]


def test_small_numbers_fit_beside_the_frame() -> None:
    drawn = ElementTree.fromstring(plot("t", "rate", {}, curves={"c": [(1.0, 1.75e-4), (2.0, 1.85e-4)]}))
    texts = [text.text or "" for text in drawn.findall("text")]
    assert {"1.75e−4", "1.85e−4"} <= {*texts}
    assert max(map(len, texts)) <= 7
