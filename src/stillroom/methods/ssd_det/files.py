"""Files of boxes, read to be written again with other boxes: COCO's JSON, or a folder of Pascal VOC's XML. All else in them stays."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.images.annotations import Annotated
from stillroom.tasks.images.coco import image_key, read_coco_file
from stillroom.tasks.images.voc import read_voc_files

_DECIMALS = 2  # of a written coordinate
_AS_IT_STANDS = 1e-3  # pixels
_OF_A_BOX = 0.01  # share by which an area may differ from its box's and still be meant for it


@dataclass(frozen=True)
class BoxFile:
    """Boxes and where they stand; objects without a box are left out.

    Attributes:
        content: COCO's JSON, or the XML by its paths.
        boxes: float64 [N, 4], absolute (x1, y1, x2, y2), from the image's left upper corner.
        sides: float64 [N, 2], width and height of each one's image; NaN where the file does not say.
        places: of each box: its image's key, see `images.annotations.Annotated`, and which of that image's objects it is.
        ids: of each box, what it is called in another file of the same boxes: COCO's id; or the XML's name and which of its objects.
        crowd: bool [N], of crowds and of difficult ones.
        said: what was met and put right; sentences.
    """

    content: Any
    boxes: np.ndarray
    sides: np.ndarray
    places: list[tuple[Any, int]]
    ids: list[Any]
    crowd: np.ndarray
    said: tuple[str, ...]

    @classmethod
    def read(cls, path: str, argument: str) -> BoxFile:
        """A ``.json`` file, or a folder or zip of XML.

        Raises:
            InputError: it cannot be read, is neither, or has boxes in parts of their image.
        """
        if coco := path.lower().endswith(".json"):
            content, read = read_coco_file(path, argument)
        else:
            content, read = read_voc_files(path, argument)
        if any(read.relative):
            raise InputError(argument, f"{path} with boxes in parts of their image", "boxes in pixels")
        rows = [(n, k) for n, things in enumerate(read.things) for k, thing in enumerate(things) if thing.box]
        places = [(read.keys[n], k) for n, k in rows]
        if coco:
            marks = _marks(content)
            rows.sort(key=lambda row: marks[read.keys[row[0]]][row[1]][0])  # as in the file, in which images may be mixed
            places = [(read.keys[n], k) for n, k in rows]
            ids = [marks[key][k][1].get("id", (key, k)) for key, k in places]
        else:
            ids = [(Path(key).name, k) for key, k in places]
        said = read.notes.lines()
        if 0 in ids:
            said.append("an object with the id 0, which COCO's evaluators take for none, kept: number objects from 1")
        boxes = np.array([read.things[n][k].box for n, k in rows], np.float64).reshape(-1, 4)
        sides = np.array([_sides(read, n) for n, _ in rows], np.float64).reshape(-1, 2)
        crowd = np.array([read.things[n][k].crowd for n, k in rows], bool)
        return cls(content, boxes, sides, places, ids, crowd, tuple(said))

    def write(self, out: Path, boxes: np.ndarray, changed: np.ndarray, **about: np.ndarray) -> None:
        """The same file with other boxes, and with numbers about them beside each; COCO's areas follow where they were the boxes'.

        Args:
            out: a JSON file, or a folder that XML is written into.
            boxes: [N, 4], in the order of `boxes`.
            changed: bool [N]: the others stay as they stand in the file.
            about: float [N] by the name of the field.

        Raises:
            InputError: `out` cannot be written, or ends otherwise than what was read.
        """
        coco = not all(isinstance(element, ElementTree.Element) for element in self.content.values())
        if coco != (out.suffix.lower() == ".json"):
            raise InputError("out", str(out), "a .json file for COCO's annotations" if coco else "a folder for Pascal VOC's")
        if coco:
            self._into_json(boxes, changed, about)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, json.dumps(self.content))
            return
        self._into_xml(boxes, changed, about)
        for path, root in self.content.items():
            place = out / path
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))

    def _into_json(self, boxes: np.ndarray, changed: np.ndarray, about: Mapping[str, np.ndarray]) -> None:
        marks = _marks(self.content)
        for row, (key, k) in enumerate(self.places):
            mark, box = marks[key][k][1], boxes[row] if changed[row] else self.boxes[row]
            sides = box[2:] - box[:2]
            if not changed[row] and np.allclose(mark["bbox"], (*box[:2], *sides), atol=_AS_IT_STANDS):
                continue  # else its corners were read for sizes, or were swapped
            if not mark.get("segmentation") or _about_area(mark, self.boxes[row]):
                mark["area"] = round(float(sides.prod()), _DECIMALS)
            mark["bbox"] = [round(float(number), _DECIMALS) for number in (*box[:2], *sides)]
            if changed[row]:
                mark |= {name: round(float(values[row]), 4) for name, values in about.items()}

    def _into_xml(self, boxes: np.ndarray, changed: np.ndarray, about: Mapping[str, np.ndarray]) -> None:
        objects = {path: root.findall("object") for path, root in self.content.items()}
        for row in np.flatnonzero(changed).tolist():
            path, k = self.places[row]
            corners = objects[path][k].find("bndbox")
            assert corners is not None, "its box was read"
            for side, number in zip(("xmin", "ymin", "xmax", "ymax"), boxes[row] + (1, 1, 0, 0), strict=True):  # pixels count from 1
                _child(corners, side).text = str(round(float(number), _DECIMALS))
            for name, values in about.items():
                _child(objects[path][k], name).text = f"{float(values[row]):.4f}"


def _marks(content: Mapping[str, Any]) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """COCO's objects of each image in their order, each with its place in the file."""
    found: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, mark in enumerate(content["annotations"]):
        found[image_key(mark["image_id"])].append((number, mark))
    return found


def _sides(read: Annotated, image: int) -> tuple[float, float]:
    shape = read.shapes[image]
    return (np.nan, np.nan) if shape is None else (shape[1], shape[0])


def _about_area(mark: Mapping[str, Any], box: np.ndarray) -> bool:
    """Whether an object's area is that of its box."""
    of_box = float((box[2:] - box[:2]).prod())
    return abs(float(mark.get("area", of_box)) - of_box) <= _OF_A_BOX * of_box


def _child(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    found = parent.find(name)
    return ElementTree.SubElement(parent, name) if found is None else found
