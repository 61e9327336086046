"""`stillroom make-composites PHOTOS MASKS OUT`: photos whose foreground was given other colours, to train harmonization on."""

from __future__ import annotations

import sys
from pathlib import Path

from stillroom.commands.parser import Parser, named_as_typed

PROG = "stillroom make-composites"


def run(arguments: list[str], command: str) -> None:
    """Writes composites in iHarmony4's layout; what was passed over gets a line on the error stream.

    Args:
        arguments: what follows `stillroom make-composites`.
        command: the whole line that was typed.
    """
    parser = Parser(PROG, "Composites of your photos, in iHarmony4's layout: the foreground of each mask in other colours.")
    parser.add_argument("photos", metavar="PHOTOS", help="folder or zip of photos")
    parser.add_argument("masks", metavar="MASKS", help="folder or zip of masks: photo.png, photo_mask.png or photo_1.png for photo.jpg")
    parser.add_argument("out", metavar="OUT", help="the folder to write: composite_images, masks, real_images, and lists of both parts")
    parser.add_argument("--variants", type=int, default=4, metavar="N", help="composites of each mask (default: 4)")
    parser.add_argument(
        "--colours", default="random", help="random lights (the default), or chart: between two random lights by ccHarmony's polynomials"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="of the photos, to measure with (default: 0.2)")
    given = parser.parse_args(arguments)

    from stillroom.engine.run.console import StageDisplay
    from stillroom.tasks.harmonization.making import make_composites

    with named_as_typed("variants", "colours", "seed", "val"):
        options = {name: getattr(given, name) for name in ("variants", "colours", "seed", "val")}
        made = make_composites(given.photos, given.masks, Path(given.out), **options)
    for said in made.said:
        print(f"stillroom: {said}", file=sys.stderr)
    before = f", of which {made.found} were there" if made.found else ""
    StageDisplay("composites").say(f"{made.composites} in {given.out}{before}")
    print(f"use them: stillroom run giftnet --data iharmony4:{given.out}")
