"""Damages every file that Stillroom reads, in many ways, and looks at what the command says that reads it.

    python -m tests.torture.inputs [--each 40] [--seed 0]

A case is a file of a sound set of files, damaged, and a command that reads it, run in this process. It is *one line* if the command ends
with an exit code of its own and one line that begins with `stillroom:`, and *handled* if it did its work all the same. All else is wrong:
a traceback, several lines, a raw control character. Prints a line for each reader and each wrong case; leaves with 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from stillroom.cli import main
from stillroom.engine.run.stage import StageFolder

ONE_LINE, HANDLED = "one line", "handled"
SMALL = ["--data", "digits", "--subset", "40", "--val-subset", "20", "--batch-size", "20", "--epochs", "1", "--accelerator", "cpu"]
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what may not reach a terminal; but rich's line ends and tabs


@dataclass(frozen=True)
class Reader:
    """What reads a file.

    Args:
        name: in the table.
        file: below the sound set of files.
        command: that reads it.
    """

    name: str
    file: str
    command: tuple[str, ...]


RUN = ("run", "kd", *SMALL, "--teacher-epochs", "1", "--out", "run")
PREDICT = ("predict", "run", "photo.png", "--json")
FROM_CACHE = ("run", "kd", *SMALL, "--teacher", "cache:cache", "--out", "new")
BOXES = ("run", "supervised", "--task", "detection", "--epochs", "1", "--image-size", "32", "--accelerator", "cpu", "--out", "new")
BOXES = (*BOXES, "--student", "stillroom/gfl_24", "--batch-size", "2", "--data")
PHOTOS = ("run", "supervised", "--data", "imagefolder:photos", "--image-size", "8", *SMALL[6:], "--out", "new")
ZIPPED = ("run", "supervised", "--data", "imagefolder:photos.zip", "--image-size", "8", *SMALL[6:], "--out", "new")
TABLE = ("run", "supervised", "--data", "csv:table.csv,val=0.5", "--image-size", "8", *SMALL[6:], "--out", "new")

READERS = (
    Reader("last.ckpt", "run/seed0/distilled/last.ckpt", RUN),
    Reader("stage.json", "run/seed0/distilled/stage.json", RUN),
    Reader("stage.json, finished", "run/seed0/alone/stage.json", RUN),
    Reader("details.npz", "run/seed0/alone/details.npz", RUN),
    Reader("footprint", "run/footprints", RUN),
    Reader("config.yaml", "run/config.yaml", RUN),
    Reader("files.jsonl", "run/files.jsonl", (*RUN, "--overwrite")),
    Reader("student.safetensors", "run/seed0/alone/student.safetensors", RUN),
    Reader("student.json", "run/student.json", PREDICT),
    Reader("shipped weights", "run/student.safetensors", PREDICT),
    Reader("a stage's card", "run/seed0/alone/student.json", ("predict", "run/seed0/alone", "photo.png", "--json")),
    Reader("metrics.json", "run/metrics.json", ("predict", "run", "photo.png", "--json", "--arm", "alone")),
    Reader("a picture", "photo.png", PREDICT),
    Reader("--config", "own.yaml", ("run", "kd", "--config", "own.yaml", "--out", "new")),
    Reader("cache.json", "cache/cache.json", FROM_CACHE),
    Reader("example.npz", "cache/example.npz", FROM_CACHE),
    Reader("teacher.json", "cache/teacher.json", FROM_CACHE),
    Reader("details of a cache", "cache/details.npz", FROM_CACHE),
    Reader("rows", "cache/rows/logits.npy", FROM_CACHE),
    Reader("COCO", "boxes/all.json", (*BOXES, "coco:boxes,boxes/all.json,val=0.5")),
    Reader("VOC", "voc/Annotations/1.xml", (*BOXES, "voc:voc,val=0.5")),
    Reader("VOC's list", "voc/ImageSets/Main/train.txt", (*BOXES, "voc:voc,val=0.5")),
    Reader("YOLO's data.yaml", "yolo/data.yaml", (*BOXES, "yolo:yolo,val=0.5")),
    Reader("YOLO's labels", "yolo/labels/train/1.txt", (*BOXES, "yolo:yolo,val=0.5")),
    Reader("photos", "photos/cat/2.png", PHOTOS),
    Reader("zip", "photos.zip", ZIPPED),
    Reader("csv", "table.csv", TABLE),
)


def sound(root: Path) -> None:
    """A set of files, each as it should be: a run whose last stage was killed, a cache, and data in several layouts."""
    draw = np.random.default_rng(0)

    def picture(path: Path, side: int = 32) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (side, side, 3), np.uint8)).save(path)

    picture(root / "photo.png", 8)
    (root / "own.yaml").write_text("data: digits\nsubset: 40\nval_subset: 20\nbatch_size: 20\nepochs: 1\nteacher_epochs: 1\n")
    images, marks = [], []
    for number in range(1, 5):
        for place in ("boxes", "voc/JPEGImages", "yolo/images/train"):
            picture(root / place / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
        marks.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [4, 4, 12, 10], "iscrowd": 0})
        name = ("dog", "cat")[number % 2]
        box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>16</xmax><ymax>14</ymax></bndbox>"
        size = "<size><width>32</width><height>32</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{number}.png</filename>{size}<object><name>{name}</name>{box}</object></annotation>"
        for place, text in (
            ("voc/Annotations", xml),
            ("yolo/labels/train", f"{number % 2} 0.3 0.3 0.4 0.3\n"),
        ):
            file = root / place / f"{number}{'.xml' if place[0] == 'v' else '.txt'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    kinds = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    (root / "boxes/all.json").write_text(json.dumps({"images": images, "annotations": marks, "categories": kinds}))
    (root / "voc/ImageSets/Main").mkdir(parents=True)
    (root / "voc/ImageSets/Main/train.txt").write_text("1\n2\n3\n4\n")
    (root / "yolo/data.yaml").write_text("train: images/train\nnames: [dog, cat]\n")
    rows = ["file,label"]
    for number in range(12):
        name = f"{('cat', 'dog')[number % 2]}/{number}.png"
        picture(root / "photos" / name, 8)
        rows.append(f"photos/{name},{name[:3]}")
    (root / "table.csv").write_text("\n".join(rows))
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for file in sorted((root / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(root / "photos"))
    with contextlib.chdir(root), silent(), mock.patch.object(StageFolder, "drop_checkpoint"):
        assert main([*RUN, "--checkpoint-steps", "1"]) == 0
        assert main(["cache", *SMALL, "--teacher-epochs", "1", "--views", "1", "--out", "cache"]) == 0
    stage = root / "run/seed0/distilled"  # as a kill leaves it
    record = json.loads((stage / "stage.json").read_text())
    StageFolder(stage).write({"fingerprint": record["fingerprint"], "finished": False})


@contextlib.contextmanager
def silent() -> Any:
    """What is said goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# Damages --------------------------------------------------------------------------------------------------------------------------------

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**40, 1e400, -1e400, float("nan"), 0.5, "", "x", "1e400"),
    *("\x1b[31mred\nstillroom: all is well", "../../escaped", "/etc/passwd", "a" * 5000),
    *([], {}, [[]], {"x": {}}, ["\udcff"], [1, "1", None]),
)


def mutated(value: Any, chance: random.Random) -> Any:
    """JSON with something else in one place: another value, a key less, an entry twice."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        if chance.random() < 0.15:
            return [*value, value[place]]
        return [*value[:place], mutated(value[place], chance), *value[place + 1 :]]
    return chance.choice(STRANGE)


def damaged(content: bytes, file: str, chance: random.Random) -> bytes:
    """Something else than the content of a file."""
    if file.endswith(".json") and chance.random() < 0.7:
        return json.dumps(mutated(json.loads(content), chance)).encode()
    if file.endswith((".xml", ".yaml", ".txt", ".csv", ".jsonl")) and chance.random() < 0.6:
        text = content.decode()
        words = re.findall(r"[\w.]+", text)
        strange = str(chance.choice([*STRANGE, "1e400", "inf", "nan", "&a;", "<", "!!python/object:os.system", "*x", "é", "\u202e"]))
        return text.replace(chance.choice(words), strange, 1).encode("utf-8", "surrogatepass")
    if file.endswith(".npz") and chance.random() < 0.4:
        with np.load(io.BytesIO(content)) as arrays:
            kept = dict(arrays)
        name = chance.choice(list(kept))
        changes: list[Callable[[np.ndarray], Any]] = [
            lambda array: array.reshape(-1)[:0],
            lambda array: array.astype(str),
            lambda array: np.full(array.shape, np.nan) if array.dtype.kind == "f" else array - 2**40,
            lambda array: array[None],
            lambda array: array.reshape(-1)[:1],
        ]
        if chance.random() < 0.3:
            del kept[name]
        else:
            kept[name] = chance.choice(changes)(kept[name])
        buffer = io.BytesIO()
        np.savez(buffer, **kept)
        return buffer.getvalue()
    if file.endswith(".ckpt") and chance.random() < 0.5:
        checkpoint = torch.load(io.BytesIO(content), weights_only=False)  # our own
        buffer = io.BytesIO()
        torch.save(mutated(checkpoint, chance), buffer)
        return buffer.getvalue()
    kind = chance.randrange(8)
    place = chance.randrange(max(1, len(content)))
    return (
        b"",
        content[:place],
        bytes(len(content)),
        chance.randbytes(200),
        content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :],
        b"[" * 100_000,
        b"\xff\xfe" + content,
        content + chance.randbytes(50),
    )[kind]


# Verdicts -------------------------------------------------------------------------------------------------------------------------------


def verdict(command: tuple[str, ...]) -> str:
    """What came of a command in this folder: `ONE_LINE`, `HANDLED`, or what is wrong."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(command))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"a traceback: {type(error).__name__}: {str(error)[:120]} ({place.filename.rpartition('/')[2]}:{place.lineno})"
    said = err.getvalue()
    if found := RAW.search(said + out.getvalue()):
        return f"a raw {found[0]!r} on the terminal"
    if code == 0:
        return HANDLED
    lines = [line for line in said.splitlines() if line.startswith("stillroom:")]
    several = len(lines) == 2 and "could not be read" in lines[1]  # one for each picture, and how many they are
    return ONE_LINE if (len(lines) == 1 or several) and code in (1, 2, 3) else f"exit code {code} and {len(lines)} lines: {said[-200:]}"


def tried(reader: Reader, whole: Path, root: Path, chance: random.Random | None) -> str:
    """The verdict on one damage; None for none."""
    place = root / "tried"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    file = place / reader.file
    if file.is_dir():
        file = sorted(file.iterdir())[0]
    if chance is not None:
        file.write_bytes(damaged(file.read_bytes(), file.name, chance))
    with contextlib.chdir(place):
        return verdict(reader.command)


def torture(each: int, seed: int, said: Callable[[str], None], readers: tuple[Reader, ...] = READERS) -> dict[str, Counter[str]]:
    """Tries each reader so often; answers with the counts of its verdicts, everything wrong under one name."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "whole").mkdir()
        sound(root / "whole")
        for reader in readers:
            counts: Counter[str] = Counter()
            if (without := tried(reader, root / "whole", root, None)) != HANDLED:
                raise AssertionError(f"{reader.name}, undamaged: {without}")
            for number in range(each):
                one = tried(reader, root / "whole", root, random.Random(f"{seed} {reader.name} {number}"))
                counts[one if one in (ONE_LINE, HANDLED) else "wrong"] += 1
                if one not in (ONE_LINE, HANDLED):
                    said(f"{reader.name}, damage {number} of seed {seed}: {one}")
            found[reader.name] = counts
            three = ", ".join(f"{counts[name]:>4} {name}" for name in (ONE_LINE, HANDLED, "wrong"))
            said(f"{reader.name:<24} {each:>4} tried, {three}")
    return found


def command_line() -> int:
    """The command; answers 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=40, help="damages of each reader's file (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name has this in it")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    readers = tuple(reader for reader in READERS if (asked.only or "") in reader.name)
    for limit in ("_WARM_UP_SECONDS", "_TIMED_SECONDS"):
        mock.patch(f"stillroom.engine.run.measure.{limit}", 0.0).start()
    found = torture(asked.each, asked.seed, lambda line: print(line, flush=True), readers)
    return int(any(counts["wrong"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(command_line())
