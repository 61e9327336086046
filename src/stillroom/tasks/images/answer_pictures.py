"""Pictures as answers: where `stillroom predict` writes the one of each file, and writing it whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stillroom.engine.run.written import write_atomic


def answer_files(files: Sequence[Path], folder: Path, *, ending: str = "") -> dict[Path, Path]:
    """Where each file's picture goes, by the file: below the folder as the files lie below the one that holds them all.

    No two are the same, and none is one of the files.

    Args:
        files: what is asked about.
        folder: to write to.
        ending: put behind a file's name, before ``.png``.
    """
    parents = [file.resolve().parent for file in files]
    common = Path(os.path.commonpath(parents)) if parents else Path()
    taken = {parent / file.name for parent, file in zip(parents, files, strict=True)}
    found = {}
    for file, parent in zip(files, parents, strict=True):
        below = folder / parent.relative_to(common)
        place, number = below / f"{file.stem}{ending}.png", 1
        if place.resolve() in taken:  # x.png beside x.jpg
            place = below / f"{file.name}{ending}.png"
        while place.resolve() in taken:
            number += 1
            place = below / f"{file.name}{ending}-{number}.png"
        taken.add(place.resolve())
        found[file] = place
    return found


def write_picture(image: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all; its folder is made."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
