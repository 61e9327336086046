"""How soft labels are written down, one for each stored crop: whole, or as their largest classes and a rule for the others.

FKD's label types, of which FerKD's label banks are made (FerKD specification, section 2). With C classes and teacher probabilities p:

    type                     kept                              given to each of the other classes
    ori                      p                                 -
    hard                     the largest class                 nothing: one-hot
    smoothing                the largest class c and p_c       (1 - p_c) / (C - 1)
    marginal_smoothing_k5    the 5 largest and their p         (1 - their sum) / (C - 5)
    marginal_renorm_k5       the 5 largest and their p         nothing; the 5 are divided by their sum

Any number may stand in the place of 5; as many as there are classes, or more, is ``ori``. In memory and in a bank labels are two arrays,
`SoftLabels`. In the released files they are one, which has class numbers as floats beside the probabilities (`LabelFormat.to_released`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError, one_of

LabelDtype = Literal["fp16", "fp32"]
Kind = Literal["ori", "hard", "smoothing", "marginal_smoothing", "marginal_renorm"]

DEFAULT_TYPE = "marginal_smoothing_k5"
_KNOWN = "ori, hard, smoothing, marginal_smoothing_k5, marginal_renorm_k5 (or another number)"
_RELEASED_TOP = 5  # `marginal_renorm` without a number, as the released reader calls it
_SLACK = 1e-3  # a sum of rounded probabilities may be so much above 1
_TORCH = {"fp16": torch.float16, "fp32": torch.float32}


class SoftLabels(NamedTuple):
    """Soft labels of R crops as they are stored, k classes each.

    Attributes:
        classes: int [R, k], the most probable first; None where all classes are stored in order (``ori``).
        values: float [R, k], their probabilities; None for ``hard``, where the one class has them all.
    """

    classes: Tensor | None
    values: Tensor | None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> SoftLabels:
        """Those among arrays [..., k] that are called ``classes`` and ``values``, a row for each crop."""
        found = (torch.from_numpy(np.ascontiguousarray(arrays[name])).flatten(0, -2) if name in arrays else None for name in cls._fields)
        return cls(*found)

    def arrays(self) -> dict[str, np.ndarray]:
        """The inverse of `of`, of rows: what there is, by name."""
        return {name: rows.cpu().numpy() for name, rows in self._asdict().items() if rows is not None}


@dataclass(frozen=True)
class LabelFormat:
    """A type of labels for C classes; `of` reads it from its name.

    Args:
        kind: see the module.
        num_classes: C, at least 2.
        top: k, classes that are kept.
        dtype: of the stored probabilities.
    """

    kind: Kind
    num_classes: int
    top: int
    dtype: LabelDtype = "fp16"

    @classmethod
    def of(cls, label_type: str, num_classes: int, dtype: LabelDtype = "fp16") -> LabelFormat:
        """The format that a name such as ``marginal_smoothing_k5`` stands for.

        Raises:
            InputError: an unknown name or type of numbers, or fewer than two classes.
        """
        one_of("dtype", dtype, _TORCH)
        if num_classes < 2:
            raise InputError("num_classes", num_classes, "at least two classes")
        if label_type == "ori":
            return cls("ori", num_classes, num_classes, dtype)
        if label_type in ("hard", "smoothing"):
            return cls(label_type, num_classes, 1, dtype)  # type: ignore[arg-type]  # a Literal by the line above
        match = re.fullmatch(r"(marginal_smoothing|marginal_renorm)_k([1-9]\d*)|(marginal_renorm)", label_type)
        if match is None:
            raise InputError("label_type", label_type, f"one of {_KNOWN}")
        top = int(match[2] or _RELEASED_TOP)
        if top >= num_classes:
            return cls("ori", num_classes, num_classes, dtype)
        return cls(match[1] or match[3], num_classes, top, dtype)  # type: ignore[arg-type]

    @property
    def label_type(self) -> str:
        """Its name, which `of` reads."""
        return f"{self.kind}_k{self.top}" if self.kind.startswith("marginal") else self.kind

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of a row and type of the arrays ``classes`` and ``values``, as far as there are."""
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        if self.kind != "ori":
            found["classes"] = (self.top,), np.dtype(np.int16 if self.num_classes <= 2**15 else np.int32)
        if self.kind != "hard":
            found["values"] = (self.top,), np.dtype(np.float16 if self.dtype == "fp16" else np.float32)
        return found

    def encode(self, probabilities_RC: Tensor) -> SoftLabels:
        """Teacher probabilities [R, C] as stored labels. Of equal probabilities the lower class comes first, on every device."""
        if self.kind == "ori":
            return SoftLabels(None, probabilities_RC.to(_TORCH[self.dtype]))
        sorted_RC, classes_RC = probabilities_RC.float().sort(dim=1, descending=True, stable=True)
        classes_RK = classes_RC[:, : self.top].to(self._class_type)
        return SoftLabels(classes_RK, None if self.kind == "hard" else sorted_RC[:, : self.top].to(_TORCH[self.dtype]))

    def dense(self, labels: SoftLabels) -> Tensor:
        """The recovered labels y_s, float32 [R, C], on the device of the stored ones."""
        values_RK = self._values(labels)
        if labels.classes is None:
            return values_RK
        rest_R1 = self._rest(values_RK)[:, None]
        return rest_R1.expand(-1, self.num_classes).scatter(1, labels.classes.long(), values_RK)

    def confidence(self, labels: SoftLabels) -> Tensor:
        """max_c y_s[c], float32 [R]."""
        values_RK = self._values(labels)
        return torch.maximum(values_RK.max(1).values, self._rest(values_RK))

    def probability(self, labels: SoftLabels, classes_R: Tensor) -> Tensor:
        """y_s[c] of one class for each label, float32 [R]; `classes_R` int [R]."""
        values_RK = self._values(labels)
        if labels.classes is None:
            return values_RK.gather(1, classes_R.long()[:, None])[:, 0]
        kept_RK = labels.classes.long() == classes_R.long()[:, None]
        return torch.where(kept_RK.any(1), (values_RK * kept_RK).sum(1), self._rest(values_RK))

    def best(self, labels: SoftLabels) -> Tensor:
        """The most probable class, int64 [R]."""
        return self._values(labels).argmax(1) if labels.classes is None else labels.classes[:, 0].long()

    def smoothed(self, targets_R: Tensor, epsilon: float) -> SoftLabels:
        """The ground truth, smoothed, so stored that `dense` gives it back: 1 - epsilon for the target, epsilon / (C - 1) for each other.

        In the k-form: the target, then the k - 1 lowest other classes as fillers.

        Args:
            targets_R: int [R].
            epsilon: in [0, 1].

        Raises:
            InputError: the format cannot say this; `calibrated` gives one that can.
        """
        if self.kind in ("hard", "marginal_renorm"):
            raise InputError("label_type", self.label_type, "a type that has room for smoothed labels")
        target_R1, other = targets_R.long()[:, None], epsilon / (self.num_classes - 1)
        if self.kind == "ori":
            values_RC = torch.full((len(targets_R), self.num_classes), other).scatter(1, target_R1, 1 - epsilon)
            return SoftLabels(None, values_RC.to(_TORCH[self.dtype]))
        fillers_1K = torch.arange(self.top - 1)[None]
        fillers_RK = fillers_1K + (fillers_1K >= target_R1).long()  # the lowest that are not the target
        values_RK = torch.full((len(targets_R), self.top), other)
        values_RK[:, 0] = 1 - epsilon
        return SoftLabels(torch.cat([target_R1, fillers_RK], 1).to(self._class_type), values_RK.to(_TORCH[self.dtype]))

    @property
    def calibrated(self) -> LabelFormat:
        """The format in which these labels and smoothed ones can lie side by side (`adopt` translates)."""
        kinds: dict[str, Kind] = {"hard": "smoothing", "marginal_renorm": "marginal_smoothing"}
        return LabelFormat(kinds.get(self.kind, self.kind), self.num_classes, self.top, self.dtype)

    def adopt(self, labels: SoftLabels, source: LabelFormat) -> SoftLabels:
        """Labels of `source` in this format, which is `source.calibrated`, without a change of what they mean."""
        return labels if source == self else SoftLabels(labels.classes, source._values(labels).to(_TORCH[self.dtype]))

    def unsound(self, labels: SoftLabels) -> Tensor:
        """Which labels cannot be, bool [R]: a class outside 0 .. C-1 or twice, a negative probability or none, a sum above 1."""
        values_RK = self._stored(labels)
        wrong_R = ~((values_RK >= 0).all(1) & (values_RK.sum(1) <= 1 + _SLACK))  # NaN compares as false
        if labels.classes is not None:
            classes_RK = labels.classes.long()
            wrong_R |= ((classes_RK < 0) | (classes_RK >= self.num_classes)).any(1)
            wrong_R |= (classes_RK.sort(1).values.diff(dim=1) == 0).any(1)
        return wrong_R

    def to_released(self, labels: SoftLabels) -> Tensor:
        """In the released files' form: int64 [R] (hard); float32 [R, C] (ori), [R, 2] (smoothing) or [R, 2, k], classes as floats."""
        if self.kind == "hard":
            assert labels.classes is not None
            return labels.classes[:, 0].long()
        assert labels.values is not None
        values_RK = labels.values.float()  # float16 holds class numbers exactly up to 2048 only
        if labels.classes is None:
            return values_RK
        pairs_R2K = torch.stack([labels.classes.to(values_RK.dtype), values_RK], 1)
        return pairs_R2K[:, :, 0] if self.kind == "smoothing" else pairs_R2K

    def from_released(self, released: Tensor) -> SoftLabels:
        """The inverse of `to_released`; of floats of any precision.

        Raises:
            InputError: a shape that labels of this type do not have.
        """
        shapes = {"ori": [self.num_classes], "hard": [], "smoothing": [2]}
        expected = shapes.get(self.kind, [2, self.top])
        if list(released.shape[1:]) != expected:
            raise InputError("label_type", f"labels of shape {list(released.shape)}", f"{['crops', *expected]} for {self.label_type}")
        if self.kind == "hard":
            return SoftLabels(released.to(self._class_type)[:, None], None)
        values = released.float()  # float16 sums and differences would be wrong in the third digit
        if self.kind == "ori":
            return SoftLabels(None, values.to(_TORCH[self.dtype]))
        pairs_R2K = values[:, :, None] if self.kind == "smoothing" else values
        # A class number that is no whole number, or none at all, is nobody's: -1 is found by `unsound`.
        classes_RK = pairs_R2K[:, 0]
        whole_RK = (classes_RK == classes_RK.round()) & (classes_RK.abs() < 2**31)
        classes_RK = torch.where(whole_RK & (classes_RK < self.num_classes), classes_RK, -1.0)
        return SoftLabels(classes_RK.to(self._class_type), pairs_R2K[:, 1].to(_TORCH[self.dtype]))

    @property
    def _class_type(self) -> torch.dtype:
        return torch.int16 if self.num_classes <= 2**15 else torch.int32

    def _values(self, labels: SoftLabels) -> Tensor:
        """The probabilities that the kept classes are given, float32 [R, k]."""
        values_RK = self._stored(labels)
        return values_RK / values_RK.sum(1, keepdim=True).clamp(min=1e-12) if self.kind == "marginal_renorm" else values_RK

    def _stored(self, labels: SoftLabels) -> Tensor:
        """The probabilities as they were written down, in float32."""
        if labels.values is None:
            assert labels.classes is not None
            return torch.ones(labels.classes.shape, device=labels.classes.device)
        return labels.values.float()

    def _rest(self, values_RK: Tensor) -> Tensor:
        """What each class that is not kept is given, [R]; never below 0, though a rounded sum may be above 1."""
        if self.kind in ("smoothing", "marginal_smoothing"):
            return (1 - values_RK.sum(1)).clamp(min=0) / (self.num_classes - self.top)
        return torch.zeros_like(values_RK[:, 0])
