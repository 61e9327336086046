"""The grammar of --data: what of a specification is the kind, the path and the options, and what is said of one that fits none."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.tasks.images.sources import Kind, kind_of, open_spec

Opened = tuple[str, str, dict[str, str]]


def opener(name: str) -> object:
    return lambda path, options, argument: (name, path, options)


KINDS: tuple[Kind[Opened], ...] = (
    Kind("drawn", opener("drawn"), ("size", "seed"), needs_path=None),  # type: ignore[arg-type]
    Kind("folder", opener("folder"), ("val", "train"), needs_path="ROOT"),  # type: ignore[arg-type]
    Kind("tiles", opener("tiles"), ("grid",), needs_path="SOURCE", path="drawn"),  # type: ignore[arg-type]
    Kind("plain", opener("plain"), needs_path="PATH"),  # type: ignore[arg-type]
)
NAMES = st.sampled_from([("drawn", ("size", "seed")), ("folder", ("val", "train")), ("tiles", ("grid",)), ("plain", ())])
# A comma belongs to a path unless an option follows it; a colon may come again, as in tiles:folder:photos.
PATHS = st.text(string.ascii_letters + string.digits + "/._-:~ ,\\", min_size=1).map(str.strip).filter(bool)
VALUES = st.text(string.ascii_letters + string.digits + "/.:=+-", max_size=8)


@given(named=NAMES, path=PATHS, data=st.data())
def test_what_was_written_is_what_is_opened(named: tuple[str, tuple[str, ...]], path: str, data: st.DataObject) -> None:
    name, known = named
    options = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(known, VALUES)))
    behind = "".join(f",{option}={value}" for option, value in options.items())
    if name == "drawn":
        assert open_spec(f"drawn{behind}", KINDS, "data") == ("drawn", "", options)
        assert open_spec(f"drawn:{behind.removeprefix(',')}", KINDS, "data") == ("drawn", "", options)
    else:
        assert open_spec(f"{name}:{path}{behind}", KINDS, "data") == (name, path, options)
        assert kind_of(f"{name}:{path}{behind}") == name


def test_a_kind_may_have_something_in_the_place_of_a_path() -> None:
    assert open_spec("tiles", KINDS, "data") == ("tiles", "drawn", {})
    assert open_spec("tiles,grid=3", KINDS, "data") == ("tiles", "drawn", {"grid": "3"})
    assert open_spec("tiles:folder:photos,grid=3", KINDS, "data") == ("tiles", "folder:photos", {"grid": "3"})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("foldr:photos", "web: got foldr:photos, expected one of folder, or else"),
        ("xyz", "web: got xyz, expected one of drawn, folder, tiles, plain, or else"),
        ("", "web: got '', expected one of drawn, folder, tiles, plain, or else"),
        ("folder", "web: got folder, expected folder:ROOT"),
        ("folder:,val=0.2", "web: got folder:,val=0.2, expected folder:ROOT"),
        ("folder:photos,vla=0.2", "web: got vla=0.2, expected an option of folder: val"),
        ("folder:photos,val=1,val=2", "web: got val=2, expected the option val once"),
        ("plain:photos,val=1", "web: got val=1, expected no options: plain takes none"),
        ("drawn:photos", "web: got drawn:photos, expected drawn alone, or with options: it needs no path"),
        ("drawn:photos,size=3", "web: got drawn:photos, expected drawn alone, or with options: it needs no path"),
    ],
)
def test_one_line_says_what_is_wrong(spec: str, expected: str) -> None:
    with pytest.raises(InputError) as raised:
        open_spec(spec, KINDS, "web", others=", or else")
    assert str(raised.value) == expected


def test_a_new_kind_is_one_line_in_a_table() -> None:
    from stillroom.tasks.images.classified import KINDS as CLASSIFIED

    grown = (*CLASSIFIED, Kind("table", lambda path, options, argument: path, ("sheet",)))
    assert open_spec("table:a.csv,sheet=2", grown, "data") == "a.csv"
