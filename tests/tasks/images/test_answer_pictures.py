"""Where pictures go that are answers: none lost, no source written over."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stillroom.tasks.images.answer_pictures import answer_files

NAMES = st.sampled_from(["a.png", "a.jpg", "a.png.png", "a.png-2.png", "b.jpeg"])
FOLDERS = st.sampled_from(["", "x", "x/y"])


@given(st.lists(st.tuples(FOLDERS, NAMES), min_size=1, max_size=8, unique=True), st.sampled_from(["in", "out", "in/x"]))
def test_no_two_answers_share_a_file_and_none_is_a_source(files: list[tuple[str, str]], out: str) -> None:
    sources = [Path("in") / folder / name for folder, name in files]
    found = list(answer_files(sources, Path(out)).values())
    resolved = [place.resolve() for place in found]
    assert len(set(resolved)) == len(found)
    assert not {*resolved} & {source.resolve() for source in sources}


def test_answers_lie_as_their_sources_do() -> None:
    sources = [Path("in/x/a.jpg"), Path("in/y/a.jpg"), Path("in/y/a.png")]
    found = list(answer_files(sources, Path("out"), ending="_map").values())
    assert found == [Path("out/x/a_map.png"), Path("out/y/a_map.png"), Path("out/y/a.png_map.png")]
