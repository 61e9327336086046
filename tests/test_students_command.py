"""`stillroom students`: candidates for the student of some data, what they cost, and a budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.cli import main
from stillroom.commands.students import Budget, Candidate, show
from stillroom.engine.run.measure import Footprint, working_bytes
from stillroom.engine.task import SUPERVISED, task_named
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.candidates import students_of

_CANDIDATES: tuple[str, ...] = getattr(task_named("segmentation"), "students")  # noqa: B009 - tasks need not have them


def listed(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if "/" in line.split(" ")[0]]


def test_students_within_a_budget_are_listed_from_the_smallest_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--task", "segmentation", "--budget", "300k", "--teacher", "stillroom/unet16_3"]) == 0
    out = capsys.readouterr().out
    *rows, teacher = listed(out)
    assert teacher[:2] == ["stillroom/unet16_3", "(teacher)"]
    assert all(row[2] == "k" for row in rows)
    sizes = [float(row[1]) for row in rows]
    assert sizes == sorted(sizes)
    assert 2 <= len(sizes) < len(_CANDIDATES)
    assert max(sizes) <= 300
    assert f"{len(_CANDIDATES) - len(rows)} more cost more than the budget." in out
    shares = {row[0]: row[-2:] for row in rows}
    assert shares["stillroom/unet16_3"] == ["100", "%"]
    assert int(shares["stillroom/unet8_3"][0]) < 40


def test_names_of_ones_own_are_measured_and_what_cannot_be_built_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--task", "segmentation", "--budget", "20k", "--also", "stillroom/unet4_3", "stillroom/no-such"]) == 0
    out = capsys.readouterr().out
    assert next(row[0] for row in listed(out)) == "stillroom/unet4_3"
    assert "1 could not be built for these data, the first of them: stillroom/no-such" in out


@pytest.mark.parametrize("budget", ["5", "5X", "5M,3k", "0ms", "fast", ""])
def test_budgets_that_are_none(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["students", "--task", "segmentation", "--budget", budget]
    if not budget:
        assert Budget.of(budget) == Budget()
        return
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"stillroom: --budget: got {budget}, expected")


def test_a_budget_of_several_things() -> None:
    assert Budget.of("1.5M, 2ms,20MB") == Budget(1.5e6, 2.0, 20e6)
    assert Budget.of("300k") == Budget(parameters=3e5)


def test_candidates_are_specifications_that_can_be_built() -> None:
    """Those of libraries, of which a name that they have not would fail for every user; and our own."""
    import timm
    import torchvision

    specs = {spec for name in SUPERVISED for spec in getattr(task_named(name), "students", ())}
    specs |= set(students_of(ImageData("digits", subset=10, val_subset=10)))
    assert {spec.partition("/")[0] for spec in specs} >= {"timm", "torchvision", "stillroom"}
    for spec in specs:
        source, _, model = spec.partition("/")
        if source == "torchvision":
            assert model in torchvision.models.list_models(), spec
        else:
            backbone = model if source in ("timm", "gfl", "retinanet", "fcos") else None
            assert backbone is None or timm.is_model(backbone), spec


def test_small_images_have_stillrooms_own_networks_as_candidates_and_large_ones_have_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--data", "digits", "--image-size", "32", "--budget", "100k"]) == 0
    rows = listed(capsys.readouterr().out)
    assert {"stillroom/convnet6", "stillroom/resnet8"} <= {row[0] for row in rows}
    assert all(float(row[1]) <= 100 for row in rows if row[2] == "k")
    assert students_of(ImageData("digits", image_size=96, subset=10, val_subset=10)) == ()


def test_working_memory_is_what_a_pass_holds_besides_weights() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = x.repeat(1, 100)
            return wide.sum(1)

    assert working_bytes(Two(), torch.zeros(1, 10)) == 4 * (1000 + 1)


def test_a_budget_that_nothing_keeps_is_said_without_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--task", "segmentation", "--budget", "1k"]) == 0
    assert capsys.readouterr().out == f"all {len(_CANDIDATES)} cost more than the budget.\n"


def test_a_long_name_gives_way_and_numbers_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"first:/a/folder/{'of-a-long-name/' * 8}nets.py:build,until=blocks.3"
    show([Candidate(name, Footprint(29_500, 7_670_000, 1.23, 118_000), 950_000)], None)
    out = capsys.readouterr().out
    assert "…" not in out
    assert "29.5 k" in out
    assert "7.67 M" in out
    assert name in "".join(line.split(" ")[0] for line in out.splitlines()[1:])
