"""No part of the house needs another that needs it: the arrows are import-linter's, the circles are looked for here."""

from __future__ import annotations

import grimp


def test_no_circle_of_imports() -> None:
    graph = grimp.build_graph("stillroom", exclude_type_checking_imports=True, cache_dir=None)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while ready := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"these import one another, or what does: {sorted(left)}"
