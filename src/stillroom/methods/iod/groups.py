"""Groups of classes: their order, how they are named, which images and annotations belong to a step, and what is measured over steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from stillroom.errors import InputError, near, one_of

Order = Literal["sorted", "shuffled", "last_first"]
Groups = tuple[tuple[str, ...], ...]

_SETS = {"voc": 20, "coco": 80}  # classes of the sets whose protocols are known by name
_SIZES = re.compile(r"(?:(?:voc|coco):)?(\d+(?:x\d+)?(?:\+\d+(?:x\d+)?)*)$")


class Slices(NamedTuple):
    """An order of classes, cut into steps.

    Attributes:
        order: the classes, row after row of a detector's head, int64 [K].
        step: of each entry of `order`, from 0; int64 [K].
        old_classes: how many classes are known before each step; int64 [T].
    """

    order: np.ndarray
    step: np.ndarray
    old_classes: np.ndarray


def class_slices(
    class_ids: Sequence[int] | np.ndarray, base: int, increments: Sequence[int], *, order: Order = "sorted", seed: int = 123
) -> Slices:
    """Cuts the classes into a first group and further ones.

    Args:
        class_ids: the data set's ids, in any order.
        base: classes of the first step.
        increments: of each further one.
        order: ``sorted`` by id; ``shuffled``: the sorted ids, by NumPy's legacy generator; ``last_first``: the last `base` sorted ids, and
            then the others.
        seed: of the shuffling.

    Raises:
        InputError: an id twice, or other numbers of classes than there are.
    """
    one_of("class_order", order, get_args(Order))
    ids = np.sort(np.asarray(class_ids, np.int64))
    sizes = [base, *increments]
    if len(np.unique(ids)) < len(ids):
        raise InputError("class_ids", ids.tolist(), "each class once")
    if sum(sizes) != len(ids) or min(sizes) < 1:
        raise InputError("groups", f"{'+'.join(map(str, sizes))} classes", f"sizes of at least 1 that sum to {len(ids)}")
    if order == "shuffled":
        np.random.RandomState(seed).shuffle(ids)
    elif order == "last_first":
        ids = np.roll(ids, base)
    return Slices(ids, np.repeat(np.arange(len(sizes)), sizes), np.cumsum([0, *sizes[:-1]]))


class StepData(NamedTuple):
    """What each step shows: bool [T, images], [T, annotations], [T, annotations]; and each annotation's row in the order, int64."""

    image_selected: np.ndarray
    annotation_kept: np.ndarray
    evaluation_kept: np.ndarray
    label: np.ndarray


def step_data(order: np.ndarray, step: np.ndarray, annotation_image: np.ndarray, annotation_class: np.ndarray, images: int) -> StepData:
    """Protocol (a): step t sees every image with an object of its group, and of it the objects of its group; it is measured on all
    images, with the objects of all groups up to t.

    Args:
        order, step: the classes and their steps, see `Slices`.
        annotation_image: index of each annotation's image.
        annotation_class: its class, as in `order`; one of no group is shown by no step (and has the label -1).
        images: how many there are.
    """
    by_class = np.argsort(order, kind="stable")
    place_N = np.searchsorted(order[by_class], annotation_class).clip(max=len(order) - 1)
    label_N = np.where(order[by_class][place_N] == annotation_class, by_class[place_N], -1)
    steps_T1 = np.arange(step.max() + 1)[:, None]
    step_N = np.where(label_N < 0, len(steps_T1), step[label_N])
    kept_TN = step_N == steps_T1
    selected_TI = np.zeros((len(steps_T1), images), bool)
    at, which = np.nonzero(kept_TN)
    selected_TI[at, np.asarray(annotation_image)[which]] = True
    return StepData(selected_TI, kept_TN, step_N <= steps_T1, label_N)


def image_shares(images: int, sizes: Sequence[int], seed: int) -> np.ndarray:
    """Protocol (b): the step that each image belongs to, int64 [images]; shares are proportional to the groups' sizes, drawn by `seed`."""
    ends = np.round(np.cumsum(sizes) / sum(sizes) * images).astype(np.int64)
    step_I = np.empty(images, np.int64)
    step_I[np.random.default_rng(seed).permutation(images)] = np.searchsorted(ends, np.arange(images), side="right")
    return step_I


def named_groups(text: str, classes: Sequence[str], *, order: Order, seed: int, known: Groups = ()) -> Groups:
    """The groups that a user names.

    Args:
        text: ``cat,dog|bird|cow,horse``: names, classes that are not named take no part; or sizes, ``10+10`` or ``15+1x5``, with ``voc:``
            or ``coco:`` before them for a protocol of that set; or, behind `known` groups, ``+bird`` or ``+bird,cow|horse``.
        classes: of the data, in their order.
        order, seed: of classes that are given by sizes, see `class_slices`.
        known: groups that were learnt before.

    Raises:
        InputError: an unknown or a repeated class, an empty group, sizes that do not fit.
    """
    if (sizes := sizes_in(text)) is not None:
        name = text.partition(":")[0].strip()
        if known:
            raise InputError("groups", text, "the names of further classes, e.g. +bird, since earlier groups are learnt")
        if name in _SETS and len(classes) != _SETS[name]:
            raise InputError("groups", f"{text} for data of {len(classes)} classes", f"the {_SETS[name]} classes of {name.upper()}")
        first, *others = sizes
        slices = class_slices(range(len(classes)), first, others, order=order, seed=seed)
        return tuple(tuple(classes[k] for k in slices.order[slices.step == t]) for t in range(1 + len(others)))
    if known and not text.startswith("+"):
        raise InputError("groups", text, "further classes behind a plus, e.g. +bird, since earlier groups are learnt")
    if order != "sorted" and not known:
        raise InputError("class_order", order, "sorted where the groups are named: their order is that of the names")
    found = tuple(tuple(name.strip() for name in group.split(",")) for group in text.removeprefix("+" if known else "").split("|"))
    seen = {name for group in known for name in group}
    for group in found:
        for name in group:
            if not name:
                raise InputError("groups", text, "names of classes, with commas between them and a bar between groups")
            if name not in classes:
                raise InputError("groups", f"the class {name!r}, which the data have not", f"some of {near(name, classes)}")
            if name in seen:
                raise InputError("groups", f"the class {name!r} a second time", "each class once, in one group")
            seen.add(name)
    return (*known, *found)


def sizes_in(text: str) -> list[int] | None:
    """The groups' sizes, of a text that gives sizes and no names: 15, 1, 1 of ``voc:15+1x2``; None of one with names."""
    found = _SIZES.match(text.replace(" ", ""))
    if found is None:
        return None
    parts = [part.partition("x") for part in found.group(1).split("+")]
    return [int(size) for size, _, times in parts for _ in range(int(times or 1))]


@dataclass(frozen=True)
class Gap:
    """How far a run in steps stays behind joint training.

    Attributes:
        absolute: points, after the last step.
        relative: the same as a fraction of joint training.
        omega: mean over steps of the ratio to joint training on as many classes.
    """

    absolute: float
    relative: float
    omega: float


def increment_metrics(seen_map: Sequence[float], joint_map: Sequence[float]) -> Gap:
    """AbsGap, RelGap and Omega.

    Args:
        seen_map: after each step mAP over the classes seen so far; in the first step it is that of joint training.
        joint_map: of joint training on these classes.
    """
    seen, joint = np.asarray(seen_map, float), np.asarray(joint_map, float)
    ratio = np.divide(seen, joint, out=np.full_like(seen, np.nan), where=joint > 0)
    return Gap(float(joint[-1] - seen[-1]), float(1 - ratio[-1]), float(ratio.mean()))


def forgetting(matrix: np.ndarray) -> float:
    """Mean over all groups but the last of what was lost: the best AP that the group ever had, less its last.

    Args:
        matrix: AP of group g after step t, [T, T]; NaN for t < g.

    Source: Chaudhry et al. 2018 (Riemannian Walk), section 3.2.
    """
    if len(matrix) < 2:
        return 0.0
    return float((np.nanmax(matrix[:-1, :-1], 0) - matrix[-1, :-1]).mean())
