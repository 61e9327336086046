"""Which stage of a run is meant: every finished one, of whatever arm and seed, holds a network that can be used."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.engine.card import NAME
from stillroom.errors import InputError

_SHARED = ("teacher", "alone")  # arms that are not what a run is about


@dataclass(frozen=True)
class Arm:
    """A finished stage under the name that the report gives it.

    Args:
        name: the arm's.
        seed: None where all seeds share it.
        folder: the stage's.
    """

    name: str
    seed: int | None
    folder: Path


def arms_of(run: Path) -> list[Arm]:
    """The stages of a run that have a card, under the names of its report, or else of their folders."""
    stages: dict[Path, str] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no report yet, or one of a version before
        told: dict[str, list[dict[str, Any]]] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["stages"]
        stages = {run / str(stage["folder"]): arm for arm, found in told.items() for stage in found if stage["folder"]}
    for pattern in ("*", "seed*/*"):
        for card in sorted(run.glob(f"{pattern}/{NAME}")):
            stages.setdefault(card.parent, card.parent.name)
    places = [(folder, name) for folder, name in stages.items() if (folder / NAME).is_file() and (folder / "stage.json").is_file()]
    return [Arm(name, _seed(folder, run), folder) for folder, name in places]


def _seed(folder: Path, run: Path) -> int | None:
    number = folder.parent.name.removeprefix("seed")
    return int(number) if folder.parent != run and number.isdigit() else None


def place_of_student(run: str | Path, arm: str | None = None, seed: int | None = None, *, best: bool = False, argument: str = "run") -> str:
    """The folder whose card and weights are meant, as `read_card` takes it.

    Args:
        run: the folder of a run or of a stage.
        arm: its name in the report: teacher, alone, distilled, ...; by default what the run is about.
        seed: by default the first, of what the run is about.
        best: the weights of the best epoch, instead of the last one's.
        argument: what the user calls the folder.

    Raises:
        InputError: what is asked for is not there, or it could be several; the message names what there is.
    """
    folder = Path(run)
    found = arms_of(folder)
    if (arm is None and seed is None and not (best and found) and (folder / NAME).is_file()) or not found:
        if arm is not None or seed is not None:
            raise InputError(argument, str(run), "a folder of several finished stages, since an arm or a seed is named")
        return f"{run}@best" if best else str(run)
    there = "; ".join(f"{name}{_seeds(found, name)}" for name in dict.fromkeys(one.name for one in found))
    names = list(dict.fromkeys(one.name for one in found if one.name not in _SHARED)) or ["alone"]
    if arm is None and len(names) != 1:
        raise InputError(argument, str(run), f"one of its arms, named by --arm: {there}")
    mine = sorted((one for one in found if one.name == (arm or names[0])), key=lambda one: one.seed or 0)
    if not mine:
        raise InputError("arm", str(arm), f"one of {there}")
    first = arm is None or len(mine) == 1
    chosen = next((one for one in mine if one.seed in (seed, None) or (seed is None and first)), None)
    if chosen is None:
        raise InputError("seed", "none" if seed is None else seed, f"one of those that {mine[0].name} has: {there}")
    return f"{chosen.folder}@best" if best else str(chosen.folder)


def _seeds(found: list[Arm], name: str) -> str:
    seeds = [str(one.seed) for one in found if one.name == name and one.seed is not None]
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})" if seeds else ""
