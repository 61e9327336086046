"""Adapting a whole bank (section 4), once and offline: what comes out is another bank, from which the same training runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError, one_of, share
from stillroom.methods.ferkd.adaptation import HARD, IMPORTANT, UNINFORMATIVE, Score, Thresholds, adapt, confidence
from stillroom.methods.ferkd.bank.folder import Rows
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.bank.writer import BankPlan, write_bank

_SAMPLE = 2**24  # scores that quantiles are taken of
BINS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the confidence, for the report


@dataclass(frozen=True)
class Calibration:
    """How a bank is adapted.

    Args:
        thresholds: T_L, T_M, T_T: shares of the bank's crops (quantiles of the score) [inferred], or scores.
        absolute: the thresholds are scores, e.g. 0.15, 0.3, 0.95.
        label_smoothing: epsilon of the smoothed ground truth.
        score: a crop's confidence: the ``max`` of its label, or the probability of the ``truth``.

    Raises:
        InputError: thresholds that do not rise or lie outside [0, 1], a smoothing outside [0, 1], an unknown score.
    """

    thresholds: tuple[float, float, float] = (0.03, 0.2, 0.97)
    absolute: bool = False
    label_smoothing: float = 0.1
    score: Score = "max"

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        if len(self.thresholds) != 3 or not 0 <= self.thresholds[0] <= self.thresholds[1] <= self.thresholds[2] <= 1:
            raise InputError("thresholds", list(self.thresholds), "three numbers 0 <= T_L <= T_M <= T_T <= 1")
        share("label_smoothing", self.label_smoothing)
        one_of("score", self.score, get_args(Score))

    def to_json(self) -> dict[str, Any]:
        """Plain data, under the names that adapted banks on people's disks have."""
        return {
            "thresholds": list(self.thresholds),
            "absolute": self.absolute,
            "epsilon": self.label_smoothing,
            "score": self.score,
        }

    def scores(self, bank: LabelBank) -> Thresholds:
        """The thresholds as scores; quantiles are those of all crops, or of an even sample of 16 million."""
        if self.absolute:
            return Thresholds(*self.thresholds)
        every = max(1, -(-len(bank) * bank.crops // _SAMPLE))
        scores = np.concatenate([_scored(bank, block, self.score)[0].numpy()[::every] for _, block in bank.blocks()])
        return Thresholds(*np.quantile(scores, self.thresholds).tolist())


def adapted_bank(bank: LabelBank, calibration: Calibration) -> LabelBank:
    """The bank with its labels adapted, in a folder inside its own that is named after the calibration; made when it is not there yet.

    Its `about` says, under ``adaptation``, which thresholds were used, which share of the crops became what, and how often the teacher was
    right by its confidence.

    Args:
        bank: as the teacher labelled it.
        calibration: how.

    Raises:
        InputError: the folder holds another bank.
    """
    said = {**calibration.to_json(), "of": bank.fingerprint()}
    folder = bank.path / "adapted" / hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=6).hexdigest()
    thresholds = calibration.scores(bank)
    form = bank.format.calibrated

    def rows(first: int, last: int) -> Iterator[Rows]:
        for _, block in bank.blocks(first, last):
            yield _adapted(block, bank.format, thresholds, calibration)

    about = {**bank.about, "adaptation": {**said, "scores": asdict(thresholds), **statistics(bank, thresholds, calibration.score)}}
    plan = BankPlan({**bank.key, "adaptation": said}, form, bank.crops, bank.classes, bank.names, about, kept=True, result=bank.result)
    return write_bank(folder, plan, rows, argument="labels")


def statistics(bank: LabelBank, thresholds: Thresholds, score: Score = "max") -> dict[str, Any]:
    """What a calibration does to a bank, and whether it is worth it: it is where the teacher is often wrong.

    Returns:
        ``shares``: of crops that are discarded, hard, important. ``teacher``: for each bin of the largest probability its bounds, the share
        of crops in it, and the share of these of which it is the ground truth's (None for an empty bin).
    """
    kinds, crops = np.zeros(3, np.int64), np.zeros(len(BINS) - 1, np.int64)
    right = np.zeros(len(BINS) - 1, np.int64)
    for _, block in bank.blocks():
        scored, labels, targets = _scored(bank, block, score)
        kinds += np.bincount(thresholds.categories(scored).numpy(), minlength=3)
        bins = np.clip(np.digitize(bank.format.confidence(labels).numpy(), BINS[1:-1]), 0, len(crops) - 1)
        crops += np.bincount(bins, minlength=len(crops))
        right += np.bincount(bins, weights=(bank.format.best(labels) == targets).numpy(), minlength=len(crops)).astype(np.int64)
    names = {UNINFORMATIVE: "discarded", HARD: "hard", IMPORTANT: "important"}
    return {
        "shares": {name: float(kinds[kind] / kinds.sum()) for kind, name in names.items()},
        "teacher": [
            {"from": low, "to": high, "share": float(count / crops.sum()), "right": float(hit / count) if count else None}
            for low, high, count, hit in zip(BINS, BINS[1:], crops.tolist(), right.tolist(), strict=False)
        ],
    }


def _scored(bank: LabelBank, block: Rows, score: Score) -> tuple[Tensor, SoftLabels, Tensor]:
    """Scores, labels and targets of the crops of a block, without those that an earlier adaptation discarded; [R] each."""
    labels, targets_R, kept_R = _flat(block)
    labels = SoftLabels(*(None if rows is None else rows[kept_R] for rows in labels))
    return confidence(labels, bank.format, targets_R[kept_R], score), labels, targets_R[kept_R]


def _flat(block: Rows) -> tuple[SoftLabels, Tensor, Tensor]:
    """Labels, targets and which crops there are of a block [B, M, ...] as rows of crops, [B * M, ...]."""
    images, crops = block["coords"].shape[:2]
    targets_R = torch.from_numpy(np.repeat(block["targets"].astype(np.int64), crops))
    kept_BM = block["kept"] if "kept" in block else np.ones((images, crops), bool)
    return SoftLabels.of(block), targets_R, torch.from_numpy(kept_BM.reshape(-1))


def _adapted(block: Rows, form: LabelFormat, thresholds: Thresholds, calibration: Calibration) -> dict[str, np.ndarray]:
    labels, targets_R, kept_R = _flat(block)
    images, crops = block["coords"].shape[:2]
    images_R = torch.arange(images).repeat_interleave(crops)
    epsilon, score = calibration.label_smoothing, calibration.score
    new = adapt(labels, form, targets_R, thresholds, epsilon=epsilon, score=score, images_R=images_R, kept_R=kept_R)
    by_image = {name: rows.reshape(images, crops, -1) for name, rows in new.labels.arrays().items()}
    return {**block, **by_image, "kept": new.keep.numpy().reshape(images, crops)}
