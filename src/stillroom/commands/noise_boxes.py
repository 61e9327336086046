"""`stillroom noise-boxes IN OUT`: boxes made sloppy on purpose, to try on them what sloppy boxes do and what refining them brings."""

from __future__ import annotations

import sys
from pathlib import Path

from stillroom.commands.parser import Parser, named_as_typed

PROG = "stillroom noise-boxes"


def run(arguments: list[str], command: str) -> None:
    """Writes the file; what was left as it was gets a line on the error stream.

    Args:
        arguments: what follows `stillroom noise-boxes`.
        command: the whole line that was typed.
    """
    parser = Parser(PROG, "A file of boxes, each moved and scaled at random; the same for the same seed. All else in it stays.")
    parser.add_argument("source", metavar="IN", help="COCO's annotations, a .json file; or a folder or zip of Pascal VOC's .xml")
    parser.add_argument("out", metavar="OUT", help="a new .json file; or a new folder for .xml")
    parser.add_argument("--ratio", type=float, default=0.3, help="share of its sides that a box is moved and scaled by (default: 0.3)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    given = parser.parse_args(arguments)

    from stillroom.engine.run.console import StageDisplay
    from stillroom.errors import at_least
    from stillroom.methods.ssd_det.refining import noise_boxes

    with named_as_typed("ratio", "seed"):
        made = noise_boxes(given.source, Path(given.out), ratio=given.ratio, seed=at_least("seed", given.seed, 0))
    for said in made.said:
        print(f"stillroom: {said}", file=sys.stderr)
    StageDisplay("boxes").say(f"{made.boxes} with noise, in {given.out}; their IoU with the given ones is {made.iou:.3f} in the mean")
