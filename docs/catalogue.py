"""What README's table, CITATION.cff and the site's menu say of the methods, made of the catalogue.

    python docs/catalogue.py           # whether they say what the catalogue says; a line for each file that does not
    python docs/catalogue.py --write   # writes them

The order of the methods is each file's own: entries stay where they are, and a method that is new comes last.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from stillroom.catalog import METHODS, Method

ROOT = Path(__file__).parents[1]
_ROW = re.compile(r"^\| `([\w-]+)` \|.*\n", re.M)
_ENTRY = re.compile(r"^ +- .*: methods/([\w-]+)\.md\n", re.M)
_REFERENCE = re.compile(r"^  - type: .*\n(?:    .*\n)*?    notes: .*\bmethod ([\w-]+)\"?\n", re.M)


def name_of(method: str) -> str:
    """A method as people write it, and as the menu calls its page; an experiment that is of no method in words."""
    return next((one.menu or method.upper() for one in METHODS if one.name == method), method.replace("-", " ").capitalize())


def menu_order() -> list[str]:
    """The methods in the order of the site's menu."""
    return _ENTRY.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def row(method: Method) -> str:
    """Its row of the README's table."""
    says = method.listed or f"{method.cited or method.paper} ({method.venue})"
    page = f" [{method.name}](docs/methods/{method.name}.md)" if has_page(method) else ""
    return f"| `{method.name}` | {says} |{page} |\n"


def entry(method: Method) -> str:
    """Its entry of the menu."""
    return f"      - {name_of(method.name)}: methods/{method.name}.md\n"


def reference(method: Method) -> str:
    """Its paper in CITATION.cff."""
    conference, _, year = method.venue.rpartition(" ")
    kind, place = ("conference-paper", [f"    conference: {{name: {conference}}}"]) if conference else ("article", [])
    names = (author.partition(", ") for author in method.authors.split("; "))
    authors = [f"      - {{family-names: {family}, given-names: {given}}}" for family, _, given in names]
    notes = f"arXiv:{method.arxiv}; method {method.name}" if method.arxiv else f"method {method.name}"
    title = f"    title: {_quoted(method.cited or method.paper)}"
    lines = [f"  - type: {kind}", title, "    authors:", *authors, *place, f"    year: {year}", f"    notes: {_quoted(notes)}"]
    return "\n".join(lines) + "\n"


def has_page(method: Method) -> bool:
    """Whether the site has a page of it."""
    return (ROOT / f"docs/methods/{method.name}.md").is_file()


def _quoted(text: str) -> str:
    return f'"{text}"' if ":" in text else text


def _rewritten(text: str, head: str, found: re.Pattern[str], made: Callable[[Method], str], methods: Iterable[Method]) -> str:
    """A text with the entries of these methods, which stand behind a line, made anew in the order in which they stand there."""
    start = end = text.index(head) + len(head)
    names = []
    while match := found.match(text, end):
        names.append(match[1])
        end = match.end()
    of = {method.name: method for method in methods}
    names = [name for name in names if name in of]
    names += [name for name in of if name not in names]
    return text[:start] + "".join(made(of[name]) for name in names) + text[end:]


def files() -> dict[str, str]:
    """By its name what each file has to say."""
    built = [method for method in METHODS if method.room]
    made: dict[str, tuple[str, re.Pattern[str], Callable[[Method], str], list[Method]]] = {
        "README.md": ("| name | paper | page |\n|---|---|---|\n", _ROW, row, built),
        "mkdocs.yml": ("  - Methods:\n", _ENTRY, entry, [method for method in built if has_page(method)]),
        "CITATION.cff": ("references:\n", _REFERENCE, reference, [method for method in built if method.authors]),
    }
    return {name: _rewritten((ROOT / name).read_text(encoding="utf-8"), *how) for name, how in made.items()}


def main(words: list[str]) -> int:
    """Checks the files, or writes them."""
    differ = {name: text for name, text in files().items() if text != (ROOT / name).read_text(encoding="utf-8")}
    if words == ["--write"]:
        for name, text in differ.items():
            (ROOT / name).write_text(text, encoding="utf-8")
        return 0
    for name in differ:
        print(f"{name} does not say what src/stillroom/catalog.py says: python docs/catalogue.py --write")
    return min(len(differ), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
