"""Tiny sets of clips in the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def frames(
    folder: Path, count: int, *, first: int = 0, pattern: str = "frame_{:010d}.jpg", size: tuple[int, int] = (24, 32), grey: bool = False
) -> None:
    """Pictures whose level is ten times their number in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        level = np.full((*size, 3), min(10 * number + 5, 250), np.uint8)
        level[: size[0] // 2, : size[1] // 2] //= 2  # the upper left is darker
        Image.fromarray(level[..., 0] if grey else level).save(folder / pattern.format(first + number), quality=95)


def class_folders(root: Path) -> Path:
    """``train|val/CLASS/CLIP/*.jpg``, with optical flow beside the frames of one class."""
    for split, count in (("train", 3), ("val", 2)):
        for verb in ("lift", "push"):
            for clip in range(count):
                frames(root / split / verb / str(clip) / "rgb", 6)
                if verb == "push":
                    for part in ("flow_u", "flow_v"):
                        frames(root / split / verb / str(clip) / part, 6, grey=True)
    return root


def epic(root: Path) -> Path:
    """EPIC-KITCHENS-100's CSV files, with frames and flow of one video."""
    frames(root / "P01/rgb_frames/P01_01", 20, first=1)
    for part in ("u", "v"):
        frames(root / "P01/flow_frames/P01_01" / part, 20, first=1, grey=True)
    head = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,"
    head += "verb_class,noun,noun_class,all_nouns,all_noun_classes\n"

    def line(start: int, stop: int, verb: tuple[str, int], noun: tuple[str, int], video: str = "P01_01") -> str:
        times = f"00:00:{start / 50:05.2f},00:00:{start / 50:05.2f},00:00:{stop / 50:05.2f}"
        return f"{video}_0,P01,{video},{times},{start},{stop},a b,{verb[0]},{verb[1]},{noun[0]},{noun[1]},\"['b']\",[1]\n"

    rows = [line(1, 8, ("take", 0), ("cup", 13)), line(5, 12, ("put-on", 1), ("door", 3)), line(9, 18, ("open", 3), ("cup", 13))]
    rows += [line(30, 40, ("take", 0), ("cup", 13)), line(1, 5, ("take", 0), ("cup", 13), "P09_09")]
    (root / "EPIC_100_train.csv").write_text(head + "".join(rows))
    (root / "EPIC_100_validation.csv").write_text(head + line(2, 10, ("open", 3), ("door", 3)) + line(15, 25, ("take", 0), ("cup", 13)))
    (root / "EPIC_100_verb_classes.csv").write_text('id,key,instances\n0,take,"[]"\n1,put,"[]"\n2,wash,"[]"\n3,open,"[]"\n')
    return root


def something(root: Path) -> Path:
    """Something-Something-v2's JSON files, with folders of frames."""
    labels = {"Holding something": "0", "Lifting something up": "1", "Pushing something": "2"}
    listed = {"train": 4, "validation": 2}
    (root / "labels").mkdir(parents=True)
    (root / "labels/something-something-v2-labels.json").write_text(json.dumps(labels))
    for number, (split, count) in enumerate(listed.items()):
        rows = []
        for clip in range(count):
            name, template = str(100 * (number + 1) + clip), ("Holding [something]", "Pushing [something]")[clip % 2]
            frames(root / "20bn-something-something-v2" / name, 5)
            rows.append({"id": name, "label": "holding a cup", "template": template, "placeholders": ["a cup"]})
        (root / f"labels/something-something-v2-{split}.json").write_text(json.dumps(rows))
    return root
