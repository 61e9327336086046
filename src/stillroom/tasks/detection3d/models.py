"""Detectors by name: `stillroom/centerpoint-pillar`, `stillroom/pillar-small-w0.5,cell=0.8`, `nets.py:build`.

A spec is ``SOURCE[@WEIGHTS]``, or the folder of a run. SOURCE is

- ``stillroom/NAME[-wFACTOR][,OPTION=...]``: a network of `networks.LIDAR` (``centerpoint-pillar``, ``centerpoint-voxel``,
  ``pointpillars`` and ``second`` as in the papers, the last two with anchors; ``pillar-small`` and ``voxel-small`` for small ranges and
  CPUs). A factor multiplies every width. Options: ``cell`` and ``height`` of a pillar or voxel in metres; ``encoder``, ``bev`` and
  ``head``, factors of the widths of the part before the map, of stages and neck, and of the head. Or one of `camera.CAMERA`
  (``bevdet``, ``bevdepth``, ``bevformer`` as in the papers and ``-small`` for CPUs), with the option ``cell`` alone;
- ``package.module:function`` or ``file.py:function``, called with a `Wanted`, which makes a `MapDetector`.

Runs of methods that build around these record others (`engine.specification.composed`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from stillroom.engine.card import read_specification
from stillroom.engine.specification import composed, made_by
from stillroom.engine.task import Built
from stillroom.engine.weights import load_weights
from stillroom.errors import InputError, near
from stillroom.tasks.detection3d.camera import CAMERA, CameraDetector
from stillroom.tasks.detection3d.networks import LIDAR, LidarDetector, MapDetector, Reach
from stillroom.tasks.images.sources import is_number, split_options
from stillroom.tasks.points.grid import ClassList

TASK = "detection3d"  # what `student.json` calls it
GRAMMAR = f"stillroom/NAME ({', '.join((*LIDAR, *CAMERA))}), file.py:function, or the folder of a run"
_OURS = re.compile(r"stillroom/(?P<name>[a-z-]+?)(?:-w(?P<factor>[\d.]+))?")
_OPTIONS = ("cell", "height", "encoder", "bev", "head")


@dataclass(frozen=True)
class Wanted:
    """What a detector is to read and to answer.

    Args:
        classes: with their groups.
        columns: of points.
        reach: metres that it looks at: least x, y, z, then most.
        velocity: boxes have one.
        image_size: height and width of pictures; None where they come as they are, or there are none.
    """

    classes: ClassList
    columns: tuple[str, ...]
    reach: Reach
    velocity: bool
    image_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Wanted:
        """Of what data say of themselves (`Detection3dData.describe`), or a card."""
        groups = tuple(tuple(map(str, group)) for group in described["groups"])
        classes = ClassList(tuple(map(str, described["classes"])), groups)
        x0, y0, z0, x1, y1, z1 = map(float, described["reach"])
        size = described.get("image_size")
        pictures = None if not size else (int(size[0]), int(size[1]))
        return cls(classes, tuple(map(str, described["columns"])), (x0, y0, z0, x1, y1, z1), bool(described["velocity"]), pictures)


def build_detector(spec: str, wanted: Wanted, *, trust_pickle: bool = False, argument: str = "model") -> Built:
    """Build the detector that a spec names, and load its weights if the spec gives some.

    Raises:
        InputError: the spec is none, a detector of a run is of another task, or weights are missing or do not fit.
    """
    named = read_specification(spec, trust_pickle=trust_pickle, argument=argument, task=TASK)
    if (whole := composed(named.source, argument)) is not None:
        network: Any = whole.build(lambda part, _: untrained(part, wanted, argument), len(wanted.classes), torch.empty(0), argument)
    else:
        network = untrained(named.source, wanted, argument)
    if named.weights:
        load_weights(network, named.weights, trust_pickle=trust_pickle, argument=argument)
    return Built(network, named.spec, named.weights or None, named.classes)


def untrained(source: str, wanted: Wanted, argument: str) -> MapDetector:
    """The detector of a source, from random numbers.

    Raises:
        InputError: it names none.
    """
    text, options = split_options(source, argument)
    ours = _OURS.fullmatch(text)
    if ours is not None and ours["name"] in LIDAR:
        return _lidar(LIDAR[ours["name"]], float(ours["factor"] or 1), options, wanted, argument)
    if ours is not None and ours["name"] in CAMERA:
        return _camera(ours["name"], float(ours["factor"] or 1), options, wanted, argument)
    if source.startswith("stillroom/"):
        raise InputError(argument, source, f"a detector of Stillroom: {near(text.removeprefix('stillroom/'), (*LIDAR, *CAMERA))}")
    called = "a detection3d.networks.MapDetector"
    return made_by(source, argument, GRAMMAR, wanted, kind=MapDetector, called=called)  # type: ignore[type-abstract]  # any of its kinds


def _numbers(options: Mapping[str, str], known: Sequence[str], argument: str) -> dict[str, float]:
    for name, value in options.items():
        if name not in known:
            raise InputError(argument, f"{name}={value}", f"an option of these detectors: {near(name, known)}")
        if not is_number(value) or not float(value) > 0:
            raise InputError(argument, f"{name}={value}", "a number above 0")
    return {name: float(value) for name, value in options.items()}


def _camera(name: str, factor: float, options: Mapping[str, str], wanted: Wanted, argument: str) -> CameraDetector:
    numbers: dict[str, Any] = {**_numbers(options, ("cell",), argument)}
    if not factor > 0:
        raise InputError(argument, f"a width factor of {factor:g}", "a number above 0")
    spec = replace(CAMERA[name], **numbers)
    return CameraDetector(spec, wanted.classes, wanted.reach, velocity=wanted.velocity, factor=factor)


def _lidar(spec: Any, factor: float, options: Mapping[str, str], wanted: Wanted, argument: str) -> LidarDetector:
    numbers = _numbers(options, _OPTIONS, argument)
    factors = tuple(factor * numbers.pop(name, 1.0) for name in ("encoder", "bev", "head"))
    if not all(one > 0 for one in factors):
        raise InputError(argument, f"a width factor of {factor:g}", "a number above 0")
    made = replace(spec, factors=factors, **numbers)
    return LidarDetector(made, wanted.columns, wanted.classes, wanted.reach, velocity=wanted.velocity)
