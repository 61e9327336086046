"""`stillroom refine-boxes`: a set's own sloppy boxes, refined and written as they came; and `stillroom noise-boxes`, the reverse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.engine import Experiment, Lab, Networks, Report, Training
from stillroom.errors import InputError
from stillroom.methods.ssd_det.distiller import SSDDet
from stillroom.methods.ssd_det.files import BoxFile
from stillroom.methods.ssd_det.noise import add_noise
from stillroom.methods.ssd_det.pages import FORMATS, box_section, overlaps, told
from stillroom.methods.ssd_det.recipe import SMALL, STUDENT, trained_refiner
from stillroom.tasks.detection import DetectionData
from stillroom.tasks.images.coco import annotation_file
from stillroom.tasks.images.sources import kind_of, split_options


def refine(
    lab: Lab, data: DetectionData, plan: Training = SMALL, student: str = STUDENT, clean: str | None = None, **options: Any
) -> Report:
    """Make the boxes of a set better, and write them: the annotations as they are, but for the boxes.

    Args:
        lab, data, plan: where to run, on what, and how to train; all images of the set are refined, held-out ones too.
        student: network; a Faster R-CNN: stillroom/faster-rcnn_24 or _32, torchvision/fasterrcnn_resnet50_fpn, or your own.
        clean: true boxes, or some of them, to measure with: a JSON file with the same ids, or a folder of XML with the same names.
        options: those of `Refiner`.

    Raises:
        InputError: data of another format than COCO's or Pascal VOC's, or a file of true boxes that has none of these.
    """
    path = annotations_of(data.data)
    file = BoxFile.read(path, "data")
    true = None if clean is None else BoxFile.read(clean, "clean")
    split_by_us = "val_images" not in data.data and "val_annotations" not in data.data
    whole = data.derive("all of them", train=data.trained.with_more(data.truth)) if split_by_us else data
    rows_N = _rows(whole, file)
    true_N4 = np.full((len(rows_N), 4), np.nan, np.float32)
    if true is not None:
        by_id = dict(zip(true.ids, true.boxes, strict=True))
        found = [by_id.get(name) for name in file.ids]
        in_file_M4 = np.array([[np.nan] * 4 if box is None else box for box in found], np.float32).reshape(-1, 4)
        true_N4[rows_N >= 0] = in_file_M4[rows_N[rows_N >= 0]]
        if np.isnan(true_N4).all():
            raise InputError("clean", clean, f"boxes with ids of {path}")
    experiment = Experiment(lab, whole, plan, Networks(student=student))

    def make(fresh: Any, _: Any = None) -> SSDDet:
        return SSDDet(fresh, **options)

    experiment.rehearse(make)
    trained, refined = trained_refiner(experiment, "refiner", make, true_N4)
    if lab.is_main:
        lab.say("boxes", _written(lab.folder, file, rows_N, refined))
    report = lab.report("ssd-det", whole, {"refiner": trained}, baseline=None, ship="refiner")
    report.metric_formats |= FORMATS
    report.method_sections = [box_section(whole, refined, true_N4)]
    report.notes = [
        *told(whole, refined, true_N4),
        "AP is measured with given boxes, which may be as inaccurate as those that were refined.",
    ]
    return report


def annotations_of(data: str) -> str:
    """The file or folder that the boxes of a specification of data stand in.

    Raises:
        InputError: they are of another format, or their file is not named.
    """
    kind = kind_of(data)
    path, _ = split_options(data.partition(":")[2], "data")
    images, comma, annotations = (part.strip() for part in path.rpartition(","))
    if kind == "voc":
        return path
    if kind == "coco" and comma:
        return str(annotation_file(images, annotations))
    raise InputError("data", data, "coco:IMAGES,ANNOTATIONS.json or voc:ROOT: the annotations that are to be refined")


def target(out: Path, data: str) -> Path:
    """The folder of the run that writes `out`: of a JSON file, the folder of its name without the ending.

    Raises:
        InputError: `out` ends otherwise than these data are written, is the file that is to be refined, or is something else's.
    """
    source = Path(annotations_of(data))
    coco = source.suffix.lower() == ".json"
    if coco != (out.suffix.lower() == ".json"):
        raise InputError("out", str(out), "a .json file for COCO's annotations" if coco else "a folder for Pascal VOC's")
    folder = out.with_suffix("") if coco else out
    if out.resolve() == source.resolve() or (coco and out.exists() and not folder.exists()):
        raise InputError("out", f"{out}, which exists", "a new file")
    return folder


def _rows(data: DetectionData, file: BoxFile) -> np.ndarray:
    """Of each box of the training images, in their order, its row in the file, int64 [N]; -1 for crowds and images that were turned."""
    annotated, rows = data.trained, {place: row for row, place in enumerate(file.places)}
    found: list[int] = []
    for key, order, shape in zip(annotated.keys, annotated.order, annotated.shapes, strict=True):
        for row in (rows.get((key, k), -1) for k in order.tolist()):
            turned = row >= 0 and not np.isnan(file.sides[row]).any() and tuple(file.sides[row]) != shape[::-1]
            found.append(-1 if turned else row)
    return np.array(found, np.int64)


def _written(folder: Path, file: BoxFile, rows_N: np.ndarray, refined: dict[str, np.ndarray]) -> str:
    """Writes the refined boxes behind the folder's name or into it; says so."""
    boxes, changed = file.boxes.copy(), np.zeros(len(file.boxes), bool)
    scores = np.zeros(len(boxes))
    kept_N = (rows_N >= 0) & ~np.isnan(refined["scores"])
    boxes[rows_N[kept_N]], scores[rows_N[kept_N]] = refined["boxes"][kept_N], refined["scores"][kept_N]
    changed[rows_N[kept_N]] = True
    coco = "annotations" in file.content
    out = folder.with_name(f"{folder.name}.json") if coco else folder
    file.write(out, boxes, changed, score=scores, moved=1 - overlaps(file.boxes, boxes))
    left = f"; {(~changed).sum()} are left as they were" if not changed.all() else ""
    return f"{changed.sum()} refined, in {out}{left}"


@dataclass(frozen=True)
class Noised:
    """What `noise-boxes` wrote.

    Attributes:
        boxes: how many boxes have noise.
        iou: their mean IoU with what they were.
        said: what was left as it was; sentences.
    """

    boxes: int
    iou: float
    said: tuple[str, ...]


def noise_boxes(source: str, out: Path, *, ratio: float, seed: int) -> Noised:
    """Writes a file of boxes again, with noise; everything else, ids too, stays.

    Args:
        source: a COCO JSON file, or a folder or zip of Pascal VOC's XML; images need not be there.
        out: a new JSON file, or a new folder for XML.
        ratio, seed: see `noise.add_noise`.

    Raises:
        InputError: an argument that cannot be used, a file that cannot be read, or an image whose size is not said.
    """
    file = BoxFile.read(source, "IN")
    if out.exists():
        raise InputError("OUT", f"{out}, which exists", "a new file or folder")
    if not np.isfinite(file.boxes).all():
        raise InputError("IN", f"{source} with a box of numbers that are not finite", "numbers of pixels")
    if np.isnan(file.sides).any():
        missing = file.places[int(np.isnan(file.sides).any(1).argmax())][0]
        raise InputError("IN", f"{source} without the width and height of image {missing}", "the size of each image: boxes end at its rim")
    inside = np.concatenate((np.maximum(file.boxes[:, :2], 0), np.minimum(file.boxes[:, 2:], file.sides)), 1)
    sound = ((inside[:, 2:] - inside[:, :2]) >= 1).all(1)
    boxes, changed = file.boxes.copy(), np.zeros(len(file.boxes), bool)
    drawn = sound & ~file.crowd
    boxes[drawn], kept = add_noise(file.boxes[drawn], file.sides[drawn], ratio, seed)
    changed[drawn] = ~kept
    file.write(out, boxes, changed)
    said = list(file.said)
    if not (sound | file.crowd).all():
        said.append(f"boxes of less than a pixel in their image, left as they are: {(~sound & ~file.crowd).sum()}")
    if kept.any():
        said.append(f"boxes of which noise would leave less than a pixel, left as they are: {kept.sum()}")
    iou = overlaps(file.boxes[changed], boxes[changed])
    return Noised(int(changed.sum()), float(iou.mean()) if len(iou) else 1.0, tuple(said))
