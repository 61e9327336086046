"""How well nuclei are found, outlined and classified over a validation set, in one process or many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.nuclei.maps import NucleiMap, WholeBatch
from stillroom.tasks.nuclei.measures import Counts, counted, dice, panoptic_quality

METRICS = {
    "mPQ": Metric("mPQ+", "%", 1, True),
    "mDice": Metric("Dice of classes", "%", 1, True),
    "type F1": Metric("F1 of types", "%", 1, True),
    "mPQ apart": Metric("mPQ+, classes apart", "%", 1, True),
    "mDice apart": Metric("Dice, classes apart", "%", 1, True),
    "type F1 apart": Metric("F1, classes apart", "%", 1, True),
    "PQ": Metric("PQ", "%", 1, True),
    "Dice": Metric("Dice", "%", 1, True),
    "AJI": Metric("AJI", "%", 1, True),
    "detection F1": Metric("F1 of detection", "%", 1, True),
}
_SHOWN = 8  # pictures whose answers are kept: those with the least PQ
_LONGEST = 256  # pixels of their longer side then


class NucleiEvaluator:
    """Collects the nuclei that were found over a validation set.

    Figures, in %: of each class pooled over the pictures, then the mean over the classes that are in truth or answers: ``mPQ`` (PQ+),
    ``mDice`` of pixels, ``type F1`` of paired nuclei; with classes apart the same of these alone. Of all nuclei the means over pictures
    of ``PQ``, ``Dice`` and ``AJI``, and ``detection F1`` pooled. Pictures without a nucleus in truth and answer are in no mean.

    Args:
        classes: their names.
        apart: some of them.
    """

    primary = "mPQ"
    higher_is_better = True

    def __init__(self, classes: Sequence[str], apart: Sequence[str] = ()) -> None:
        self.classes = tuple(classes)
        self.apart = [self.classes.index(name) for name in apart]
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._worst: list[tuple[float, int, np.ndarray]] = []

    def to(self, device: torch.device | str) -> NucleiEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Sequence[NucleiMap], batch: WholeBatch) -> None:
        """Takes in a batch: the nuclei that were found in each picture."""
        for place, (number, found) in enumerate(zip(batch.ids.tolist(), answers, strict=True)):
            truth = batch.truth(place)
            counts = counted(truth.instances, truth.type_map, found.instances, found.type_map, len(self.classes))
            self._rows.append((torch.tensor([number]), *(torch.from_numpy(column)[None] for column in counts.columns())))
            if counts.match[:3].sum():
                self._worst.append((float(panoptic_quality(counts.match)), number, _small(found)))
        self._worst = sorted(self._worst, key=lambda row: row[:2])[:_SHOWN]

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        _, *columns = gather_samples(self._rows)
        pooled = Counts(*(column.sum(0) for column in columns))
        of_class = {"mPQ": pooled.class_pq(), "mDice": pooled.class_dice(), "type F1": pooled.type_f1()}
        figures = {name: _mean(found) for name, found in of_class.items()}
        if self.apart:
            figures |= {f"{name} apart": _mean(found[self.apart]) for name, found in of_class.items()}
        images = [Counts(*parts) for parts in zip(*columns, strict=True)]
        shown = [one for one in images if one.match[:3].sum()]
        figures["PQ"] = _mean(np.array([panoptic_quality(one.match) for one in shown]))
        figures["Dice"] = _mean(np.array([dice(one.pixels) for one in shown]))
        figures["AJI"] = _mean(np.array([one.aji() for one in shown]))
        return {name: 100 * value for name, value in {**figures, "detection F1": pooled.detection_f1()}.items()}

    def details(self) -> dict[str, np.ndarray]:
        """Of each picture, in the order of ids: `ids`; the columns of `measures.Counts`; `outcome`: what it contributes to mPQ in %,
        linearised, of which mPQ is the mean; and of the pictures with the least PQ `worst`, their ids, with the answers in small: `maps`
        [all their pixels, 2], instance and type, of the shapes `map_shapes` [K, 2].

        With several processes all of them must call it.
        """
        ids_N, *columns = gather_samples(self._rows)
        match_NC4 = columns[1]
        tp_NC, fp_NC, fn_NC, iou_NC = np.moveaxis(match_NC4, 2, 0)
        all_NC = tp_NC + fp_NC / 2 + fn_NC / 2
        all_C, iou_C = all_NC.sum(0), iou_NC.sum(0)
        known_C = all_C > 0
        quality_C = iou_C[known_C] / all_C[known_C]
        # d PQ_c = (d IoU - PQ d all) / all, so that these sum to 0 over the pictures
        slope_NC = (iou_NC[:, known_C] - quality_C * all_NC[:, known_C]) / all_C[known_C]
        outcome_N = 100 * (quality_C.mean() + len(ids_N) * slope_NC.mean(1)) if known_C.any() else np.full(len(ids_N), np.nan)
        worst = sorted((row for part in gathered(self._worst) for row in part), key=lambda row: row[:2])[:_SHOWN]
        maps = {
            "worst": np.array([number for _, number, _ in worst], np.int64),
            "map_shapes": np.array([one.shape[:2] for _, _, one in worst], np.int64).reshape(-1, 2),
            "maps": np.concatenate([one.reshape(-1, 2) for _, _, one in worst]) if worst else np.empty((0, 2), np.int32),
        }
        return {"ids": ids_N, "outcome": outcome_N, **dict(zip(NAMES, columns, strict=True)), **maps}


NAMES = tuple(Counts.__dataclass_fields__)


def pooled_counts(details: dict[str, np.ndarray]) -> Counts:
    """What `details` say of all pictures together."""
    return Counts(*(details[name].sum(0) for name in NAMES))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _small(found: NucleiMap) -> np.ndarray:
    """Every so manieth pixel of an answer, so that its longer side is short, int32 [H, W, 2]."""
    step = -(-max(found.instances.shape) // _LONGEST)
    return np.stack((found.instances, found.type_map), 2)[::step, ::step].astype(np.int32)
