"""One name has one meaning, whatever the method."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "docs" / "glossary.py"


def load_glossary() -> Any:
    """The module that makes the page, which lies in no package."""
    spec = importlib.util.spec_from_file_location("glossary", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["glossary"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def glossary() -> Any:
    return load_glossary()


def test_one_name_has_one_meaning(glossary: Any) -> None:
    options = glossary.options()
    assert len(options) > 100
    assert {name: option.meanings for name, option in options.items() if len(option.heads) > 1} == {}
    assert {name: option.kinds for name, option in options.items() if len(option.kinds) > 1} == {}


def test_the_page_lists_every_option_with_its_methods(glossary: Any) -> None:
    page = glossary.on_page_markdown((FILE.parent / "options.md").read_text())
    assert all(f"\n| `--{name.replace('_', '-')}` | " in page for name in glossary.options())
    temperature = page[page.index("| `--temperature`") :].partition("\n| `--")[0]
    for method in ("kd", "dkd", "orc", "mdcs", "ferkd", "kd3", "crkd", "cache-labels"):
        assert f"{method}," in temperature or f"{method} |" in temperature


def test_what_is_said_of_a_teacher_is_offered_where_one_is_given(glossary: Any) -> None:
    for name in ("teacher_mean", "teacher_std"):
        having = {who for whos in glossary.options()[name].meanings.values() for who in whos}
        assert {"kd", "orc", "kd3", "compare", "cache"} <= having
        assert not {"mdcs", "crkd", "wad", "supervised"} & having
