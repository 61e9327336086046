"""The README's Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"<!-- a test runs this block -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) == 2
    own_loop = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(own_loop) <= 15


@pytest.mark.parametrize("block", BLOCKS, ids=["own loop", "own method"])
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    if "write_report" in block:
        assert (tmp_path / "runs/logit-matching/report.html").exists()
