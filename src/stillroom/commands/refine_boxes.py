"""`stillroom refine-boxes --data DATA --out FILE`: the sloppy boxes of a set made better, without a true one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stillroom.commands.parser import named_as_typed
from stillroom.errors import InputError

PROG = "stillroom refine-boxes"


def run(arguments: list[str], command: str) -> None:
    """Trains SSD-Det on the set, writes its annotations with refined boxes, and a report beside them.

    Args:
        arguments: what follows `stillroom refine-boxes`.
        command: the whole line that was typed.
    """
    from stillroom.commands.options import early, read_options
    from stillroom.engine import run_seeds
    from stillroom.methods.ssd_det.recipe import ROOM
    from stillroom.methods.ssd_det.refining import refine, target

    presets = {name: {option: value for option, value in preset.items() if option != "noise"} for name, preset in ROOM.presets.items()}
    setting = replace(ROOM.chosen(None), presets=presets, default={}, expect="")
    out, data = early(arguments, "out"), early(arguments, "data")
    if not {"-h", "--help", "--print_config", "--print-config"} & set(arguments):
        with named_as_typed("out", "data"):
            if out is None or data is None:
                raise InputError("out" if data else "data", "nothing", "--data coco:IMAGES,ANNOTATIONS.json --out refined.json")
            arguments = [*arguments, f"--out={target(Path(out), data)}"]  # the last one counts
    given = read_options(PROG, refine, arguments, setting=setting, out="refined")
    with named_as_typed(*given.settings):
        lab = given.made_lab("boxes are refined once, by one process")
        run_seeds(refine, lab, given.made_data(), {**given.trained_by(), **given.own}, command=command, settings=given.settings)
