"""What one arm has over another, and how sure that is: seeds and validation images are both samples.

A difference is *clear* when the 95 % interval of its mean leaves out 0, and the interval counts both: how much the paired differences
vary between the seeds, and how far these validation images alone may mislead. All seeds are measured on the same images, so that the
second part does not shrink with more seeds. Of two variances that are estimated apart, the interval's half width is

    sqrt( t(S - 1)^2 s^2 / S  +  t(N - 1)^2 e^2 )

with s the standard deviation of the S seeds' differences and e the standard error that the N images leave. It holds at least 95 % whatever
the shares of the two; degrees of freedom by Satterthwaite would miss up to 13 % with two seeds.

Source: Banerjee 1961, "On confidence interval for two-means problem based on separate estimates of variances and tabulated values of
t-table", Sankhya A 23.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

Details = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; std is None for one seed."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value; one that is not finite makes the whole not a number rather than going missing."""
        numbers = [float(value) for value in values]
        if not all(map(math.isfinite, numbers)):
            return cls(math.nan, math.nan if len(numbers) > 1 else None, len(numbers))
        return cls(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


@dataclass(frozen=True)
class Gain:
    """How far `arm` is from `over` on `metric`, seed by seed: arm - over, whichever direction is better.

    Attributes:
        per_seed: the paired differences.
        images: N, how many validation images they were measured on; None where that is not known.
        image_error: standard error that these images leave in the mean difference, in the metric's unit; 0 where it is not known.
    """

    arm: str
    over: str
    metric: str
    per_seed: dict[int, float]
    images: int | None = None
    image_error: float = 0.0

    @property
    def spread(self) -> Spread:
        """Mean and sample standard deviation of the paired differences."""
        return Spread.of(self.per_seed.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean paired difference, over seeds and images; None for one seed, which shows nothing of the others."""
        std, n = self.spread.std, self.spread.n
        return None if std is None else self._around(math.hypot(_student(n) * std / math.sqrt(n), self._of_images))

    @property
    def images_interval(self) -> tuple[float, float] | None:
        """The same for these very seeds, were they measured on other images of the kind; None where the images are not known."""
        return None if self.images is None else self._around(self._of_images)

    @property
    def clear(self) -> bool | None:
        """Whether the interval leaves out 0; None for one seed."""
        return _leaves_out_0(self.interval)

    @property
    def verdict(self) -> str:
        """Whether to believe it: "clear"; of a single seed at most "clear for this seed", if its images leave no doubt; "cannot tell"."""
        if self.clear:
            return "clear"
        return "clear for this seed" if self.interval is None and _leaves_out_0(self.images_interval) else "cannot tell"

    @property
    def _of_images(self) -> float:
        return 0.0 if self.images is None else _student(self.images) * self.image_error

    def _around(self, half: float) -> tuple[float, float]:
        return self.spread.mean - half, self.spread.mean + half


def _leaves_out_0(interval: tuple[float, float] | None) -> bool | None:
    """Differences that are equal on every seed, of images that are not known, show how coarse the metric is: they leave out nothing."""
    return None if interval is None else interval[0] < interval[1] and (interval[0] > 0 or interval[1] < 0)


def _student(n: int) -> float:
    """Student's 97.5 % point for the mean of n values."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) if n > 1 else math.inf


def far_worse(value: float, other: float, *, higher_is_better: bool) -> bool:
    """Whether a metric is worse than another by more than 15 % of it: a teacher's than the student's alone, say."""
    return (other - value) * (1 if higher_is_better else -1) > 0.15 * abs(other)


def image_error(
    pairs: Sequence[tuple[Details, Details]], values: Sequence[tuple[float, float]], one_image: float
) -> tuple[int | None, float]:
    """How many images a mean paired difference was measured on, and the standard error that they leave in it.

    Where the metric is a mean over images (see `outcomes`), the error is that of the mean over images of what each contributes to the
    difference, averaged over the seeds. To the sum of squares one image is added that might have gone either way: without it a few lucky
    images of a small set would seem certain [Agresti and Min 2005 add as much to paired proportions]. Of any other metric, average
    precision for one, the error is not known from what is kept, and that one image alone counts: the metric resolves no less.

    Args:
        pairs: for each seed the per-sample results of both arms.
        values: for each seed the metric of both arms.
        one_image: the most that an image can contribute: 100 to a metric in %; 0 where there is no such bound.

    Returns:
        N and the error; None and 0 where the images are not known.
    """
    images = max((len(np.unique(details["ids"])) for pair in pairs for details in pair if "ids" in details), default=0)
    if not images:
        return None, 0.0
    ids = pairs[0][0].get("ids", np.empty(0))
    contributions = []
    for (mine, theirs), (metric, other) in zip(pairs, values, strict=True):
        a, b = outcomes(mine, metric), outcomes(theirs, other)
        if a is None or b is None or not (np.array_equal(mine["ids"], ids) and np.array_equal(theirs["ids"], ids)):
            return images if one_image else None, one_image / images
        contributions.append(a - b)
    mean_N = np.mean(contributions, axis=0)
    return images, math.sqrt(float(np.square(mean_N - mean_N.mean()).sum()) + one_image**2) / images


def outcomes(details: Details, metric: float) -> np.ndarray | None:
    """What each image contributes to a metric that is their mean, in its unit, float64 [N]; None of any other metric.

    Details that hold `labels` and `predicted` [N] tell it of accuracy in %; those of other tasks may hold it as a column `outcome`.

    Args:
        details: per-sample results.
        metric: its value; contributions that have another mean are not this metric's.
    """
    found = details.get("outcome")
    if found is None and {"labels", "predicted"} <= details.keys() and details["labels"].ndim == 1:
        found = 100 * (details["labels"] == details["predicted"])
    if found is None or not len(found) or len(found) != len(details.get("ids", ())):
        return None
    return found.astype(np.float64) if math.isclose(found.mean(), metric, rel_tol=1e-5, abs_tol=1e-5) else None
