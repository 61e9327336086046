"""`stillroom label-3d SEQUENCES --out labels/`: boxes, tracks and names in lidar sequences that nobody labelled."""

from __future__ import annotations

from pathlib import Path

from stillroom.commands.parser import Parser, named_as_typed
from stillroom.errors import InputError

PROG = "stillroom label-3d"
_FLOWS = ("quick", "thorough")


def run(arguments: list[str], command: str) -> None:
    """Labels every sequence, writes a page, and says where; what was labelled before is not labelled again.

    Args:
        arguments: what follows `stillroom label-3d`.
        command: the whole line that was typed.
    """
    parser = Parser(PROG, "Boxes and tracks of whatever takes part in traffic, in lidar sequences without labels; with a CLIP also names.")
    parser.add_argument(
        "sequences",
        metavar="SEQUENCES",
        nargs="+",
        help="folders or zips: velodyne/*.bin with poses (SemanticKITTI), KITTI's raw drives, or frames.json; or streets:train=2,frames=12",
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where labels are written, a folder for each sequence")
    parser.add_argument("--vocabulary", metavar="FILE", help="what objects may be called, a word or phrase on each line; needs --clip")
    parser.add_argument("--clip", metavar="CLIP", help="a CLIPModel folder or a file of open_clip's: names objects, drops background")
    parser.add_argument(
        "--background",
        type=float,
        metavar="COSINE",
        help="similarity to road, tree, ... from which a point is background (default: Otsu's)",
    )
    parser.add_argument("--flow", default="quick", help="how motion is fitted: quick (the default), or thorough, ten times as long")
    parser.add_argument("--points", action="store_true", help="also write the points: a folder then is data, points:FOLDER, to train on")
    parser.add_argument("--overwrite", action="store_true", help="label again what was labelled with other options")
    given = parser.parse_args(arguments)
    if given.flow not in _FLOWS:
        raise InputError("--flow", given.flow, f"one of {', '.join(_FLOWS)}")
    if (given.vocabulary is None) != (given.clip is None):
        lacking, there = ("--clip", "--vocabulary") if given.clip is None else ("--vocabulary", "--clip")
        raise InputError(lacking, "nothing", f"one, for {there} is given: words need a model, and a model words")
    words = None if given.vocabulary is None else _words(Path(given.vocabulary))

    from stillroom.engine.run.console import StageDisplay, tell
    from stillroom.methods.upvl.flow import FlowSpec
    from stillroom.methods.upvl.job import PAGE, label_sequences
    from stillroom.methods.upvl.labelling import LabelSpec
    from stillroom.methods.upvl.vision import VisionLanguage
    from stillroom.tasks.images.clips import open_clip

    spec = LabelSpec(flow=FlowSpec()) if given.flow == "thorough" else LabelSpec()
    with named_as_typed("out", "clip"):
        vision = None if words is None else VisionLanguage(open_clip(given.clip), words)
        out = Path(given.out)
        display = StageDisplay("labels")
        label_sequences(
            given.sequences,
            out,
            spec,
            vision,
            threshold=given.background,
            with_points=given.points,
            overwrite=given.overwrite,
            say=display.say,
        )
    tell(f"look at them: {out / PAGE}")


def _words(file: Path) -> list[str]:
    """The lines of a vocabulary.

    Raises:
        InputError: there is no such file, or no word in it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--vocabulary", f"{file} ({type(error).__name__})", "a text file with a word or phrase on each line") from None
    words = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not words:
        raise InputError("--vocabulary", f"{file}, without a word", "a word or phrase on each line")
    return words
