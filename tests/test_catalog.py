from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any, get_type_hints

import jsonargparse
import pytest

from stillroom import catalog
from stillroom.engine import LabOptions, Networks, Training
from stillroom.engine.room import options_of
from stillroom.errors import InputError

BASELINES = {"supervised", "kd", "dkd", "fitnets", "crd", "dino", "features", "searched"}
GIVEN = {"lab", "data", "plan", "networks"}  # parameters of a recipe that are no options of its own
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
    assert len(BUILT) == len(names)  # none of them is planned any more
    assert all(method.paper and method.task for method in catalog.METHODS)


def test_built_methods_say_what_they_were_verified_against() -> None:
    assert BASELINES | {"dot"} <= {method.name for method in BUILT}
    for method in catalog.METHODS:
        assert bool(method.room) == bool(method.verified), method.name


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_room_has_a_documented_recipe_and_presets(name: str) -> None:
    assert importlib.import_module(catalog.find(name).room).__doc__
    room = catalog.load(name)
    assert room.tasks
    assert documented(room.recipe) == set(parameters(room.recipe))
    hints = get_type_hints(room.recipe)
    assert set(parameters(room.recipe)) | {"return"} == set(hints)
    setting = room.chosen(None)
    data = {name for kind in inspect.getmro(setting.data) if kind is not object for name in parameters(kind)}
    networks = set() if setting.networks is None else {*parameters(type(setting.networks))} - setting.without
    known = {*options_of(room.recipe, GIVEN), *data, *networks, *parameters(Training), *parameters(LabOptions)}
    assert setting.presets
    for preset in setting.presets.values():
        assert preset.keys() <= known
        Training(**{option: value for option, value in preset.items() if option in parameters(Training)})


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_every_option_says_what_it_means(name: str) -> None:
    room, parser = catalog.load(name), jsonargparse.ArgumentParser()
    setting = room.chosen(None)
    parser.add_function_arguments(room.recipe, skip=GIVEN)
    parser.add_class_arguments(setting.data)
    if setting.networks is not None:
        parser.add_class_arguments(type(setting.networks))
    said = {action.dest: action.help for action in parser._actions}
    assert len(said) > 10
    assert {option for option, meaning in said.items() if not meaning or meaning.startswith("%")} == set()


@pytest.mark.parametrize("name", [method.name for method in BUILT])
def test_options_shared_by_all_are_documented(name: str) -> None:
    setting = catalog.load(name).chosen(None)
    for kind in (setting.data, type(setting.networks or Networks()), Training, LabOptions):
        assert documented(kind) == set(parameters(kind))


ROOMS = {method.name: catalog.load(method.name) for method in BUILT}
HOSTS = [name for name, room in ROOMS.items() if room.build is not None and name != "dot"]


def test_there_are_hosts() -> None:
    assert {"kd", "dkd", "fitnets", "crd", "l2d", "bckd"} <= set(HOSTS)


def test_a_method_that_cannot_be_compared_says_why() -> None:
    assert all(bool(room.reason) == (room.build is None) for room in ROOMS.values())


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_built_with_the_options_that_their_recipe_has(name: str) -> None:
    room = catalog.load(name)
    own = options_of(room.build, {"student", "teacher", "data"})
    assert own
    recipe = options_of(room.recipe, GIVEN)
    assert own == {option: recipe[option] for option in own}


def test_unknown_and_planned_methods_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^host: got kdd, .*such as .*\bkd\b"):
        catalog.find("kdd", argument="host")
    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, catalog.Method("later", "A paper that is not built", "any")))
    with pytest.raises(InputError, match=r"^method: got later, .*planned"):
        catalog.load("later")


def test_catalog_is_data_alone() -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(inspect.getsource(catalog)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"__future__", "gc", "importlib", "dataclasses", "typing", "stillroom.errors", "stillroom.engine.room"}
