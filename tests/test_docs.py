"""What the documentation shows is so: its Python runs, its commands have these options, its numbers are the measured ones."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stillroom import catalog, cli
from stillroom.engine.room import options_of

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- a test runs this block(?:: (\S+))? -->\n```python\n(.*?)```", re.DOTALL)
IN_DOCS = {page: BLOCK.findall(PAGES[page]) for page in ("add-a-method.md", "add-a-task.md", "bring-your-own.md", "concepts.md")}
COMMANDS = [
    (page, command.split("#")[0].replace("\\\n", " ").strip())
    for page, text in PAGES.items()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    if language in ("", "bash")
    for command in re.findall(r"\bstillroom run (?:[^\n\\]|\\\n|\\)*", block)
]


def test_the_worked_example_is_there() -> None:
    assert len(IN_DOCS["add-a-method.md"]) == 5


@pytest.mark.parametrize("page", IN_DOCS)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for file, block in IN_DOCS[page]:
        exec(compile(block, page, "exec", dont_inherit=True), names)
        if file:
            Path(file).write_text(block)
    if page == "add-a-method.md":
        assert (tmp_path / "runs/at/report.html").exists()
    if page == "add-a-task.md":
        assert "Furthest off" in (tmp_path / "runs/coverage/report.html").read_text()
        assert json.loads((tmp_path / "runs/coverage/student.json").read_text())["task"] == "coverage"
        assert (tmp_path / "runs/coverage/student.pt2").is_file()


def test_the_worked_example_has_the_options_that_it_hands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_at.py").write_text("\n".join(block for _, block in IN_DOCS["add-a-method.md"][:3]))
    monkeypatch.syspath_prepend(tmp_path)
    room = importlib.import_module("own_at").ROOM
    assert options_of(room.recipe, {"lab", "data", "plan", "networks"}) == {"beta": 1000.0}
    assert room.options == {"beta": 1000.0}


@pytest.mark.parametrize("out", ["runs/shapes", "runs/own-network"])
def test_own_data_and_own_network_run(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, block in IN_DOCS["bring-your-own.md"]:
        Path(file).write_text(block)
    (command,) = [command for page, command in COMMANDS if page == "bring-your-own.md" and f"--out {out}" in command]
    assert cli.main(shlex.split(command)[1:]) == 0
    assert (tmp_path / out / "report.html").exists()


def test_the_readme_lists_every_method() -> None:
    built = [method for method in catalog.METHODS if method.room]
    listed = PAGES["README.md"].partition("\n## Methods")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", listed, re.MULTILINE)) == {method.name for method in built}
    left = len(catalog.METHODS) - len(built)
    said = "the other one is listed" if left == 1 else f"the other {left} are listed"
    assert not left or said in PAGES["README.md"]


def test_lists_of_methods_say_what_the_catalog_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    catalogue = importlib.import_module("catalogue")
    assert catalogue.main([]) == 0, capsys.readouterr().out
    renamed = [replace(method, menu="Hints", cited="Hints") if method.name == "fitnets" else method for method in catalog.METHODS]
    monkeypatch.setattr(catalogue, "METHODS", [*renamed, replace(renamed[1], name="bckd2", venue="ECCV 2030")])
    assert catalogue.main([]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["README.md", "mkdocs.yml", "CITATION.cff"]
    readme, menu, cited = catalogue.files().values()
    assert "| `fitnets` | Hints (ICLR 2015) | [fitnets](docs/methods/fitnets.md) |\n| `crd`" in readme
    assert "- Hints: methods/fitnets.md" in menu
    assert cited.endswith('    conference: {name: ECCV}\n    year: 2030\n    notes: "arXiv:1503.02531; method bckd2"\n')


def test_commands_have_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) > 20
    known: dict[str, set[str]] = {}
    for page, command in COMMANDS:
        method = command.split()[2]
        if method == "METHOD":
            continue
        if method not in known:
            if not any(built.name == method and built.room for built in catalog.METHODS):
                assert "src/stillroom/methods/" in PAGES[page], command  # a page that says how to add it
                continue
            with pytest.raises(SystemExit):
                cli.main(["run", method, "--help"])
            known[method] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", command)) <= known[method] | {"--help"}, (page, command)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if page.startswith("methods/") and "\n> " in text])
def test_a_quoted_verdict_is_the_measured_one(page: str) -> None:
    measured = json.loads((ROOT / f"results/{Path(page).stem.replace('-', '_')}.json").read_text(encoding="utf-8"))["verdict"]
    for quote in re.findall(r"^> (.*)$", PAGES[page], re.MULTILINE):
        assert quote in measured


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    """`docs/hooks.py`, as mkdocs loads it: its folder is where it finds what stands beside it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    found = importlib.util.spec_from_file_location("stillroom_docs_hooks", ROOT / "docs/hooks.py")
    assert found is not None
    assert found.loader is not None
    hooks = importlib.util.module_from_spec(found)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "docs")
        found.loader.exec_module(hooks)
        yield hooks


def test_results_tables_are_made_from_the_files(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown(PAGES["results.md"])
    for path in (ROOT / "results").glob("*.json"):
        measured = json.loads(path.read_text(encoding="utf-8"))
        assert f"{{ #{measured['method']} }}" in page
    assert hooks.cell({"mean": 61.41667, "std": 0.64291}).split() == ["61.42", "±", "0.64"]
    assert hooks.cell({"mean": 65.35, "std": None}) == "65.35"
    assert "stillroom.report/1" in hooks.on_page_markdown(PAGES["report.md"])
    assert "<math" in hooks.on_page_content('<p><span class="arithmatex">\\(a &lt; b\\)</span></p>')
    assert [str(path) for path in (ROOT / "docs").rglob("*.md") if "MEASURED_" in path.read_text(encoding="utf-8")] == []


def test_an_effect_is_told_from_noise_and_from_what_the_paper_says(hooks: ModuleType) -> None:
    def effect(differences: tuple[float, ...], paper: str) -> Any:
        return hooks.effects.Effect("kd", "", "kd", "alone", "top1", differences, paper)

    assert effect((1.0, 2.0, 3.0), "above").interval == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)  # Student: 4.303 / sqrt(3)
    assert [effect(found, "above").verdict for found in ((3.0, 4, 3), (-3.0, -4, -3), (1.0, 2, 3), (1.0,), (2.0, 2, 2))] == [
        "agrees",
        "opposite",
        "open",
        "open",
        "open",  # equal on every seed: the metric is too coarse
    ]
    assert [effect(found, "level").verdict for found in ((3.0, 4, 3), (1.0, 2, 3))] == ["opposite", "open"]
    with pytest.raises(hooks.PluginError, match="has no top1 of kd and alone"):
        hooks.effects.effect({"method": "kd", "arms": {}}, "", {"arm": "kd", "over": "alone"}, method="kd", metric="top1")


SPREAD = re.compile(r"[+-]\d+\.\d \+- \d+\.\d")


@pytest.mark.parametrize("method", [method.name for method in catalog.METHODS if method.room])
def test_what_a_method_says_to_expect_was_measured(method: str, hooks: ModuleType) -> None:
    expect = catalog.load(method).expect
    said = SPREAD.findall(expect)
    missing = not (ROOT / f"results/{method.replace('-', '_')}.json").exists()
    # tools, of which others' results tell; and a method without results that says so
    assert said or method in ("supervised", "searched") or (missing and expect.startswith("Not measured"))
    assert set(said) <= hooks.effects.spreads(method)


def test_the_readme_shows_what_the_first_command_printed() -> None:
    assert (ROOT / "results/default/kd.txt").read_text(encoding="utf-8") in PAGES["README.md"]
