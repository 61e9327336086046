"""Whether a teacher that brought its weights can be right: what its answers to the validation set say against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

_ENOUGH = 100  # images from which on two standard errors above chance are asked for
_SHOWN = 6  # classes of a permutation in a message


def doubts(details: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[str]:
    """What is wrong with a teacher, a clause each; nothing of one that can be right.

    Args:
        details: its answers, `labels` and `predicted` int64 [N]; a broken answer is below 0.
        classes: of the data.

    Returns:
        Clauses, of which the first wants "the teacher" before it.
    """
    labels_N, predicted_N = details["labels"], details["predicted"]
    count = len(classes)
    if not len(labels_N):
        return []
    accuracy = float((labels_N == predicted_N).mean())
    chance = 1 / count
    majority = int(np.bincount(labels_N, minlength=count).argmax())
    share = float((labels_N == majority).mean())
    spread = 2 * math.sqrt(chance * (1 - chance) / len(labels_N)) if len(labels_N) >= _ENOUGH else 0.0
    order = permutation(labels_N, predicted_N, count)
    found = []
    right = f"is right for {_percent(accuracy)} of the validation images"
    if accuracy <= chance + spread:
        found.append(f"{right}, no more than chance ({_percent(chance)} with {count} classes)")
    elif accuracy < share:
        found.append(f"{right}, less than who always says {classes[majority]} ({_percent(share)})")
    elif order is not None:
        found.append(right)
    if order is not None and found:
        exchanged = float((np.asarray(order)[predicted_N] == labels_N)[predicted_N >= 0].mean())
        moved = [f"{classes[said]} for {classes[meant]}" for said, meant in enumerate(order) if said != meant]
        shown = ", ".join(moved[:_SHOWN]) + (", ..." if len(moved) > _SHOWN else "")
        found.append(
            f"its classes seem to be in another order: it says {shown}; with them exchanged {_percent(exchanged)} would be right "
            "(--teacher-classes FILE names them in its own order)"
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def permutation(labels_N: np.ndarray, predicted_N: np.ndarray, count: int) -> list[int] | None:
    """The permutation of classes that explains a network's answers far better than they are: for each class that it says, the one that it
    means; None where there is none.

    With few images of each class some permutation explains anything, so that it must then explain everything.
    """
    from scipy.optimize import linear_sum_assignment

    whole_N = predicted_N >= 0
    confusion_CC = np.zeros((count, count), np.int64)
    np.add.at(confusion_CC, (predicted_N[whole_N], labels_N[whole_N]), 1)
    said, meant = linear_sum_assignment(-confusion_CC - 1e-6 * np.eye(count))  # classes that are never said keep their places if they can
    before, after = (float(matched.sum()) / len(labels_N) for matched in (np.diag(confusion_CC), confusion_CC[said, meant]))
    share = float(np.bincount(labels_N, minlength=count).max()) / len(labels_N)
    clear = len(labels_N) >= 10 * count and after >= max(0.5, share + 0.15)
    if after < before + 0.3 or not (clear or (after == 1 and len(labels_N) >= 2 * count)):
        return None
    return [int(one) for one in meant]
