"""Images with boxes whose classes come in groups: what each step is trained on and measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from stillroom.engine.card import read_card
from stillroom.errors import InputError, one_of
from stillroom.methods.iod.groups import Groups, Order, image_shares, named_groups, sizes_in, step_data
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.sources import Annotated

if TYPE_CHECKING:
    from typing_extensions import Self

Protocol = Literal["conventional", "disjoint"]


class IncrementalData(DetectionData):
    """Images with boxes of classes in groups, which are learnt one after the other.

    As a whole they are what joint training sees: every image with an object of any group. Labels number the classes of the groups, in
    their order; objects of classes in no group are left out.

    Args:
        data: where the images are, see `DetectionData`.
        groups: the classes of each step, ``cat,dog|bird|cow,horse``; or their numbers, ``3+3``, ``voc:15+1x5``, ``coco:40+40``; or, where
            an earlier run is extended, ``+bird``. By default two halves.
        class_order: of classes that are given by their numbers: ``sorted``, as the data have them (COCO's by id, VOC's by name);
            ``shuffled`` by `class_seed`; ``last_first``, the last ones in the first step.
        class_seed: of the shuffling, by NumPy's legacy generator as in the published order.
        protocol: which images a step sees: ``conventional``, all with an object of its classes, so that an image may come back in other
            steps with other boxes; or ``disjoint``, of a share of the images that is its own, drawn by `subset_seed`.
        extend: folder of a finished run of this method, or of another one on a detector of the DETR family, or of one that transformers'
            save_pretrained wrote: a further group is learnt by its student. What is not said anew is as in that run.
        options: those of `DetectionData`.

    Attributes:
        groups: names of the classes of each step.
        start: specification of the detector that knows all groups but the new ones; None where the first group is learnt, too.
        known: how many groups it knows.

    Raises:
        InputError: an unknown or a repeated class, a group without an object in the images; or see `DetectionData`.
    """

    groups: Groups

    def __init__(
        self,
        data: str = "scenes",
        *,
        groups: str | None = None,
        class_order: Order = "sorted",
        class_seed: int = 123,
        protocol: Protocol = "conventional",
        extend: Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.protocol = one_of("protocol", protocol, get_args(Protocol))
        self.start: str | None
        self.start, earlier = (None, ()) if extend is None else _learnt(extend)
        if groups is None:
            if extend is not None or self.num_classes < 2:
                raise InputError(
                    "groups", None, "further classes, e.g. +bird" if extend is not None else "at least two classes in the data"
                )
            groups = f"{self.num_classes // 2}+{self.num_classes - self.num_classes // 2}"
        self.known = len(earlier)
        self.groups = named_groups(groups, self.classes, order=class_order, seed=class_seed, known=earlier)
        self.ordered_by = "as named" if sizes_in(groups) is None else str(class_order)
        self.ordered_by += f", seed {class_seed}" if class_order == "shuffled" else ""
        number = {name: k for k, name in enumerate(self.classes)}
        self.classes = tuple(name for group in self.groups for name in group)
        self.num_classes = len(self.classes)
        order = np.array([number.get(name, -1 - k) for k, name in enumerate(self.classes)])  # those that the data lack have no object
        sizes = [len(group) for group in self.groups]
        step = np.repeat(np.arange(len(sizes)), sizes)
        self._taken_from = self.indices  # of the source, where these are a subset
        self._splits = _Split(self._shown[0], order, step), _Split(self._shown[1], order, step)
        self._owner = image_shares(len(self._shown[0]), sizes, self.subset_seed) if protocol == "disjoint" else None
        self._missing = [name for name in self.classes if name not in number]
        for at, group in enumerate(self.groups[self.known :], self.known):
            for said, images in (("a training", self._selected(at)), ("a validation", self._splits[1].selected[at])):
                if not images.any():
                    raise InputError("groups", f"group {at + 1} ({', '.join(group)}) without an object in {said} image", "at least one")
        self._mark("groups", self.groups, self.known, protocol)
        whole = self.joint(len(self.groups) - 1)
        self._shown, self.indices = whole._shown, whole.indices

    @property
    def last(self) -> int:
        """The number of the last step, from 0."""
        return len(self.groups) - 1

    def step(self, step: int, scales: tuple[int, int] | None = None) -> Self:
        """What a step is trained on: images with an object of its group, and of them the objects of its group. It is measured on every
        validation image, with the objects of all groups so far.

        Args:
            step: from 0.
            scales: pixels that the shorter side of a training image is drawn from, anew each time; by default the data's size.
        """
        return self._of_step(step, "step", self._selected(step), self._splits[0].steps.annotation_kept[step], scales)

    def joint(self, step: int, scales: tuple[int, int] | None = None) -> Self:
        """The same with every object of all groups so far annotated in every image that has one."""
        train = self._splits[0]
        return self._of_step(step, "joint", np.asarray(train.selected[: step + 1].any(0)), train.steps.evaluation_kept[step], scales)

    def untaught(self) -> list[str]:
        """Classes of earlier groups without a box to train on, of a run that is extended."""
        earlier = sum(map(len, self.groups[: self.known]))
        return [name for name, count in zip(self.classes[:earlier], self.trained.objects(self.num_classes), strict=False) if not count]

    def first_lines(self) -> list[str]:
        """As every data's; and the order and the groups of the classes."""
        groups = " | ".join(", ".join(group) for group in self.groups)
        lines = [f"class groups in the order of the detector's answers ({self.ordered_by}): {groups}"]
        if self._missing:
            lines.append(f"classes of the earlier run that these data lack, so that their AP is not measured: {', '.join(self._missing)}")
        return [*super().first_lines(), *lines]

    def _described(self) -> dict[str, Any]:
        return {**super()._described(), "groups": [list(group) for group in self.groups]}

    def _selected(self, step: int) -> np.ndarray:
        """Which images a step sees, by the protocol; bool [images]."""
        selected = self._splits[0].selected[step]
        return selected if self._owner is None else selected & (self._owner == step)

    def _of_step(self, step: int, how: str, images: np.ndarray, kept: np.ndarray, scales: tuple[int, int] | None) -> Self:
        train, val = self._splits
        groups, chosen = self.groups[: step + 1], np.flatnonzero(images)
        return self.derive(
            (how, step, scales),
            train=train.shown(chosen, kept),
            val=val.shown(np.arange(len(val.annotated)), val.steps.evaluation_kept[step]),
            groups=groups,
            classes=self.classes[: sum(map(len, groups))],
            num_classes=sum(map(len, groups)),
            scales=scales,
            indices={**self._taken_from, "train": self._taken_from["train"][chosen] if "train" in self._taken_from else chosen},
        )


class _Split:
    """Annotated images of one split, and what each step shows of them.

    Args:
        annotated: with the data's own labels.
        order, step: see `step_data`.

    Attributes:
        selected: images with an object of each step's group that is no crowd, bool [T, images].
    """

    def __init__(self, annotated: Annotated, order: np.ndarray, step: np.ndarray) -> None:
        self.annotated = annotated
        counts = [len(labels) for labels in annotated.labels]
        image_N = np.repeat(np.arange(len(counts)), counts)
        label_N, crowd_N = (np.concatenate([np.zeros(0, np.int64), *column]) for column in (annotated.labels, annotated.crowd))
        plain_N = crowd_N == 0
        self.steps = step_data(order, step, image_N, label_N, len(counts))
        self.selected = step_data(order, step, image_N[plain_N], label_N[plain_N], len(counts)).image_selected
        self._ends = np.cumsum([0, *counts])

    def shown(self, images: np.ndarray, kept: np.ndarray) -> Annotated:
        """These images with those annotations that are kept, bool [N], under their numbers in the order."""
        places = [slice(self._ends[image], self._ends[image + 1]) for image in images]
        taken = self.annotated.take(images)
        boxes, crowd = ([rows[kept[place]] for rows, place in zip(column, places, strict=True)] for column in (taken.boxes, taken.crowd))
        return replace(taken, boxes=boxes, labels=[self.steps.label[place][kept[place]] for place in places], crowd=crowd)


def _learnt(folder: Path) -> tuple[str, Groups]:
    """The specification of an earlier detector, and the groups of classes that it knows.

    Raises:
        InputError: the folder holds no student of a detection run, and no model of transformers with names of classes.
    """
    if (folder / "config.json").is_file() and not (folder / "student.json").is_file():
        try:
            named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
            return f"transformers/{folder}", (tuple(str(named[key]) for key in sorted(named, key=int)),)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("extend", str(folder / "config.json"), "JSON with id2label, the names of the classes") from error
    card = read_card(folder, trust_pickle=True, argument="extend")  # what it names is built later, if it is trusted
    if card.task != DetectionData.task.name or card.classes is None:
        raise InputError("extend", f"{folder}, a run of {card.task}", "the folder of a detection run")
    groups = card.parsed(lambda content: _names(content.get("groups") or [content["classes"]]), "groups of classes")
    return str(folder), groups


def _names(groups: Any) -> Groups:
    return tuple(tuple(str(name) for name in group) for group in groups)
