from __future__ import annotations

import ast
import inspect
from typing import Any, get_type_hints

import jsonargparse
import pytest

from stillroom import catalog
from stillroom.engine import LabOptions, Training
from stillroom.errors import InputError
from stillroom.tasks.experiments import options_of

BASELINES = {"supervised", "kd", "dkd", "fitnets", "crd"}
GIVEN = {"lab", "data", "plan"}  # parameters of a recipe that are no options of its own
BUILT = [method for method in catalog.METHODS if method.room]


def documented(thing: Any) -> set[str]:
    """The names under ``Args:`` of a docstring."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    start = lines.index("Args:") + 1
    names: set[str] = set()
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, colon, text = line.strip().partition(":")
            assert colon, line
            assert text.strip(), f"{name} says nothing"
            names |= set(name.split(", "))
    return names


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_28_papers_besides_the_baselines() -> None:
    names = [method.name for method in catalog.METHODS]
    assert len(set(names)) == len(names)
    assert set(names) >= BASELINES
    assert len(set(names) - BASELINES) == 28
    assert all(method.paper and method.task for method in catalog.METHODS)


def test_built_methods_say_what_they_were_verified_against() -> None:
    assert BASELINES | {"dot"} <= {method.name for method in BUILT}
    for method in catalog.METHODS:
        assert bool(method.room) == bool(method.verified), method.name


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_room_has_a_documented_recipe_and_presets(name: str) -> None:
    room = catalog.load(name)
    assert room.__doc__
    assert documented(room.recipe) == set(parameters(room.recipe))
    hints = get_type_hints(room.recipe)
    assert set(parameters(room.recipe)) | {"return"} == set(hints)
    data = {name for kind in inspect.getmro(hints["data"]) if kind is not object for name in parameters(kind)}
    known = {*options_of(room.recipe, GIVEN), *data, *parameters(Training), *parameters(LabOptions)}
    assert room.PRESETS
    for preset in room.PRESETS.values():
        assert preset.keys() <= known
        Training(**{option: value for option, value in preset.items() if option in parameters(Training)})


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_every_option_says_what_it_means(name: str) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_function_arguments(catalog.load(name).recipe, skip=GIVEN)
    said = {action.dest: action.help for action in parser._actions}
    assert len(said) > 2
    assert {option for option, meaning in said.items() if not meaning or meaning.startswith("%")} == set()


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_options_shared_by_all_are_documented(name: str) -> None:
    data = get_type_hints(catalog.load(name).recipe)["data"]
    for kind in (data, Training, LabOptions):
        assert documented(kind) == set(parameters(kind))


HOSTS = [method.name for method in BUILT if hasattr(catalog.load(method.name), "build") and method.name not in ("supervised", "dot")]


def test_there_are_hosts() -> None:
    assert {"kd", "dkd", "fitnets", "crd"} <= set(HOSTS)


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_built_with_the_options_that_their_recipe_has(name: str) -> None:
    room = catalog.load(name)
    own = options_of(room.build, {"student", "teacher", "data"})
    assert own
    recipe = options_of(room.recipe, GIVEN)
    assert own == {option: recipe[option] for option in own}


def test_unknown_and_planned_methods_are_told_apart() -> None:
    with pytest.raises(InputError, match=r"^host: got kdd, .*such as .*\bkd\b"):
        catalog.find("kdd", argument="host")
    with pytest.raises(InputError, match=r"^method: got pointdc, .*planned"):
        catalog.load("pointdc")


def test_catalog_is_data_alone() -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(inspect.getsource(catalog)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"__future__", "importlib", "dataclasses", "types", "stillroom.errors"}
