"""Configurations that anybody may have written."""

from __future__ import annotations

import pytest

from stillroom.engine.plain import plain_yaml


@pytest.mark.parametrize("text", ["epochs: 1\nepochs: 3\n", "depth: {unit: mm, max: 3, unit: m}"])
def test_a_key_that_is_there_twice_is_not_forgotten(text: str) -> None:
    with pytest.raises(ValueError, match="twice in one mapping"):
        plain_yaml(text)


def test_keys_of_different_mappings_may_be_alike() -> None:
    assert plain_yaml("a: {kind: depth}\nb: {kind: edges}") == {"a": {"kind": "depth"}, "b": {"kind": "edges"}}
    assert plain_yaml("base: &x {a: 1}\nother: {<<: *x, a: 2}")["other"] == {"a": 2}
